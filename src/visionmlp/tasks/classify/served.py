"""``visionmlp eval`` and ``predict`` for classifiers: from options to scores and predictions."""

import dataclasses
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from visionmlp.data import Preprocessing
from visionmlp.deploy.session import preprocessing_of
from visionmlp.errors import InvalidConfig
from visionmlp.measure.timing import open_device
from visionmlp.tasks.classify.definition import ClassifyEvalOptions, ClassifyPredictOptions
from visionmlp.tasks.classify.evaluation import Evaluation, evaluate
from visionmlp.tasks.classify.evaluation_files import make_folder, write_evaluation
from visionmlp.tasks.classify.predict import Prediction, predict
from visionmlp.tasks.classify.run import read_config
from visionmlp.tasks.definition import Scores
from visionmlp.tasks.loading import load_served


def scores(options: ClassifyEvalOptions) -> Scores:
    """Accuracy, calibration and speed of a model; with ``output`` also as files.

    Without ``data`` the dataset is that of the run that the model lies in.

    Raises:
        InvalidConfig: if there is no such run, or a number breaks its rule.
        OutputError: for files that exist.
        VisionMLPError: if the model, the data or the device cannot be used.
    """
    if options.crop_pct is not None and not 0 < options.crop_pct <= 1:
        raise InvalidConfig(f"crop-pct must be in (0, 1], got {options.crop_pct:g}")
    if options.force and options.output is None:
        raise InvalidConfig("--force is about the files of --output; give it, or leave this out")
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
    if options.crop_pct is not None:
        preprocessing = {**preprocessing, "crop_pct": options.crop_pct}
    folder = None if options.output is None else Path(options.output)
    if folder is not None:
        make_folder(folder, force=options.force)
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
        ten_crop=options.ten_crop,
        real_labels=options.real_labels,
    )
    rate = result["images"] / (time.perf_counter() - start)
    record = {
        "model": info.model,
        "form": info.form,
        "weights": info.source,
        "data": data,
        "split": options.split,
        "crops": 10 if options.ten_crop else 1,
        "crop_pct": Preprocessing.from_saved(preprocessing).crop_pct,
        **{name: result[name] for name in ("top1", "top5", "loss", "ece")},
        **({} if result["real"] is None else {name: result[name] for name in ("real", "real_images", "real_empty")}),
        "images": result["images"],
        "skipped": result["skipped"],
        "images_per_second": rate,
    }
    record = {name: _finite(value) for name, value in record.items()}
    if folder is not None:
        write_evaluation(folder, record, result)
    crops = ", ten crops" if options.ten_crop else ""
    return Scores(
        title=f"{info.model}, {info.form} form, {data} ({options.split}){crops}",
        columns={**_columns(result), "images/s": f"{rate:.0f}"},
        record=record,
    )


def _columns(result: Evaluation) -> dict[str, str]:
    columns = {
        "top-1 %": _text(result["top1"], 2),
        "top-5 %": _text(result["top5"], 2),
        "loss": _text(result["loss"], 4),
        "ECE %": _text(result["ece"], 2),
    }
    if result["real"] is not None:
        columns |= {
            "ReaL %": _text(result["real"], 2),
            "ReaL images": str(result["real_images"]),
            "without ReaL label": str(result["real_empty"]),
        }
    return {**columns, "images": str(result["images"]), "skipped": str(result["skipped"])}


def _text(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else "-"


def _finite(value: Any) -> Any:
    """JSON has no NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def predictions(options: ClassifyPredictOptions) -> Iterator[Prediction]:
    """Classes of images, as they come.

    Raises:
        VisionMLPError: if the model or the device cannot be used.
    """
    model, info = load_served(options)
    return predict(
        model, info, options.inputs, top_k=options.top_k, batch_size=options.batch_size, device=options.device
    )
