"""The tasks, one line each, and how that of a run or a checkpoint is found; all that the command line knows of them.

A task is a package with a module ``definition`` that holds its `TaskDefinition` as ``TASK``.
"""

import difflib
import importlib
import json
from pathlib import Path

from visionmlp.errors import InvalidConfig
from visionmlp.tasks.definition import TaskDefinition

TASKS = {
    "classify": "visionmlp.tasks.classify",
    "dino": "visionmlp.tasks.dino",
    "moco": "visionmlp.tasks.moco",
    "segment": "visionmlp.tasks.segment",
    "detect": "visionmlp.tasks.detect",
    "translate": "visionmlp.tasks.translate",
}
"""Name to package."""

DEFAULT = "classify"
"""The task of runs and checkpoints that do not say one: they are older than the second task."""

_LONGEST_HEADER = 100 * 2**20
"""Of a safetensors file, in bytes, as the format demands."""


def load_task(name: str) -> TaskDefinition:
    """The definition of a task.

    Raises:
        InvalidConfig: with the nearest names, if there is none.
    """
    if name not in TASKS:
        near = difflib.get_close_matches(name, TASKS, n=3)
        hint = f"did you mean {', '.join(near)}?" if near else f"there are {', '.join(TASKS)}"
        raise InvalidConfig(f"no task {name!r}; {hint}")
    definition: TaskDefinition = importlib.import_module(f"{TASKS[name]}.definition").TASK
    return definition


def task_of_run(folder: Path) -> str | None:
    """Name of the task that a folder is a run of; None if it is no run folder.

    Raises:
        RunFolderError: if its ``config.yaml`` cannot be read.
    """
    if not (folder / "config.yaml").is_file():
        return None

    from visionmlp.engine.run_folder import RunFolder

    return str(RunFolder(folder).read_config().get("task", DEFAULT))


def task_of(reference: str) -> str | None:
    """Name of the task that a model was trained for.

    Args:
        reference: a run folder; a file in one; or a checkpoint elsewhere, which says it itself. Anything else says
            nothing: None.

    Raises:
        RunFolderError: if a ``config.yaml`` cannot be read.
    """
    path = Path(reference)
    if path.is_dir():
        return task_of_run(path)
    if not path.is_file():
        return None
    return task_of_run(path.parent) or _task_of_checkpoint(path)


def _task_of_checkpoint(path: Path) -> str | None:
    """From the metadata, without the tensors; None for what is no checkpoint of ours, damaged or not."""
    if path.suffix != ".safetensors":
        return None
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > _LONGEST_HEADER:
                return None
            metadata = json.loads(file.read(length))["__metadata__"]["visionmlp"]
        return str(json.loads(metadata).get("task", DEFAULT))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
