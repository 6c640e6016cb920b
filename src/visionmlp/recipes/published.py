"""Published training recipes, one function each: a configuration to change, or ``visionmlp train --recipe NAME``.

Data and run folder are the caller's; the command line overrides every field. None of these has been trained to its end
here: the expected results are those that the authors state.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from visionmlp.recipes.classify import ClassifyConfig


def repmlpnet_imagenet(*, data: str, output: Path, model: str = "repmlpnet_t224") -> ClassifyConfig:
    """RepMLPNet on ImageNet-1k (authors' training script; batch 256).

    Command: ``visionmlp train --recipe repmlpnet_imagenet --data imagenet --output runs/repmlpnet``
    Expected: top-1 76.4 (T224), 80.1 (B224); paper, Table 2. Cost: 100 epochs on 8 GPUs.
    The paper's learning rate is 2e-3, the command in the authors' README 1e-3.
    Theirs differs in the policy of its RandAugment of magnitude 15, which has cutout.
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
        warmup_epochs=10.0,
        warmup_lr=5e-7,
        clip_grad=5.0,
        auto_augment="rand-m15-mstd0.5-inc1",
        mixup=0.4,
        cutmix=1.0,
        label_smoothing=0.1,
    )


def repmlpnet_cifar100(*, data: str = "torch/cifar100", output: Path, model: str = "repmlpnet_cifar") -> ClassifyConfig:
    """RepMLPNet on CIFAR-100, Table 5: batch 128, shifted and flipped images, otherwise the ImageNet schedule.

    Command: ``visionmlp train --recipe repmlpnet_cifar100 --data-root data --output runs/cifar``
    Cost: 100 epochs, about an hour on one GPU.
    The learning rate is scaled with the batch, as the authors' script does.
    """
    return ClassifyConfig(
        model=model,
        data=data,
        output=output,
        epochs=100,
        batch_size=128,
        optimizer="adamw",
        lr=1e-3,
        weight_decay=0.1,
        warmup_epochs=10.0,
        warmup_lr=5e-7,
        clip_grad=5.0,
        crop="pad",
        label_smoothing=0.1,
    )


def resmlp_imagenet(*, data: str, output: Path, model: str = "resmlp_s12") -> ClassifyConfig:
    """ResMLP on ImageNet-1k (an author's answer in issue 106 of facebookresearch/deit, and the paper).

    Command: ``visionmlp train --recipe resmlp_imagenet --data imagenet --output runs/resmlp``
    Expected: top-1 76.6 (S12), 79.4 (S24); paper, Table 3. Cost: two days on 8 V100 GPUs.
    No half precision: the authors train without it. Drop-path 0.05 is S12's.
    """
    return ClassifyConfig(
        model=model,
        data=data,
        output=output,
        epochs=400,
        batch_size=2048,
        optimizer="lamb",
        lr=5e-3,
        weight_decay=0.2,
        warmup_epochs=5.0,
        drop_path_rate=0.05,
        repeated_augmentation=3,
        auto_augment="rand-m9-mstd0.5-inc1",
        erasing=0.25,
        mixup=0.8,
        cutmix=1.0,
        label_smoothing=0.1,
    )


def mlpmixer_imagenet(*, data: str, output: Path, model: str = "mlpmixer_b16") -> ClassifyConfig:
    """MLP-Mixer on ImageNet-1k from scratch (``mlp_mixer_i1k`` of google-research/big_vision).

    Command: ``visionmlp train --recipe mlpmixer_imagenet --data imagenet --output runs/mixer``
    Expected: top-1 76.3 (B/16). Cost: 2 h 11 min on a TPU v3-128.
    10,000 steps of warm-up at batch 4096 are 32 epochs. Theirs decays weights by 1e-4 apart from the learning rate.
    """
    return ClassifyConfig(
        model=model,
        data=data,
        output=output,
        epochs=300,
        batch_size=4096,
        optimizer="adamw",
        lr=1e-3,
        weight_decay=0.1,
        schedule="linear",
        warmup_epochs=32.0,
        min_lr=1e-5,
        clip_grad=1.0,
        drop_path_rate=0.1,
        loss="bce_sum",
        head_bias=-6.9,
        auto_augment="rand-m15-n2",
        mixup=0.5,
    )


RECIPES: Mapping[str, Callable[..., ClassifyConfig]] = {
    recipe.__name__: recipe for recipe in (repmlpnet_imagenet, repmlpnet_cifar100, resmlp_imagenet, mlpmixer_imagenet)
}
"""Name to function, for ``--recipe``."""
