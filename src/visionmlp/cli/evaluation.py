"""The ``eval`` command behind its options: which dataset, how fast, and the table."""

import dataclasses
import time
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from visionmlp.cli.options import EvalOptions
from visionmlp.cli.parser import UsageError
from visionmlp.deploy.session import SessionModel, preprocessing_of
from visionmlp.measure.timing import open_device
from visionmlp.models.backbone import Backbone
from visionmlp.models.checkpoint import CheckpointInfo
from visionmlp.tasks.classify.run import evaluate, read_config


def evaluate_model(model: Backbone | SessionModel, info: CheckpointInfo, options: EvalOptions) -> dict[str, Any]:
    """Scores of a model: ``top1`` and ``top5`` in percent, ``loss``, ``images``, ``skipped``, ``images_per_second``.

    Without ``data`` the dataset is that of the run that the model lies in.

    Raises:
        UsageError: if there is no such run.
        VisionMLPError: if the data or the device cannot be used.
    """
    data, root = options.data, options.data_root
    if data is None:
        reference = Path(options.model)
        folder = reference if reference.is_dir() else reference.parent
        if not reference.exists() or not (folder / "config.yaml").is_file():
            raise UsageError(f"--data must be given, since {options.model} is not in a run folder")
        config = read_config(folder)
        data, root = config.data, root or config.data_root
    preprocessing = preprocessing_of(model, info)
    model = model.to(open_device(options.device))
    start = time.perf_counter()
    result = evaluate(
        model,
        dataclasses.replace(info, preprocessing=preprocessing),
        data=data,
        data_root=root,
        split=options.split,
        batch_size=options.batch_size,
        num_workers=options.num_workers,
        on_bad_image=options.on_bad_image,
    )
    seconds = time.perf_counter() - start
    return {
        "model": info.model,
        "form": info.form,
        "data": data,
        "split": options.split,
        "top1": result["top1"],
        "top5": result["top5"],
        "loss": result["loss"],
        "images": result["images"],
        "skipped": result["skipped"],
        "images_per_second": result["images"] / seconds,
    }


def scores_table(scores: dict[str, Any]) -> Table:
    """Scores in one row."""
    title = f"{scores['model']}, {scores['form']} form, {scores['data']} ({scores['split']})"
    # as Text, since a name of a file may look like rich's markup
    table = Table(title=Text(title, style="table.title"))
    table.title_justify = "left"
    row = {
        "top-1 %": f"{scores['top1']:.2f}",
        "top-5 %": f"{scores['top5']:.2f}",
        "loss": f"{scores['loss']:.4f}",
        "images": str(scores["images"]),
        "skipped": str(scores["skipped"]),
        "images/s": f"{scores['images_per_second']:.0f}",
    }
    for heading in row:
        table.add_column(heading, justify="right")
    table.add_row(*row.values())
    return table
