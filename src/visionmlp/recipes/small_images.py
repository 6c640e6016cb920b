"""Published runs on images of CIFAR's size, and ours on smaller ones; one function each.

A quoted result is the source's; of these, only `digits` was trained to its end here.
"""

from pathlib import Path
from typing import Any

from visionmlp.tasks.classify.config import ClassifyConfig


def repmlpnet_cifar100(
    *, data: str, output: Path, kernel_sizes: tuple[int, ...] = (1, 3), model: str = "repmlpnet_cifar"
) -> ClassifyConfig:
    """RepMLPNet on CIFAR-100, with and without Locality Injection.

    Command: ``visionmlp train --recipe repmlpnet_cifar100 --data torch/cifar100 --data-root data --output runs/cifar``
    Expected: top-1 59.07 without branches, 60.73 (1), 65.36 (3), 67.43 (1, 3) %: paper, Table 5.
    Cost: 100 epochs on one GPU (paper).
    Source: arXiv 2112.11081, section 5.2: batch 128, pad-4 crop and flip, and "the same learning rate schedule and
    weight decay" as on ImageNet, where the authors' script scales 2e-3 at batch 256 linearly. Label smoothing is their
    script's default; the paper does not say.
    """
    return _cifar100(model, {"kernel_sizes": kernel_sizes}, data, output)


def resmlp_cifar100(
    *, data: str, output: Path, kernel_sizes: tuple[int, ...] = (1, 3), model: str = "resmlp_s12"
) -> ClassifyConfig:
    """ResMLP-12, narrowed, on CIFAR-100, with and without Locality Injection.

    Command: ``visionmlp train --recipe resmlp_cifar100 --data torch/cifar100 --data-root data --output runs/cifar``
    Expected: top-1 55.58 without branches, 57.96 (1), 63.76 (3), 65.09 (1, 3) %: RepMLPNet, Table 5.
    Cost: 100 epochs on one GPU (paper).
    Source: arXiv 2112.11081, section 5.2, as `repmlpnet_cifar100`. Patches of 2 pixels give the paper's 16x16 maps, and
    a width of 256 its 7.1M parameters and 1812M multiply-accumulates.
    """
    return _cifar100(model, {"patch_size": 2, "dim": 256, "kernel_sizes": kernel_sizes}, data, output)


def _cifar100(model: str, model_args: dict[str, Any], data: str, output: Path) -> ClassifyConfig:
    return ClassifyConfig(
        model=model,
        model_args=model_args,
        img_size=32,
        data=data,
        output=output,
        epochs=100,
        batch_size=128,
        optimizer="adamw",
        lr=1e-3,
        weight_decay=0.1,
        schedule="cosine",
        warmup_epochs=10.0,
        warmup_prefix=False,
        warmup_lr=5e-7,
        clip_grad=5.0,
        label_smoothing=0.1,
        crop="pad",
        crop_padding=4,
        hflip=0.5,
        mean=(0.5071, 0.4866, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
        num_workers=4,
    )


def digits(*, output: Path, model: str = "repmlpnet_cifar") -> ClassifyConfig:
    """A small RepMLPNet on scikit-learn's handwritten digits: the run of ``visionmlp demo``, not a published one.

    Command: ``visionmlp train --recipe digits --output runs/digits``
    Expected: top-1 of at least 98 % on the 360 held-out digits (99.4 to 100 % over three seeds).
    Cost: half a minute on one CPU core; a second one does not help so small a model.
    Source: ours.
    """
    return ClassifyConfig(
        model=model,
        model_args={"channels": 32, "blocks": (2, 2), "share_sets": (4, 8), "kernel_sizes": (1, 3)},
        img_size=16,
        data="sklearn/digits",
        output=output,
        epochs=16,
        batch_size=64,
        optimizer="adamw",
        lr=3e-3,
        weight_decay=0.05,
        warmup_epochs=2.0,
        clip_grad=5.0,
        label_smoothing=0.1,
        crop="pad",
        crop_padding=2,
        hflip=0.0,
        rotation=10.0,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        num_workers=0,
        threads=1,
        log_every=22,
    )
