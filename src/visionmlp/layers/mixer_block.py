"""The block of MLP-Mixer, and how its layers are initialised. Layout (B, H, W, C)."""

from collections.abc import Sequence

from torch import Tensor, nn

from visionmlp.layers.affine import split_affine
from visionmlp.layers.block import Block, deployed_block
from visionmlp.layers.channel_mlp import ChannelMLP, DeployedChannelMLP
from visionmlp.layers.drop_path import DropPath
from visionmlp.layers.fusible import Fusible
from visionmlp.layers.token_mixing import DeployedTokenMLP, TokenMLP


class MixerBlock(Block, Fusible):
    """Token mixing and channel mixing, each behind a LayerNorm.

    Source: MLP-Mixer (arXiv 2105.01601), Eq. 1; GELU by tanh and LayerNorm eps 1e-6 as in the authors' code.
    """

    def __init__(
        self,
        grid: tuple[int, int],
        dim: int,
        *,
        token_dim: int,
        channel_dim: int,
        kernel_sizes: Sequence[int] = (),
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        gelu: str = "tanh",
    ) -> None:
        act = nn.GELU(approximate="tanh" if gelu == "tanh" else "none")
        super().__init__(
            norm1=nn.LayerNorm(dim, eps=1e-6),
            spatial=TokenMLP(grid, token_dim, act=act, kernel_sizes=kernel_sizes),
            scale1=nn.Identity(),
            norm2=nn.LayerNorm(dim, eps=1e-6),
            channel=ChannelMLP(dim, channel_dim, act=act, drop_rate=drop_rate),
            scale2=nn.Identity(),
            drop_path=DropPath(drop_path_rate),
        )

    def fused(self) -> nn.Module:
        """Both LayerNorms stay; the second's affine moves into ``fc1``, the first's cannot pass shared matrices."""
        assert isinstance(self.spatial, TokenMLP)
        assert isinstance(self.channel, ChannelMLP)
        statistics, scale, shift = split_affine(self.norm2)
        return deployed_block(
            DeployedTokenMLP.fold(self.spatial, norm=self.norm1, scale=nn.Identity()),
            DeployedChannelMLP.fold(
                self.channel, norm=statistics, scale=scale, shift=shift, post_scale=None, layout="BHWC"
            ),
        )


def lecun_normal_(weight: Tensor, fan_in: int) -> None:
    """LeCun normal as in Flax: truncated at two standard deviations and widened to keep the variance."""
    std = fan_in**-0.5 / 0.87962566103423978
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)
