"""Every family x {UperNet, Semantic FPN}: training steps lower the loss, and reach all parameters."""

import pytest
import torch
from torch.nn import functional as F

from tests.models.test_segmenter import HEADS, small


@pytest.mark.parametrize("head", HEADS)
def test_training_lowers_the_loss(name, head):
    torch.manual_seed(0)
    net = small(name, head, num_classes=3).train()
    x = torch.randn(2, 3, 32, 32)
    labels = torch.randint(3, (2, 8, 8)).repeat_interleave(4, 1).repeat_interleave(4, 2)
    labels[:, :3] = 255
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    losses = []
    for _ in range(4):
        logits = [part for part in net(x, auxiliary=True) if part is not None]
        resized = [F.interpolate(part, size=(32, 32), mode="bilinear") for part in logits]
        loss = sum(F.cross_entropy(part, labels, ignore_index=255) for part in resized)
        losses.append(float(loss))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.95 * losses[0]
    assert not [key for key, value in net.named_parameters() if value.grad is None]
