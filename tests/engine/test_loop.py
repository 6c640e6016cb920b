"""The loop: exact resumption, what stops it, and that each option does what it says."""

import dataclasses
import json
import math
import os
import signal
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from timm.utils import ModelEmaV3
from torch import nn

from visionmlp.engine import RunFolder, TrainingLoss
from visionmlp.errors import InvalidConfig, RunFolderError, TrainingDiverged

from .toy import (
    BATCHES,
    SIZE,
    ToyData,
    ToyMetric,
    ToyTask,
    config_for,
    newest_weights,
    renamed,
    run_until_killed,
    table,
    toy_fit,
    toy_model,
)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lamb", "adagrad"])
def test_a_killed_run_ends_bit_equal(tmp_path: Path, optimizer: str) -> None:
    config = config_for(
        tmp_path / "whole", optimizer=optimizer, accumulate=2, ema_decay=0.9, clip_grad=1.0, save_every=2, epochs=3
    )
    toy_fit(config)
    broken = renamed(config, tmp_path / "broken")
    run_until_killed(broken, 2 * 5 + 1)  # in step 6, behind the checkpoint of step 4
    run_until_killed(broken, 2 * 5, resume=True)  # again, from step 4 on
    served = ToyData(SIZE // 2, BATCHES * 2)
    toy_fit(broken, resume=True, training=served)
    assert served.served[0] == (1, 4)  # only the rest is loaded
    assert same(newest_weights(tmp_path / "whole"), newest_weights(tmp_path / "broken"))
    assert same(load_file(tmp_path / "whole/model.safetensors"), load_file(tmp_path / "broken/model.safetensors"))
    for name in ("train.csv", "metrics.csv", "router.csv"):
        assert table(tmp_path / "whole" / name) == table(tmp_path / "broken" / name)
    assert [row["step"] for row in table(tmp_path / "broken/router.csv")] == [4, 8, 12, 16, 18]
    assert [row["step"] for row in table(tmp_path / "broken/train.csv")] == [4, 8, 12, 16, 18]
    assert [row["step"] for row in table(tmp_path / "broken/metrics.csv")] == [6, 12, 18]
    assert len(RunFolder(tmp_path / "broken").read_sessions()) == 3


def test_a_kill_between_checkpoint_and_evaluation_loses_no_row(tmp_path: Path) -> None:
    class Dying(ToyTask):
        def evaluate(self, model: nn.Module, batch: Any, metric: Any) -> None:
            raise SystemError(model, batch, metric)

    config = config_for(tmp_path / "run")
    with pytest.raises(SystemError):
        toy_fit(config, task=Dying())
    toy_fit(config, resume=True)
    assert [row["step"] for row in table(tmp_path / "run/metrics.csv")] == [6, 12]


def test_rows_that_a_resumed_run_writes_again_are_cut(tmp_path: Path) -> None:
    config = config_for(tmp_path / "run", log_every=1, save_every=4)
    run_until_killed(config, 6)
    path = tmp_path / "run/train.csv"
    assert [row["step"] for row in table(path)] == [1, 2, 3, 4, 5]
    with path.open("a") as file:
        file.write("6,1,0.")  # torn by the kill
    toy_fit(config, resume=True)
    assert [row["step"] for row in table(path)] == list(range(1, 13))


def test_what_kills_in_a_write_leave_is_removed(tmp_path: Path) -> None:
    config = config_for(tmp_path / "run")
    run_until_killed(config, 6)
    names = (".model.safetensors.partial", "checkpoints/.step-000004.state.partial", "checkpoints/.tmpS8FVej")
    for name in (*names, ".mine", "notes.partial"):
        (tmp_path / "run" / name).write_bytes(b"half")
    toy_fit(config, resume=True)
    left = {str(path.relative_to(tmp_path / "run")) for path in (tmp_path / "run").rglob("*")}
    assert left.isdisjoint(names)
    assert {".mine", "notes.partial"} <= left


def test_a_finished_run_resumes_to_the_same_end(tmp_path: Path) -> None:
    config = config_for(tmp_path / "run")
    _, first = toy_fit(config)
    _, again = toy_fit(config, resume=True)
    assert (again.best_step, again.metrics) == (first.best_step, first.metrics)
    assert len(table(tmp_path / "run/metrics.csv")) == 2


@pytest.mark.parametrize("part", ["safetensors", "state"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path: Path, part: str) -> None:
    config = config_for(tmp_path / "run", save_every=2)
    whole = renamed(config, tmp_path / "whole")
    toy_fit(whole)
    run_until_killed(config, 6)
    damaged = tmp_path / f"run/checkpoints/step-000004.{part}"
    damaged.write_bytes(damaged.read_bytes()[:-50])
    with pytest.warns(UserWarning, match="checkpoint of step 4 is damaged"):
        toy_fit(config, resume=True)
    assert same(newest_weights(tmp_path / "run"), newest_weights(tmp_path / "whole"))
    for file in (tmp_path / "run/checkpoints").iterdir():
        file.write_bytes(b"")
    said = pytest.warns(UserWarning, match=r"step 12 is damaged \(step-000012\.state cannot be read: EOFError\)")
    with said, pytest.raises(RunFolderError, match="every checkpoint is damaged"):
        toy_fit(config, resume=True)


def test_checkpoints_are_pairs_and_old_ones_go(tmp_path: Path) -> None:
    toy_fit(config_for(tmp_path / "run", keep_checkpoints=3))
    names = sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir())
    assert names == [f"step-{step:06d}.{part}" for step in (0, 6, 12) for part in ("safetensors", "state")]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_says_how_to_go_on(tmp_path: Path, number: int) -> None:
    def interrupt(call: int) -> float:
        if call == 3:
            os.kill(os.getpid(), number)
        return 1.0

    config = config_for(tmp_path / "run")
    handler = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt, match=r"stopped at step 3 of 12, which is saved; .* --resume"):
        toy_fit(config, task=ToyTask(interrupt))
    assert signal.getsignal(number) == handler
    toy_fit(config, resume=True)
    toy_fit(renamed(config, tmp_path / "whole"))
    assert same(newest_weights(tmp_path / "run"), newest_weights(tmp_path / "whole"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_before_the_weights_change(tmp_path: Path, value: float) -> None:
    model = toy_model()
    before: dict[str, torch.Tensor] = {}

    def diverge(call: int) -> float:
        if call == 8:
            before.update({k: v.detach().clone() for k, v in model.named_parameters()})
            return value
        return 1.0

    config = config_for(tmp_path / "run", schedule="constant")
    with pytest.raises(TrainingDiverged, match=r"loss is (nan|inf) at step 8, learning rate 0.01; the checkpoint of"):
        toy_fit(config, task=ToyTask(diverge), model=model)
    assert same(before, dict(model.named_parameters()))
    assert all(value.isfinite().all() for value in newest_weights(tmp_path / "run").values())


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    model = toy_model()

    def spoil(call: int) -> float:
        if call == 6:  # an update to infinity, as its loss is still finite
            model.get_submodule("4").register_parameter("bias", nn.Parameter(torch.full((2,), torch.inf)))
            return 0.0
        return 1.0

    class Blind(ToyTask):
        def training_loss(self, model: nn.Module, batch: Any) -> TrainingLoss:
            return TrainingLoss(total=super().training_loss(model, batch).total.nan_to_num(), count=SIZE)

    with pytest.raises(TrainingDiverged, match=r"is not finite after step 6, learning rate"):
        toy_fit(config_for(tmp_path / "run"), task=Blind(spoil), model=model)
    assert [path.name for path in (tmp_path / "run/checkpoints").glob("*.state")] == ["step-000000.state"]


def test_routing_is_the_mean_of_an_intervals_parts_and_steps(tmp_path: Path) -> None:
    class Counting(ToyTask):
        def training_loss(self, model: nn.Module, batch: Any) -> TrainingLoss:
            loss = super().training_loss(model, batch)
            return dataclasses.replace(loss, routing={"call": torch.tensor(float(self.calls))})

    toy_fit(config_for(tmp_path / "run", accumulate=2, max_steps=5), task=Counting())
    rows = table(tmp_path / "run/router.csv")
    assert rows == [{"step": 4.0, "call": 4.5}, {"step": 5.0, "call": 9.5}]

    class Silent(ToyTask):
        def training_loss(self, model: nn.Module, batch: Any) -> TrainingLoss:
            return dataclasses.replace(super().training_loss(model, batch), routing={})

    toy_fit(config_for(tmp_path / "silent"), task=Silent())
    assert not (tmp_path / "silent/router.csv").exists()


def test_parts_and_clipping_equal_the_whole_batch_by_hand(tmp_path: Path) -> None:
    """SGD written out; without norm and dropout a step does not depend on its parts."""
    options: dict[str, Any] = {
        "optimizer": "momentum",
        "momentum": 0.0,
        "lr": 0.1,
        "weight_decay": 0.0,
        "schedule": "constant",
        "clip_grad": 0.05,
        "max_steps": 3,
    }
    by_parts = toy_model(dropout=0.0, norm=False)
    toy_fit(config_for(tmp_path / "run", accumulate=4, **options), model=by_parts, task=ToyTask(noise=0.0))
    by_hand = toy_model(dropout=0.0, norm=False)
    for _, (x, y) in zip(range(3), ToyData().epoch(0), strict=False):
        by_hand.zero_grad()
        nn.functional.cross_entropy(by_hand(x), y).backward()
        norm = nn.utils.clip_grad_norm_(by_hand.parameters(), 0.05)
        assert norm > 0.05
        with torch.no_grad():
            for weight in by_hand.parameters():
                weight -= 0.1 * weight.grad  # type: ignore[operator]
    for ours, reference in zip(by_parts.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-5, atol=1e-7)


def test_the_moving_average_is_shipped_and_follows_its_formula(tmp_path: Path) -> None:
    trail: list[torch.Tensor] = []
    model = toy_model()
    optimizer_step = torch.optim.AdamW.step

    def record(*arguments: Any, **keywords: Any) -> Any:
        result = optimizer_step(*arguments, **keywords)
        if arguments[0].param_groups[0]["params"][0].shape == (2, 2):
            return result  # the trial of the optimizer's arguments
        trail.append(model[0].weight.detach().clone())  # type: ignore[arg-type]
        return result

    torch.optim.AdamW.step = record  # type: ignore[method-assign]
    try:
        toy_fit(config_for(tmp_path / "run", ema_decay=0.8, epochs=1), model=model)
    finally:
        torch.optim.AdamW.step = optimizer_step  # type: ignore[method-assign]
    average = trail[0]
    for weight in trail[1:]:
        average = 0.8 * average + 0.2 * weight
    shipped = load_file(tmp_path / "run/model.safetensors")["0.weight"]
    torch.testing.assert_close(shipped, average)
    assert not torch.equal(shipped, newest_weights(tmp_path / "run")["0.weight"])


class Scripted(ToyTask):
    """Its evaluations give the values in their order."""

    def __init__(self, values: list[float]) -> None:
        super().__init__()
        self.script = list(values)

    def new_metric(self) -> ToyMetric:
        value = self.script.pop(0)

        class Given(ToyMetric):
            def compute(self) -> dict[str, float]:
                return {**super().compute(), "accuracy": value}

        return Given()


def test_the_best_weights_are_kept_not_the_last(tmp_path: Path) -> None:
    model, result = toy_fit(config_for(tmp_path / "run"), task=Scripted([-1.0, -2.0]))
    assert (result.best_step, result.steps) == (6, 12)
    assert result.metrics["accuracy"] == -1.0
    assert not torch.equal(load_file(tmp_path / "run/model.safetensors")["0.weight"], model.state_dict()["0.weight"])


@pytest.mark.parametrize(
    ("values", "best"),
    [
        ([math.nan, 0.5, 0.9], 18),
        ([math.nan, 0.9, 0.5], 12),
        ([0.5, math.nan, 0.4], 6),
        ([math.nan, math.nan, -3.0], 18),
        ([math.nan, math.nan, math.nan], 6),
        ([-math.inf, math.nan, -math.inf], 6),
    ],
)
def test_a_metric_that_is_no_number_is_the_worst(tmp_path: Path, values: list[float], best: int) -> None:
    config = config_for(tmp_path / "run", epochs=3, keep_checkpoints=9)
    _, result = toy_fit(config, task=Scripted(values))
    shipped = load_file(tmp_path / "run/model.safetensors")
    trail = {step: load_file(tmp_path / f"run/checkpoints/step-{step:06d}.safetensors") for step in (6, 12, 18)}
    kept = [step for step, weights in trail.items() if same(weights, shipped)]
    assert kept == [best]
    assert result.best_step == best
    assert [row["accuracy"] for row in table(tmp_path / "run/metrics.csv")] == pytest.approx(values, nan_ok=True)


def test_lower_may_be_better(tmp_path: Path) -> None:
    class Perplexity(Scripted):
        lower_is_better = True

    _, result = toy_fit(config_for(tmp_path / "run", epochs=4), task=Perplexity([math.nan, 9.0, 3.0, 4.0]))
    assert (result.best_step, result.metrics["accuracy"]) == (18, 3.0)


def test_steps_instead_of_epochs_and_sparse_evaluation(tmp_path: Path) -> None:
    _, result = toy_fit(config_for(tmp_path / "steps", max_steps=8))
    assert result.steps == 8
    assert [row["step"] for row in table(tmp_path / "steps/metrics.csv")] == [6, 8]
    toy_fit(config_for(tmp_path / "sparse", epochs=5, eval_every=2))
    assert [row["step"] for row in table(tmp_path / "sparse/metrics.csv")] == [12, 24, 30]


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_bfloat16_trains_resumes_and_differs(tmp_path: Path, precision: str, ema_decay: float | None) -> None:
    config = config_for(tmp_path / "whole", precision=precision, ema_decay=ema_decay, save_every=4)
    if precision == "bf16-true" and ema_decay is not None and "dtype" not in signature(ModelEmaV3).parameters:
        with pytest.raises(InvalidConfig, match=r"needs timm 1\.0\.31"):
            toy_fit(config)
        return
    toy_fit(config)
    broken = renamed(config, tmp_path / "broken")
    run_until_killed(broken, 6)
    toy_fit(broken, resume=True)
    weights = newest_weights(tmp_path / "whole")
    assert same(weights, newest_weights(tmp_path / "broken"))
    assert same(load_file(tmp_path / "whole/model.safetensors"), load_file(tmp_path / "broken/model.safetensors"))
    assert weights["0.weight"].dtype == (torch.bfloat16 if precision == "bf16-true" else torch.float32)
    toy_fit(config_for(tmp_path / "float32", ema_decay=ema_decay))
    assert not torch.equal(weights["0.weight"].float(), newest_weights(tmp_path / "float32")["0.weight"])


def test_the_seed_decides(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        toy_fit(config_for(tmp_path / name, seed=seed))
    a, b, c = (newest_weights(tmp_path / name) for name in "abc")
    assert same(a, b)
    assert not same(a, c)


def test_environment_says_what_ran(tmp_path: Path) -> None:
    toy_fit(config_for(tmp_path / "run"))
    (session,) = json.loads((tmp_path / "run/environment.json").read_text())
    assert session["versions"]["torch"] == torch.__version__.split("+")[0]
    assert session["command"]
    assert session["machine"]["threads"] >= 1
