"""``visionmlp average``."""

import sys

from visionmlp.cli.command import plain_command
from visionmlp.cli.options import AverageOptions


def average(options: AverageOptions) -> int:
    """Write a checkpoint with the mean weights of a run's newest checkpoints."""
    from pathlib import Path

    from visionmlp.files import beside
    from visionmlp.models.translator_files import save_translator
    from visionmlp.tasks.translate.averaging import averaged

    with beside(options.output, force=options.force, suffix=".safetensors") as partial:
        network, info, steps = averaged(Path(options.run), options.checkpoints)
        save_translator(partial, network, tokenizer=info.tokenizer, languages=info.languages)
    sys.stdout.write(f"wrote {options.output}: the mean of steps {', '.join(map(str, steps))}\n")
    return 0


AVERAGE = plain_command(
    "average",
    AverageOptions,
    average,
    summary="the mean of a translation run's newest checkpoints",
    description=(
        "Write a translator whose weights are the mean of a run's newest checkpoints, as many as it has kept.\n"
        "train --keep-checkpoints 5 --save-every 5000 keeps five."
    ),
    examples=[
        "average runs/ende --output runs/ende/averaged.safetensors",
        "average runs/ende --checkpoints 5 --output a.safetensors",
    ],
)
