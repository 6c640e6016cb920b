"""What the authors' code computes, number by number, for the training form and the deploy form."""

import functools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import visionmlp
from tests.golden.fill import fill, image
from visionmlp.models.registry import variant

GOLDEN = Path(__file__).parents[1] / "golden"
MODELS = {
    "repmlpnet/T224": "repmlpnet_t224",
    "repmlpnet/B224": "repmlpnet_b224",
    "repmlpnet/T256": "repmlpnet_t256",
    "repmlpnet/B256": "repmlpnet_b256",
    "resmlp/resmlp_12": "resmlp_s12",
    "resmlp/resmlp_24": "resmlp_s24",
    "resmlp/resmlp_36": "resmlp_s36",
    "resmlp/resmlpB_24_patch16": "resmlp_b24",
    "mixer/S_32": "mlpmixer_s32",
    "mixer/S_16": "mlpmixer_s16",
    "mixer/B_32": "mlpmixer_b32",
    "mixer/B_16": "mlpmixer_b16",
}
# array prefix, dtype, largest error relative to the largest value; float32 on the arrays that their README recommends
RUNS = {
    "repmlpnet": [("", torch.float64, 1e-9), ("calm_", torch.float64, 1e-9), ("calm_", torch.float32, 1e-5)],
    "resmlp": [("", torch.float64, 1e-9), ("", torch.float32, 1e-5)],
    "mixer": [("", torch.float64, 1e-9), ("dotted_", torch.float64, 1e-9), ("dotted_", torch.float32, 1e-5)],
}
CASES = [
    pytest.param(
        file,
        prefix,
        dtype,
        bound,
        id=f"{file}-{prefix or 'plain_'}{str(dtype)[-7:]}",
        marks=pytest.mark.xdist_group(file),
    )
    for file in MODELS
    for prefix, dtype, bound in RUNS[file.split("/")[0]]
]


def test_every_golden_file_is_a_test():
    families = ("repmlpnet", "resmlp", "mixer")
    files = {f"{family}/{path.stem}" for family in families for path in (GOLDEN / family).glob("*.json")}
    assert files == set(MODELS)


@functools.lru_cache(maxsize=1)
def filled(file: str, dotted: bool) -> dict[str, torch.Tensor]:
    record = json.loads((GOLDEN / f"{file}.json").read_text())["state"]
    assert all(kind == "fill" for _, _, kind in record)
    return {
        name: torch.from_numpy(fill(name.replace("/", ".") if dotted else name, tuple(shape)))
        for name, shape, _ in record
    }


def official_state(file: str, prefix: str) -> dict[str, torch.Tensor]:
    state = filled(file, prefix == "dotted_")
    return {name: value * 0.25 if prefix == "calm_" and is_calmed(name) else value for name, value in state.items()}


def is_calmed(name: str) -> bool:
    return name.endswith((".fc3_bn.weight", ".ffn_fc2.bn.weight")) or (
        ".repconv" in name and name.endswith(".bn.weight")
    )


def loaded(file: str, prefix: str, dtype: torch.dtype) -> visionmlp.models.backbone.Backbone:
    with torch.device("meta"):
        model = visionmlp.create_model(MODELS[file])
    # every parameter and buffer is overwritten: loading is strict
    return visionmlp.load_official(model.to(dtype).to_empty(device="cpu"), official_state(file, prefix)).eval()


def check(got: torch.Tensor, expected: np.ndarray, bound: float) -> None:
    assert got.shape == expected.shape
    error = np.abs(got.double().numpy() - expected).max() / np.abs(expected).max()
    assert error < bound, f"relative error {error:.2e}"


@pytest.mark.parametrize(("file", "prefix", "dtype", "bound"), CASES)
@torch.no_grad()
def test_matches_the_authors_code(file, prefix, dtype, bound):
    golden = np.load(GOLDEN / f"{file}.npz")
    training = loaded(file, prefix, dtype)
    x = torch.from_numpy(image((2, 3, *training.config.img_size))).to(dtype)
    for model in (training, visionmlp.reparameterize(training)):
        check_outputs(model, x, golden, prefix, bound)
    if f"{prefix}tokens" in golden:
        # with a classifier the last affine is folded into it; a feature extractor keeps its norm
        check_tokens(training, x, golden, prefix, bound)
        training.reset_classifier(0)
        check_tokens(visionmlp.reparameterize(training), x, golden, prefix, bound)


def check_outputs(model, x, golden, prefix, bound):
    last, levels = model.forward_intermediates(x)
    check(model.forward_head(last), golden[f"{prefix}logits"], bound)
    if f"{prefix}feat0" in golden:
        for i, level in enumerate(levels):
            steps = [max(1, size // parts) for size, parts in zip(level.shape[1:], (16, 4, 4), strict=True)]
            assert tuple(level.shape) == tuple(golden[f"feat{i}_shape"])
            check(level[:, :: steps[0], :: steps[1], :: steps[2]], golden[f"{prefix}feat{i}"], bound)


def check_tokens(model, x, golden, prefix, bound):
    features = model.forward_features(x)
    tokens = features.flatten(1, 2)
    _, count, dim = tokens.shape
    check(tokens[:, :: max(1, count // 14), :: max(1, dim // 16)], golden[f"{prefix}tokens"], bound)
    check(model.forward_head(features, pre_logits=True), golden[f"{prefix}pooled"], bound)


@torch.no_grad()
@pytest.mark.xdist_group("repmlpnet/T224")
def test_injected_matrices_match_the_authors_conversion():
    golden = np.load(GOLDEN / "repmlpnet/T224.npz")
    model = loaded("repmlpnet/T224", "", torch.float64)
    for i, stage in enumerate(model.stages):
        weight, bias = stage.blocks[0].spatial.folded()
        sets, tokens, _ = weight.shape
        rows = weight.reshape(sets * tokens, tokens)
        check(
            rows[:: max(1, len(rows) // 48), :: max(1, tokens // 48)], golden[f"deploy_stages.{i}.0.fc3.weight"], 1e-12
        )
        repeated = bias.repeat_interleave(tokens)
        check(repeated[:: max(1, len(repeated) // 48)], golden[f"deploy_stages.{i}.0.fc3.bias"], 1e-12)


@pytest.mark.parametrize("file", MODELS)
def test_parameters_and_macs_equal_the_authors(file):
    record = json.loads((GOLDEN / f"{file}.json").read_text())
    entry = variant(MODELS[file])
    assert entry.params == record["n_params"]
    products = ("conv", "linear", "dot_general")
    assert entry.macs == sum(record["flops_by_operator"].get(name, 0) for name in products)
