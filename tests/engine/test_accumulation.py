"""Parts and processes with unequal counts equal one batch; teachers and centres move once a step and are resumed."""

import copy
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing
from lightning_fabric import Fabric
from torch import Tensor, nn

from visionmlp.engine import Collected, Processes, RunContext, RunFolder, Sums, TrainingLoss, fit
from visionmlp.engine.processes import leave_group

from .toy import (
    SIZE,
    Killed,
    ToyMetric,
    ToyRecord,
    ToyTask,
    config_for,
    newest_weights,
    renamed,
    table,
    toy_fit,
    toy_model,
    write_weights,
)

ROWS = 4 * SIZE
"""Of one step, over all its parts and processes."""
STEPS = 3


class TwoBranches(nn.Module):
    """Its second branch gets no gradient where no row is valid, its third never."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.always, self.sometimes, self.never = nn.Linear(4, 2), nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        return self.always(x) + self.sometimes(x) if valid.any() else self.always(x)


class Masked(ToyTask):
    """The loss is over valid rows, as over pixels that are not ignored."""

    def training_loss(self, model: nn.Module, batch: tuple[Tensor, ...]) -> TrainingLoss:
        x, y, valid = batch
        losses = nn.functional.cross_entropy(model(x, valid), y, reduction="none")
        right = (losses.detach() < 0.7) * valid
        count = valid.sum()
        return TrainingLoss(
            total=(losses * valid).sum(), count=count, columns={"right": right.sum() / count.clamp(min=1)}
        )

    def evaluate(self, model: nn.Module, batch: tuple[Tensor, ...], metric: ToyMetric) -> None:
        x, y, valid = batch
        logits = model(x, valid)
        metric.add({"right": (logits.argmax(1) == y).sum(), "n": torch.tensor(len(y))})


class Rows:
    """The rows of each step, dealt to parts with 0, 1, 1 and 8 valid rows (where there are four of them)."""

    def __init__(self, parts: int, rank: int = 0, ranks: int = 1) -> None:
        self.parts, self.rank, self.ranks = parts, rank, ranks

    def __len__(self) -> int:
        return STEPS * self.parts

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[tuple[Tensor, ...]]:
        generator = torch.Generator().manual_seed(epoch)
        for step in range(STEPS):
            x = torch.randn(ROWS, 4, generator=generator, dtype=torch.float64)
            y = (x.sum(1) > 0).long()
            valid = torch.arange(ROWS) % SIZE == 0
            valid[-SIZE:], valid[:SIZE] = True, False
            pieces = [piece.chunk(self.parts * self.ranks) for piece in (x, y, valid)]
            for part in range(self.parts):
                if step * self.parts + part >= skip:
                    yield tuple(piece[part * self.ranks + self.rank] for piece in pieces)


def train_masked(folder: Path, fabric: Fabric, *, parts: int) -> dict[str, Tensor]:
    model = TwoBranches()
    ranks = fabric.world_size
    config = config_for(
        folder,
        batch_size=ROWS * ranks,  # of which a test's ranks share the rows of one
        accumulate=parts,
        clip_grad=0.3,
        log_every=2,
        weight_decay=0.1,
        lr=0.05,
    )
    images = list(Rows(3).epoch(9))[fabric.global_rank : 3 : ranks]
    fit(
        fabric=fabric,
        model=model,
        task=Masked(),
        training=Rows(parts, fabric.global_rank, ranks),
        evaluation=images,
        config=config,
        run=RunFolder(folder),
        write_weights=write_weights,
        keep_best=lambda *_: None,
        data=ToyRecord(),
    )
    return model.state_dict()


def alone(folder: Path, parts: int) -> dict[str, Tensor]:
    fabric = Fabric(accelerator="cpu", devices=1, precision="64-true")
    fabric.launch()
    return train_masked(folder, fabric, parts=parts)


def assert_equal_runs(one: Path, other: Path) -> None:
    for name in ("train.csv", "metrics.csv"):
        for row, same in zip(table(one / name), table(other / name), strict=True):
            assert row == pytest.approx(same, rel=1e-6)  # Fabric hands logits on in float32


@pytest.mark.parametrize("parts", [2, 4])
def test_parts_with_unequal_counts_equal_one_batch(tmp_path: Path, parts: int) -> None:
    whole, by_parts = alone(tmp_path / "whole", 1), alone(tmp_path / "parts", parts)
    start = TwoBranches().double().state_dict()
    assert not torch.allclose(whole["always.weight"], start["always.weight"])
    for name, value in whole.items():
        torch.testing.assert_close(by_parts[name], value, rtol=1e-10, atol=1e-12)
    assert_equal_runs(tmp_path / "whole", tmp_path / "parts")
    assert "right" in table(tmp_path / "whole/train.csv")[0]


def work(rank: int, folder: str) -> None:
    """One of two processes, as a launcher starts them."""
    torch.set_num_threads(1)
    os.environ |= {"LOCAL_RANK": str(rank), "RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": "2"}
    fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp", precision="64-true")
    fabric.launch()
    weights = train_masked(Path(folder) / "two", fabric, parts=2)
    processes = Processes(fabric)
    sums, collected = Sums({"n": torch.zeros(2)}), Collected()
    sums.add({"n": torch.tensor([1.0, rank])})
    for image in ((4, 0, 2), (3, 2, 1))[rank]:  # image 2 is with both
        collected.add(image, f"boxes of {image}")
    sums.merge(processes)
    collected.merge(processes)
    torch.save(
        {"weights": weights, "sums": sums.values["n"], "items": collected.items}, Path(folder) / f"rank{rank}.pt"
    )
    leave_group()


def test_two_processes_with_unequal_counts_equal_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    torch.multiprocessing.spawn(work, (str(tmp_path),), nprocs=2)
    results = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2)]
    whole = alone(tmp_path / "whole", 1)
    for result in results:
        for name, value in whole.items():
            torch.testing.assert_close(result["weights"][name], value, rtol=1e-10, atol=1e-12)
        assert result["sums"].tolist() == [2.0, 1.0]
        assert list(result["items"].items()) == [(image, f"boxes of {image}") for image in range(5)]
    assert_equal_runs(tmp_path / "whole", tmp_path / "two")


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Teaching(ToyTask):
    """A momentum teacher and a centre of its outputs, as self-supervision has them."""

    def __init__(self, *, die_at: int = -1) -> None:
        super().__init__()
        self.die_at = die_at
        self.seen = torch.zeros(2)
        self.rows = 0

    def start(self, model: nn.Module, run: RunContext) -> None:
        self.teacher = copy.deepcopy(model).eval().requires_grad_(requires_grad=False)
        self.centre = torch.zeros(2, device=run.device)

    def training_loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> TrainingLoss:
        self.calls += 1
        if self.calls == self.die_at:
            raise Killed
        x, _ = batch
        target = self.teacher(x)
        self.seen, self.rows = self.seen + target.sum(0), self.rows + len(x)
        soft = ((target - self.centre) / 0.5).softmax(1)
        loss = -(soft * model(x).log_softmax(1)).sum()
        return TrainingLoss(total=loss, count=len(x), columns={"entropy": -(soft * soft.log()).sum(1).mean()})

    def after_step(self, model: nn.Module, step: int, processes: Processes) -> None:
        momentum = 1 - 0.5 / step
        for ours, theirs in zip(self.teacher.state_dict().values(), model.state_dict().values(), strict=True):
            if ours.is_floating_point():
                ours.mul_(momentum).add_(theirs, alpha=1 - momentum)
        self.centre = 0.9 * self.centre + 0.1 * processes.sum(self.seen) / (self.rows * processes.count)
        self.seen, self.rows = torch.zeros(2), 0

    def state_dict(self) -> dict[str, Any]:
        return {"teacher": self.teacher.state_dict(), "centre": self.centre}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.teacher.load_state_dict(state["teacher"])
        self.centre = state["centre"]


@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_killed_run_with_a_teacher_ends_bit_equal(tmp_path: Path, accumulate: int) -> None:
    config = config_for(tmp_path / "whole", accumulate=accumulate, save_every=2, epochs=2, ema_decay=0.9)
    whole = Teaching()
    toy_fit(config, task=whole)
    broken = renamed(config, tmp_path / "broken")
    for call, resume in ((5 * accumulate, False), (2 * accumulate + 1, True)):
        with pytest.raises(Killed):
            toy_fit(broken, task=Teaching(die_at=call), resume=resume)
    resumed = Teaching()
    toy_fit(broken, task=resumed, resume=True)
    assert torch.equal(whole.centre, resumed.centre)
    assert whole.centre.abs().min() > 1e-3
    for ours, theirs in (
        (whole.teacher.state_dict(), resumed.teacher.state_dict()),
        *[(newest_weights(tmp_path / "whole"), newest_weights(tmp_path / "broken"))],
    ):
        assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert table(tmp_path / "whole/train.csv") == table(tmp_path / "broken/train.csv")
    assert "entropy" in table(tmp_path / "whole/train.csv")[0]


def test_a_teacher_moves_once_a_step_whatever_the_parts(tmp_path: Path) -> None:
    ends = []
    for accumulate in (1, 4):
        task = Teaching()
        config = config_for(tmp_path / str(accumulate), accumulate=accumulate, optimizer="momentum", lr=0.1)
        toy_fit(config, task=task, model=toy_model(dropout=0.0, norm=False))
        ends.append({**task.teacher.state_dict(), "centre": task.centre})
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=1e-5, atol=1e-6)


def test_a_task_without_state_refuses_one() -> None:
    with pytest.raises(ValueError, match="ToyTask keeps no state, got centre"):
        ToyTask().load_state_dict({"centre": 1})
