"""Ten crops of an image, one answer."""

import math

import torch
from torch import Tensor, nn


class TenCropModel(nn.Module):
    """A classifier that sees ten crops and answers with the mean of their probabilities (Krizhevsky et al., 2012).

    Args:
        model: takes (B, C, H, W) and gives logits (B, K); sees one crop of all images at a time.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, crops: Tensor) -> Tensor:
        """(B, crops, C, H, W) to the logarithms of the mean softmax (B, K), whose softmax is that mean."""
        logs = torch.stack([self.model(images).log_softmax(1) for images in crops.unbind(1)])
        return logs.logsumexp(0) - math.log(len(logs))
