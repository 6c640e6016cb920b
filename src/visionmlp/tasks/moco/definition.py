"""MoCo v3 as the command line knows it."""

from visionmlp.tasks.definition import TrainResult
from visionmlp.tasks.moco.config import MocoConfig
from visionmlp.tasks.self_supervised.definition import self_supervised_task


def _train(config: MocoConfig, *, resume: bool) -> TrainResult:
    from visionmlp.tasks.moco.run import train

    return train(config, resume=resume)


TASK = self_supervised_task(summary="features without labels, by contrast", config=MocoConfig, train=_train)
