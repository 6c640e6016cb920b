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
    "asmlp/tiny": "asmlp_t",
    "asmlp/small": "asmlp_s",
    "hiremlp/tiny": "hiremlp_t",
    "hiremlp/small": "hiremlp_s",
    "hiremlp/base": "hiremlp_b",
    "vip/s14": "vip_s14",
    "vip/s7": "vip_s7",
    "vip/m7": "vip_m7",
    "cyclemlp/b1": "cyclemlp_b1",
    "cyclemlp/b2": "cyclemlp_b2",
    "cyclemlp/b3": "cyclemlp_b3",
    "dynamixer/s": "dynamixer_s",
    "dynamixer/m": "dynamixer_m",
}
# array prefix, dtype, largest error relative to the largest value; float32 on the arrays that their README recommends
PLAIN = [("", torch.float64, 1e-9), ("", torch.float32, 1e-5)]
RUNS = {
    "repmlpnet": [("", torch.float64, 1e-9), ("calm_", torch.float64, 1e-9), ("calm_", torch.float32, 1e-5)],
    "resmlp": PLAIN,
    "mixer": [("", torch.float64, 1e-9), ("dotted_", torch.float64, 1e-9), ("dotted_", torch.float32, 1e-5)],
    "asmlp": PLAIN,
    "hiremlp": [("", torch.float64, 1e-9), ("damped_", torch.float64, 1e-9), ("damped_", torch.float32, 1e-5)],
    "vip": PLAIN,
    "cyclemlp": PLAIN,
    "dynamixer": PLAIN,
}
# Hire-MLP base without damping is chaotic: an input changed by 1e-15 changes its logits by 7e-9
CHAOTIC = {"hiremlp/base": 1e-6}
# one worker has all tests of a file, one after the other, and makes its weights once
GROUPS = {file: pytest.mark.xdist_group(file) for file in MODELS}
FILES = [pytest.param(file, marks=group) for file, group in GROUPS.items()]
CASES = [
    pytest.param(
        file,
        prefix,
        dtype,
        CHAOTIC.get(file, bound) if prefix == "" else bound,
        id=f"{file}-{prefix or 'plain_'}{str(dtype)[-7:]}",
        marks=GROUPS[file],
    )
    for file in MODELS
    for prefix, dtype, bound in RUNS[file.split("/")[0]]
]


def test_every_golden_file_is_a_test():
    files = {f"{path.parent.name}/{path.stem}" for path in GOLDEN.glob("*/*.json") if path.stem != "index"}
    assert files == set(MODELS)
    shared = GOLDEN.parents[2] / "shared" / "golden"
    if shared.is_dir():
        assert {f"{p.parent.name}/{p.name}" for p in shared.glob("*/*.npz")} == {
            f"{p.parent.name}/{p.name}" for p in GOLDEN.glob("*/*.npz")
        }


@functools.lru_cache(maxsize=2)
def filled(file: str, dotted: bool, part: str = "state") -> dict[str, torch.Tensor]:
    record = json.loads((GOLDEN / f"{file}.json").read_text())[part]
    return {
        name: torch.from_numpy(fill(name.replace("/", ".") if dotted else name, tuple(shape)))
        if kind == "fill"
        else cycle_offset(name, shape)
        for name, shape, kind in record
    }


def cycle_offset(name: str, shape: list[int]) -> torch.Tensor:
    """CycleMLP's constant buffer: (dy, dx) of each channel; "sfc_h" moves along the width."""
    assert name.endswith(("sfc_h.offset", "sfc_w.offset"))
    offset = torch.zeros(shape)
    steps = (torch.arange(shape[1] // 2) + 1) % 3 - 1.0
    offset[0, int("sfc_h" in name) :: 2, 0, 0] = steps
    return offset


def official_state(file: str, prefix: str) -> dict[str, torch.Tensor]:
    state = filled(file, prefix == "dotted_")
    if prefix == "calm_":
        return {name: value * 0.25 if is_calmed(name) else value for name, value in state.items()}
    if prefix == "damped_":
        return {name: value * 0.125 if is_damped(name) else value for name, value in state.items()}
    return dict(state)


def is_calmed(name: str) -> bool:
    return name.endswith((".fc3_bn.weight", ".ffn_fc2.bn.weight")) or (
        ".repconv" in name and name.endswith(".bn.weight")
    )


def is_damped(name: str) -> bool:
    return name.endswith(("attn.proj.weight", "attn.proj.bias", ".mlp.fc2.weight", ".mlp.fc2.bias"))


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
    features = check_outputs(training, x, golden, prefix, bound)
    check_outputs(visionmlp.reparameterize(training), x, golden, prefix, bound)
    if f"{prefix}tokens" in golden:
        # with a classifier the last affine is folded into it; a feature extractor keeps its norm
        check_tokens(training, features, golden, prefix, bound)
        training.reset_classifier(0)
        deployed = visionmlp.reparameterize(training)
        check_tokens(deployed, deployed.forward_features(x), golden, prefix, bound)


def check_outputs(model, x, golden, prefix, bound):
    """Logits and levels; returns the last map."""
    last, levels = model.forward_intermediates(x)
    check(model.forward_head(last), golden[f"{prefix}logits"], bound)
    if f"{prefix}feat0" in golden:
        for i, level in enumerate(levels):
            steps = [max(1, size // parts) for size, parts in zip(level.shape[1:], (16, 4, 4), strict=True)]
            assert tuple(level.shape) == tuple(golden[f"feat{i}_shape"])
            check(level[:, :: steps[0], :: steps[1], :: steps[2]], golden[f"{prefix}feat{i}"], bound)
    return last


SIZES = [
    ("asmlp/tiny", (256, 192)),
    ("hiremlp/tiny", (256, 192)),
    ("hiremlp/tiny", (250, 190)),
    ("cyclemlp/b1", (256, 192)),
    ("cyclemlp/b1", (250, 190)),
]
DENSE = [(file, size) for file in ("asmlp/tiny", "hiremlp/tiny", "cyclemlp/b1") for size in ((224, 224), (250, 190))]


@pytest.mark.parametrize(("file", "size"), [pytest.param(*case, marks=GROUPS[case[0]]) for case in SIZES])
@torch.no_grad()
def test_other_sizes_match_the_authors_code(file, size):
    expected = np.load(GOLDEN / f"{file}.npz")[f"logits_{size[0]}x{size[1]}"]
    training = loaded(file, "", torch.float64)
    x = torch.from_numpy(image((1, 3, *size))).double()
    for model in (training, visionmlp.reparameterize(training)):
        check(model(x), expected, 1e-9)


def test_every_other_size_is_a_test():
    found = {
        (file, key.removeprefix("logits_"))
        for file in MODELS
        for key in np.load(GOLDEN / f"{file}.npz")
        if key.startswith("logits_")
    }
    assert found == {(file, f"{height}x{width}") for file, (height, width) in SIZES}


@pytest.mark.parametrize(("file", "size"), [pytest.param(*case, marks=GROUPS[case[0]]) for case in DENSE])
@torch.no_grad()
def test_dense_features_match_the_authors_code(file, size):
    """The authors' dense-prediction backbones: their classification weights and one more norm for each level."""
    golden = np.load(GOLDEN / f"{file}.npz")
    record = json.loads((GOLDEN / f"{file}.json").read_text())
    state = official_state(file, "") | filled(file, False, "dense_state")
    state = {name: value for name, value in state.items() if name not in record["dense_missing_state"]}
    training = visionmlp.create_model(MODELS[file], feature_norms=True).double()
    visionmlp.load_official(training, state).eval()
    x = torch.from_numpy(image((2 if size == (224, 224) else 1, 3, *size))).double()
    suffix = "" if size == (224, 224) else f"_{size[0]}x{size[1]}"
    for model in (training, visionmlp.reparameterize(training)):
        levels = model.forward_intermediates(x, intermediates_only=True)
        assert len(levels) == 4
        for i, level in enumerate(levels):
            assert tuple(level.shape) == tuple(golden[f"dense_feat{i}{suffix}_shape"])
            steps = [max(1, side // parts) for side, parts in zip(level.shape[1:], (16, 4, 4), strict=True)]
            check(level[:, :: steps[0], :: steps[1], :: steps[2]], golden[f"dense_feat{i}{suffix}"], 1e-9)


@pytest.mark.parametrize("file", FILES)
def test_our_weights_go_back_to_the_authors_format(file):
    """Names, shapes, order in memory and constant buffers: what their own code would load strictly."""
    theirs = official_state(file, "")
    with torch.device("meta"):
        model = visionmlp.create_model(MODELS[file])
    model = visionmlp.load_official(model.to_empty(device="cpu"), theirs)
    back = model.to_official(model.state_dict())
    assert set(back) == set(theirs)
    for name, value in theirs.items():
        assert back[name].shape == value.shape
        assert torch.equal(back[name], value), name


def check_tokens(model, features, golden, prefix, bound):
    tokens = features.flatten(1, 2)
    _, count, dim = tokens.shape
    check(tokens[:, :: max(1, count // 14), :: max(1, dim // 16)], golden[f"{prefix}tokens"], bound)
    check(model.forward_head(features, pre_logits=True), golden[f"{prefix}pooled"], bound)


@torch.no_grad()
@GROUPS["repmlpnet/T224"]
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
    products = ("conv", "linear", "dot_general", "matmul", "deform_conv2d")
    assert entry.macs == sum(record["flops_by_operator"].get(name, 0) for name in products)
