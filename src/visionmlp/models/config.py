"""What every family's configuration has, and its rules."""

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from visionmlp.errors import InvalidConfig, InvalidImageSize


@dataclasses.dataclass(frozen=True, kw_only=True)
class BackboneConfig(ABC):
    """What every family takes. Families add their own fields; each is read once, where the model is built."""

    num_classes: int = 1000
    """Outputs of the classifier; 0 leaves it out."""
    in_chans: int = 3
    """Channels of the input image."""
    img_size: tuple[int, int] = (224, 224)
    """Height and width, in pixels, that the token matrices are built for."""
    global_pool: str = "avg"
    """How positions become one vector: "avg", or "" for the unpooled map (needs num_classes=0)."""
    drop_rate: float = 0.0
    """Dropout before the classifier."""
    drop_path_rate: float = 0.0
    """Probability that a residual branch is skipped in training; families say how it grows with depth."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            self._check_field(field.name, field.type, getattr(self, field.name))
        for name in ("drop_rate", "drop_path_rate"):
            self.require(0.0 <= getattr(self, name) < 1.0, f"{name} must be in [0, 1), got {getattr(self, name)}")
        self.require(
            self.global_pool != "" or self.num_classes == 0, "global_pool='' leaves a map, so give num_classes=0"
        )

    @property
    @abstractmethod
    def strides(self) -> tuple[int, ...]:
        """Pixels between neighbouring positions, for each stage."""

    def _check_field(self, name: str, kind: Any, value: Any) -> None:
        """Types, and the least value of every size and count."""
        if kind in (bool, str):
            self.require(isinstance(value, kind), f"{name} must be a {kind.__name__}, got {value!r}")
        elif kind is float:
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            self.require(number and math.isfinite(value), f"{name} must be a number, got {value!r}")
            self.require(value > 0 or not name.endswith("ratio"), f"{name} must be positive, got {value}")
        else:
            values = (value,) if kind is int else value
            least = 0 if name == "num_classes" else 1
            whole = isinstance(values, tuple) and all(type(v) is int for v in values)
            what = "an integer" if kind is int else "two integers" if name == "img_size" else "integers"
            self.require(whole and (name != "img_size" or len(values) == 2), f"{name} must be {what}, got {value!r}")
            if name != "kernel_sizes":  # has rules of its own
                self.require(min(values, default=least) >= least, f"{name} must be at least {least}, got {value}")

    @staticmethod
    def require(rule: bool, message: str) -> None:
        """Raise InvalidConfig with ``message`` unless ``rule`` holds."""
        if not rule:
            raise InvalidConfig(message)

    def require_multiple(self, divisor: int) -> None:
        """Raise InvalidImageSize unless both sides of ``img_size`` are multiples of ``divisor``."""
        if self.img_size[0] % divisor or self.img_size[1] % divisor:
            nearest = tuple(max(divisor, round(side / divisor) * divisor) for side in self.img_size)
            raise InvalidImageSize(
                f"img_size {size_text(self.img_size)} is not a multiple of {divisor}; "
                f"the nearest size that is: {size_text(nearest)}"
            )


def size_text(size: Sequence[int]) -> str:
    """``(224, 160)`` as ``224x160``."""
    return "x".join(str(side) for side in size)
