"""The networks of a run: the trained one, its moving average, and the one that is evaluated."""

from typing import TYPE_CHECKING

import torch
from torch import nn

from visionmlp.engine.config import TrainingConfig
from visionmlp.engine.optimization import create_ema
from visionmlp.engine.sharding import Whole, mesh_of, shard
from visionmlp.engine.sharding_trial import require_sharding
from visionmlp.engine.task import Task

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class Networks:
    """Makes the moving average, and spreads both over the processes where the strategy says so.

    Args:
        model: the trained one, on the device; the task has started with it.
        task: names the parts of a model in shards, and the network that is evaluated.
        config: options.
        fabric: launched.

    Raises:
        InvalidConfig: for shards that this PyTorch, device or optimizer cannot train.
    """

    def __init__(self, model: nn.Module, task: Task, config: TrainingConfig, fabric: "Fabric") -> None:
        self.model, self.task, self.fabric = model, task, fabric
        self.mesh = mesh_of(fabric)
        """None for a model that each process holds whole."""
        if self.mesh is not None:
            require_sharding(config, self.mesh, fabric.device)
        self.ema = create_ema(model, config, sharded=self.mesh is not None)
        self._whole: Whole | None = None
        if self.mesh is not None:
            self._whole = Whole(self._averaged())
            for network in (model, *([] if self.ema is None else [self.ema.module])):
                shard(network, task.parts(network), self.mesh)

    def _averaged(self) -> nn.Module:
        return self.model if self.ema is None else self.ema.module

    def evaluated(self) -> nn.Module:
        """The network that is evaluated and shipped, whole in each process; every process calls it."""
        network = self._averaged()
        network = self.task.evaluated(network if self._whole is None else self._whole.filled(network))
        if self.fabric.world_size > 1:
            for buffer in network.buffers():  # each process has its own statistics; the first one's are saved
                torch.distributed.broadcast(buffer, 0)
        return network

    def rest(self) -> None:
        """Evaluation is over: a network that was made whole for it frees its memory."""
        if self._whole is not None:
            self._whole.rest()
