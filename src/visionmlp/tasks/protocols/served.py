"""``visionmlp eval`` and ``predict`` for backbones: protocols, and features of images."""

import dataclasses
import itertools
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from visionmlp.data import BadImageLog, EvaluationBatches, Preprocessing
from visionmlp.data.inputs import find_images, open_images, prepared
from visionmlp.data.sources import ImageSource, open_training_data
from visionmlp.deploy.session import preprocessing_of
from visionmlp.engine import RunFolder
from visionmlp.errors import InvalidConfig
from visionmlp.measure.timing import open_device
from visionmlp.models.backbone import Backbone
from visionmlp.tasks.definition import Scores
from visionmlp.tasks.loading import load_served
from visionmlp.tasks.options import PredictOptions
from visionmlp.tasks.protocols.knn import BankBatch, KnnMetric, closing, features_of, take
from visionmlp.tasks.protocols.options import ProtocolOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class Features:
    """The features of one image, or why it could not be read."""

    image: str
    features: list[float] = dataclasses.field(default_factory=list)
    error: str | None = None

    def lines(self) -> list[str]:
        """How many, and the first of them."""
        first = " ".join(f"{value:.3f}" for value in self.features[:8])
        return [f"{len(self.features)} features: {first} ..."]

    def rows(self) -> list[dict[str, Any]]:
        """A feature a row."""
        return [{"image": self.image, "index": index, "value": value} for index, value in enumerate(self.features)]

    def record(self) -> dict[str, Any]:
        """Name, features and error."""
        return dataclasses.asdict(self)


def scores(options: ProtocolOptions) -> Scores:
    """A backbone by the protocol of the options.

    Raises:
        InvalidConfig: for an option that cannot work.
        VisionMLPError: if the model, the data or the device cannot be used.
    """
    data, root = _dataset(options)
    if options.protocol == "linear":
        from visionmlp.tasks.protocols.linear import linear_scores

        return linear_scores(options, data, root)
    model, info = load_served(options)
    if not isinstance(model, Backbone):
        raise InvalidConfig(f"{options.model} gives classes only; features need a model of PyTorch")
    preprocessing = Preprocessing.from_saved(preprocessing_of(model, info))
    model = model.to(open_device(options.device)).eval()
    bank, queries = open_training_data(data, root=root)
    start = time.perf_counter()
    metric = KnnMetric(len(bank.class_names), k=options.k, temperature=options.temperature)
    like = next(model.parameters())
    batches = [_batches(options, source, preprocessing) for source in (bank, queries)]
    with closing(*batches), torch.inference_mode():
        for side, in_bank in zip(batches, (True, False), strict=True):
            for batch in side:
                take(model, BankBatch(batch._replace(images=batch.images.to(like)), in_bank), metric)
    result = metric.compute()
    rate = (len(bank) + len(queries)) / (time.perf_counter() - start)
    return Scores(
        title=f"{info.model}, nearest neighbours (k = {options.k}), {data}",
        columns={
            "k-NN %": f"{result['knn']:.2f}",
            "k-NN, five classes %": f"{result['knn5']:.2f}",
            "images": str(metric.images),
            "images/s": f"{rate:.0f}",
        },
        record={
            "model": info.model,
            "network": info.network,
            "data": data,
            "protocol": "knn",
            "k": options.k,
            "temperature": options.temperature,
            "knn": result["knn"],
            "knn5": result["knn5"],
            "images": metric.images,
            "skipped": len(bank) + len(queries) - metric.neighbours - metric.images,
            "images_per_second": rate,
        },
    )


def _batches(options: ProtocolOptions, source: ImageSource, preprocessing: Preprocessing) -> EvaluationBatches:
    return EvaluationBatches(
        source,
        preprocessing.transform(),
        batch_size=options.batch_size,
        mode=preprocessing.mode,
        exif_orientation=preprocessing.exif_orientation,
        bad_images=BadImageLog(options.on_bad_image),
        num_workers=options.num_workers,
    )


def _dataset(options: ProtocolOptions) -> tuple[str, Path | None]:
    """The dataset of the options, or that of the run that the model lies in."""
    if options.split != "validation":
        raise InvalidConfig("the protocols ask about the validation images; leave out --split")
    if options.data is not None:
        return options.data, options.data_root
    reference = Path(options.model)
    folder = reference if reference.is_dir() else reference.parent
    if not reference.exists() or not (folder / "config.yaml").is_file():
        raise InvalidConfig(f"--data must be given, since {options.model} is not in a run folder")
    config = RunFolder(folder).read_config()
    root = config.get("data_root")
    return config["data"], options.data_root or (Path(root) if root else None)


def features(options: PredictOptions) -> Iterator[Features]:
    """Features of images, as they come.

    Raises:
        InvalidConfig: for an option that cannot work.
        VisionMLPError: if the model or the device cannot be used.
    """
    if options.batch_size < 1:
        raise InvalidConfig(f"batch-size must be at least 1, got {options.batch_size}")
    model, info = load_served(options)
    if not isinstance(model, Backbone):
        raise InvalidConfig(f"{options.model} gives classes only; features need a model of PyTorch")
    preprocessing = Preprocessing.from_saved(preprocessing_of(model, info))
    return _features(model.to(open_device(options.device)), preprocessing, options.inputs, options.batch_size)


def _features(
    model: Backbone, preprocessing: Preprocessing, inputs: Iterable[str], batch_size: int
) -> Iterator[Features]:
    transform, like = preprocessing.transform(), next(model.parameters())
    images = open_images(find_images(inputs), preprocessing.mode, exif_orientation=preprocessing.exif_orientation)
    read = ((opened.name, prepared(opened.image, transform)) for opened in images)
    while chunk := list(itertools.islice(read, batch_size)):
        readable = [tensor for _, tensor in chunk if isinstance(tensor, Tensor)]
        rows: Iterator[list[float]] = iter(())
        if readable:
            with torch.inference_mode():
                rows = iter(features_of(model, torch.stack(readable).to(like)).float().cpu().tolist())
        for name, tensor in chunk:
            if isinstance(tensor, str):
                yield Features(image=name, error=tensor)
            else:
                yield Features(image=name, features=next(rows))
