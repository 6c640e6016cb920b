"""Teachers: where they come from, and how they see a student's images."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from timm.models import get_pretrained_cfg, is_model_pretrained
from torch import Tensor, nn
from torch.nn import functional as F

from visionmlp.data.transforms import Preprocessing
from visionmlp.deploy.session import preprocessing_of
from visionmlp.errors import CheckpointError, CheckpointMismatch, InvalidConfig, UnknownModel, first_line
from visionmlp.models.checkpoint import load_model, path_of
from visionmlp.models.official import read_official
from visionmlp.models.registry import is_model

Precision = Literal["32-true", "bf16"]


class Teacher:
    """A trained classifier that answers, and never learns.

    Args:
        network: images (B, C, H, W) to logits (B, K); put into evaluation mode and the given precision.
        name: what messages call it.
        model: which model it is, wherever it lies.
        preprocessing: of the images that it was trained on; size, mean and standard deviation matter.
        student: preprocessing of the images that it will see.
        precision: of its weights and arithmetic; its answers are float32.

    Raises:
        InvalidConfig: if it takes other channels than the student.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        name: str,
        model: str,
        preprocessing: Preprocessing,
        student: Preprocessing,
        precision: Precision = "32-true",
    ) -> None:
        channels = preprocessing.input_size[0], student.input_size[0]
        if channels[0] != channels[1]:
            raise InvalidConfig(
                f"teacher {name} takes images of {channels[0]} channels, but the model {channels[1]}; "
                "take a teacher that was trained on such images"
            )
        self.name, self.model, self.size = name, model, preprocessing.input_size[1:]
        self.digest = _digest(network, preprocessing)
        """Of its weights as they were loaded, and of its preprocessing."""
        self.dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self.network = network.eval().requires_grad_(False).to(self.dtype)
        self._scale, self._shift = _renormalisation(student, preprocessing)

    def to(self, device: torch.device) -> None:
        """Move it."""
        self.network.to(device)

    def logits(self, images: Tensor) -> Tensor:
        """Answers (B, K), float32, to images that are normalised and sized for the student (B, C, H, W)."""
        with torch.inference_mode():
            answers = self.network(self.prepared(images.float()).to(self.dtype)).float()
        return answers.clone()  # those of inference mode cannot take part in a backward pass

    def prepared(self, images: Tensor) -> Tensor:
        """The same images normalised and sized for the teacher."""
        if self._scale is not None and self._shift is not None:
            images = torch.addcmul(self._shift.to(images), images, self._scale.to(images))
        if images.shape[2:] != self.size:
            images = F.interpolate(images, self.size, mode="bicubic", antialias=True)
        return images


def _renormalisation(student: Preprocessing, teacher: Preprocessing) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """Scale and shift, (C, 1, 1) each; none where both normalise alike, so that images stay bit-equal."""
    if (student.mean, student.std) == (teacher.mean, teacher.std):
        return None, None
    mean, std, own_mean, own_std = (
        torch.tensor(values, dtype=torch.float64).view(-1, 1, 1)
        for values in (student.mean, student.std, teacher.mean, teacher.std)
    )
    return std / own_std, (mean - own_mean) / own_std


def _digest(network: nn.Module, preprocessing: Preprocessing) -> str:
    digest = hashlib.sha256(json.dumps(dataclasses.asdict(preprocessing)).encode())
    for name, value in sorted(network.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load_teacher(
    reference: str,
    *,
    student: Preprocessing,
    class_names: Sequence[str],
    checkpoint: Path | None = None,
    precision: Precision = "32-true",
) -> Teacher:
    """A teacher from a name of ours or timm's, a run folder, or a checkpoint of ours in either form.

    Args:
        reference: the name; or the folder or file, which says itself how its images are prepared.
        student: preprocessing of the images that it will see.
        class_names: of the data, in the order of the outputs.
        checkpoint: weights for a name; without them the published ones are fetched, or taken from the cache.
        precision: see `Teacher`.

    Raises:
        UnknownModel: if nothing has this name.
        CheckpointError: if there are no weights, or they cannot be fetched, read or used.
        InvalidConfig: if it was trained for other classes or channels.
    """
    if not is_model(reference) and timm.is_model(reference):
        network, own = _from_timm(reference, checkpoint, len(class_names))
        return Teacher(
            network, name=reference, model=reference, preprocessing=own, student=student, precision=precision
        )
    is_path = path_of(reference) is not None
    if is_path and checkpoint is not None:
        raise InvalidConfig(f"teacher {reference} has weights already; teacher_checkpoint is for a model's name only")
    try:
        model, info = load_model(reference, checkpoint=checkpoint, pretrained=not is_path and checkpoint is None)
    except UnknownModel as error:
        raise UnknownModel(f"teacher: {error}; or one of timm's, a run folder or a checkpoint") from error
    _require_classes(reference, model.num_classes, len(class_names))
    if info.class_names is not None and info.class_names != list(class_names):
        pairs = enumerate(zip(info.class_names, class_names, strict=True))
        number, (theirs, ours) = next(pair for pair in pairs if pair[1][0] != pair[1][1])
        raise InvalidConfig(
            f"teacher {reference} knows class {number} as {theirs!r}, but the data has {ours!r} there; "
            "take a teacher that was trained on the same classes"
        )
    own = Preprocessing.from_saved(preprocessing_of(model, info))
    return Teacher(model, name=reference, model=info.model, preprocessing=own, student=student, precision=precision)


def _from_timm(name: str, checkpoint: Path | None, classes: int) -> tuple[nn.Module, Preprocessing]:
    """A model of timm, with its published weights or those of a file."""
    try:
        known = get_pretrained_cfg(name)
    except RuntimeError as error:  # no such tag
        raise UnknownModel(f"teacher {name}: {first_line(error)}") from error
    by_hand = "with a file at hand, give teacher_checkpoint"
    fields: dict[str, Any] = {}
    if checkpoint is not None:
        state = read_official(checkpoint)
        classifier = known.classifier if known is not None else None
        weight = state.get(f"{classifier}.weight") if isinstance(classifier, str) else None
        count = classes if weight is None else len(weight)
        fields = {"num_classes": count, "pretrained_cfg_overlay": {"state_dict": state, "num_classes": count}}
    elif known is None or not is_model_pretrained(name):
        raise CheckpointError(f"teacher {name} has no published weights; {by_hand}")
    else:
        count = known.num_classes
    # before anything is fetched
    _require_classes(name, count, classes)
    try:
        model = timm.create_model(name, pretrained=True, **fields)
    except Exception as error:  # those of the hub, of its clients and of the loader
        if checkpoint is not None:
            reason = " ".join(str(error).split())[:160]
            raise CheckpointMismatch(f"{checkpoint} does not fit teacher {name}: {reason}") from error
        raise CheckpointError(
            f"the weights of teacher {name} cannot be fetched ({first_line(error)}); {by_hand}"
        ) from error
    cfg: Any = model.pretrained_cfg
    cfg["state_dict"] = None  # a model need not carry a copy of its weights
    keys = ("input_size", "mean", "std", "interpolation", "crop_pct")
    return model, Preprocessing.from_saved({key: cfg[key] for key in keys})


def _require_classes(name: str, count: int, classes: int) -> None:
    if count != classes:
        knows = f"has {count} classes" if count else "has no classifier"
        raise InvalidConfig(
            f"teacher {name} {knows}, but the data {classes}; take a teacher that was trained on these classes, such "
            "as a run folder of visionmlp train on the same data"
        )
