"""DINO as the command line knows it."""

from visionmlp.tasks.definition import TrainResult
from visionmlp.tasks.dino.config import DinoConfig
from visionmlp.tasks.self_supervised.definition import self_supervised_task


def _train(config: DinoConfig, *, resume: bool) -> TrainResult:
    from visionmlp.tasks.dino.run import train

    return train(config, resume=resume)


TASK = self_supervised_task(summary="features without labels, by self-distillation", config=DinoConfig, train=_train)
