"""Options of ``eval`` that judge the features of a backbone."""

import dataclasses
from typing import Literal

from visionmlp.tasks.options import EvalOptions, option


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProtocolOptions(EvalOptions):
    """Which protocol judges the features, and how."""

    protocol: Literal["knn", "linear"] | None = option(
        "what judges the features: nearest neighbours, or a linear classifier that is trained on them; default: the "
        "model's own classes where it has them, otherwise knn",
        None,
    )
    k: int = option("neighbours that vote (knn)", 20)
    temperature: float = option("of their weights (knn)", 0.07)
    epochs: int = option("passes over the training images (linear)", 100)
    lr: float = option("learning rate for 256 images (linear)", 1e-3)
    output: str | None = option(
        "run folder of the linear classifier; default: the folder linear beside the weights (linear)",
        None,
        metavar="FOLDER",
    )
    resume: bool = option("continue the linear classifier's run (linear)", False)
