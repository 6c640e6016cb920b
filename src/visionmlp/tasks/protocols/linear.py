"""A linear classifier on frozen features, by DINO's recipe: a classification run whose backbone rests."""

from pathlib import Path

from visionmlp.errors import InvalidConfig
from visionmlp.tasks.definition import Scores
from visionmlp.tasks.protocols.options import ProtocolOptions
from visionmlp.tasks.register import load_task

_BATCH_OF_LR = 256


def linear_scores(options: ProtocolOptions, data: str, data_root: Path | None) -> Scores:
    """Train the classifier into a run folder, and say how good its best epoch is.

    SGD with momentum 0.9 and no weight decay, ``lr`` times batch size / 256, falling to 0 on a cosine, random resized
    crops and flips (DINO, arXiv 2104.14294, section 4.1, and the authors' code).

    Raises:
        InvalidConfig: for weights that a run cannot start from.
        VisionMLPError: as training does.
    """
    if options.checkpoint is not None or options.pretrained:
        raise InvalidConfig("a linear classifier starts from a run folder or a checkpoint of ours; convert the file")
    reference = Path(options.model)
    if options.output is None and not reference.exists():
        raise InvalidConfig(f"--output must be given, since {options.model} lies nowhere")
    beside = reference if reference.is_dir() else reference.parent
    classify = load_task("classify")
    config = classify.config.from_plain(
        {
            "model": options.model,
            "frozen": "backbone",
            "data": data,
            "data_root": None if data_root is None else str(data_root),
            "output": options.output or str(beside / "linear"),
            "epochs": options.epochs,
            "batch_size": options.batch_size,
            "optimizer": "sgd",
            "lr": options.lr * options.batch_size / _BATCH_OF_LR,
            "weight_decay": 0.0,
            "schedule": "cosine",
            "num_workers": options.num_workers,
            "on_bad_image": options.on_bad_image,
        }
    )
    result = classify.train(config, resume=options.resume)
    numbers = {"top1": result.metrics["top1"], "top5": result.metrics["top5"]}
    return Scores(
        title=f"{options.model}, linear classifier, {data}: best epoch, {result.folder}",
        columns={
            "top-1 %": f"{numbers['top1']:.2f}",
            "top-5 %": f"{numbers['top5']:.2f}",
            "best step": f"{result.best_step} of {result.steps}",
        },
        record={
            "model": options.model,
            "data": data,
            "protocol": "linear",
            **numbers,
            "best_step": result.best_step,
            "steps": result.steps,
            "run": str(result.folder),
        },
    )
