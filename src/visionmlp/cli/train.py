"""``visionmlp train``: the fields of the task's configuration, with defaults from a recipe or the run to resume."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from visionmlp.cli.command import Command
from visionmlp.cli.options import TrainSwitches
from visionmlp.cli.tasks import agreed
from visionmlp.cli.usage import UsageError
from visionmlp.cli.words import check_options, scan
from visionmlp.measure.catalog import is_name
from visionmlp.tasks.register import load_task, task_of_run

if TYPE_CHECKING:
    import argparse

    from jsonargparse import ArgumentParser, Namespace


def check(words: Sequence[str]) -> None:
    """Refuse unknown options and models."""
    given, _ = scan(words, TrainSwitches, _Files)
    if given.scale is not None and given.recipe is None:
        raise UsageError("--scale shrinks a recipe; give --recipe NAME, or leave out --scale")
    task = load_task(agreed(_said(given)))
    others = check_options(words, "train", TrainSwitches, _Files, task.config, positional=("model",))
    if others:
        task.check_model(others[0])


def add_options(parser: "ArgumentParser", words: Sequence[str]) -> None:
    """Options of the task; ``--recipe`` and ``--resume`` on the command line decide what the defaults are."""
    from jsonargparse import ActionConfigFile

    from visionmlp.cli.parser import add_fields

    given, _ = scan(words, TrainSwitches, _Files)
    continued = given.resume and not given.config and not {"-h", "--help"} & set(words)
    if continued and given.output is None:
        raise UsageError("--resume needs --output, the run folder to continue")
    name = agreed(_said(given))
    config = load_task(name).config
    defaults = {}
    if given.recipe is not None:
        _, others = scan(words, TrainSwitches, _Files, config, positional=("model",))
        defaults = _recipe_defaults(given.recipe, next((word for word in others if is_name(word)), None), given.scale)
    model = defaults.pop("model", None)
    # first in the help
    add_fields(parser, TrainSwitches, {"task": name})
    parser.add_argument(
        "--config", action=ActionConfigFile, metavar="run.yaml", help="YAML file of options, spelled with underscores"
    )
    add_fields(parser, config, defaults, positional=("model",))
    if model is not None:
        # not as the positional's own default, which argparse would prefer to the config file's
        parser.set_defaults(model=model)
    if continued:
        parser.default_config_files = [str(_run_folder(given.output) / "config.yaml")]


def run(namespace: "Namespace") -> int:
    """Train, or print the configuration."""
    from visionmlp.cli.parser import options_from

    task = load_task(namespace.task)
    switches = options_from(namespace, TrainSwitches)
    if not switches.print_config:
        task.check_model(namespace.model)
    config = options_from(namespace, task.config)
    if switches.print_config:
        import yaml

        yaml.safe_dump(config.to_plain(), sys.stdout, sort_keys=False)
        return 0
    result = task.train(config, resume=switches.resume)
    if result.rank == 0:
        from visionmlp.data.policy import names_of_bad_images
        from visionmlp.engine.run_folder import RunFolder

        numbers = "  ".join(f"{name} {value:.4g}" for name, value in result.metrics.items())
        sys.stdout.write(f"{numbers}  (step {result.best_step} of {result.steps}, {result.seconds:.0f} s)\n")
        if left_out := len(names_of_bad_images(RunFolder(result.folder).bad_images)):
            sys.stdout.write(f"left out {left_out} images that cannot be read: {result.folder}/bad_images.txt\n")
        sys.stdout.write(f"wrote {result.folder}: model.safetensors, report.html\n")
    return 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Files:
    """Options that say where to look for more."""

    output: str | None = None
    config: str | None = None


def _said(given: "argparse.Namespace") -> dict[str, str]:
    """The task's name, by who says it."""
    said = {
        "--task": given.task,
        str(given.config): _task_of_file(given.config),
        f"--recipe {given.recipe}": None if given.recipe is None else _recipe_task(given.recipe),
    }
    if given.resume and given.output is not None:
        said[given.output] = task_of_run(_run_folder(given.output))
    return {who: task for who, task in said.items() if task is not None}


def _run_folder(output: str) -> Path:
    """The folder of a run to continue.

    Raises:
        RunFolderError: if it holds none.
    """
    from visionmlp.engine.run_folder import RunFolder

    folder = Path(output)
    RunFolder(folder).read_config()
    return folder


def _task_of_file(config: str | None) -> str | None:
    """What a configuration file says; nothing if it cannot be read, which the parser reports."""
    if config is None:
        return None

    import yaml

    try:
        values = yaml.safe_load(Path(config).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None
    return str(values["task"]) if isinstance(values, dict) and "task" in values else None


def _recipe_task(name: str) -> str:
    from visionmlp.recipes.register import config_class

    return config_class(name).task


def _recipe_defaults(name: str, model: str | None, scale: str | None) -> dict[str, Any]:
    """The fields that a recipe decides, and no default for those that it leaves to the command line.

    Args:
        name: of the recipe.
        model: that of the command line, if it names one, for values that depend on its size.
        scale: of the command line; one that there is not is left to the parser.
    """
    from visionmlp.recipes.register import defaults_of
    from visionmlp.recipes.scale import SCALES, Scale

    recipe = defaults_of(name, model=model, scale=cast("Scale", scale) if scale in SCALES else "full")
    fields = {field.name: getattr(recipe.config, field.name) for field in dataclasses.fields(recipe.config)}
    return {**fields, **dict.fromkeys(recipe.to_give, dataclasses.MISSING)}


TRAIN = Command(
    summary="train a model, such as a classifier",
    description=(
        "Train a model; everything about the run lands in one folder: config, metrics, checkpoints, report.\n"
        "Options are taken from, in rising order: their defaults, --recipe at --scale, --config, the command line.\n"
        "The task is that of --task, --config, the run to resume or the recipe; without them, classify."
    ),
    examples=[
        "train --recipe digits --output runs/digits",
        "train --recipe resmlp_dino --scale smoke --data folder_with_train_and_val --output runs/dino",
        "train resmlp_s12 --data folder_with_train_and_val --img-size 160 --output runs/resmlp",
        "train --config run.yaml --output runs/second --epochs 20",
        "train --config run.yaml --print-config",
        "train --resume --output runs/digits",
    ],
    check=check,
    add_options=add_options,
    run=run,
)
