"""Errors a user can act on: one line that names the cause and the fix.

The CLI prints the message without a traceback and exits with code 2. Everything else that is raised is a bug.
"""

import difflib
import importlib
from collections.abc import Iterable, Sequence
from types import ModuleType


class VisionMLPError(Exception):
    """Base of every error whose message is written for the user."""


class UnknownModel(VisionMLPError, ValueError):
    """No model has this name; the message lists the nearest names."""

    @classmethod
    def of(cls, name: str, known: Iterable[str]) -> "UnknownModel":
        """The error for a name that is not among the known ones."""
        near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.4)
        hint = f"did you mean {', '.join(near)}?" if near else "see visionmlp.list_models()"
        return cls(f"no model {name!r}; {hint}")

    @classmethod
    def of_weights(cls, name: str, tag: str, tags: Sequence[str]) -> "UnknownModel":
        """The error for a tag that is not among those of the model's weights."""
        there = f"there are {', '.join(tags)}" if tags else "it has none"
        return cls(f"{name} has no weights {tag!r}; {there}")


class InvalidConfig(VisionMLPError, ValueError):
    """A configuration field breaks a rule; the message states the rule and the fix."""


class UnknownOption(InvalidConfig, TypeError):
    """A model has no option of this name; the message names the nearest. A TypeError like any unknown argument."""


class InvalidImageSize(VisionMLPError, ValueError):
    """The input size cannot work; the message names sizes that can."""


class SentenceTooLong(VisionMLPError, ValueError):
    """A sentence has more tokens than a model has positions; the message says how to have more."""


class CheckpointError(VisionMLPError, ValueError):
    """A checkpoint cannot be read (missing, truncated, unsafe or of an unknown layout)."""


class CheckpointMismatch(CheckpointError):
    """A checkpoint was read but does not fit the model; lists missing, unexpected and misshapen keys."""

    missing: list[str]
    unexpected: list[str]
    misshapen: list[str]

    def __init__(
        self,
        message: str,
        *,
        missing: Sequence[str] = (),
        unexpected: Sequence[str] = (),
        misshapen: Sequence[str] = (),
    ) -> None:
        super().__init__(message)
        self.missing, self.unexpected, self.misshapen = list(missing), list(unexpected), list(misshapen)


class NotInEvalMode(VisionMLPError, RuntimeError):
    """Re-parameterisation is exact for evaluation only; the message says to call ``model.eval()``."""


class DataError(VisionMLPError, ValueError):
    """A dataset or an image cannot be used; the message names the file or folder."""


class UnreadableImage(DataError):
    """An image cannot be decoded; the message says why, and whoever asked for it which one."""


class RunFolderError(VisionMLPError, OSError):
    """A run folder cannot be written, exists already, or holds nothing to resume."""


class TrainingDiverged(VisionMLPError, RuntimeError):
    """The loss is no longer finite; the message names step and learning rate."""


class MissingExtra(VisionMLPError, ImportError):
    """An optional dependency is not installed; the message names the extra to install."""


class Note(UserWarning):
    """Something that is not wrong but that the user should know; the CLI prints it as a note, not as a warning."""


def require(module: str, *, extra: str) -> ModuleType:
    """Import an optional dependency.

    Args:
        module: dotted name, such as ``"matplotlib"``.
        extra: the extra of this package that installs it.

    Raises:
        MissingExtra: when the module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.split(".")[0]
        raise MissingExtra(f"{package} is not installed; run: pip install 'visionmlp[{extra}]'") from error


def first_line(error: Exception) -> str:
    """The first line of another library's message, or the name of its class where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
