"""Checkpoints in pairs: ``step-NNNNNN.safetensors`` holds weights, ``step-NNNNNN.state`` all else that a run needs.

The state is written last, so a pair with a state is complete. A random generator has nothing to save: see `loop`.
"""

import io
import pickle
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from visionmlp.errors import RunFolderError
from visionmlp.files import write_beside

WriteWeights = Callable[[Path, nn.Module], None]


class Checkpoints:
    """The checkpoints of a run.

    Args:
        folder: where they lie.
        keep: how many of the newest to keep.
        write_weights: writes a model's weights as safetensors, beside and renamed.
    """

    def __init__(self, folder: Path, *, keep: int, write_weights: WriteWeights) -> None:
        self.folder, self.keep, self.write_weights = folder, keep, write_weights

    def steps(self) -> list[int]:
        """Steps that have a complete pair, ascending."""
        matches = [re.fullmatch(r"step-(\d+)\.state", path.name) for path in self.folder.glob("step-*.state")]
        return sorted(int(match[1]) for match in matches if match and self._weights(int(match[1])).exists())

    def save(self, step: int, model: nn.Module, state: dict[str, Any]) -> None:
        """Write a pair, then remove the oldest beyond ``keep``.

        Raises:
            RunFolderError: if it cannot be written; older pairs are untouched.
        """
        self.write_weights(self._weights(step), model)
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_beside(self._state(step), buffer.getvalue())
        for old in self.steps()[: -self.keep]:
            self._state(old).unlink()  # first: without it the pair counts no more
            self._weights(old).unlink()

    def load(self) -> tuple[int, dict[str, Tensor], dict[str, Any]]:
        """The newest pair that can be read: step, weights, state. Pairs behind it are removed.

        Raises:
            RunFolderError: if there is none.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                weights = load_file(self._weights(step))
                state = torch.load(self._state(step), map_location="cpu", weights_only=True)
            except (OSError, EOFError, RuntimeError, ValueError, SafetensorError, pickle.UnpicklingError) as error:
                reason = " ".join(str(error).split())[:120]
                warnings.warn(f"checkpoint of step {step} is damaged ({reason}); trying an earlier one", stacklevel=2)
                continue
            for damaged in (other for other in steps if other > step):
                self._state(damaged).unlink()
                self._weights(damaged).unlink()
            return step, weights, state
        if steps:
            raise RunFolderError(f"nothing to resume in {self.folder}: every checkpoint is damaged; start a new run")
        raise RunFolderError(f"nothing to resume in {self.folder}: it has no checkpoint; start a new run")

    def _weights(self, step: int) -> Path:
        return self.folder / f"step-{step:06d}.safetensors"

    def _state(self, step: int) -> Path:
        return self.folder / f"step-{step:06d}.state"
