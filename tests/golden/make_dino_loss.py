"""Writes dino_loss.npz: five steps of lightly's DINOLoss, as an oracle that the tests need not install.

lightly needs packages without wheels, so it is no dependency. Run ``pip install lightly==1.6.0`` elsewhere, then
``python -m tests.golden.make_dino_loss``.
"""

from pathlib import Path

import numpy as np
import torch

IMAGES, CLASSES, STEPS = 6, 32, 5
# lightly keeps the teacher's temperature in float32, which holds a sixteenth exactly
TEACHER_TEMPERATURE, STUDENT_TEMPERATURE, MOMENTUM = 1 / 16, 0.1, 0.9
LOCAL_VIEWS = (0, 3)
FILE = Path(__file__).with_name("dino_loss.npz")


def scores(views: int, seed: int) -> torch.Tensor:
    """(views, IMAGES, CLASSES), float64."""
    generator = np.random.default_rng(seed)
    return torch.from_numpy(generator.standard_normal((views, IMAGES, CLASSES)))


def main() -> None:
    from lightly.loss.dino_loss import DINOLoss

    arrays = {}
    for views in LOCAL_VIEWS:
        oracle = DINOLoss(
            CLASSES,
            warmup_teacher_temp=TEACHER_TEMPERATURE,
            teacher_temp=TEACHER_TEMPERATURE,
            warmup_teacher_temp_epochs=0,
            student_temp=STUDENT_TEMPERATURE,
            center_momentum=MOMENTUM,
        ).double()
        for step in range(STEPS):
            student = scores(2 + views, 100 + step).requires_grad_()
            loss = oracle(list(scores(2, step)), list(student), epoch=step)
            (gradient,) = torch.autograd.grad(loss, student)
            arrays[f"local{views}_step{step}_loss"] = loss.detach().numpy()
            arrays[f"local{views}_step{step}_gradient"] = gradient.numpy()
            arrays[f"local{views}_step{step}_centre"] = oracle.center.detach().clone().flatten().numpy()
    np.savez_compressed(FILE, **arrays)


if __name__ == "__main__":
    main()
