"""Options of the loop, each with its rule. Tasks extend them by their own; a YAML file holds all."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from visionmlp.errors import InvalidConfig

# known without asking timm, whose import takes seconds
_COMMON = ("adamw", "sgd", "lamb", "adagrad")
LOGGERS = ("tensorboard", "wandb")
"""Loggers beside the tables; each is an extra of this name."""
# what they need and the loop does not compute
_UNSUPPORTED = {"adahessian": "second derivatives", "lbfgs": "several losses within a step"}

MOST_THREADS = 4096
"""More than a machine has; PyTorch asks for as many as it is told."""

ConfigT = typing.TypeVar("ConfigT", bound="TrainingConfig")


def about(help: str, group: str, *, may_change: bool = False) -> dict[str, Any]:
    """Metadata of a field that is an option.

    Args:
        help: one line.
        group: heading that the field stands under.
        may_change: whether a run may be resumed with another value.
    """
    return {"help": help, "group": group, "may_change": may_change}


def option(default: Any, help: str, *, group: str, may_change: bool = False) -> Any:
    """A dataclass field with a default; arguments as in `about`."""
    return dataclasses.field(default=default, metadata=about(help, group, may_change=may_change))


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """What the loop does. A step is one update of the weights."""

    task: ClassVar[str] = ""
    """Name of the task in the register, which a run's ``config.yaml`` begins with."""

    output: Path = dataclasses.field(
        metadata=about("run folder to create, or to continue with --resume", "run", may_change=True)
    )
    seed: int = option(0, "of the initial weights and of everything random", group="run")
    log_every: int = option(50, "steps between two lines of train.csv", group="run")
    eval_every: int = option(1, "epochs between two evaluations; the last epoch is always evaluated", group="run")
    eval_steps: int | None = option(None, "steps between two evaluations, in place of eval_every epochs", group="run")
    save_every: int | None = option(
        None, "steps between two checkpoints, beside those at evaluations", group="run", may_change=True
    )
    keep_checkpoints: int = option(2, "newest checkpoints to keep", group="run", may_change=True)
    logger: tuple[Literal["tensorboard", "wandb"], ...] = option(
        (), "also log the rows of the tables to tensorboard, wandb, or both", group="run", may_change=True
    )

    epochs: int = option(100, "passes over the training images", group="optimisation")
    max_steps: int | None = option(
        None, "train for so many steps instead of whole epochs; the schedule ends there", group="optimisation"
    )
    batch_size: int = option(128, "images of one step, over all devices and accumulated parts", group="optimisation")
    accumulate: int = option(
        1, "parts that a step's images are processed in, to save memory", group="optimisation", may_change=True
    )
    optimizer: str = option("adamw", "adamw, sgd, lamb, adagrad or another of timm's optimizers", group="optimisation")
    lr: float = option(1e-3, "highest learning rate, for the whole batch_size", group="optimisation")
    weight_decay: float = option(0.05, "of matrices and kernels; biases and vectors have none", group="optimisation")
    weight_decay_end: float | None = option(
        None, "weight decay at the end, on a cosine from weight_decay; left out, it is constant", group="optimisation"
    )
    momentum: float = option(0.9, "of optimizers that have one, such as sgd", group="optimisation")
    optimizer_args: dict[str, Any] = dataclasses.field(
        default_factory=dict,
        metadata=about("further arguments of the optimizer, such as {'betas': [0.9, 0.95]}", "optimisation"),
    )
    schedule: Literal["cosine", "linear", "poly", "step", "constant", "inverse_sqrt"] = option(
        "cosine",
        "how the learning rate falls, at every step; inverse_sqrt as lr * sqrt(warm-up / step)",
        group="optimisation",
    )
    power: float = option(
        0.9, "of poly: the rate is min_lr + (lr - min_lr) * (1 - step / steps) ** power", group="optimisation"
    )
    warmup_epochs: float = option(0.0, "of linear rise to lr, at the start of the schedule", group="optimisation")
    warmup_steps: int | None = option(None, "the same in steps, in place of warmup_epochs", group="optimisation")
    warmup_prefix: bool = option(
        True,
        "the schedule begins behind the warm-up, without a jump; off is the shape of timm and DeiT, where the warm-up "
        "replaces the schedule's beginning",
        group="optimisation",
    )
    warmup_lr: float = option(1e-6, "learning rate that warm-up starts from", group="optimisation")
    warmup_ratio: float | None = option(
        None,
        "mmcv's warm-up: the schedule's own rate times a factor that rises from this to 1, such as 1e-6; warmup_lr and "
        "warmup_prefix then say nothing",
        group="optimisation",
    )
    min_lr: float = option(0.0, "learning rate at the end of cosine, linear and poly", group="optimisation")
    decay_epochs: float = option(30.0, "interval of the step schedule", group="optimisation")
    decay_milestones: tuple[float, ...] = option(
        (),
        "epochs behind which the step schedule falls, such as [8, 11], in place of every decay_epochs",
        group="optimisation",
    )
    decay_rate: float = option(0.1, "factor of the step schedule", group="optimisation")
    layer_decay: float | None = option(
        None, "factor of the learning rate from each layer to the one below, for fine-tuning", group="optimisation"
    )
    clip_grad: float | None = option(None, "largest norm of the gradient", group="optimisation")
    clip_grad_each: bool = option(
        False, "clip_grad holds for the gradient of each parameter, not of all together", group="optimisation"
    )
    ema_decay: float | None = option(
        None, "moving average of the weights, evaluated and kept in place of the weights", group="optimisation"
    )
    ema_warmup: bool = option(False, "let ema_decay rise to its value over the first steps", group="optimisation")

    accelerator: Literal["auto", "cpu", "cuda", "mps"] = option("auto", "kind of device", group="hardware")
    devices: int = option(
        1,
        "how many of them on each node, one process each; those that torchrun or SLURM started, where they did",
        group="hardware",
        may_change=True,
    )
    nodes: int = option(
        1, "machines that train together; torchrun or SLURM starts the processes", group="hardware", may_change=True
    )
    strategy: Literal["ddp", "fsdp"] = option(
        "ddp",
        "whether each device holds the whole model, or a share of its weights, gradients and optimizer state",
        group="hardware",
        may_change=True,
    )
    threads: int | None = option(
        None, "CPU threads of each process; one is best for tiny models and busy machines", group="hardware"
    )
    precision: Literal["32-true", "bf16-mixed", "bf16-true", "64-true"] = option(
        "32-true",
        "float32, bfloat16 arithmetic with float32 weights, all bfloat16, or float64 to compare runs",
        group="hardware",
    )
    deterministic: bool = option(
        False, "bit-equal repetition on GPUs too, with slower kernels; CPUs always repeat", group="hardware"
    )

    def __post_init__(self) -> None:
        for name in (
            "log_every",
            "eval_every",
            "keep_checkpoints",
            "epochs",
            "batch_size",
            "accumulate",
            "devices",
            "nodes",
        ):
            self.require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("save_every", "eval_steps", "max_steps", "threads"):
            value = getattr(self, name)
            self.require(value is None or value >= 1, f"{name} must be at least 1, or left out, got {value}")
        self.require((self.threads or 0) <= MOST_THREADS, f"threads must be at most {MOST_THREADS}, got {self.threads}")
        self.require(0 <= self.seed < 2**63, f"seed must be in [0, 2**63), got {self.seed}")
        self.require(0 <= self.momentum < 1, f"momentum must be in [0, 1), got {self.momentum}")
        for name in ("weight_decay", "warmup_epochs", "warmup_lr", "min_lr"):
            self.require(getattr(self, name) >= 0, f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("lr", "power", "decay_epochs", "decay_rate"):
            self.require(getattr(self, name) > 0, f"{name} must be positive, got {getattr(self, name)}")
        for name, value in self.choices().items():
            given = getattr(self, name)
            self.require(given in value, f"{name} must be one of {', '.join(map(str, value))}, got {given!r}")
        for name in self.logger:
            self.require(name in LOGGERS, f"logger must be of {', '.join(LOGGERS)}, got {name!r}")
            self.require(self.logger.count(name) == 1, f"logger has {name} twice")
        parts = self.processes * self.accumulate
        devices = "devices" if self.nodes == 1 else "nodes x devices"
        self.require(
            self.batch_size % parts == 0,
            f"batch_size {self.batch_size} must be a multiple of {devices} x accumulate = {parts}; "
            f"try {-(-self.batch_size // parts) * parts}",
        )
        self.require(
            self.clip_grad is None or self.clip_grad > 0,
            f"clip_grad must be positive or left out, got {self.clip_grad}",
        )
        self.require(self.clip_grad is not None or not self.clip_grad_each, "clip_grad_each needs clip_grad, such as 3")
        self.require(
            self.weight_decay_end is None or (self.weight_decay > 0 and self.weight_decay_end > 0),
            f"weight_decay and weight_decay_end must be positive, got {self.weight_decay} and {self.weight_decay_end}",
        )
        self.require(
            self.layer_decay is None or 0 < self.layer_decay <= 1,
            f"layer_decay must be in (0, 1], got {self.layer_decay}",
        )
        self.require(
            self.ema_decay is None or 0 < self.ema_decay < 1, f"ema_decay must be in (0, 1), got {self.ema_decay}"
        )
        self.require(self.ema_decay is not None or not self.ema_warmup, "ema_warmup needs ema_decay, such as 0.999")
        self._check_milestones()
        self._check_warmup()
        self.require(self.min_lr <= self.lr, f"min_lr {self.min_lr:g} must not exceed lr {self.lr:g}")
        if self.optimizer.lower() not in _COMMON:
            _check_optimizer(self.optimizer)

    def _check_warmup(self) -> None:
        self.require(
            self.max_steps is not None or self.warmup_epochs < self.epochs,
            f"warmup_epochs {self.warmup_epochs:g} must be less than epochs {self.epochs}",
        )
        self.require(
            self.max_steps is None or self.warmup_epochs < self.max_steps,
            f"warmup_epochs {self.warmup_epochs:g} has at least as many steps, which must be less than max_steps "
            f"{self.max_steps}",
        )
        self.require(
            self.warmup_steps is None or self.warmup_steps >= 0,
            f"warmup_steps must not be negative, got {self.warmup_steps}",
        )
        self.require(
            self.warmup_steps is None or not self.warmup_epochs,
            "warmup_steps and warmup_epochs say the same; leave out one of them",
        )
        self.require(
            self.max_steps is None or (self.warmup_steps or 0) < self.max_steps,
            f"warmup_steps {self.warmup_steps} must be less than max_steps {self.max_steps}",
        )
        self.require(
            self.schedule != "inverse_sqrt"
            or (bool(self.warmup_steps or self.warmup_epochs) and not self.warmup_ratio),
            "schedule inverse_sqrt falls from its warm-up on; give warmup_steps, and no warmup_ratio",
        )
        self.require(
            self.warmup_ratio is None or 0 <= self.warmup_ratio <= 1,
            f"warmup_ratio must be in [0, 1], got {self.warmup_ratio}",
        )
        self.require(
            self.warmup_ratio is None or bool(self.warmup_steps) or self.warmup_epochs > 0,
            "warmup_ratio needs a warm-up; give warmup_steps or warmup_epochs",
        )

    def _check_milestones(self) -> None:
        given = self.decay_milestones
        self.require(
            not given or self.schedule == "step",
            f"decay_milestones are the step schedule's; give schedule step, not {self.schedule}",
        )
        self.require(
            all(low < high for low, high in zip((0.0, *given), given, strict=False)),
            f"decay_milestones must be positive and rise, got {list(given)}",
        )

    @staticmethod
    def require(rule: bool, message: str) -> None:
        """Raise InvalidConfig with ``message`` unless ``rule`` holds."""
        if not rule:
            raise InvalidConfig(message)

    @classmethod
    def choices(cls) -> dict[str, tuple[Any, ...]]:
        """Fields with a fixed list of values."""
        hints = typing.get_type_hints(cls)
        return {name: typing.get_args(hint) for name, hint in hints.items() if typing.get_origin(hint) is Literal}

    @property
    def processes(self) -> int:
        """Of the run, one for each device."""
        return self.nodes * self.devices

    @property
    def part_size(self) -> int:
        """Images of one batch on one device."""
        return self.batch_size // (self.processes * self.accumulate)

    def to_plain(self) -> dict[str, Any]:
        """The task and all fields as YAML and JSON know them."""
        fields = {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}
        return {"task": self.task, **fields}

    @classmethod
    def from_plain(cls: type[ConfigT], values: Mapping[str, Any]) -> ConfigT:
        """The inverse of `to_plain`; what is left out takes its default.

        Raises:
            InvalidConfig: for another task, an unknown field or a broken rule.
        """
        hints = typing.get_type_hints(cls)
        values = dict(values)
        task = values.pop("task", cls.task)
        if task != cls.task:
            raise InvalidConfig(f"these are options of task {task!r}, not of {cls.task!r}")
        for name in values:
            if name not in hints:
                near = difflib.get_close_matches(name, hints, n=1)
                raise InvalidConfig(f"unknown option {name!r}" + (f"; did you mean {near[0]}?" if near else ""))
        for field in dataclasses.fields(cls):
            if field.name not in values and field.default is field.default_factory is dataclasses.MISSING:
                raise InvalidConfig(f"option {field.name!r} is missing")
        typed = {}
        for name, value in values.items():
            try:
                typed[name] = _typed(value, hints[name])
            except (ValueError, TypeError) as error:
                raise InvalidConfig(f"{name} cannot be {value!r}") from error
        return cls(**typed)


def _check_optimizer(name: str) -> None:
    import timm.optim

    needs = _UNSUPPORTED.get(name.lower())
    if needs is not None:
        raise InvalidConfig(f"optimizer {name!r} is not supported, as it needs {needs}; try adamw")
    known = [str(other) for other in timm.optim.list_optimizers() if other not in _UNSUPPORTED]
    if name.lower() not in known:
        near = difflib.get_close_matches(name.lower(), known, n=3)
        hint = f"did you mean {', '.join(near)}?" if near else "adamw, sgd, lamb, adagrad and more of timm's"
        raise InvalidConfig(f"unknown optimizer {name!r}; {hint}")


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


def _typed(value: Any, hint: Any) -> Any:
    """Paths and tuples are strings and lists in YAML, and ``1e-3`` is a string there.

    Raises:
        TypeError: if the hint does not admit the value.
        ValueError: if it is text in place of a number, or a list of another length.
    """
    members = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    kinds = {typing.get_origin(member) or member: member for member in members}
    if isinstance(value, str) and Path in kinds:
        return Path(value)
    if isinstance(value, list | tuple) and tuple in kinds:
        items = typing.get_args(kinds[tuple])
        if items[-1] is Ellipsis:
            items = items[:1] * len(value)
        return tuple(_typed(item, kind) for item, kind in zip(value, items, strict=True))
    if isinstance(value, str | int) and not isinstance(value, bool) and float in kinds and str not in kinds:
        return float(value)
    if Literal in kinds:  # which has its own rule
        return value
    if not isinstance(value, tuple(kinds)) or (isinstance(value, bool) and bool not in kinds):
        raise TypeError(f"{type(value).__name__} is not {hint}")
    return value
