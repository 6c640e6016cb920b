"""The ``train`` command: its options are the fields of ClassifyConfig, with defaults from a recipe or a run to resume."""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ActionConfigFile, ArgumentParser, Namespace

from visionmlp.cli.options import TrainSwitches
from visionmlp.cli.parser import UsageError, add_fields, nearest, options_from


def add_train_options(parser: ArgumentParser, words: Sequence[str]) -> None:
    """Options of ``train``; ``--recipe`` and ``--resume`` on the command line decide what the defaults are."""
    from visionmlp.recipes.classify import ClassifyConfig

    given = _scan(words)
    defaults: dict[str, Any] = {}
    if given.recipe is not None:
        recipe = _recipe(given.recipe)
        defaults = {field.name: getattr(recipe, field.name) for field in dataclasses.fields(recipe)}
    add_fields(parser, ClassifyConfig, defaults, positional=("model",))
    add_fields(parser, TrainSwitches)
    parser.add_argument(
        "--config", action=ActionConfigFile, metavar="run.yaml", help="YAML file of options, spelled with underscores"
    )
    if given.resume and given.output is not None:
        parser.default_config_files = [str(Path(given.output) / "config.yaml")]


def train(namespace: Namespace) -> int:
    """Train, or print the configuration."""
    from visionmlp.recipes.classify import ClassifyConfig, train

    switches = options_from(namespace, TrainSwitches)
    config = options_from(namespace, ClassifyConfig)
    if switches.print_config:
        keys = [field.name for field in dataclasses.fields(ClassifyConfig)]
        import yaml

        yaml.safe_dump({key: _plain(getattr(config, key)) for key in keys}, sys.stdout, sort_keys=False)
        return 0
    train(config, resume=switches.resume)
    return 0


def _scan(words: Sequence[str]) -> argparse.Namespace:
    """What has to be known before the parser can be built."""
    scanner = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    scanner.add_argument("--recipe", nargs="?")
    scanner.add_argument("--output", nargs="?")
    scanner.add_argument("--resume", action="store_true")
    return scanner.parse_known_args(list(words))[0]


def _recipe(name: str) -> Any:
    from visionmlp.recipes.classify import RECIPES

    if name not in RECIPES:
        raise UsageError(f"no recipe {name!r}; {nearest(name, RECIPES) or 'there are ' + ', '.join(RECIPES)}")
    return RECIPES[name]()


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value
