"""Features for a dense head: four maps at strides 4, 8, 16 and 32 from any family, and a segmentation head on them.

    python examples/dense_head.py --model resmlp_s12 --steps 50

Trains on made-up images with a bright rectangle, and segments it. For families that take one image size, images are cut
into windows (``tile_overlap``), so any size works; docs/dense.md says more.
"""

import argparse
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import visionmlp
from visionmlp.models.dense import DenseFeatures

SIZE = (96, 160)
"""Height and width of the images, pixels; any would do."""


class Segmenter(nn.Module):
    """Each level to one width, all brought to the finest, added and classified."""

    def __init__(self, features: DenseFeatures, *, classes: int, width: int = 32) -> None:
        super().__init__()
        self.features = features
        self.lateral = nn.ModuleList(nn.Conv2d(channels, width, 1) for channels in features.feature_info.channels())
        self.classifier = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, classes, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) to logits (B, classes, H, W)."""
        levels = [lateral(level) for lateral, level in zip(self.lateral, self.features(x), strict=True)]
        size = levels[0].shape[2:]
        summed = torch.stack([_resized(level, size) for level in levels]).sum(0)
        return _resized(self.classifier(summed), x.shape[2:])


def _resized(x: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(x, size=list(size), mode="bilinear", align_corners=False)


def rectangles(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Noise with a brighter rectangle, (N, 3, H, W), and its mask, (N, H, W) of 0 and 1."""
    height, width = SIZE
    masks = torch.zeros(count, height, width, dtype=torch.long)
    for mask in masks:
        top = int(torch.randint(height // 2, (), generator=generator))
        left = int(torch.randint(width // 2, (), generator=generator))
        mask[top : top + height // 2, left : left + width // 2] = 1
    return torch.randn(count, 3, height, width, generator=generator) + 2.0 * masks[:, None], masks


def build(name: str) -> Segmenter:
    """The segmenter of a model name."""
    model = visionmlp.create_model(name)  # or with weights: visionmlp.load_model(...)
    return Segmenter(
        visionmlp.dense_features(model, tile_overlap=0 if model.input_sizes == "fixed" else None), classes=2
    )


def run(*, model: str, steps: int) -> tuple[float, float]:
    """Train; intersection over union of the rectangle, percent, and the deploy form's largest relative difference."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    segmenter = build(model)
    optimizer = torch.optim.AdamW(segmenter.parameters(), lr=2e-3)
    for _ in range(steps):
        images, masks = rectangles(4, generator)
        optimizer.zero_grad()
        F.cross_entropy(segmenter(images), masks).backward()
        optimizer.step()
    segmenter.eval()
    deployed = visionmlp.reparameterize(segmenter)  # merges what it finds inside; the head stays as it is
    images, masks = rectangles(8, generator)
    with torch.inference_mode():
        before, after = cast("Tensor", segmenter(images)), cast("Tensor", deployed(images))
    found, real = after.argmax(1) == 1, masks == 1
    overlap = 100 * (found & real).sum().item() / max((found | real).sum().item(), 1)
    return overlap, ((after - before).abs().max() / before.abs().max()).item()


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="cyclemlp_b1", help="any model name")
    parser.add_argument("--steps", type=int, default=30, help="training steps")
    options = parser.parse_args(arguments)
    overlap, error = run(model=options.model, steps=options.steps)
    print(f"intersection over union {overlap:.1f} %; deploy form differs by {error:.1e}")


if __name__ == "__main__":
    main()
