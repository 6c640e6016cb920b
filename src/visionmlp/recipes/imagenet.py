"""Published runs on ImageNet-1k, one function each.

A quoted result is the source's; none of these was trained to its end here. Where authors trained in float16, this
trains in float32 unless ``precision`` says otherwise. Their scripts' colour jitter has no effect beside RandAugment in
timm, where it is dropped, so there is none here. A value that depends on the model's size follows ``model``.
"""

import dataclasses
from pathlib import Path

from visionmlp.tasks.classify.config import ClassifyConfig


def repmlpnet_imagenet(*, data: str, output: Path, model: str = "repmlpnet_t224") -> ClassifyConfig:
    """RepMLPNet on ImageNet-1k.

    Command: ``visionmlp train --recipe repmlpnet_imagenet --data imagenet --output runs/repmlpnet``
    Expected: top-1 76.4 (t224), 77.5 (t256), 80.1 (b224), 81.0 (b256), 80.8 (d256), 81.7 (l256) %: paper, Table 2.
    Cost: 100 epochs on 8 GPUs, 32 images each (section 5.1).
    Source: arXiv 2112.11081, section 5.1. From the authors' code, not in the paper: RandAugment of magnitude 15,
    gradient clipping at 5, warm-up from 5e-7, in place of the beginning of timm's cosine. Their command line has lr
    1e-3, the paper 2e-3, which is used here. Their RandAugment draws from a policy of their own with cutout; this one
    is timm's.
    """
    return ClassifyConfig(
        model=model,
        data=data,
        output=output,
        epochs=100,
        batch_size=256,
        optimizer="adamw",
        lr=2e-3,
        weight_decay=0.1,
        schedule="cosine",
        warmup_epochs=10.0,
        warmup_prefix=False,
        warmup_lr=5e-7,
        clip_grad=5.0,
        label_smoothing=0.1,
        mixup=0.4,
        cutmix=1.0,
        auto_augment="rand-m15-mstd0.5-inc1",
        interpolation="bilinear",
        num_workers=8,
    )


def resmlp_imagenet(*, data: str, output: Path, model: str = "resmlp_s12") -> ClassifyConfig:
    """ResMLP on ImageNet-1k, without distillation.

    Command: ``visionmlp train --recipe resmlp_imagenet --data imagenet --output runs/resmlp``
    Expected: top-1 76.6 (s12), 79.4 (s24), 81.0 (b24), 76.9 (s12_p14), 79.1 (s12_p8), 81.0 (b24_p8) %: paper, Table 3.
    Cost: 400 epochs; two days on 8 V100 GPUs (paper).
    Source: arXiv 2105.03404, and an author in facebookresearch/deit, issue 106: LAMB 5e-3, weight decay 0.2, batch
    2048, drop-path 0.05 for S12, no float16. Whether 5e-3 is before or after scaling by the batch is not said there;
    a user who made it 5e-3 after scaling saw NaN. Here it is the learning rate of the whole batch. The rest is DeiT's.
    Drop-path of deeper models is not said; it is 0.05 here.
    """
    return ClassifyConfig(
        model=model,
        drop_path_rate=0.05,
        data=data,
        output=output,
        epochs=400,
        batch_size=2048,
        optimizer="lamb",
        lr=5e-3,
        weight_decay=0.2,
        schedule="cosine",
        warmup_epochs=5.0,
        warmup_prefix=False,
        min_lr=1e-5,
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


def resmlp_layernorm(*, data: str, output: Path, model: str = "resmlp_s12") -> ClassifyConfig:
    """ResMLP with LayerNorm in place of the affine transform.

    Command: ``visionmlp train --recipe resmlp_layernorm --data imagenet --output runs/resmlp_layernorm``
    Expected: top-1 77.7 % (s12): paper, Table 3.
    Cost: 400 epochs; two days on 8 V100 GPUs for most models (paper).
    Source: arXiv 2105.03404, Table 3, "Normalization"; the settings are those of `resmlp_imagenet`, as the paper names
    no others.
    """
    config = resmlp_imagenet(data=data, output=output, model=model)
    return dataclasses.replace(config, model_args={"norm": "layernorm"})


def resmlp_class_mlp(*, data: str, output: Path, model: str = "resmlp_s12") -> ClassifyConfig:
    """ResMLP with Class-MLP in place of average pooling.

    Command: ``visionmlp train --recipe resmlp_class_mlp --data imagenet --output runs/resmlp_class_mlp``
    Expected: top-1 77.5 % (s12): paper, Table 3.
    Cost: 400 epochs; two days on 8 V100 GPUs for most models (paper).
    Source: arXiv 2105.03404, section 2 and Table 3, "Pooling"; the settings are those of `resmlp_imagenet`, as the
    paper names no others. The paper gives no code for Class-MLP; this reading has its number of parameters.
    """
    config = resmlp_imagenet(data=data, output=output, model=model)
    return dataclasses.replace(config, model_args={"global_pool": "class_mlp"})


def resmlp_sgd(*, data: str, output: Path, model: str = "resmlp_s12") -> ClassifyConfig:
    """ResMLP trained the old-fashioned way, as ResNets were.

    Command: ``visionmlp train --recipe resmlp_sgd --data imagenet --output runs/resmlp_sgd``
    Expected: top-1 69.2 % (s12): paper, Table 3.
    Cost: 90 epochs; time not stated.
    Source: arXiv 2105.03404, Table 3, "Training", and its caption: SGD, 90 epochs in falling steps, augmentation as for
    ResNet. Not published, so those of ResNet (arXiv 1512.03385, section 3.4): lr 0.1 for a batch of 256, momentum 0.9
    without Nesterov, weight decay 1e-4, lr divided by 10, here every 30 epochs as is usual. Biases and vectors do not
    decay here, ResNet's did; its colour augmentation is left out.
    """
    return ClassifyConfig(
        model=model,
        data=data,
        output=output,
        epochs=90,
        batch_size=256,
        optimizer="sgd",
        optimizer_args={"nesterov": False},
        lr=0.1,
        momentum=0.9,
        weight_decay=1e-4,
        schedule="step",
        decay_epochs=30.0,
        decay_rate=0.1,
        interpolation="bilinear",
        crop_pct=0.9,
        num_workers=8,
    )


def mlpmixer_imagenet(*, data: str, output: Path, model: str = "mlpmixer_b16") -> ClassifyConfig:
    """MLP-Mixer on ImageNet-1k from scratch.

    Command: ``visionmlp train --recipe mlpmixer_imagenet --data imagenet --output runs/mixer``
    Expected: top-1 76.3 % (b16), as the source states.
    Cost: 300 epochs; 2 h 11 min on TPUv3-128 (source).
    Source: google-research/big_vision, configs/mlp_mixer_i1k.py: Adam 1e-3, weight decay 1e-4, linear to 1e-5 after
    10k steps of warm-up, sigmoid cross-entropy with head bias -6.9. Its weight decay is not multiplied by the learning
    rate, AdamW's is, hence 0.1 here. Its randaug(2, 15) is close to timm's policy, not equal.
    """
    steps_per_epoch = 1_281_167 // 4096
    return ClassifyConfig(
        model=model,
        drop_path_rate=0.1,
        head_bias=-6.9,
        data=data,
        output=output,
        epochs=300,
        batch_size=4096,
        optimizer="adamw",
        lr=1e-3,
        weight_decay=0.1,
        schedule="linear",
        warmup_epochs=10_000 / steps_per_epoch,
        warmup_lr=0.0,
        min_lr=1e-5,
        clip_grad=1.0,
        loss="bce_sum",
        mixup=0.5,
        auto_augment="rand-m15-n2",
        crop_scale=(0.05, 1.0),
        interpolation="bilinear",
        num_workers=8,
    )


def asmlp_imagenet(*, data: str, output: Path, model: str = "asmlp_t") -> ClassifyConfig:
    """AS-MLP on ImageNet-1k.

    Command: ``visionmlp train --recipe asmlp_imagenet --data imagenet --output runs/asmlp``
    Expected: top-1 81.3 (t), 83.1 (s), 83.3 (b) %: paper.
    Cost: 300 epochs on 8 GPUs, 128 images each; time not stated.
    Source: arXiv 2107.08391 by the authors' code, which trains like Swin. Its learning rates are for 512 images (5e-4,
    from 5e-7, to 5e-6) and are doubled for a batch of 1024. Drop-path 0.2 (t), 0.3 (s), 0.5 (b). The shift is 5, as in
    the configurations; a default of 7 in the code is not used there.
    """
    return ClassifyConfig(
        model=model,
        drop_path_rate={"asmlp_s": 0.3, "asmlp_b": 0.5}.get(model, 0.2),
        data=data,
        output=output,
        epochs=300,
        batch_size=1024,
        optimizer="adamw",
        lr=1e-3,
        weight_decay=0.05,
        schedule="cosine",
        warmup_epochs=20.0,
        warmup_prefix=False,
        warmup_lr=1e-6,
        min_lr=1e-5,
        clip_grad=5.0,
        label_smoothing=0.1,
        mixup=0.8,
        cutmix=1.0,
        auto_augment="rand-m9-mstd0.5-inc1",
        erasing=0.25,
        interpolation="bicubic",
        crop_pct=0.875,
        num_workers=8,
    )


def hiremlp_imagenet(*, data: str, output: Path, model: str = "hiremlp_t") -> ClassifyConfig:
    """Hire-MLP on ImageNet-1k.

    Command: ``visionmlp train --recipe hiremlp_imagenet --data imagenet --output runs/hiremlp``
    Expected: top-1 79.7 (t), 82.1 (s), 83.2 (b), 83.8 (l) %: paper, quoted in DynaMixer, Table 2.
    Cost: 300 epochs on 8 GPUs; time not stated.
    Source: arXiv 2108.13341 by the README of the authors' code, a fork of DeiT's: 256 images a GPU for Tiny, 128 for
    Base, lr 5e-4 for each 512 images, repeated augmentation, no moving average. Drop-path is 0 (t) and 0.2 (b); for
    Small and Large neither it nor the batch is published: here 0.1 and 0.3, which their dense-prediction code has, and
    Base's batch. The 10 epochs at the lowest learning rate behind the 300 are left out.
    """
    batch_size = 2048 if model == "hiremlp_t" else 1024
    return ClassifyConfig(
        model=model,
        drop_path_rate={"hiremlp_s": 0.1, "hiremlp_b": 0.2, "hiremlp_l": 0.3}.get(model, 0.0),
        data=data,
        output=output,
        seed=3407,
        epochs=300,
        batch_size=batch_size,
        optimizer="adamw",
        lr=5e-4 * batch_size / 512,
        weight_decay=0.05,
        schedule="cosine",
        warmup_epochs=20.0,
        warmup_prefix=False,
        warmup_lr=1e-6,
        min_lr=1e-5,
        label_smoothing=0.1,
        mixup=0.8,
        cutmix=1.0,
        auto_augment="rand-m9-mstd0.5-inc1",
        erasing=0.25,
        repeated_augmentation=3,
        interpolation="bicubic",
        crop_pct=0.875,
        num_workers=8,
    )


def vip_imagenet(*, data: str, output: Path, model: str = "vip_s7") -> ClassifyConfig:
    """Vision Permutator on ImageNet-1k.

    Command: ``visionmlp train --recipe vip_imagenet --data imagenet --output runs/vip``
    Expected: top-1 81.5 (s7), 82.7 (m7), 83.2 (l7) %: paper; 80.7 (s14) %: quoted in DynaMixer, Table 2.
    Cost: 300 epochs on 8 GPUs, 256 images each; time not stated.
    Source: arXiv 2106.12368 by the authors' code and logs for S/7. Batch and drop-path of M/7 and L/7 are not in the
    code; they are S/7's here. The code's 10 epochs at the lowest learning rate behind the 300 are left out, and its
    interpolation, drawn for each image, is bicubic.
    """
    return _permutator(
        ClassifyConfig(
            model=model,
            drop_path_rate=0.1,
            data=data,
            output=output,
            batch_size=2048,
            crop_pct=0.875 if model == "vip_l7" else 0.9,
        )
    )


def dynamixer_imagenet(*, data: str, output: Path, model: str = "dynamixer_s") -> ClassifyConfig:
    """DynaMixer on ImageNet-1k.

    Command: ``visionmlp train --recipe dynamixer_imagenet --data imagenet --output runs/dynamixer``
    Expected: top-1 82.7 (s), 83.7 (m), 84.3 (l) %: paper, Table 2.
    Cost: 300 epochs on 8 A100 GPUs, 256 (s), 128 (m), 64 (l) images each (section 4.2); the code's README says V100.
    Source: arXiv 2201.12083, section 4.2, and the authors' code: lr 2e-3 for each of the three batches, drop-path 0.1,
    0.1, 0.3. The code keeps a moving average of 0.99996 that cannot be turned off, the paper names none; this follows
    the code. What the paper calls CutOut is random erasing there. The lowest learning rate is not stated; 1e-5 is that
    of ViP's script, which this one changes.
    """
    return _permutator(
        ClassifyConfig(
            model=model,
            drop_path_rate=0.3 if model == "dynamixer_l" else 0.1,
            data=data,
            output=output,
            batch_size={"dynamixer_m": 1024, "dynamixer_l": 512}.get(model, 2048),
            ema_decay=0.99996,
            crop_pct=0.875 if model == "dynamixer_l" else 0.9,
        )
    )


def _permutator(config: ClassifyConfig) -> ClassifyConfig:
    """What ViP's script and DynaMixer's share."""
    return dataclasses.replace(
        config,
        epochs=300,
        optimizer="adamw",
        lr=2e-3,
        weight_decay=0.05,
        schedule="cosine",
        warmup_epochs=20.0,
        warmup_prefix=False,
        warmup_lr=1e-6,
        min_lr=1e-5,
        label_smoothing=0.1,
        mixup=0.8,
        cutmix=1.0,
        auto_augment="rand-m9-mstd0.5-inc1",
        erasing=0.25,
        interpolation="bicubic",
        num_workers=8,
    )


def cyclemlp_imagenet(*, data: str, output: Path, model: str = "cyclemlp_b1") -> ClassifyConfig:
    """CycleMLP on ImageNet-1k.

    Command: ``visionmlp train --recipe cyclemlp_imagenet --data imagenet --output runs/cyclemlp``
    Expected: top-1 78.9 (b1), 81.6 (b2), 82.4 (b3), 83.0 (b4), 83.2 (b5) %: README of the authors' code.
    Cost: 300 epochs on 8 GPUs, 128 images each; time not stated.
    Source: arXiv 2107.10224 by the README of the authors' code, a fork of DeiT's: lr 5e-4 for each 512 images, repeated
    augmentation. Drop-path is the script's default of 0.1 for all; values for each model are not published. The script
    keeps a moving average of 0.99996, but the published files are of the weights themselves, as here.
    """
    return ClassifyConfig(
        model=model,
        drop_path_rate=0.1,
        data=data,
        output=output,
        epochs=300,
        batch_size=1024,
        optimizer="adamw",
        lr=1e-3,
        weight_decay=0.05,
        schedule="cosine",
        warmup_epochs=5.0,
        warmup_prefix=False,
        warmup_lr=1e-6,
        min_lr=1e-5,
        label_smoothing=0.1,
        mixup=0.8,
        cutmix=1.0,
        auto_augment="rand-m9-mstd0.5-inc1",
        erasing=0.25,
        repeated_augmentation=3,
        interpolation="bicubic",
        crop_pct=0.875,
        num_workers=8,
    )
