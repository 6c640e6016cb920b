"""Test models with few blocks: what a graph costs to make is its number of operators."""

from typing import Any

from visionmlp.models.backbone import Backbone
from visionmlp.models.checkpoint import CheckpointInfo, load_model

FEWEST: dict[str, dict[str, Any]] = {
    "asmlp_test": {"blocks": (2, 1)},
    "cyclemlp_test": {"blocks": (2, 1)},
    "dynamixer_test": {"blocks": (1, 1, 1)},
    "hiremlp_test": {"blocks": (2, 1)},  # the second moves its regions
    "mlpmixer_test": {"depth": 2},
    "repmlpnet_test": {"blocks": (1, 1, 1)},
    "resmlp_test": {"depth": 2},
    "sparsemlp_moe_test": {"depth": 2, "sparse_blocks": 1},
    "vip_test": {"blocks": (1, 1, 1)},
}
"""Each kind of block, stage and passage between them once."""


def load_shallow(name: str, **fields: Any) -> tuple[Backbone, CheckpointInfo]:
    """As `load_model`."""
    return load_model(name, **{**FEWEST.get(name, {}), **fields})
