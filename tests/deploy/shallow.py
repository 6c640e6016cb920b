"""Test models with few blocks: what a graph costs to make is its number of operators."""

from typing import Any

from visionmlp.models.backbone import Backbone
from visionmlp.models.checkpoint import CheckpointInfo, load_model

FEWEST: dict[str, dict[str, Any]] = {
    "asmlp_test": {"blocks": (2, 1)},
    "cyclemlp_test": {"blocks": (2, 1)},
    "hiremlp_test": {"blocks": (2, 1)},  # the second moves its regions
    "mlpmixer_test": {"depth": 2},
    "resmlp_test": {"depth": 2},
}
"""Each kind of block, stage and passage between them once; the other families have no more."""


def load_shallow(name: str, **fields: Any) -> tuple[Backbone, CheckpointInfo]:
    """As `load_model`."""
    return load_model(name, **{**FEWEST.get(name, {}), **fields})
