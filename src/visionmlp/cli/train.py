"""The ``train`` command: the fields of ClassifyConfig, with defaults from a recipe or from the run to resume."""

import argparse
import dataclasses
import inspect
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ActionConfigFile, ArgumentParser, Namespace

from visionmlp.cli.options import TrainSwitches
from visionmlp.cli.parser import UsageError, add_fields, nearest, options_from


def add_train_options(parser: ArgumentParser, words: Sequence[str]) -> None:
    """Options of ``train``; ``--recipe`` and ``--resume`` on the command line decide what the defaults are."""
    from visionmlp.tasks.classify.run import ClassifyConfig

    given = _scan(words)
    defaults = {} if given.recipe is None else _recipe_defaults(given.recipe)
    model = defaults.pop("model", None)
    # first in the help
    add_fields(parser, TrainSwitches)
    parser.add_argument(
        "--config", action=ActionConfigFile, metavar="run.yaml", help="YAML file of options, spelled with underscores"
    )
    add_fields(parser, ClassifyConfig, defaults, positional=("model",))
    if model is not None:
        # not as the positional's own default, which argparse would prefer to the config file's
        parser.set_defaults(model=model)
    if given.resume and not given.config and not {"-h", "--help"} & set(words):
        if given.output is None:
            raise UsageError("--resume needs --output, the run folder to continue")
        from visionmlp.engine.run_folder import RunFolder

        folder = Path(given.output)
        RunFolder(folder).read_config()
        parser.default_config_files = [str(folder / "config.yaml")]


def train(namespace: Namespace) -> int:
    """Train, or print the configuration."""
    from visionmlp.tasks.classify.run import ClassifyConfig, train

    switches = options_from(namespace, TrainSwitches)
    config = options_from(namespace, ClassifyConfig)
    if switches.print_config:
        import yaml

        yaml.safe_dump(config.to_plain(), sys.stdout, sort_keys=False)
        return 0
    result = train(config, resume=switches.resume)
    numbers = "  ".join(f"{name} {value:.4g}" for name, value in result.metrics.items())
    sys.stdout.write(f"{numbers}  (step {result.best_step} of {result.steps}, {result.seconds:.0f} s)\n")
    sys.stdout.write(f"wrote {result.folder}: model.safetensors, report.html\n")
    return 0


def _scan(words: Sequence[str]) -> argparse.Namespace:
    """What has to be known before the parser can be built."""
    scanner = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    scanner.add_argument("--recipe", nargs="?")
    scanner.add_argument("--output", nargs="?")
    scanner.add_argument("--config", nargs="?")
    scanner.add_argument("--resume", action="store_true")
    return scanner.parse_known_args(list(words))[0]


def _recipe_defaults(name: str) -> dict[str, Any]:
    """The fields that a recipe decides: all but the arguments that its caller must give."""
    from visionmlp.recipes.published import RECIPES

    if name not in RECIPES:
        raise UsageError(f"no recipe {name!r}; {nearest(name, RECIPES) or 'there are ' + ', '.join(RECIPES)}")
    parameters = inspect.signature(RECIPES[name]).parameters.values()
    caller = {p.name: Path() if p.annotation is Path else "" for p in parameters if p.default is p.empty}
    config = RECIPES[name](**caller)
    return {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.name not in caller}
