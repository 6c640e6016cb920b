"""Published runs without labels, one function each.

A quoted result is the source's; none of these was trained to its end here.
"""

from pathlib import Path

from visionmlp.tasks.dino.config import DinoConfig
from visionmlp.tasks.moco.config import MocoConfig


def resmlp_dino(*, data: str, output: Path, model: str = "resmlp_s12") -> DinoConfig:
    """ResMLP on ImageNet-1k by DINO.

    Command: ``visionmlp train --recipe resmlp_dino --data imagenet --output runs/dino``
    Expected: linear 67.5 (s12), 72.8 (s24), nearest neighbours 62.6 (s12), 69.4 (s24) %: ResMLP, Table 2.
    Cost: 300 epochs; time not stated.
    Source: arXiv 2105.03404, section 3.2, which publishes the 300 epochs and nothing else. All other values are the
    defaults of DINO's code, and the batch of 1024 is that of its ViT-S (arXiv 2104.14294), from memory, with the code's
    lr of 5e-4 for each 256 images. How local crops of 96 pixels meet matrices for 224 is not published: here they are
    resized to 224. Nearest neighbours score the run; for the linear classifier see
    ``visionmlp eval RUN --protocol linear``.
    """
    return DinoConfig(
        model=model,
        drop_path_rate=0.1,
        data=data,
        output=output,
        epochs=300,
        batch_size=1024,
        optimizer="adamw",
        lr=2e-3,
        weight_decay=0.04,
        weight_decay_end=0.4,
        warmup_epochs=10.0,
        warmup_prefix=True,
        warmup_lr=0.0,
        min_lr=1e-6,
        clip_grad=3.0,
        clip_grad_each=True,
        out_dim=65536,
        norm_last_layer=True,
        freeze_last_layer=1,
        teacher_momentum=0.996,
        teacher_temperature=0.04,
        student_temperature=0.1,
        global_scale=(0.4, 1.0),
        local_crops=8,
        local_scale=(0.05, 0.4),
        local_size=96,
        interpolation="bicubic",
        num_workers=8,
    )


def sparsemlp_moco(*, data: str, output: Path, model: str = "sparsemlp_moe_b") -> MocoConfig:
    """Sparse-MLP on ImageNet-1k by MoCo v3.

    Command: ``visionmlp train --recipe sparsemlp_moco --data imagenet --output runs/moco``
    Expected: 2.5 points of top-1 above a dense Mixer trained alike (abstract); at best 79.2 %, as a reader reports.
    Cost: not stated.
    Source: arXiv 2109.02008, which pre-trains by MoCo v3. Its settings were not found, there is no code, and the widths
    of the model are a reconstruction. All values are those of MoCo v3's code for vision transformers (arXiv
    2104.02057): AdamW 1.5e-4 for each 256 images, batch 4096, 300 epochs, and a patch embedding that is not trained.
    """
    return MocoConfig(
        model=model,
        data=data,
        output=output,
        epochs=300,
        batch_size=4096,
        optimizer="adamw",
        lr=2.4e-3,
        weight_decay=0.1,
        schedule="cosine",
        warmup_epochs=40.0,
        warmup_lr=0.0,
        temperature=0.2,
        momentum_encoder=0.99,
        momentum_rises=True,
        projector_dim=256,
        projector_hidden=4096,
        projector_layers=3,
        freeze_stem=True,
        crop_scale=(0.08, 1.0),
        interpolation="bilinear",
        num_workers=8,
    )
