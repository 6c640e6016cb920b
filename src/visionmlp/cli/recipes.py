"""``visionmlp recipes``."""

import dataclasses
import sys
from typing import TYPE_CHECKING, Any

from visionmlp.cli.command import plain_command
from visionmlp.cli.options import RecipesOptions
from visionmlp.cli.output import console, print_json

if TYPE_CHECKING:
    from rich.table import Table


def recipes(options: RecipesOptions) -> int:
    """Print the table of recipes, or one of them whole."""
    from visionmlp.recipes.register import RECIPES

    if options.name:
        _print_one(options.name, json=options.json)
        return 0
    rows = [_row(name) for name in RECIPES]
    if options.json:
        print_json(rows)
    else:
        console().print(_table(rows))
    return 0


def _row(name: str) -> dict[str, Any]:
    from visionmlp.recipes.register import RECIPES, defaults_of, header_of

    config = defaults_of(name).config
    header = dataclasses.asdict(header_of(RECIPES[name]))
    return {"name": name, "task": config.task, "model": config.to_plain()["model"], **header}


def _table(rows: list[dict[str, Any]]) -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table(title="results are the sources'; visionmlp recipes NAME says all of one", title_justify="left")
    for heading in ("name", "task", "model"):
        table.add_column(heading, no_wrap=True)
    for heading in ("expected", "source"):
        table.add_column(heading)
    for row in rows:
        # the first sentence says what it is; Text, since brackets are no markup
        source = row["source"].partition(". ")[0].partition(": ")[0].removesuffix(".")
        table.add_row(row["name"], row["task"], row["model"], Text(row["expected"].removesuffix(".")), Text(source))
    return table


def _print_one(name: str, *, json: bool) -> None:
    from visionmlp.recipes.register import defaults_of, header_of, recipe_named

    header = header_of(recipe_named(name))
    defaults = defaults_of(name)
    values = {field: value for field, value in defaults.config.to_plain().items() if field not in defaults.to_give}
    if json:
        print_json({"name": name, **dataclasses.asdict(header), "to_give": list(defaults.to_give), "config": values})
        return

    import yaml

    for part, text in dataclasses.asdict(header).items():
        line = text.replace("``", "")
        sys.stdout.write(f"{line}\n\n" if part == "title" else f"{part + ':':10}{line}\n")
    given = ", ".join("--" + field.replace("_", "-") for field in defaults.to_give)
    sys.stdout.write(f"\n# to be given: {given}\n")
    yaml.safe_dump(values, sys.stdout, sort_keys=False)


RECIPES = plain_command(
    "recipes",
    RecipesOptions,
    recipes,
    summary="published training runs: expected result, cost and source of each",
    description="List the recipes that train --recipe takes, or show one of them with its configuration.",
    examples=["recipes", "recipes resmlp_imagenet", "recipes --json"],
)
