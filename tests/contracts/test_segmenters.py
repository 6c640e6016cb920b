"""Every family x {UperNet, Semantic FPN}: training steps lower the loss, and reach all parameters."""

import pytest
import torch
from torch.nn import functional as F

from tests.models.test_segmenter import HEADS, small


@pytest.mark.parametrize("head", HEADS)
def test_training_lowers_the_loss(name, head):
    torch.manual_seed(0)
    net = small(name, head, num_classes=3, dropout=0.0).train()
    # quarters of an image, each of its class's colour
    labels = torch.tensor([[[0, 1], [2, 0]], [[2, 2], [1, 0]]]).repeat_interleave(16, 1).repeat_interleave(16, 2)
    x = F.one_hot(labels, 3).permute(0, 3, 1, 2) + 0.1 * torch.randn(2, 3, 32, 32)
    labels[:, :3] = 255
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-2)
    losses = []
    for _ in range(5):
        logits = [part for part in net(x, auxiliary=True) if part is not None]
        resized = [F.interpolate(part, size=(32, 32), mode="bilinear") for part in logits]
        loss = sum(F.cross_entropy(part, labels, ignore_index=255) for part in resized)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.95 * losses[0]
    assert not [key for key, value in net.named_parameters() if value.grad is None]
