"""Checkpoints in pairs: ``step-NNNNNN.safetensors`` holds weights, ``step-NNNNNN.state`` all else that a run needs.

Of a model in shards, the folder ``step-NNNNNN.shards`` takes the place of the weights; each process writes its own. The
state is written last, so a pair with a state is complete. A random generator has nothing to save: see `loop`.
"""

import io
import pickle
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from visionmlp.engine.launch import agree, on_rank_zero
from visionmlp.engine.sharded_files import put_shards, read_index, read_shards, take_shards, write_shards
from visionmlp.errors import RunFolderError, VisionMLPError
from visionmlp.files import write_beside

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from torch.distributed.device_mesh import DeviceMesh

WriteWeights = Callable[[Path, nn.Module], None]

_SHARDED = ".weights."
"""What `take_shards` calls the shards of the model, as `Checkpoints.save` hands them over."""


class Checkpoints:
    """The checkpoints of a run; all its processes call each method together.

    Args:
        folder: where they lie.
        keep: how many of the newest to keep.
        write_weights: writes a model's weights as safetensors, beside and renamed.
        fabric: launched.
        mesh: of the processes that the model is sharded over, if it is.
    """

    def __init__(
        self, folder: Path, *, keep: int, write_weights: WriteWeights, fabric: "Fabric", mesh: "DeviceMesh | None"
    ) -> None:
        self.folder, self.keep, self.write_weights = folder, keep, write_weights
        self.fabric, self.mesh = fabric, mesh

    def steps(self) -> list[int]:
        """See `saved_steps`; for any process alone."""
        return saved_steps(self.folder)

    def save(self, step: int, model: nn.Module, state: dict[str, Any]) -> None:
        """Write a pair, then remove the oldest beyond ``keep``.

        Raises:
            RunFolderError: if it cannot be written; older pairs are untouched.
        """
        if self.mesh is None:
            on_rank_zero(self.fabric, lambda: self._finish(step, state, model))
            return
        folder = self._shards(step)
        on_rank_zero(self.fabric, lambda: self._remove(step))  # what a kill while writing has left
        state, shards = take_shards({"weights": model.state_dict(), **state})
        write_shards(folder, shards)
        on_rank_zero(self.fabric, lambda: self._finish(step, state))

    def load(self) -> tuple[int, dict[str, Tensor], dict[str, Any]]:
        """The newest pair that can be read: step, weights, state. Pairs behind it are removed.

        Weights and state are whole tensors, or shards where the pair was written in shards and the model has them too.

        Raises:
            RunFolderError: if there is none.
        """
        steps: list[int] = on_rank_zero(self.fabric, self.steps)
        for step in reversed(steps):
            try:
                weights, state = self._read(step)
            except VisionMLPError as error:  # of this process or another
                if self.fabric.is_global_zero:
                    reason = " ".join(str(error).split())[:120]
                    message = f"checkpoint of step {step} is damaged ({reason}); trying an earlier one"
                    warnings.warn(message, stacklevel=2)
                continue
            on_rank_zero(self.fabric, lambda: [self._remove(other) for other in steps if other > step])  # noqa: B023
            return step, weights, state
        if steps:
            raise RunFolderError(f"nothing to resume in {self.folder}: every checkpoint is damaged; start a new run")
        raise RunFolderError(f"nothing to resume in {self.folder}: it has no checkpoint; start a new run")

    def _finish(self, step: int, state: dict[str, Any], model: nn.Module | None = None) -> None:
        """Write all but shards, in the first process."""
        if model is not None:
            self.write_weights(self._weights(step), model)
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_beside(self._state(step), buffer.getvalue())
        for old in self.steps()[: -self.keep]:
            self._remove(old)

    def _read(self, step: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        state, weights = on_rank_zero(self.fabric, lambda: self._read_files(step))
        if weights is not None:
            return weights, state
        folder = self._shards(step)
        index = agree(self.fabric, lambda: read_index(folder))
        tree = put_shards(state, agree(self.fabric, lambda: read_shards(folder, index, self.mesh)))
        return tree.pop("weights"), tree

    def _read_files(self, step: int) -> tuple[dict[str, Any], dict[str, Tensor] | None]:
        whole = self._weights(step).exists()
        return _read_state(self._state(step)), saved_weights(self.folder, step) if whole else None

    def _remove(self, step: int) -> None:
        self._state(step).unlink(missing_ok=True)  # first: without it the pair counts no more
        self._weights(step).unlink(missing_ok=True)
        shutil.rmtree(self._shards(step), ignore_errors=True)

    def _weights(self, step: int) -> Path:
        return _weights(self.folder, step)

    def _shards(self, step: int) -> Path:
        return _shards(self.folder, step)

    def _state(self, step: int) -> Path:
        return _state(self.folder, step)


def saved_steps(folder: Path) -> list[int]:
    """Steps that have a complete pair, ascending."""
    matches = [re.fullmatch(r"step-(\d+)\.state", path.name) for path in folder.glob("step-*.state")]
    steps = [int(match[1]) for match in matches if match]
    return sorted(step for step in steps if _weights(folder, step).exists() or _shards(folder, step).exists())


def saved_weights(folder: Path, step: int) -> dict[str, Tensor]:
    """The weights of a pair as whole tensors, in a process that trains nothing.

    Raises:
        RunFolderError: if they cannot be read.
    """
    if _weights(folder, step).exists():
        try:
            return load_file(_weights(folder, step))
        except (OSError, SafetensorError) as error:
            raise RunFolderError(f"{_weights(folder, step).name} cannot be read: {error}") from error
    try:
        tree = _read_state(_state(folder, step))
        names = {name: about for name, about in read_index(_shards(folder, step)).items() if name.startswith(_SHARDED)}
        return put_shards(tree["weights"], read_shards(_shards(folder, step), names, None))
    except VisionMLPError as error:
        raise RunFolderError(f"{_shards(folder, step).name} cannot be read: {error}") from error


def _read_state(path: Path) -> dict[str, Any]:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__  # EOFError has no text
        raise RunFolderError(f"{path.name} cannot be read: {reason}") from error


def _weights(folder: Path, step: int) -> Path:
    return folder / f"step-{step:06d}.safetensors"


def _shards(folder: Path, step: int) -> Path:
    return folder / f"step-{step:06d}.shards"


def _state(folder: Path, step: int) -> Path:
    return folder / f"step-{step:06d}.state"
