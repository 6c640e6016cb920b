"""Embeddings that reach beyond their patch, and how weights of narrower ones start them.

Source: RepMLPNet (arXiv 2112.11081), section 5.3: maps are cut into windows, which know nothing of each other, so
3x3 or 5x5 kernels in place of 2x2 ones carry information across the borders. The text says regular convolutions; the
multiply-accumulates of Table 6 (0.15 G more for 5x5 than for 3x3) are those of depth-wise ones. Here are both.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visionmlp.layers.patch_embed import ConvEmbed, DeployedConvEmbed, folded_conv
from visionmlp.ops.fold import affine_of_linear, batchnorm_affine
from visionmlp.ops.small_maps import conv2d_of_any_size


class WideEmbed(ConvEmbed):
    """k x k convolution of stride 2, depth-wise convolution, BatchNorm, ReLU; halves maps of even sides.

    The depth-wise convolution stands before the norm, so that both convolutions are one linear map across the borders,
    as the wide kernel is, and the norm keeps the statistics that a checkpoint has. It starts as the identity.

    Args:
        in_dim: channels of the map.
        dim: channels of the result.
        kernel_size: side of the first kernel: 2, or odd.
        depthwise: side of the second one: odd; 1 leaves it out.
    """

    def __init__(self, in_dim: int, dim: int, kernel_size: int, *, depthwise: int = 1) -> None:
        super().__init__(
            in_dim,
            dim,
            kernel_size,
            stride=2,
            padding=_reach(kernel_size),
            layout="BCHW",
            batch_norm=True,
            relu=True,
        )
        self.depthwise: nn.Module = nn.Identity()
        if depthwise > 1:
            self.depthwise = nn.Conv2d(dim, dim, depthwise, padding=depthwise // 2, groups=dim, bias=False)
            nn.init.dirac_(self.depthwise.weight, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, dim, H/2, W/2)."""
        return self.act(self.norm(self.depthwise(conv2d_of_any_size(self.proj, x))))

    def fused(self) -> nn.Module:
        """The convolutions alone, with the norm folded into the last."""
        if not isinstance(self.depthwise, nn.Conv2d):
            return super().fused()
        kernel, bias = affine_of_linear(self.depthwise.weight, None, *batchnorm_affine(self.norm))
        return nn.Sequential(
            folded_conv(self.proj, self.proj.weight, None, layout="BCHW"),
            DeployedConvEmbed(
                folded_conv(self.depthwise, kernel, bias, layout="BCHW"), relu=True, layout="BCHW", input_layout="BCHW"
            ),
        )


def _reach(kernel_size: int) -> int:
    """Positions that a kernel of stride 2 reaches beyond the first of its patch, upwards and to the left."""
    return kernel_size // 2 if kernel_size % 2 else 0


def depthwise_entries(model: nn.Module) -> set[str]:
    """State entries that narrower embeddings do not have."""
    return {
        f"{name}.depthwise.weight"
        for name, module in model.named_modules()
        if isinstance(module, WideEmbed) and isinstance(module.depthwise, nn.Conv2d)
    }


def widened(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with zeros around kernels that are smaller than the model's: it computes what it did before.

    Where the model has a depth-wise convolution and the state none, that is the identity. Larger kernels stay: they do
    not fit.

    Args:
        model: with or without `WideEmbed`s.
        state: of a model like it; ours, training form.
    """
    state = dict(state)
    for prefix, module in model.named_modules():
        kernel = state.get(f"{prefix}.proj.weight")
        if not isinstance(module, WideEmbed) or kernel is None or kernel.dim() != 4:
            continue
        wanted, side = module.proj.kernel_size[0], kernel.shape[-1]
        if side == 2 or side % 2:
            state[f"{prefix}.proj.weight"] = _framed(kernel, _reach(wanted) - _reach(side), wanted)
        if isinstance(module.depthwise, nn.Conv2d):
            wanted, name = module.depthwise.kernel_size[0], f"{prefix}.depthwise.weight"
            given = state.get(name, torch.ones(len(kernel), 1, 1, 1, dtype=kernel.dtype, device=kernel.device))
            if given.dim() == 4 and given.shape[-1] % 2:
                state[name] = _framed(given, (wanted - given.shape[-1]) // 2, wanted)
    return state


def _framed(kernel: Tensor, before: int, side: int) -> Tensor:
    """Zeros around a kernel (O, C, k, k), so many rows above and columns on the left, up to ``side`` if it fits."""
    behind = side - before - kernel.shape[-1]
    return kernel if before < 0 or behind < 0 else F.pad(kernel, (before, behind, before, behind))
