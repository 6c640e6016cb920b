"""MLP-Mixer: an all-MLP architecture for vision (Tolstikhin et al., arXiv 2105.01601).

Eq. 1: `layers.mixer_block.MixerBlock`. Where the paper is silent, follows the authors' Flax code: GELU by tanh,
LayerNorm eps 1e-6, biases everywhere, LayerNorm before pooling.
Stochastic depth grows linearly with depth, as in the authors' second code base (big_vision).

Layout (B, H, W, C).
"""

import dataclasses

from torch import nn

from visionmlp.layers.locality import check_kernel_sizes
from visionmlp.layers.mixer_block import MixerBlock, lecun_normal_
from visionmlp.layers.patch_embed import PatchEmbed
from visionmlp.models.backbone import FusibleBackbone
from visionmlp.models.config import BackboneConfig
from visionmlp.models.official_layout import SAME, TRANSPOSED, OfficialEntry, View
from visionmlp.models.registry import INCEPTION, Published, Variant, register_family
from visionmlp.models.stage import Stage, drop_path_rates


@dataclasses.dataclass(frozen=True, kw_only=True)
class MLPMixerConfig(BackboneConfig):
    """Widths of Table 1."""

    patch_size: int = 16
    """Side of a patch in pixels."""
    dim: int = 768
    """Channels."""
    depth: int = 12
    """Blocks."""
    token_dim: int = 384
    """Hidden width of the token-mixing MLP."""
    channel_dim: int = 3072
    """Hidden width of the channel-mixing MLP."""
    kernel_sizes: tuple[int, ...] = ()
    """Convolution branches that train beside token mixing (Locality Injection)."""
    proj_drop_rate: float = 0.0
    """Dropout after each linear layer of the channel MLP."""
    gelu: str = "tanh"
    """GELU by "tanh", as in the authors' code, or by "erf", as in timm's own Mixer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.gelu in ("tanh", "erf"), f"gelu must be tanh or erf, got {self.gelu!r}")
        check_kernel_sizes(self.kernel_sizes)
        self.require(0.0 <= self.proj_drop_rate < 1.0, f"proj_drop_rate must be in [0, 1), got {self.proj_drop_rate}")
        self.require_multiple(self.patch_size)

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels between neighbouring positions."""
        return (self.patch_size,)

    @property
    def grid(self) -> tuple[int, int]:
        """Patches (rows, columns)."""
        return self.img_size[0] // self.patch_size, self.img_size[1] // self.patch_size


class MLPMixer(FusibleBackbone):
    """Patch embedding, one stage of `MixerBlock`s, LayerNorm, average, classifier."""

    config: MLPMixerConfig

    def __init__(self, name: str, config: MLPMixerConfig) -> None:
        stem = PatchEmbed(config.in_chans, config.dim, config.patch_size, layout="BHWC")
        blocks = [
            MixerBlock(
                config.grid,
                config.dim,
                token_dim=config.token_dim,
                channel_dim=config.channel_dim,
                kernel_sizes=config.kernel_sizes,
                drop_rate=config.proj_drop_rate,
                drop_path_rate=rate,
                gelu=config.gelu,
            )
            for rate in drop_path_rates(config.drop_path_rate, [config.depth])[0]
        ]
        super().__init__(
            name=name,
            config=config,
            layout="BHWC",
            stem=stem,
            stages=[Stage(blocks)],
            dims=[config.dim],
            norm=nn.LayerNorm(config.dim, eps=1e-6),
        )
        linear_layers = [module for module in self.modules() if isinstance(module, nn.Linear)]
        for layer in (stem.proj, *linear_layers):
            lecun_normal_(layer.weight, layer.weight[0].numel())
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
        if isinstance(self.head.fc, nn.Linear):
            self.init_classifier(self.head.fc)

    def init_classifier(self, layer: nn.Linear) -> None:
        """Zeros, as in the authors' code."""
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)

    def official_entry(self, name: str) -> OfficialEntry:
        """As in the authors' Flax parameters."""
        theirs = name
        for ours, flax in _OFFICIAL_NAMES.items():
            theirs = theirs.replace(ours, flax)
        if name.startswith("norm."):
            theirs = f"pre_head_layer_{name}"
        layer, leaf = theirs.rsplit(".", 1)
        view = SAME
        if leaf == "weight":
            norm = "norm" in layer or "LayerNorm" in layer
            leaf = "scale" if norm else "kernel"
            view = SAME if norm else _FLAX_CONV if layer == "stem" else TRANSPOSED
        return OfficialEntry(f"{layer}.{leaf}".replace(".", "/"), view)

    def timm_entry(self, name: str) -> OfficialEntry:
        """As in timm's ``mixer_b16_224`` and its kin."""
        for ours, theirs in _TIMM_NAMES.items():
            name = name.replace(ours, theirs)
        return OfficialEntry(name)

    def compute_as_timm(self) -> None:
        """The exact GELU."""
        self.config = dataclasses.replace(self.config, gelu="erf")
        for module in self.modules():
            if isinstance(module, nn.GELU):
                module.approximate = "none"


_OFFICIAL_NAMES = {
    "stages.0.blocks.": "MixerBlock_",
    "norm1": "LayerNorm_0",
    "norm2": "LayerNorm_1",
    "spatial.fc1": "token_mixing.Dense_0",
    "spatial.fc2": "token_mixing.Dense_1",
    "channel.fc1": "channel_mixing.Dense_0",
    "channel.fc2": "channel_mixing.Dense_1",
    "stem.proj": "stem",
    "head.fc": "head",
}
_TIMM_NAMES = {
    "stages.0.blocks.": "blocks.",
    ".spatial.": ".mlp_tokens.",
    ".channel.": ".mlp_channels.",
    "head.fc.": "head.",
}
_FLAX_CONV = View(lambda theirs: theirs.permute(3, 2, 0, 1), lambda ours: ours.permute(2, 3, 1, 0))


def _variant(
    name: str, size: MLPMixerConfig, patch_size: int, params: int, macs: int, published: Published | None = None
) -> Variant:
    return Variant(
        name=name,
        config=dataclasses.replace(size, patch_size=patch_size),
        params=params,
        macs=macs,
        published=published or Published(),
    )


_S = MLPMixerConfig(dim=512, depth=8, token_dim=256, channel_dim=2048)
_B = MLPMixerConfig(dim=768, depth=12, token_dim=384, channel_dim=3072)
_L = MLPMixerConfig(dim=1024, depth=24, token_dim=512, channel_dim=4096)
_H = MLPMixerConfig(dim=1280, depth=32, token_dim=640, channel_dim=5120)
_TEST = MLPMixerConfig(num_classes=10, img_size=(32, 32), dim=16, depth=3, token_dim=12, channel_dim=40)

# name, widths, patch, parameters, multiply-accumulates (both of the training form), what the paper states
VARIANTS = (
    _variant("mlpmixer_s32", _S, 32, 19_104_624, 1_002_426_368),
    _variant("mlpmixer_s16", _S, 16, 18_528_264, 3_776_958_464),
    _variant("mlpmixer_b32", _B, 32, 60_293_428, 3_237_722_112),
    _variant(
        "mlpmixer_b16",
        _B,
        16,
        59_880_472,
        12_601_767_936,
        Published(params=59e6, macs=12.6e9, top1=76.4, source="quoted in RepMLPNet, Table 2"),
    ),
    _variant("mlpmixer_l32", _L, 32, 206_939_264, 11_253_293_056),
    _variant("mlpmixer_l16", _L, 16, 208_196_168, 44_547_678_208),
    _variant("mlpmixer_h14", _H, 14, 432_350_952, 120_989_911_040),
    _variant("mlpmixer_test", _TEST, 8, 8_726, 129_184),
)

register_family(
    __name__,
    "MLP-Mixer",
    MLPMixer,
    VARIANTS,
    {**INCEPTION, "crop_pct": 0.875},
)
