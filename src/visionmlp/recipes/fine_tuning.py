"""Runs that start from trained weights: transfers to CIFAR-10 and CIFAR-100, and another resolution.

A quoted result is the source's; none of these was trained to its end here. Weights that a program can fetch are the
default; elsewhere ``checkpoint`` must be given. A classifier for other classes than the weights' begins fresh.
"""

from pathlib import Path

from visionmlp.tasks.classify.config import ClassifyConfig


def resmlp_transfer(*, data: str, output: Path, model: str = "resmlp_s12") -> ClassifyConfig:
    """ResMLP from ImageNet-1k to CIFAR-10 or CIFAR-100, at 224 pixels.

    Command: ``visionmlp train --recipe resmlp_transfer --data torch/cifar100 --data-root data --output runs/transfer``
    Expected: top-1 on CIFAR-10 and CIFAR-100 98.1 and 87.0 (s12), 98.7 and 89.5 (s24) %: paper, Table 4.
    Cost: 1000 epochs; time not stated.
    Source: arXiv 2105.03404, Table 4, which gives no settings; those are an author's in facebookresearch/deit, issue
    117: AdamW 5e-6, weight decay 0.05, batch 768, drop-path 0.05 (s12) and 0.1 (s24), augmentation as on ImageNet.
    Whether 5e-6 is before or after DeiT's scaling by the batch is not said; here it is for the whole batch. It ends at
    0, as DeiT's lowest learning rate of 1e-5 is above it.
    """
    return ClassifyConfig(
        model=model,
        pretrained=True,
        drop_path_rate=0.05 if model.startswith("resmlp_s12") else 0.1,
        data=data,
        output=output,
        epochs=1000,
        batch_size=768,
        optimizer="adamw",
        lr=5e-6,
        weight_decay=0.05,
        schedule="cosine",
        warmup_epochs=5.0,
        warmup_prefix=False,
        warmup_lr=1e-6,
        label_smoothing=0.1,
        mixup=0.8,
        cutmix=1.0,
        auto_augment="rand-m9-mstd0.5-inc1",
        erasing=0.25,
        repeated_augmentation=3,
        interpolation="bicubic",
        crop_pct=0.9,
        num_workers=8,
    )


def mlpmixer_transfer(*, data: str, output: Path, model: str = "mlpmixer_b16") -> ClassifyConfig:
    """MLP-Mixer from ImageNet-1k to CIFAR-10, at 224 pixels.

    Command: ``visionmlp train --recipe mlpmixer_transfer --data torch/cifar10 --data-root data --output runs/transfer``
    Expected: top-1 on CIFAR-10 96.72 (b16), 96.59 (l16) %; from ImageNet-21k 96.82 and 98.34 %: README of their code.
    Cost: 10,000 steps, which are 103 epochs of CIFAR; time not stated.
    Source: arXiv 2105.01601 by the authors' code: SGD with momentum 0.9, lr 0.03 on a cosine, 500 steps of warm-up,
    clipping at 1, batch 512 in 8 parts. Their momentum is kept in bfloat16, here in the weights' precision. Not in our
    sources: weight decay, of which there is none here, and the augmentation, here crops of 5 to 100 % of the area and a
    flip. ImageNet-21k: ``mlpmixer_b16.in21k``.
    """
    steps_per_epoch = 50_000 // 512
    return ClassifyConfig(
        model=model,
        pretrained=True,
        data=data,
        output=output,
        epochs=103,
        batch_size=512,
        accumulate=8,
        optimizer="sgd",
        optimizer_args={"nesterov": False},
        lr=0.03,
        momentum=0.9,
        weight_decay=0.0,
        schedule="cosine",
        warmup_epochs=500 / steps_per_epoch,
        warmup_prefix=False,
        warmup_lr=0.0,
        clip_grad=1.0,
        crop_scale=(0.05, 1.0),
        interpolation="bilinear",
        num_workers=8,
    )


def vip_transfer(*, data: str, output: Path, checkpoint: Path, model: str = "vip_s7") -> ClassifyConfig:
    """Vision Permutator from ImageNet-1k to CIFAR-10 or CIFAR-100, at 224 pixels.

    Command: ``visionmlp train --recipe vip_transfer --checkpoint vip_s7.pth --data torch/cifar100 --data-root data
    --output runs/transfer``
    Expected: top-1 on CIFAR-10 and CIFAR-100 98.0 and 88.4 % (s7): quoted in DynaMixer, Table 9.
    Cost: 60 epochs; time not stated.
    Source: the authors' transfer script (arXiv 2106.12368 has none): SGD 0.01, weight decay 5e-4, 60 epochs on a
    cosine. Its option of a smaller learning rate for the backbone is not used. Not published, so ours: batch 128,
    momentum 0.9 without Nesterov, no warm-up, and CIFAR's pad-4 crop, 28 of 224 pixels, with a flip. The weights lie on
    a drive that no program can read.
    """
    return _permutator_transfer(model, checkpoint, data, output)


def dynamixer_transfer(*, data: str, output: Path, checkpoint: Path, model: str = "dynamixer_s") -> ClassifyConfig:
    """DynaMixer from ImageNet-1k to CIFAR-10 or CIFAR-100, at 224 pixels.

    Command: ``visionmlp train --recipe dynamixer_transfer --checkpoint runs/dynamixer/model.safetensors
    --data torch/cifar100 --data-root data --output runs/transfer``
    Expected: top-1 on CIFAR-10 and CIFAR-100 98.2 and 88.6 % (s): paper, Table 9.
    Cost: 60 epochs; time not stated.
    Source: arXiv 2201.12083, section 4.5: SGD, 60 epochs on a cosine; the authors' code has lr 0.01 and weight decay
    5e-4. Not published, so ours: batch 128, momentum 0.9 without Nesterov, no warm-up, and CIFAR's pad-4 crop, 28 of
    224 pixels, with a flip. No weights were released: train `dynamixer_imagenet` first.
    """
    return _permutator_transfer(model, checkpoint, data, output)


def _permutator_transfer(model: str, checkpoint: Path, data: str, output: Path) -> ClassifyConfig:
    return ClassifyConfig(
        model=model,
        checkpoint=checkpoint,
        data=data,
        output=output,
        epochs=60,
        batch_size=128,
        optimizer="sgd",
        optimizer_args={"nesterov": False},
        lr=0.01,
        momentum=0.9,
        weight_decay=5e-4,
        schedule="cosine",
        crop="pad",
        crop_padding=28,
        interpolation="bicubic",
        num_workers=8,
    )


def resmlp_resolution(*, data: str, output: Path, model: str = "resmlp_s12") -> ClassifyConfig:
    """ResMLP from 224 to 384 pixels on ImageNet-1k; the matrices over positions are interpolated.

    Command: ``visionmlp train --recipe resmlp_resolution --data imagenet --output runs/s12_384``
    Expected: not published; our sources have no such run of a vision MLP.
    Cost: not published; an image takes three times the multiply-accumulates that it takes at 224.
    Source: ours, and never run to its end: ResMLP's paper (arXiv 2105.03404) trains and transfers at 224 only. Epochs,
    learning rate for 512 images and weight decay are those that DeiT's models were fine-tuned with at 384, from memory;
    augmentation is that of `resmlp_imagenet`. ``--img-size`` gives another size, a multiple of the patch's.
    """
    return ClassifyConfig(
        model=model,
        pretrained=True,
        img_size=384,
        drop_path_rate=0.05,
        data=data,
        output=output,
        epochs=30,
        batch_size=512,
        optimizer="adamw",
        lr=5e-6,
        weight_decay=1e-8,
        schedule="constant",
        label_smoothing=0.1,
        mixup=0.8,
        cutmix=1.0,
        auto_augment="rand-m9-mstd0.5-inc1",
        erasing=0.25,
        repeated_augmentation=3,
        interpolation="bicubic",
        crop_pct=1.0,
        num_workers=8,
    )
