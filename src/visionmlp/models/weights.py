"""The weights that the authors published: where they are, under which licence, how accurate, and their files' layout.

Addresses and licences are quoted from the authors' repositories as the project's reference records them. None was
opened here, so whether a file still lies there is not known, nor is any checksum: the authors state none.
"""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class PublishedWeights:
    """One file of weights of one variant."""

    tag: str
    """Name among the variant's weights, as in ``resmlp_s24.dist``."""
    licence: str
    """As the authors state it."""
    page: str
    """Where people find the file, or the link to it."""
    url: str | None = None
    """Where a program can fetch it; ``None`` if a person has to (Google Drive, OneDrive, Baidu)."""
    file: str | None = None
    """The file's name, with ``*`` for a part that is not known here; ``None`` if it is not known at all."""
    top1: float | None = None
    """ImageNet-1k validation accuracy that the authors state, percent."""
    num_classes: int = 1000
    """Outputs of its classifier; 0 if it was trained without labels."""
    sha256: str | None = None
    """Checksum, or its first digits, where the authors state one."""
    note: str = ""
    """What else there is to know."""

    def timm_fields(self) -> dict[str, Any]:
        """What timm's ``pretrained_cfg`` holds of it."""
        accuracy = "" if self.top1 is None else f"{self.top1} % top-1 on ImageNet-1k"
        return {
            "url": self.url,
            "license": self.licence,
            "origin_url": self.page,
            "num_classes": self.num_classes,
            "description": "; ".join(part for part in (accuracy, self.note) if part) or None,
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class OfficialFile:
    """What the authors' loader expects of a file."""

    suffix: str = ".pth"
    """``.pth`` for ``torch.load``, ``.npz`` for ``numpy.load``."""
    wrapper: str | None = None
    """The key under which the state dict lies; ``None`` if the file is the state dict."""


OFFICIAL_FILES: Mapping[str, OfficialFile] = MappingProxyType(
    {
        "repmlpnet": OfficialFile(),
        "resmlp": OfficialFile(),
        "mlpmixer": OfficialFile(suffix=".npz"),
        "asmlp": OfficialFile(wrapper="model"),
        "hiremlp": OfficialFile(wrapper="model"),
        "vip": OfficialFile(wrapper="state_dict"),
        "cyclemlp": OfficialFile(wrapper="model"),
        "dynamixer": OfficialFile(wrapper="state_dict"),
    }
)
"""By the first part of a variant's name; a family that is missing has no authors' code."""


def family_prefix(name: str) -> str:
    """``resmlp`` of ``resmlp_s24``."""
    return name.partition("_")[0]


def _repmlpnet(size: str, top1: float) -> tuple[PublishedWeights, ...]:
    return (
        PublishedWeights(
            tag="in1k",
            licence="mit",
            page="https://github.com/DingXiaoH/RepMLP",
            file=f"RepMLPNet-{size}-train-acc*.pth",
            top1=top1,
            note="on Google Drive and Baidu",
        ),
    )


def _resmlp(tag: str, file: str, top1: float | None = None, *, num_classes: int = 1000, note: str) -> PublishedWeights:
    return PublishedWeights(
        tag=tag,
        licence="apache-2.0",
        page="https://github.com/facebookresearch/deit",
        url=f"https://dl.fbaipublicfiles.com/deit/{file}",
        file=file,
        top1=top1,
        num_classes=num_classes,
        note=note,
    )


_NO_DIST = "trained on ImageNet-1k"
_DIST = "trained on ImageNet-1k with distillation"
_DINO = "DINO on ImageNet-1k, without labels; a classifier in the file is not used"


def _mlpmixer(file: str, *, top1: float | None = None, note: str = "") -> tuple[PublishedWeights, ...]:
    return tuple(
        PublishedWeights(
            tag=tag,
            licence="apache-2.0",
            page="https://github.com/google-research/vision_transformer",
            url=f"https://storage.googleapis.com/mixer_models/{folder}/{file}",
            file=file,
            top1=top1 if tag == "in1k" else None,
            num_classes=classes,
            note=text,
        )
        for tag, folder, classes, text in (
            ("in1k", "imagenet1k", 1000, note),
            ("in21k", "imagenet21k", 21843, "trained on ImageNet-21k"),
            ("sam", "sam", 1000, "trained with sharpness-aware minimisation"),
        )
    )


def _asmlp(top1: float) -> tuple[PublishedWeights, ...]:
    page = "https://github.com/svip-lab/AS-MLP"
    return (PublishedWeights(tag="in1k", licence="mit", page=page, top1=top1, note="on OneDrive"),)


def _hiremlp(size: str, top1: float) -> tuple[PublishedWeights, ...]:
    page = "https://github.com/ggjy/Hire-Wave-MLP.pytorch"
    file = f"hire_mlp_{size}.pth"
    return (
        PublishedWeights(
            tag="in1k",
            licence="no licence file; the README's badge says MIT",
            page=page,
            url=f"{page}/releases/download/log/{file}",
            file=file,
            top1=top1,
        ),
    )


def _vip(top1: float) -> tuple[PublishedWeights, ...]:
    return (
        PublishedWeights(
            tag="in1k",
            licence="mit; the README says non-commercial use only",
            page="https://github.com/houqb/VisionPermutator",
            top1=top1,
            note="on Google Drive",
        ),
    )


def _cyclemlp(size: str, top1: float) -> tuple[PublishedWeights, ...]:
    page = "https://github.com/ShoufaChen/CycleMLP"
    file = f"CycleMLP_{size}.pth"
    url = f"{page}/releases/download/v0.1/{file}"
    return (PublishedWeights(tag="in1k", licence="mit", page=page, url=url, file=file, top1=top1),)


WEIGHTS: Mapping[str, tuple[PublishedWeights, ...]] = MappingProxyType(
    {
        "repmlpnet_t224": _repmlpnet("T224", 76.62),
        "repmlpnet_b224": _repmlpnet("B224", 80.32),
        "repmlpnet_t256": _repmlpnet("T256", 77.44),
        "repmlpnet_b256": _repmlpnet("B256", 81.03),
        "repmlpnet_d256": _repmlpnet("D256", 80.83),
        "repmlpnet_l256": _repmlpnet("L256", 81.68),
        "resmlp_s12": (
            _resmlp("no_dist", "resmlp_12_no_dist.pth", 76.6, note=_NO_DIST),
            _resmlp("dist", "resmlp_12_dist.pth", 77.8, note=_DIST),
            _resmlp("dino", "resmlp_12_dino.pth", num_classes=0, note=_DINO),
        ),
        "resmlp_s24": (
            _resmlp("no_dist", "resmlp_24_no_dist.pth", 79.4, note=_NO_DIST),
            _resmlp("dist", "resmlp_24_dist.pth", 80.8, note=_DIST),
            _resmlp("dino", "resmlp_24_dino.pth", num_classes=0, note=_DINO),
        ),
        "resmlp_s36": (
            _resmlp("no_dist", "resmlp_36_no_dist.pth", note=_NO_DIST),
            _resmlp("dist", "resmlp_36_dist.pth", note=_DIST),
        ),
        "resmlp_b24_p8": (
            _resmlp("no_dist", "resmlpB_24_no_dist.pth", 81.0, note=_NO_DIST),
            _resmlp("dist", "resmlpB_24_dist.pth", 83.6, note=_DIST),
            _resmlp("22k", "resmlpB_24_22k.pth", 84.4, note="trained on ImageNet-21k, then on ImageNet-1k"),
        ),
        "mlpmixer_b16": _mlpmixer("Mixer-B_16.npz", top1=76.4, note="a user of the file measured 72.6 %"),
        "mlpmixer_l16": _mlpmixer("Mixer-L_16.npz"),
        "asmlp_t": _asmlp(81.3),
        "asmlp_s": _asmlp(83.1),
        "asmlp_b": _asmlp(83.3),
        "hiremlp_t": _hiremlp("tiny", 79.7),
        "hiremlp_s": _hiremlp("small", 82.1),
        "hiremlp_b": _hiremlp("base", 83.2),
        "vip_s7": _vip(81.5),
        "vip_m7": _vip(82.7),
        "vip_l7": _vip(83.2),
        "cyclemlp_b1": _cyclemlp("B1", 78.9),
        "cyclemlp_b2": _cyclemlp("B2", 81.6),
        "cyclemlp_b3": _cyclemlp("B3", 82.4),
        "cyclemlp_b4": _cyclemlp("B4", 83.0),
        "cyclemlp_b5": _cyclemlp("B5", 83.2),
    }
)
"""By variant; the first of several is what ``pretrained=True`` takes."""


def why_unavailable(name: str, family: str, tag: str | None) -> str:
    """Why weights cannot be fetched, and what to do instead; one line.

    Args:
        name: variant.
        family: display name.
        tag: which of its weights, as in `PublishedWeights`.
    """
    for weights in WEIGHTS.get(name, ()):
        if weights.tag == tag:
            file = weights.file or f"the file for {name}"
            where = f" ({weights.note})" if weights.note else ""
            return (
                f"{name}: download {file} yourself from the links on {weights.page}{where}, "
                "then visionmlp.load_official(model, FILE); no program can fetch it"
            )
    others = [other for other in WEIGHTS if family_prefix(other) == family_prefix(name)]
    if not others:
        return f"{name}: {family}'s authors released no weights; create it with pretrained=False and train it"
    return f"no weights of {name} were published; there are weights of {', '.join(others)}"
