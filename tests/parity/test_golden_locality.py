"""Convolutions as matrices, and whole blocks before and after Locality Injection, against the authors' code."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.golden.fill import fill, image
from visionmlp.models.repmlpnet import DeployedRepMLPBlock, RepMLPBlock
from visionmlp.ops.fold import conv_matrix

GOLDEN = Path(__file__).parents[1] / "golden" / "locality"
CASES = json.loads((GOLDEN / "index.json").read_text())["cases"]
KERNELS = [case for case in CASES if case["kind"] != "block"]
BLOCKS = [case for case in CASES if case["kind"] == "block"]


def test_every_golden_file_is_a_test():
    assert {case["file"] for case in CASES} == {path.name for path in GOLDEN.glob("*.npz")}


@pytest.mark.parametrize("case", KERNELS, ids=lambda case: case["file"])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_kernel_as_matrix(case, dtype, bound):
    golden = np.load(GOLDEN / case["file"])
    kernel = torch.from_numpy(golden["conv" if case["kind"] == "shared" else "dense"]).to(dtype)
    groups = case["s"] if case["kind"] == "shared" else 1
    matrix = conv_matrix(kernel, (case["h"], case["w"]), padding=case["p"], groups=groups)
    rows = matrix.reshape(-1, matrix.shape[-1])
    assert list(rows.shape) == case["fc"]
    assert np.abs(rows.double().numpy() - golden["fc"]).max() <= bound * np.abs(golden["fc"]).max()


def block_from(case: dict) -> RepMLPBlock:
    shape = case["block"]
    block = RepMLPBlock(
        shape["channels"],
        (shape["h"], shape["w"]),
        share_sets=shape["num_sharesets"],
        kernel_sizes=shape["reparam_conv_k"],
        reduction=shape["globalperceptron_reduce"],
        window_order="authors",
    ).double()
    state = {}
    for name, size, _ in case["state"]:
        value = torch.from_numpy(fill(name, tuple(size))).double()
        name = name.replace("gp.", "global_perceptron.").replace("fc3_bn.", "norm.").replace(".bn.", ".norm.")
        name = name.replace("fc3.weight", "fc3")
        for k in shape["reparam_conv_k"]:
            name = name.replace(f"repconv{k}.", f"locality.by_kernel_size.{k}.")
        state[name] = value.reshape(dict(block.state_dict())[name].shape)
    block.load_state_dict(state)
    return block.eval()


@pytest.mark.parametrize("case", BLOCKS, ids=lambda case: case["file"])
@torch.no_grad()
def test_block_before_and_after_injection(case):
    golden = np.load(GOLDEN / case["file"])
    block = block_from(case)
    x = torch.from_numpy(image(tuple(case["input"]))).double()
    np.testing.assert_allclose(block(x).numpy(), golden["out"], rtol=0, atol=1e-9 * np.abs(golden["out"]).max())

    weight, bias = block.folded()
    tokens = weight.shape[-1]
    np.testing.assert_allclose(weight.reshape(-1, tokens).numpy(), golden["fc3_weight"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(bias.repeat_interleave(tokens).numpy(), golden["fc3_bias"], rtol=0, atol=1e-12)

    # an identity norm before the block: the deploy form adds the residual
    identity = nn.BatchNorm2d(x.shape[1], eps=0.0).double().eval()
    deployed = DeployedRepMLPBlock.fold(block, identity)
    np.testing.assert_allclose(
        (deployed(x) - x).numpy(), golden["out"], rtol=0, atol=1e-9 * np.abs(golden["out"]).max()
    )
