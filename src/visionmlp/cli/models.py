"""``visionmlp models``."""

from visionmlp.cli.command import plain_command
from visionmlp.cli.options import ModelsOptions
from visionmlp.cli.output import console, print_json
from visionmlp.measure import catalog


def models(options: ModelsOptions) -> int:
    """Print the table of models."""
    entries = catalog.catalog(options.pattern, family=options.family)
    if options.json:
        print_json(catalog.catalog_rows(entries))
    else:
        console().print(catalog.catalog_table(entries))
    return 0


MODELS = plain_command(
    "models",
    ModelsOptions,
    models,
    summary="table of models: parameters, MACs, the paper's accuracy",
    description="List the models with their size, counted here, and what their papers state.",
    examples=["models", "models resmlp", "models 'mlpmixer_*16' --json", "models --family repmlpnet"],
)
