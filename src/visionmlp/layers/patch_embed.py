"""Patch embedding: a convolution whose kernel is its stride, which is a matrix product on patches."""

from torch import Tensor, nn

from visionmlp.layers.fusible import Fusible, linear
from visionmlp.ops.fold import affine_of_linear, batchnorm_affine
from visionmlp.ops.layout import Layout, from_positions_first


class PatchEmbed(Fusible):
    """Convolution with stride = kernel = ``patch_size``, optional BatchNorm, optional ReLU.

    Takes (B, C, H, W) with H and W multiples of the patch size and returns a map in ``layout``.
    """

    def __init__(
        self, in_chans: int, dim: int, patch_size: int, *, layout: Layout, batch_norm: bool = False, relu: bool = False
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.layout: Layout = layout
        self.proj = nn.Conv2d(in_chans, dim, patch_size, stride=patch_size, bias=not batch_norm)
        self.norm = nn.BatchNorm2d(dim) if batch_norm else nn.Identity()
        self.act = nn.ReLU() if relu else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, H/p, W/p, dim) or (B, dim, H/p, W/p)."""
        x = self.act(self.norm(self.proj(x)))
        return x.permute(0, 2, 3, 1) if self.layout == "BHWC" else x

    def fused(self) -> "PatchProduct":
        """The same embedding as one matrix product on gathered patches, with the norm folded into it."""
        weight, bias = self.proj.weight, self.proj.bias
        if not isinstance(self.norm, nn.Identity):
            weight, bias = affine_of_linear(weight, bias, *batchnorm_affine(self.norm))
        return PatchProduct(
            # columns run over (row in patch, column in patch, channel): the order in which patches are gathered
            linear(weight.permute(0, 2, 3, 1).flatten(1), bias, self.proj.weight),
            self.patch_size,
            relu=isinstance(self.act, nn.ReLU),
            layout=self.layout,
        )


class PatchProduct(nn.Module):
    """Deploy form of `PatchEmbed`: gather patches positions-first, then one linear layer."""

    def __init__(self, proj: nn.Linear, patch_size: int, *, relu: bool, layout: Layout) -> None:
        super().__init__()
        self.proj = proj
        self.act = nn.ReLU(inplace=True) if relu else nn.Identity()
        self.patch_size = patch_size
        self.layout: Layout = layout

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, H/p, W/p, dim) or (B, dim, H/p, W/p)."""
        batch, channels, height, width = x.shape
        p = self.patch_size
        rows, columns = height // p, width // p
        patches = x.permute(2, 3, 0, 1).reshape(rows, p, columns, p, batch, channels).permute(0, 2, 4, 1, 3, 5)
        embedded = self.act(self.proj(patches.reshape(rows, columns, batch, p * p * channels)))
        return from_positions_first(embedded, self.layout)
