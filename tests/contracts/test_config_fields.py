"""An option that does nothing is a lie: each field of each configuration changes something that can be observed."""

import dataclasses

import pytest
import torch

import visionmlp
from tests.contracts.conftest import TINY
from tests.randomise import randomise
from visionmlp.layers.auxiliary import collect_auxiliary
from visionmlp.models.checkpoint import default_preprocessing
from visionmlp.models.registry import variant

# another valid value for each field, for the tiny variants
COMMON = {
    "num_classes": 7,
    "in_chans": 1,
    "img_size": (64, 64),
    "drop_rate": 0.5,
    "drop_path_rate": 0.5,
}
AXIAL = {
    "patch_size": 2,
    "dims": (16, 32, 32),
    "blocks": (1, 1, 2),
    "segments": (4, 3, 6),
    "downsample_before": (1, 2),
    "mlp_ratio": 2.0,
    "reweight": False,
}
OTHERS: dict[str, dict[str, object]] = {
    "repmlpnet_test": {
        "patch_size": 2,
        "channels": 16,
        "blocks": (1, 1, 1),
        "share_sets": (2, 4, 32),
        "kernel_sizes": (3,),
        "global_perceptron": False,
        "reduction": 2,
        "ffn_ratio": 2,
        "window_order": "authors",
        "embed_kernel": 3,
        "embed_depthwise": 3,
    },
    "resmlp_test": {
        "patch_size": 4,
        "dim": 24,
        "depth": 2,
        "mlp_ratio": 2.0,
        "layer_scale": 0.3,
        "norm": "layernorm",
        "cross_patch": "mlp",
        "kernel_sizes": (3,),
        "proj_drop_rate": 0.5,
    },
    "mlpmixer_test": {
        "patch_size": 4,
        "dim": 24,
        "depth": 2,
        "token_dim": 8,
        "channel_dim": 24,
        "kernel_sizes": (3,),
        "proj_drop_rate": 0.5,
        "gelu": "erf",
    },
    "asmlp_test": {
        "patch_size": 2,
        "dim": 24,
        "blocks": (1, 2),
        "shift_size": 3,
        "dilation": 2,
        "mlp_ratio": 2.0,
        "proj_drop_rate": 0.5,
        "feature_norms": True,
    },
    "hiremlp_test": {
        "blocks": (2, 3),
        "dims": (24, 16),
        "region_sizes": (2, 3),
        "step_strides": (3, 1),
        "step_dilations": (1, 2),
        "step_padding": "zero",
        "region_padding": "replicate",
        "reweight": False,
        "mlp_ratio": 2.0,
        "proj_drop_rate": 0.5,
        "feature_norms": True,
    },
    "cyclemlp_test": {
        "blocks": (1, 2),
        "dims": (16, 32),
        "mlp_ratios": (2, 2),
        "pseudo_kernel_w": (1, 5),
        "pseudo_kernel_h": (3, 3),
        "dilation": 2,
        "reweight": False,
        "proj_drop_rate": 0.5,
        "feature_norms": True,
    },
    "vip_test": AXIAL,
    "dynamixer_test": {
        **AXIAL,
        "reduced_dim": 3,
        "mixing": "dense",
        "row_mixing": False,
        "column_mixing": False,
        "channel_mixing": False,
        "shared_mixing": True,
    },
    "sparsemlp_moe_test": {
        "patch_size": 4,
        "dim": 24,
        "depth": 3,
        "token_dim": 8,
        "channel_dim": 24,
        "sparse_blocks": 1,
        "token_expansion": 1,
        "channel_reduction": 4,
        "token_experts": 4,
        "token_top_k": 2,
        "token_expert_dim": 5,
        "channel_experts": 4,
        "channel_top_k": 1,
        "channel_expert_dim": 8,
        "capacity_factor": 0.5,
        "importance_weight": 0.02,
        "load_weight": 0.02,
        "router_noise": False,
        "normalise_gates": True,
        "kernel_sizes": (3,),
        "proj_drop_rate": 0.5,
    },
}
CASES = [
    pytest.param(name, field.name, id=f"{name}-{field.name}")
    for name in TINY
    for field in dataclasses.fields(variant(name).config)
]


def observed(name: str, **fields: object) -> dict[str, object]:
    """What two models are compared by: state, outputs in both modes on two sizes, initial values, preprocessing."""
    torch.manual_seed(0)
    model = visionmlp.create_model(name, **fields)  # type: ignore[arg-type]
    seen: dict[str, object] = {"shapes": {key: tuple(value.shape) for key, value in model.state_dict().items()}}
    seen["initial"] = [value.double().sum().item() for value in model.parameters()]
    seen["preprocessing"] = default_preprocessing(model)
    randomise(model)
    channels = model.in_chans
    height, width = model.config.img_size
    sizes = [(height, width)] if model.input_sizes == "fixed" else [(height, width), (height, 2 * width)]
    for size in sizes:
        x = torch.randn(4, channels, *size, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            seen[f"evaluation {size}"] = model.eval()(x).double().sum().item()
            seen[f"features {size}"] = [
                level.double().sum().item() for level in model.forward_intermediates(x, intermediates_only=True)
            ]
            torch.manual_seed(2)
            with collect_auxiliary(model.train()) as collected:
                seen[f"training {size}"] = model(x).double().sum().item()
            seen[f"auxiliary {size}"] = [part.loss.item() for part in collected]
    return seen


@pytest.mark.parametrize(("name", "field"), CASES)
def test_every_field_changes_something(name, field):
    if field == "global_pool":
        pooled, unpooled = (visionmlp.create_model(name, num_classes=0, global_pool=pool) for pool in ("avg", ""))
        x = torch.randn(2, 3, 32, 32)
        assert (pooled.eval()(x).dim(), unpooled.eval()(x).dim()) == (2, 4)
        return
    value = {**COMMON, **OTHERS[name]}[field]
    assert value != getattr(variant(name).config, field)
    assert observed(name, **{field: value}) != observed(name)


@pytest.mark.parametrize("name", TINY)
def test_the_comparison_can_fail(name):
    assert observed(name) == observed(name)
