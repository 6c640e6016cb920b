"""What the loop needs to be told."""

import abc
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from visionmlp.engine.config import TrainingConfig
from visionmlp.engine.metrics import Metric
from visionmlp.engine.optimization import parameter_groups
from visionmlp.engine.processes import Processes
from visionmlp.engine.sharding import Part


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingLoss:
    """What a task says about one part of a step's batch.

    A step's loss is the sum of all totals over the sum of all counts, of every part and process. So a part with few
    valid elements weighs as little as it would within one large batch.
    """

    total: Tensor
    """Sum of the loss over the elements, a scalar with gradients; 0 with gradients where none is valid."""
    count: float | Tensor
    """Elements that the sum is over: images, pixels, tokens."""
    columns: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    """Scalars for train.csv beside the loss, averaged with the counts as weights; the same names at every step."""
    routing: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    """The same about routed experts, for router.csv; none for other models."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunContext:
    """What a task may know of its run."""

    device: torch.device
    """Of this process."""
    processes: Processes
    """All of them, for losses over what several have."""
    steps: int
    """Of the whole run, for schedules."""
    steps_per_epoch: int


class Task(abc.ABC):
    """Where model, loss and metric meet.

    Randomness comes from the global generators, which the loop seeds before every part. What changes from step to step
    beside the model (a teacher, a centre) changes in `after_step` only, and is saved and resumed with the run.
    """

    metric: ClassVar[str]
    """Name, among those of the metric object, of the number that tells the best weights."""
    lower_is_better: ClassVar[bool] = False
    """Whether the best weights are those of its least value."""
    unit: ClassVar[str] = "images"
    """What train.csv counts per second: images, ``batch_size`` of them a step; any other name is that of the elements
    which losses are over."""

    @abc.abstractmethod
    def training_loss(self, model: nn.Module, batch: Any) -> TrainingLoss:
        """Loss of one part, with what is logged beside it."""

    @abc.abstractmethod
    def new_metric(self) -> Metric:
        """An empty metric object for one evaluation."""

    @abc.abstractmethod
    def evaluate(self, model: nn.Module, batch: Any, metric: Any) -> None:
        """Take a batch into a metric of `new_metric`."""

    def start(self, model: nn.Module, run: RunContext) -> None:  # noqa: B027 (few tasks need it)
        """Called once, before training or resuming: make a teacher, move what the task holds to the device.

        Args:
            model: as it starts, on the device and in the run's precision, not wrapped.
            run: its devices and length.
        """

    def parts(self, model: nn.Module) -> list[Part]:  # noqa: ARG002 (few tasks need it)
        """What a model in shards gathers the weights of at a time, in the order that it calls them; see `Part`.

        Args:
            model: the trained one, or its moving average, not sharded yet.
        """
        return []

    def before_step(self, model: nn.Module, step: int) -> None:  # noqa: B027 (few tasks need it)
        """Called behind the backward pass and clipping: set gradients to None that the optimizer shall not see.

        Args:
            model: with its gradients, not wrapped.
            step: steps that are done by now, without this one.
        """

    def after_step(self, model: nn.Module, step: int, processes: Processes) -> None:  # noqa: B027 (few tasks need it)
        """Called behind the optimizer's step, once for all parts: update a teacher, a centre.

        Args:
            model: with its new weights, not wrapped.
            step: steps that are done now.
            processes: all, who call this together.
        """

    def evaluated(self, model: nn.Module) -> nn.Module:
        """The network that is evaluated and shipped, such as a teacher; the trained one unless a task says otherwise.

        Args:
            model: with its newest weights, or their moving average.
        """
        return model

    def state_dict(self) -> dict[str, Any]:
        """What `after_step` changes, as tensors, numbers and containers of them; saved with every checkpoint."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        if state:
            raise ValueError(f"{type(self).__name__} keeps no state, got {', '.join(state)}")

    def parameter_groups(self, model: nn.Module, config: TrainingConfig) -> list[dict[str, Any]]:
        """The optimizer's groups: ``params``, ``weight_decay``, and ``lr_scale``, a factor of the learning rate.

        Parameters without gradient (`torch.nn.Module.requires_grad_`) are left out. A module whose parameters are all
        frozen rests: its norm statistics stay, its drop-path and dropout are off.
        """
        return parameter_groups(model, config)


class EpochData(Protocol):
    """Training batches that can start anywhere in an epoch."""

    def __len__(self) -> int:
        """Batches of an epoch, on this process."""
        ...

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[Any]:
        """The batches of an epoch behind the first ``skip``."""
        ...
