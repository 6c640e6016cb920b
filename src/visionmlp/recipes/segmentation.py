"""Published runs of semantic segmentation, one function each: ADE20K and Cityscapes by mmsegmentation's definitions.

A quoted result is the source's; none of these was trained to its end here. All start from the family's weights on
ImageNet-1k. Where ours differs from mmsegmentation's: vectors (norms and biases) have no weight decay, and images are
resized with antialiasing. What the recipes leave at its default (augmentation, loss, auxiliary head, whole images of
unchanged proportions, BatchNorm over all devices) is mmsegmentation's too.
"""

from pathlib import Path
from typing import Any

from visionmlp.tasks.segment.config import SegmentConfig

_ADE20K: dict[str, Any] = {"resize": (2048, 512), "crop_size": (512, 512), "num_workers": 8, "schedule": "poly"}


def asmlp_upernet(*, data: str, output: Path, checkpoint: Path, model: str = "asmlp_t") -> SegmentConfig:
    """AS-MLP with UperNet on ADE20K.

    Command: ``visionmlp train --recipe asmlp_upernet --checkpoint asmlp_tiny.pth --data ADEChallengeData2016
    --output runs/asmlp_seg``
    Expected: mIoU 46.5 (t), 49.2 (s), 49.5 (b) % at several scales and mirrored, see ``eval --scales`` and ``--flip``.
    Cost: 160,000 steps of 16 images; time not stated.
    Source: arXiv 2107.08391 and the authors' segmentation code: AdamW 6e-5, weight decay 0.01, poly, 1500 steps of
    warm-up, 512 pixels, drop-path 0.3 (t, s) and 0.5 (b). Their base file is missing; head, dropout 0.1 and auxiliary
    weight 0.4 are its twin's, Swin's. The weights lie on a drive that no program can read.
    """
    return SegmentConfig(
        model=model,
        checkpoint=checkpoint,
        drop_path_rate=0.5 if model.startswith("asmlp_b") else 0.3,
        head="upernet",
        data=data,
        output=output,
        max_steps=160_000,
        eval_steps=16_000,
        batch_size=16,
        optimizer="adamw",
        lr=6e-5,
        weight_decay=0.01,
        power=1.0,
        warmup_steps=1500,
        warmup_ratio=1e-6,
        **_ADE20K,
    )


def hiremlp_upernet(*, data: str, output: Path, model: str = "hiremlp_s") -> SegmentConfig:
    """Hire-MLP with UperNet on ADE20K.

    Command: ``visionmlp train --recipe hiremlp_upernet --data ADEChallengeData2016 --output runs/hire_upernet``
    Expected: mIoU 49.9 % is the best of the paper's (abstract); our sources do not say which model's.
    Cost: 80,000 steps of 32 images on 8 GPUs; time not stated.
    Source: arXiv 2108.13341 by the authors' configuration, which is for Small: AdamW 1.2e-4, weight decay 0.01 (on
    norms too, here not), poly, 800 steps of warm-up, drop-path 0.2, a norm on each level, whole images.
    """
    return SegmentConfig(
        model=model,
        pretrained=True,
        drop_path_rate=0.2,
        head="upernet",
        data=data,
        output=output,
        max_steps=80_000,
        eval_steps=8_000,
        batch_size=32,
        optimizer="adamw",
        lr=1.2e-4,
        weight_decay=0.01,
        power=1.0,
        warmup_steps=800,
        warmup_ratio=1e-6,
        **_ADE20K,
    )


def hiremlp_semantic_fpn(*, data: str, output: Path, model: str = "hiremlp_s") -> SegmentConfig:
    """Hire-MLP with Semantic FPN on ADE20K.

    Command: ``visionmlp train --recipe hiremlp_semantic_fpn --data ADEChallengeData2016 --output runs/hire_fpn``
    Expected: not in our sources.
    Cost: 40,000 steps of 32 images on 8 GPUs; time not stated.
    Source: arXiv 2108.13341 by the authors' configuration, which is for Small: AdamW 2e-4, weight decay 0.05 (on norms
    too, here not), poly with power 0.9, no warm-up, drop-path 0.1, a norm on each level.
    """
    return SegmentConfig(
        model=model,
        pretrained=True,
        drop_path_rate=0.1,
        head="semantic_fpn",
        data=data,
        output=output,
        max_steps=40_000,
        eval_steps=4_000,
        batch_size=32,
        optimizer="adamw",
        lr=2e-4,
        weight_decay=0.05,
        power=0.9,
        **_ADE20K,
    )


def cyclemlp_semantic_fpn(*, data: str, output: Path, model: str = "cyclemlp_b1") -> SegmentConfig:
    """CycleMLP with Semantic FPN on ADE20K.

    Command: ``visionmlp train --recipe cyclemlp_semantic_fpn --data ADEChallengeData2016 --output runs/cycle_fpn``
    Expected: not in our sources.
    Cost: 40,000 steps of 32 images; time not stated.
    Source: arXiv 2107.10224; its dense code was not released, and an author says that it is PVT's with the backbone
    exchanged (issue 9 of ShoufaChen/CycleMLP). PVT's: AdamW 2e-4, weight decay 1e-4, poly with power 0.9 and no
    warm-up, 40,000 steps of 32 images, evaluated images with sides of multiples of 32. Drop-path is not published; here
    0.1.
    """
    return SegmentConfig(
        model=model,
        pretrained=True,
        drop_path_rate=0.1,
        head="semantic_fpn",
        data=data,
        output=output,
        max_steps=40_000,
        eval_steps=4_000,
        batch_size=32,
        optimizer="adamw",
        lr=2e-4,
        weight_decay=1e-4,
        power=0.9,
        size_divisor=32,
        **_ADE20K,
    )


def repmlpnet_cityscapes(
    *, data: str, output: Path, checkpoint: Path, model: str = "repmlpnet_d256", embed_kernel: int = 3
) -> SegmentConfig:
    """RepMLPNet with UperNet on Cityscapes, in windows of 256 pixels that wider embeddings join.

    Command: ``visionmlp train --recipe repmlpnet_cityscapes --checkpoint RepMLPNet-D256-train.pth --data cityscapes
    --output runs/repmlpnet_seg``
    Expected: mIoU 76.27 % with 3x3, 77.12 % with 5x5 embeddings: paper, Table 6.
    Cost: 80,000 steps; time not stated.
    Source: arXiv 2112.11081, section 5.3: UperNet, 80,000 steps, trained at 512x1024, tested at 1024x2048, 2x2
    embeddings widened. Optimiser and batch are not published; here mmsegmentation's own: SGD 0.01, momentum 0.9, weight
    decay 5e-4, poly with power 0.9 down to 1e-4, 8 images. The text says dense kernels, its table's MACs fit depth-wise
    ones behind 2x2: ``--model-args.embed_kernel 2 --model-args.embed_depthwise 3``. Re-parameterise afterwards.
    """
    return SegmentConfig(
        model=model,
        model_args={"embed_kernel": embed_kernel},
        checkpoint=checkpoint,
        head="upernet",
        data=data,
        output=output,
        max_steps=80_000,
        eval_steps=8_000,
        batch_size=8,
        optimizer="sgd",
        optimizer_args={"nesterov": False},
        lr=0.01,
        min_lr=1e-4,
        momentum=0.9,
        weight_decay=5e-4,
        schedule="poly",
        power=0.9,
        resize=(2048, 1024),
        crop_size=(512, 1024),
        num_workers=8,
    )


def resmlp_upernet(*, data: str, output: Path, model: str = "resmlp_s12") -> SegmentConfig:
    """ResMLP with UperNet on ADE20K, at 224 pixels by sliding windows.

    Command: ``visionmlp train --recipe resmlp_upernet --data ADEChallengeData2016 --output runs/resmlp_seg``
    Expected: mIoU 35.9 (s12), 39.1 (s24), 39.1 (s36), 42.5 (b24) %: paper.
    Cost: a "x3 schedule", which in the works that the paper cites is 160,000 steps of 16 images.
    Source: arXiv 2105.03404: UperNet, crops of 224 from images resized to 896x224, tested by sliding windows. Optimiser
    and levels are not published; here those of XCiT, by the same group: AdamW 6e-5, weight decay 0.01, poly, 1500 steps
    of warm-up, of 12 blocks the 4th, 6th, 8th and 12th. Of deeper networks four evenly spaced blocks; windows overlap
    by a third; drop-path is that of classification.
    """
    return SegmentConfig(
        model=model,
        pretrained=True,
        drop_path_rate=0.05,
        head="upernet",
        out_indices=(3, 5, 7, 11) if model.startswith("resmlp_s12") else None,
        data=data,
        output=output,
        max_steps=160_000,
        eval_steps=16_000,
        batch_size=16,
        optimizer="adamw",
        lr=6e-5,
        weight_decay=0.01,
        schedule="poly",
        power=1.0,
        warmup_steps=1500,
        warmup_ratio=1e-6,
        resize=(896, 224),
        inference="slide",
        num_workers=8,
    )
