"""Every family x every head: training steps lower the loss, and reach all parameters."""

import pytest
import torch

from tests.heads.detectors import HEADS, images, seeded, small, target


@pytest.mark.parametrize("head", HEADS)
def test_training_lowers_the_loss(name, head):
    torch.manual_seed(0)
    net = small(name, head, num_classes=2).train()
    wanted = [target((5, 5, 40, 40), (20, 30, 60, 62), labels=[1, 2])]
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3 if head == "retinanet" else 5e-3)
    losses = []
    for _ in range(9 if head == "retinanet" else 7):
        # the same anchors and proposals are sampled at each step
        loss = sum(seeded(net, images(), wanted).values())
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert min(losses[-3:]) < 0.9 * losses[0]  # the rate is high, so that single steps may leap
    assert not [key for key, value in net.named_parameters() if value.grad is None]
