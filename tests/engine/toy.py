"""A task small enough to train in milliseconds: one linear map with dropout and a norm, on fixed random batches."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from visionmlp.engine import FitResult, RunFolder, Sums, Task, TrainingConfig, TrainingLoss, fit

BATCHES, SIZE = 6, 8


def toy_model(*, dropout: float = 0.5, norm: bool = True) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        middle = nn.BatchNorm1d(5) if norm else nn.Identity()
        return nn.Sequential(nn.Linear(4, 5), middle, nn.GELU(), nn.Dropout(dropout), nn.Linear(5, 2))


class ToyData:
    """``BATCHES`` batches for an epoch; ``size`` is that of a part."""

    def __init__(self, size: int = SIZE, batches: int = BATCHES) -> None:
        self.size, self.batches = size, batches
        self.served: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return self.batches

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(epoch)
        x = torch.randn(self.batches * self.size, 4, generator=generator)
        y = (x.sum(1) > 0).long()
        for batch in range(skip, self.batches):
            self.served.append((epoch, batch))
            rows = slice(batch * self.size, (batch + 1) * self.size)
            yield x[rows], y[rows]


class ToyMetric(Sums):
    """Accuracy, and the mean distance of the two logits."""

    def __init__(self) -> None:
        zero = torch.zeros((), dtype=torch.float64)
        super().__init__({"right": zero, "margin": zero, "n": zero})

    def compute(self) -> dict[str, float]:
        right, margin, images = (self.values[name].item() for name in ("right", "margin", "n"))
        return {"accuracy": 100 * right / images, "margin": margin / images}


class ToyTask(Task):
    """Cross-entropy; draws from NumPy as mixup does."""

    metric = "accuracy"

    def __init__(self, before_loss: Callable[[int], float] = lambda _call: 1.0, noise: float = 0.1) -> None:
        self.before_loss, self.noise, self.calls = before_loss, noise, 0

    def training_loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> TrainingLoss:
        self.calls += 1
        factor = self.before_loss(self.calls)
        x, y = batch
        logits = model(x + self.noise * np.random.rand())  # noqa: NPY002
        loss = factor * nn.functional.cross_entropy(logits, y, reduction="sum")
        # as a routed model would: something that differs from step to step
        margin = logits.detach().diff().abs().mean()
        return TrainingLoss(total=loss, count=len(y), routing={"toy.margin": margin})

    def new_metric(self) -> ToyMetric:
        return ToyMetric()

    def evaluate(self, model: nn.Module, batch: tuple[Tensor, Tensor], metric: ToyMetric) -> None:
        x, y = batch
        logits = model(x)
        metric.add(
            {"right": (logits.argmax(1) == y).sum(), "margin": logits.diff().abs().sum(), "n": torch.tensor(len(y))}
        )


@dataclasses.dataclass(frozen=True)
class ToyRecord:
    """Data that are known by their number."""

    images: int = BATCHES * SIZE

    def to_plain(self) -> dict[str, int]:
        return {"images": self.images}

    def change_since(self, before: dict[str, int]) -> str | None:
        return None if before["images"] == self.images else f"{before['images']} images are {self.images} now"


def write_weights(path: Path, model: nn.Module) -> None:
    save_file({name: value.clone() for name, value in model.state_dict().items()}, path)


def config_for(folder: Path, **options: Any) -> TrainingConfig:
    defaults: dict[str, Any] = {"epochs": 2, "batch_size": SIZE, "lr": 1e-2, "log_every": 4, "accelerator": "cpu"}
    return TrainingConfig(output=folder, **{**defaults, **options})


def toy_fit(
    config: TrainingConfig,
    *,
    resume: bool = False,
    task: Task | None = None,
    model: nn.Module | None = None,
    training: ToyData | None = None,
    data: int = BATCHES * SIZE,
) -> tuple[nn.Module, FitResult]:
    fabric = Fabric(accelerator="cpu", devices=1, precision=config.precision)
    fabric.launch()
    run = RunFolder(config.output)
    model = model or toy_model()
    result = fit(
        fabric=fabric,
        model=model,
        task=task or ToyTask(),
        training=training or ToyData(SIZE // config.accumulate, BATCHES * config.accumulate),
        evaluation=list(ToyData().epoch(99)),
        config=config,
        run=run,
        write_weights=write_weights,
        keep_best=lambda best, _metric: write_weights(run.model, best),
        data=ToyRecord(data),
        resume=resume,
    )
    return model, result


class Killed(Exception):
    """Stands for SIGKILL: nothing is saved on the way out."""


def killed_at(call: int) -> ToyTask:
    """A task in whose ``call``-th loss the process dies."""

    def die(now: int) -> float:
        if now == call:
            raise Killed
        return 1.0

    return ToyTask(die)


def run_until_killed(config: TrainingConfig, call: int, *, resume: bool = False) -> None:
    with contextlib.suppress(Killed):
        toy_fit(config, task=killed_at(call), resume=resume)
        raise AssertionError("was not killed")


def newest_weights(folder: Path) -> dict[str, Tensor]:
    return load_file(max((folder / "checkpoints").glob("*.safetensors")))


def table(path: Path) -> list[dict[str, float]]:
    """A table without its timings, which differ from run to run."""
    from visionmlp.engine.run_folder import Table

    return [{k: v for k, v in row.items() if k != "images_per_second"} for row in Table(path).rows()]


def renamed(config: TrainingConfig, folder: Path) -> TrainingConfig:
    return dataclasses.replace(config, output=folder)
