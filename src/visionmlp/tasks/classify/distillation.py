"""Distillation from a teacher: DeiT (arXiv 2012.12877), section 3, on one output, as ResMLP (arXiv 2105.03404) trains.

loss = (1 - alpha) base + alpha distill, both on the same logits. The base loss is that of the labels, mixed and
smoothed as the options say. The teacher sees the same images, augmented and mixed.

- hard: cross-entropy with the teacher's first choice, which is not smoothed.
- soft: tau^2 KL(teacher || student), both softmax(logits / tau). DeiT's code divides the sum by images *and* classes,
  so that with 1000 classes and alpha 0.5 the teacher hardly counts; ``batchmean`` divides by images only.
"""

import dataclasses
import hashlib
import json
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from visionmlp.data.sources import ImageSource
from visionmlp.data.transforms import Preprocessing
from visionmlp.errors import CheckpointError, InvalidConfig
from visionmlp.files import whole_file, writing
from visionmlp.tasks.classify.config import ClassifyConfig
from visionmlp.tasks.classify.teacher import Teacher, load_teacher

Kind = Literal["soft", "hard"]
Reduction = Literal["deit", "batchmean"]

_METADATA_KEY = "visionmlp"
_FORMAT = 1
_SHARD_ROWS = 8192


def hard_loss(logits: Tensor, classes: Tensor) -> Tensor:
    """Cross-entropy of logits (B, K) with the teacher's classes (B,), a mean over images (DeiT, equation 3)."""
    return F.cross_entropy(logits, classes)


def soft_loss(logits: Tensor, teacher: Tensor, *, temperature: float, reduction: Reduction) -> Tensor:
    """Divergence of the student's softened probabilities from the teacher's (DeiT, equation 2).

    Args:
        logits: of the student, (B, K).
        teacher: logits of the teacher, (B, K).
        temperature: divides both; the result is multiplied by its square, so that gradients keep their size.
        reduction: whether the sum is divided by B x K, as DeiT's code does, or by B.
    """
    student, target = (F.log_softmax(values / temperature, 1) for values in (logits, teacher.to(logits.dtype)))
    total = F.kl_div(student, target, reduction="sum", log_target=True) * temperature**2
    return total / (logits.numel() if reduction == "deit" else len(logits))


class AnswerCache:
    """A teacher's answers in a folder, in files of one epoch each that appear whole or not at all.

    Each file holds the fingerprint of all that decides what the teacher says, so a folder is used by runs that agree on
    it, one after the other or at once, and by no others. A run that is killed loses what it has not written, at most
    ``shard_rows`` answers.

    Args:
        folder: created if need be.
        fingerprint: plain JSON, flat.
        shard_rows: answers in a file, at least.

    Raises:
        InvalidConfig: naming the first difference, if the folder holds answers with another fingerprint.
        CheckpointError: if a file there is damaged.
        RunFolderError: if the folder cannot be made.
    """

    def __init__(self, folder: Path, fingerprint: Mapping[str, Any], *, shard_rows: int = _SHARD_ROWS) -> None:
        self.folder, self.shard_rows = folder, shard_rows
        self.fingerprint: dict[str, Any] = json.loads(json.dumps({"format": _FORMAT, **fingerprint}))
        self._epoch = -1
        self._answers: list[Tensor] = []
        """Of each file of the epoch, on the disk until they are asked for."""
        self._places: dict[bytes, tuple[int, int]] = {}
        """File and row of each answer there."""
        self._new_names: list[bytes] = []
        self._new_answers: list[Tensor] = []
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(folder.glob("epoch-*.safetensors")):
            self._read(path)

    def find(self, epoch: int, names: Sequence[bytes]) -> Tensor | None:
        """The answers (B, ...) to the images of these names, on the CPU; None unless all are there."""
        if epoch != self._epoch:
            self._open(epoch)
        places = [self._places.get(name) for name in names]
        found = [self._answers[file][row] for file, row in filter(None, places)]
        return torch.stack(found) if len(found) == len(names) else None

    def add(self, names: Sequence[bytes], answers: Tensor) -> None:
        """Keep answers (B, ...) of the epoch that was asked for last; names that are there already are left out."""
        new = [row for row, name in enumerate(names) if name not in self._places]
        self._new_names += [names[row] for row in new]
        self._new_answers.append(answers.detach().cpu()[new])
        if len(self._new_names) >= self.shard_rows:
            self.flush()

    def flush(self) -> None:
        """Write what is not written.

        Raises:
            CheckpointError: if it cannot be.
        """
        if not self._new_names:
            return
        answers, content = torch.cat(self._new_answers), b"".join(self._new_names)
        names = torch.frombuffer(bytearray(content), dtype=torch.uint8).view(len(answers), -1)
        # a name of its own, since several processes may write at once
        path = self.folder / f"epoch-{self._epoch:05d}-{uuid.uuid4().hex}.safetensors"
        metadata = {_METADATA_KEY: json.dumps(self.fingerprint)}
        with whole_file(path) as partial:
            save_file({"names": names, "answers": answers}, partial, metadata=metadata)
        self._new_names, self._new_answers = [], []

    def _open(self, epoch: int) -> None:
        self.flush()
        self._epoch, self._answers, self._places = epoch, [], {}
        for file, path in enumerate(sorted(self.folder.glob(f"epoch-{epoch:05d}-*.safetensors"))):
            names, answers = self._read(path, tensors=True)
            self._answers.append(answers)
            for row, name in enumerate(names):
                self._places.setdefault(name, (file, row))

    def _read(self, path: Path, *, tensors: bool = False) -> tuple[list[bytes], Tensor]:
        """Names and answers of a file, or nothing of either; in any case a file with another fingerprint is refused."""
        names, answers = torch.empty(0, 1, dtype=torch.uint8), torch.empty(0)
        try:
            with safe_open(path, framework="pt") as archive:
                before = json.loads((archive.metadata() or {})[_METADATA_KEY])
                if tensors:
                    names, answers = archive.get_tensor("names"), archive.get_tensor("answers")
            if not isinstance(before, dict) or len(names) != len(answers):
                raise ValueError("not what flush writes")
        except (OSError, SafetensorError, ValueError, KeyError) as error:
            raise CheckpointError(f"{path} is damaged, or no teacher's answers; remove it") from error
        for key in {**before, **self.fingerprint}:
            old, new = before.get(key), self.fingerprint.get(key)
            if old != new:
                raise InvalidConfig(
                    f"{self.folder} holds a teacher's answers for {key} = {old}, not {new}; give another teacher_cache"
                )
        return [row.tobytes() for row in names.numpy()], answers


class Distillation:
    """A teacher, and how much it counts.

    Args:
        teacher: who answers.
        kind: ``hard`` or ``soft``.
        alpha: share of the teacher in the loss.
        temperature: see `soft_loss`.
        reduction: see `soft_loss`.
        cache: where answers are kept, classes for ``hard`` and logits for ``soft``.
    """

    def __init__(
        self,
        teacher: Teacher,
        *,
        kind: Kind = "hard",
        alpha: float = 0.5,
        temperature: float = 1.0,
        reduction: Reduction = "deit",
        cache: AnswerCache | None = None,
    ) -> None:
        self.teacher, self.cache = teacher, cache
        self.kind, self.alpha, self.temperature = kind, alpha, temperature
        self.reduction: Reduction = reduction

    def names(self, keys: Tensor | None, *, mixed: bool) -> list[bytes]:
        """What the cache calls the images of a part; none are needed without a cache.

        An image that is not mixed is a function of its key, seed and transform. Mixing depends on the other images of
        the part too, and on NumPy's generator, which the loop seeds from (seed, step, part, process).

        Args:
            keys: `visionmlp.data.Batch.keys`.
            mixed: whether the images will be mixed; call this before the draws.
        """
        if self.cache is None:
            return []
        assert keys is not None, "a cache needs the keys of training batches"
        rows = [row.tobytes() for row in keys.cpu().numpy()]
        if not mixed:
            return rows
        state: Any = np.random.get_state(legacy=False)  # noqa: NPY002 (mixup draws from it)
        words = state["state"]["key"].tobytes() + str(state["state"]["pos"]).encode()
        draw = hashlib.blake2b(words + b"".join(rows), digest_size=16).digest()
        return [row + draw for row in rows]

    def answers(self, images: Tensor, names: Sequence[bytes]) -> Tensor:
        """What the teacher says: classes (B,) for ``hard``, logits (B, K) for ``soft``; on the device of the images.

        Args:
            images: as the student sees them, (B, C, H, W).
            names: from `names`.
        """
        if self.cache is not None:
            epoch = int(np.frombuffer(names[0], dtype=np.int64, count=1)[0])
            found = self.cache.find(epoch, names)
            if found is not None:
                return found.to(images.device)
        answers = self.teacher.logits(images)
        if self.kind == "hard":
            answers = answers.argmax(1)
        if self.cache is not None:
            self.cache.add(names, answers)
        return answers

    def combine(self, base: Tensor, logits: Tensor, answers: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The whole loss, and columns for train.csv: both losses, and agreement in percent of images.

        Args:
            base: loss on the labels, a mean over images.
            logits: of the student, (B, K).
            answers: from `answers`.
        """
        if self.kind == "hard":
            classes, loss = answers, hard_loss(logits, answers)
        else:
            classes = answers.argmax(1)
            loss = soft_loss(logits, answers, temperature=self.temperature, reduction=self.reduction)
        agreement = 100 * (logits.detach().argmax(1) == classes).float().mean()
        columns = {"base_loss": base.detach(), "distill_loss": loss.detach(), "teacher_agreement": agreement}
        return (1 - self.alpha) * base + self.alpha * loss, columns

    def state_dict(self) -> dict[str, Any]:
        """Which teacher it is."""
        return {"teacher": self.teacher.digest}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Check that a resumed run has its teacher.

        Raises:
            InvalidConfig: if it has another.
        """
        if state.get("teacher") != self.teacher.digest:
            raise InvalidConfig(
                f"the run was started with another teacher than {self.teacher.name}, in weights or preprocessing; give "
                "that one, or start a new run"
            )

    def close(self) -> None:
        """Write what the cache has not written."""
        if self.cache is not None:
            self.cache.flush()


def open_distillation(config: ClassifyConfig, preprocessing: Preprocessing, source: ImageSource) -> Distillation:
    """The distillation that the options of a run ask for.

    Args:
        config: with a teacher.
        preprocessing: of the student.
        source: the training images.

    Raises:
        VisionMLPError: if teacher or cache cannot be used; see `load_teacher` and `AnswerCache`.
    """
    assert config.teacher is not None
    teacher = load_teacher(
        config.teacher,
        student=preprocessing,
        class_names=source.class_names,
        checkpoint=config.teacher_checkpoint,
        precision=config.teacher_precision,
    )
    cache = None
    if config.teacher_cache is not None:
        cache = AnswerCache(config.teacher_cache, _fingerprint(config, teacher, preprocessing, source))
    return Distillation(
        teacher,
        kind=config.distill,
        alpha=config.distill_alpha,
        temperature=config.distill_temperature,
        reduction=config.distill_reduction,
        cache=cache,
    )


def _fingerprint(
    config: ClassifyConfig, teacher: Teacher, preprocessing: Preprocessing, source: ImageSource
) -> dict[str, Any]:
    """All that decides what the teacher says, beside what is in the names of images."""
    fields = dataclasses.fields(config)
    augmentation = [field.name for field in fields if field.metadata["group"] == "augmentation"]
    return {
        "distill": config.distill,
        "teacher": teacher.model,
        "the teacher's weights": teacher.digest,
        "teacher_precision": config.teacher_precision,
        "the data's names and classes": source.summary().digest,
        "seed": config.seed,
        **dataclasses.asdict(preprocessing),
        **{name: getattr(config, name) for name in augmentation},
    }
