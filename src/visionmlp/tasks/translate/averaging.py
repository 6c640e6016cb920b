"""The mean of a run's newest checkpoints, often better than the last (arXiv 1706.03762, section 6.1)."""

from pathlib import Path

import torch
from torch import Tensor

from visionmlp.engine import RunFolder
from visionmlp.engine.checkpoints import saved_steps, saved_weights
from visionmlp.errors import CheckpointError, InvalidConfig
from visionmlp.models.official import check_fit
from visionmlp.models.translator import Translator
from visionmlp.models.translator_files import TranslatorInfo, load_translator


def averaged(folder: Path, count: int | None = None) -> tuple[Translator, TranslatorInfo, list[int]]:
    """A translator with the mean weights of checkpoints.

    Args:
        folder: of a run; ``--keep-checkpoints`` says how many it keeps.
        count: of the newest ones; None is all that are there.

    Returns:
        The network, what its run says about it, and the steps.

    Raises:
        InvalidConfig: for fewer than one.
        CheckpointError: if there are not so many, or one is not finite.
        CheckpointMismatch: if one is of another network.
        RunFolderError: if one cannot be read.
    """
    if count is not None and count < 1:
        raise InvalidConfig(f"checkpoints must be at least 1, got {count}")
    network, info = load_translator(folder)
    checkpoints = RunFolder(folder).checkpoints
    steps = saved_steps(checkpoints)
    if not steps or len(steps) < (count or 1):
        raise CheckpointError(
            f"{folder} has {len(steps)} whole checkpoints, weights with their .state, not {count or 1}; "
            "train --keep-checkpoints says how many stay"
        )
    steps = steps[-(count or len(steps)) :]
    own, total = network.state_dict(), dict[str, Tensor]()
    for step in steps:
        state = saved_weights(checkpoints, step)
        check_fit(info.model, own, state, f"step {step} of {folder}")
        for name, value in state.items():
            if not value.isfinite().all():
                raise CheckpointError(f"{name} of step {step} of {folder} is not finite; average fewer --checkpoints")
            # in float64, whatever the run computes in; what is no weight is that of the last
            total[name] = value.double() + total.get(name, 0) if value.is_floating_point() else value
    mean = {
        name: (value / len(steps)).to(own[name].dtype) if value.dtype == torch.float64 else value
        for name, value in total.items()
    }
    network.load_state_dict(mean)
    return network, info, steps
