"""The training loop, one for all tasks.

A run is a function of its configuration. Before each batch the generators of Python, NumPy and PyTorch are seeded from
(seed, step, part, rank), the learning rate is a function of the step, and the data starts anywhere in an epoch; so what
is saved is weights, optimizer and moving average, and a run that was killed ends bit-equal to one that was not.
"""

import contextlib
import dataclasses
import math
import random
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from visionmlp.engine.accumulation import StepSums, StepTotals, divide_gradients, untouched
from visionmlp.engine.checkpoints import Checkpoints, WriteWeights
from visionmlp.engine.config import TrainingConfig
from visionmlp.engine.evaluation import evaluate
from visionmlp.engine.launch import agree, on_rank_zero
from visionmlp.engine.loggers import Loggers, LogState
from visionmlp.engine.metrics import Metric
from visionmlp.engine.networks import Networks
from visionmlp.engine.optimization import (
    clip_each_gradient,
    create_optimizer,
    create_schedule,
    frozen_modules,
    set_weight_decay,
    warn_of_stuck_weights,
)
from visionmlp.engine.processes import Processes
from visionmlp.engine.progress import ProgressReport
from visionmlp.engine.run_folder import DataRecord, RunFolder, Table, best_row, score
from visionmlp.engine.sharding import load_state, local, optimizer_state, whole
from visionmlp.engine.signals import stop_on_signals
from visionmlp.engine.task import EpochData, RunContext, Task
from visionmlp.errors import InvalidConfig, RunFolderError, TrainingDiverged
from visionmlp.memory import keep_freed_memory

if TYPE_CHECKING:
    from lightning_fabric import Fabric


KeepBest = Callable[[nn.Module, Any], None]
"""Called with the evaluated model and the metric object of its evaluation."""
ShowEvaluation = Callable[[int, Any], None]
"""Called with the step and the metric object of each evaluation, to draw pictures; in the first process."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitResult:
    """How a run ended."""

    steps: int
    """Steps of the whole run."""
    best_step: int
    """Step whose weights were kept as the best."""
    metrics: dict[str, float]
    """Evaluation of those weights."""
    seconds: float
    """Duration of this session."""


def fit(
    *,
    fabric: "Fabric",
    model: nn.Module,
    task: Task,
    training: EpochData,
    evaluation: Iterable[Any],
    config: TrainingConfig,
    run: RunFolder,
    write_weights: WriteWeights,
    keep_best: KeepBest,
    data: DataRecord,
    show: ShowEvaluation | None = None,
    resume: bool = False,
    quiet: bool = False,
) -> FitResult:
    """Train a model, or continue to.

    Args:
        fabric: launched.
        model: on any device; trained in place.
        task: loss and metrics.
        training: batches of this process.
        evaluation: batches of this process.
        config: options.
        run: the folder; created, or with ``resume`` continued.
        write_weights: writes a checkpoint's weights.
        keep_best: writes the best weights so far, and what their evaluation gave.
        data: what a resumed run must find as it was.
        show: draws what an evaluation has found.
        resume: whether to start from the folder's newest checkpoint.
        quiet: whether to show nothing on the way.

    Raises:
        TrainingDiverged: if loss, gradient or weights are not finite; the last good checkpoint stays.
        RunFolderError: if the folder cannot be written, holds a run already, or nothing to resume.
        InvalidConfig: if a resumed run was started with other options or other data.
        KeyboardInterrupt: at SIGINT or SIGTERM, when all is saved.
    """
    keep_freed_memory()
    loop = _Loop(fabric, model, task, training, evaluation, config, run, write_weights, keep_best, quiet=quiet)
    loop.show = show
    # what is wrong with model, data or options has shown by now, and left no trace
    on_rank_zero(fabric, lambda: run.reopen(config, data) if resume else run.create(config, data))
    if resume:
        loop.restore()
    else:
        loop.start()
    with loop.report, loop.loggers, stop_on_signals(loop.ask_to_stop):
        loop.run_epochs()
    return loop.result()


class _Loop:
    """What changes while training."""

    def __init__(
        self,
        fabric: "Fabric",
        model: nn.Module,
        task: Task,
        training: EpochData,
        evaluation: Iterable[Any],
        config: TrainingConfig,
        run: RunFolder,
        write_weights: WriteWeights,
        keep_best: KeepBest,
        *,
        quiet: bool,
    ) -> None:
        self.quiet = quiet or not fabric.is_global_zero
        self.fabric, self.task, self.training, self.evaluation = fabric, task, training, evaluation
        self.config, self.run = config, run
        self.steps_per_epoch = len(training) // config.accumulate
        if self.steps_per_epoch == 0:
            raise InvalidConfig(f"an epoch of {len(training)} batches is shorter than accumulate = {config.accumulate}")
        self.steps = config.max_steps or config.epochs * self.steps_per_epoch
        self.processes = Processes(fabric)
        fabric.strategy.precision.convert_module(model.to(fabric.device))
        context = RunContext(
            device=fabric.device,
            processes=self.processes,
            steps=self.steps,
            steps_per_epoch=self.steps_per_epoch,
        )
        # what copies the model comes before it is wrapped or sharded
        task.start(model, context)
        warn_of_stuck_weights(model, config)
        self.networks = Networks(model, task, config, fabric)
        self.plain, self.ema, self.mesh = model, self.networks.ema, self.networks.mesh
        optimizer = create_optimizer(task.parameter_groups(model, config), config)
        self.schedule = create_schedule(optimizer, config, steps=self.steps, steps_per_epoch=self.steps_per_epoch)
        self.model = fabric.setup_module(model)
        self.optimizer: Any = fabric.setup_optimizers(optimizer)
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.resting = frozen_modules(model)
        self.checkpoints = Checkpoints(
            run.checkpoints, keep=config.keep_checkpoints, write_weights=write_weights, fabric=fabric, mesh=self.mesh
        )
        self.keep_best = keep_best
        self.show: ShowEvaluation | None = None
        self.step = 0
        self.interval: list[dict[str, Any]] = []
        """`StepTotals` of each step since the last row of train.csv."""
        self.interval_started = self.started = time.monotonic()
        self.stop_asked = False
        """Set by a signal, in this process."""
        self.stopping = False
        """All processes know that one was asked."""
        self.report = self._report()
        self.loggers = Loggers({})
        """Open in the first process only."""

    # ---- saving and restoring

    def start(self) -> None:
        """Step 0 is saved: from here on there is something to resume."""
        on_rank_zero(self.fabric, lambda: self._open_loggers(resumed=False))
        self.save()

    def save(self) -> None:
        """Write a checkpoint, unless the weights are not finite."""
        agree(self.fabric, self._require_finite)
        state = {
            "optimizer": self.optimizer.state_dict(),
            "ema": None if self.ema is None else self.ema.module.state_dict(),
            "task": self.task.state_dict(),
            "interval": self.interval,
        }
        self.checkpoints.save(self.step, self.plain, state)

    def _require_finite(self) -> None:
        bad = [name for name, value in self.plain.state_dict().items() if not local(value).isfinite().all()]
        if bad:
            raise TrainingDiverged(
                f"{bad[0]} is not finite after step {self.step}, {self._lr_text()}; {self._advice()}"
            )

    def restore(self) -> None:
        """Load the newest checkpoint and cut the tables to it."""
        self.step, weights, state = self.checkpoints.load()
        if "task" not in state:
            raise RunFolderError(f"{self.run.path} is of an older visionmlp; resume it there, or start a new run")
        load_state(self.plain, weights)
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        self.optimizer.load_state_dict(optimizer_state(state["optimizer"], parameters))
        if self.ema is not None:
            load_state(self.ema.module, state["ema"])
        self.task.load_state_dict(state["task"])
        self.interval = state["interval"]
        on_rank_zero(self.fabric, lambda: self._open_loggers(resumed=True))
        self.report = self._report()
        if self.step:
            self.report.note(f"resumed at step {self.step} of {self.steps}")

    def _open_loggers(self, *, resumed: bool) -> None:
        """In the first process, which also cuts the tables to this step."""
        logged = self.run.cut(self.step)
        self.loggers = Loggers.open(self.run, self.config, LogState.of(self.run, self.step, logged), resumed=resumed)

    def _append(self, table: Table, row: Mapping[str, Any]) -> None:
        """In the first process."""
        self.loggers.write(table.path, row)
        table.append(row)

    # ---- training

    def run_epochs(self) -> None:
        """From the current step to the last."""
        if self._evaluation_due() and not any(row["step"] == self.step for row in self.run.metrics.rows()):
            self.evaluate()  # killed between checkpoint and evaluation
        while self.step < self.steps:
            epoch, done = divmod(self.step, self.steps_per_epoch)
            batches = self.training.epoch(epoch, skip=done * self.config.accumulate)
            self.interval_started = time.monotonic()
            timed_from = self.step
            for _ in range(done, min(self.steps_per_epoch, self.steps - epoch * self.steps_per_epoch)):
                parts = agree(self.fabric, lambda: [next(batches) for _ in range(self.config.accumulate)])  # noqa: B023
                self.interval.append(dataclasses.asdict(self.update(parts)))
                self.step += 1
                self.report.advance(self.step)
                if self.step % self.config.log_every == 0 or self.step == self.steps:
                    self.log(epoch, timed_from)
                    timed_from = self.step
                if self._evaluation_due():
                    self.save()
                    self.evaluate()
                elif self.stopping or (self.config.save_every and self.step % self.config.save_every == 0):
                    self.save()
                if self.stopping:
                    self.stop()

    def update(self, parts: list[Any]) -> StepTotals:
        """One step on its parts of the batch."""
        self.model.train()
        for module in self.resting:
            module.eval()
        self.schedule.step_update(self.step)
        set_weight_decay(self.optimizer, self.config, self.step, self.steps)
        self.optimizer.zero_grad()
        sums = StepSums()
        for part, batch in enumerate(parts):
            _seed(self.config.seed, self.step, part, self.fabric.global_rank)
            # shards of gradients are added up part by part, which takes the memory of shards only
            waits = part < len(parts) - 1 and self.mesh is None
            with self.fabric.no_backward_sync(self.model, enabled=waits):
                loss = self.task.training_loss(self.model, self.fabric.to_device(batch))
                zero = untouched(self.trained, self.processes) if self.mesh is None else 0.0
                self.fabric.backward(loss.total + zero)
            sums.add(loss)
        totals = sums.over(self.processes, stop=self.stop_asked)
        self.stopping = totals.stop
        if not math.isfinite(totals.loss):
            raise TrainingDiverged(
                f"loss is {totals.mean()} at step {self.step + 1}, {self._lr_text()}; {self._advice()}"
            )
        divide_gradients(self.trained, totals.count, self.processes)
        self._clip_gradients()
        self.task.before_step(self.plain, self.step)
        self.optimizer.step()
        self.task.after_step(self.plain, self.step + 1, self.processes)
        if self.ema is not None:
            self.ema.update(self.plain, step=self.step + 1)
        return totals

    def _clip_gradients(self) -> None:
        if self.config.clip_grad is None:
            return
        if self.config.clip_grad_each:
            norm: Any = clip_each_gradient(self.trained, self.config.clip_grad)
        else:
            norm = self.fabric.clip_gradients(
                self.model, self.optimizer, max_norm=self.config.clip_grad, error_if_nonfinite=False
            )
            norm = whole(norm)
        if not norm.isfinite():
            raise TrainingDiverged(
                f"the gradient's norm is {norm.item()} at step {self.step + 1}, {self._lr_text()}; {self._advice()}"
            )

    def log(self, epoch: int, timed_from: int) -> None:
        """A row of train.csv, and of router.csv if the model has one."""
        now = time.monotonic()
        steps = self.step - timed_from
        count = max(sum(totals["count"] for totals in self.interval), 1.0)
        unit = self.task.unit
        elements = sum(totals["count"] for totals in self.interval[len(self.interval) - steps :])
        done = steps * self.config.batch_size if unit == "images" else elements
        rate = round(done / max(now - self.interval_started, 1e-9), 1)
        row = {"loss": sum(totals["loss"] for totals in self.interval) / count, "lr": self._lr()}
        columns, routed = (
            {name: sum(totals[kind][name] for totals in self.interval) / count for name in self.interval[0][kind]}
            for kind in ("columns", "routing")
        )
        self.interval, self.interval_started = [], now
        training = {"step": self.step, "epoch": epoch + 1, **row, f"{unit}_per_second": rate, **columns}
        on_rank_zero(self.fabric, lambda: self._append(self.run.train, training))
        if routed:
            on_rank_zero(self.fabric, lambda: self._append(self.run.router, {"step": self.step, **routed}))
        self.report.logged(epoch=epoch + 1, **row, speed=f"{rate:,.0f} {unit}/s")

    # ---- evaluation

    def evaluate(self) -> None:
        """A row of metrics.csv; the best weights are kept."""
        paused = time.monotonic()
        model = self.networks.evaluated()
        precision = self.fabric.strategy.precision
        # the average is evaluated in its own precision, at least float32, as it is shipped
        as_is = self.ema is not None and self.config.precision != "64-true"
        metric = evaluate(
            self.task,
            model,
            self.evaluation,
            prepare=lambda batch: self.fabric.to_device(batch if as_is else precision.convert_input(batch)),
            precision=contextlib.nullcontext if as_is else self.fabric.autocast,
            after_batch=self._stop_evaluation,
            agree=lambda function: agree(self.fabric, function),
            processes=self.processes,
        )
        metrics = on_rank_zero(self.fabric, metric.compute)
        epoch = -(-self.step // self.steps_per_epoch)
        best = on_rank_zero(self.fabric, lambda: self._keep(model, metric, epoch, metrics))
        self.networks.rest()
        self.report.evaluated(step=self.step, epoch=epoch, metrics=metrics, best=best)
        self.interval_started += time.monotonic() - paused

    def _keep(self, model: nn.Module, metric: Metric, epoch: int, metrics: dict[str, float]) -> bool:
        earlier = [self._score(row) for row in self.run.metrics.rows()]
        best = not earlier or self._score(metrics) > max(earlier)
        if self.show is not None:
            self.show(self.step, metric)
        if best:
            self.keep_best(model, metric)
        # behind the weights: without this row a resumed run evaluates again
        self._append(self.run.metrics, {"step": self.step, "epoch": epoch, **metrics})
        return best

    def _score(self, metrics: Mapping[str, float]) -> float:
        return score(metrics, self.task.metric, lower_is_better=self.task.lower_is_better)

    def result(self) -> FitResult:
        """From the tables, as the best evaluation may be of an earlier session."""
        best = best_row(self.run.metrics.rows(), self.task.metric, lower_is_better=self.task.lower_is_better)
        metrics = {name: value for name, value in best.items() if name not in ("step", "epoch")}
        return FitResult(
            steps=self.steps,
            best_step=int(best["step"]),
            metrics=metrics,
            seconds=time.monotonic() - self.started,
        )

    # ---- small parts

    def ask_to_stop(self) -> None:
        """A signal came: stop behind this step."""
        self.stop_asked = True

    def stop(self) -> None:
        """End the run; everything is saved."""
        raise KeyboardInterrupt(
            f"stopped at step {self.step} of {self.steps}, which is saved; "
            f"the same command with --resume continues {self.run.path}"
        )

    def _stop_evaluation(self) -> None:
        if self.stop_asked and self.fabric.world_size == 1:
            self.stop()

    def _evaluation_due(self) -> bool:
        interval = self.config.eval_steps or self.config.eval_every * self.steps_per_epoch
        return self.step > 0 and (self.step % interval == 0 or self.step == self.steps)

    def _report(self) -> ProgressReport:
        return ProgressReport(steps=self.steps, done=self.step, quiet=self.quiet)

    def _lr_text(self) -> str:
        return f"learning rate {self._lr():.3g}"

    def _lr(self) -> float:
        """The schedule's, before any group's own factor."""
        group = self.optimizer.param_groups[0]
        return group["lr"] / group.get("lr_scale", 1.0)

    def _advice(self) -> str:
        saved = self.checkpoints.steps()
        kept = f"the checkpoint of step {saved[-1]} stays in {self.run.path}; " if saved else ""
        return f"{kept}try a lower lr, a longer warm-up or clip_grad"


def _seed(*parts: int) -> None:
    """Seed every generator that a loss may draw from."""
    seed = int(np.random.SeedSequence(parts).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 (timm's mixup uses this one)
    torch.manual_seed(seed)
