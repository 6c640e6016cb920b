"""``visionmlp eval`` and ``predict`` for classifiers: from options to scores and predictions."""

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path

from visionmlp.deploy.session import preprocessing_of
from visionmlp.errors import InvalidConfig
from visionmlp.measure.timing import open_device
from visionmlp.tasks.classify.definition import ClassifyPredictOptions
from visionmlp.tasks.classify.predict import Prediction, predict
from visionmlp.tasks.classify.run import evaluate, read_config
from visionmlp.tasks.definition import Scores
from visionmlp.tasks.loading import load_served
from visionmlp.tasks.options import EvalOptions


def scores(options: EvalOptions) -> Scores:
    """Accuracy and speed of a model. Without ``data`` the dataset is that of the run that the model lies in.

    Raises:
        InvalidConfig: if there is no such run.
        VisionMLPError: if the model, the data or the device cannot be used.
    """
    data, root = options.data, options.data_root
    if data is None:
        reference = Path(options.model)
        folder = reference if reference.is_dir() else reference.parent
        if not reference.exists() or not (folder / "config.yaml").is_file():
            raise InvalidConfig(f"--data must be given, since {options.model} is not in a run folder")
        config = read_config(folder)
        data, root = config.data, root or config.data_root
    model, info = load_served(options)
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
    rate = result["images"] / (time.perf_counter() - start)
    return Scores(
        title=f"{info.model}, {info.form} form, {data} ({options.split})",
        columns={
            "top-1 %": f"{result['top1']:.2f}",
            "top-5 %": f"{result['top5']:.2f}",
            "loss": f"{result['loss']:.4f}",
            "images": str(result["images"]),
            "skipped": str(result["skipped"]),
            "images/s": f"{rate:.0f}",
        },
        record={
            "model": info.model,
            "form": info.form,
            "data": data,
            "split": options.split,
            "top1": result["top1"],
            "top5": result["top5"],
            "loss": result["loss"],
            "images": result["images"],
            "skipped": result["skipped"],
            "images_per_second": rate,
        },
    )


def predictions(options: ClassifyPredictOptions) -> Iterator[Prediction]:
    """Classes of images, as they come.

    Raises:
        VisionMLPError: if the model or the device cannot be used.
    """
    model, info = load_served(options)
    return predict(
        model, info, options.inputs, top_k=options.top_k, batch_size=options.batch_size, device=options.device
    )
