"""Embeddings: convolutions that make a map coarser. One whose kernel is its stride is a matrix product on patches."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visionmlp.layers.fusible import Fusible, linear, parameter
from visionmlp.layers.linear import Linear
from visionmlp.layers.memory_order import keep_order
from visionmlp.ops.eager import in_eager_inference, in_graph_of_images
from visionmlp.ops.fold import affine_of_linear, batchnorm_affine
from visionmlp.ops.layout import Layout, from_positions_first, to_channels_first
from visionmlp.ops.small_maps import conv2d_of_any_size


class ConvEmbed(Fusible):
    """Convolution, optional BatchNorm, optional ReLU; with a BatchNorm the convolution has a bias only if asked for.

    Takes a map in ``input_layout`` and returns one in ``layout``.
    """

    def __init__(
        self,
        in_chans: int,
        dim: int,
        kernel_size: int,
        *,
        stride: int,
        padding: int,
        layout: Layout,
        input_layout: Layout = "BCHW",
        batch_norm: bool = False,
        relu: bool = False,
        bias: bool | None = None,
    ) -> None:
        super().__init__()
        self.layout: Layout = layout
        self.input_layout: Layout = input_layout
        bias = not batch_norm if bias is None else bias
        self.proj = nn.Conv2d(in_chans, dim, kernel_size, stride=stride, padding=padding, bias=bias)
        self.norm = nn.BatchNorm2d(dim) if batch_norm else nn.Identity()
        self.act = nn.ReLU() if relu else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) or (B, H, W, C) to (B, dim, H', W') or (B, H', W', dim)."""
        x = conv2d_of_any_size(self.proj, _in_order(to_channels_first(x, self.input_layout), self.layout))
        x = self.act(self.norm(x))
        return x.permute(0, 2, 3, 1) if self.layout == "BHWC" else x

    def folded(self) -> tuple[Tensor, Tensor | None]:
        """Kernel (dim, C, k, k) and bias (dim,) with the norm folded in."""
        if isinstance(self.norm, nn.Identity):
            return self.proj.weight, self.proj.bias
        return affine_of_linear(self.proj.weight, self.proj.bias, *batchnorm_affine(self.norm))

    def fused(self) -> nn.Module:
        """The convolution alone, with the norm folded into it."""
        conv = folded_conv(self.proj, *self.folded(), layout=self.layout)
        return DeployedConvEmbed(
            conv, relu=isinstance(self.act, nn.ReLU), layout=self.layout, input_layout=self.input_layout
        )


class DeployedConvEmbed(nn.Module):
    """Deploy form of `ConvEmbed`: one convolution and its ReLU."""

    def __init__(self, proj: nn.Conv2d, *, relu: bool, layout: Layout, input_layout: Layout) -> None:
        super().__init__()
        self.proj = proj
        self.act = nn.ReLU(inplace=True) if relu else nn.Identity()
        self.layout: Layout = layout
        self.input_layout: Layout = input_layout

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) or (B, H, W, C) to (B, dim, H', W') or (B, H', W', dim)."""
        x = self.act(self.proj(_in_order(to_channels_first(x, self.input_layout), self.layout)))
        if self.layout == "BCHW":
            return x
        if in_eager_inference(x):
            return x.permute(0, 2, 3, 1)
        # OpenVINO gives a permuted image an order that every reader would undo for itself
        return x.flatten(2).transpose(1, 2).unflatten(1, x.shape[2:])


class PatchEmbed(ConvEmbed):
    """`ConvEmbed` with stride = kernel = ``patch_size``; H and W are multiples of it."""

    def __init__(
        self,
        in_chans: int,
        dim: int,
        patch_size: int,
        *,
        layout: Layout,
        input_layout: Layout = "BCHW",
        batch_norm: bool = False,
        relu: bool = False,
    ) -> None:
        super().__init__(
            in_chans,
            dim,
            patch_size,
            stride=patch_size,
            padding=0,
            layout=layout,
            input_layout=input_layout,
            batch_norm=batch_norm,
            relu=relu,
        )
        self.patch_size = patch_size

    def fused(self) -> "PatchProduct":
        """The same embedding as one matrix product on gathered patches, with the norm folded into it."""
        weight, bias = self.folded()
        return PatchProduct(
            # columns run over (row in patch, column in patch, channel): the order in which patches are gathered
            linear(weight.permute(0, 2, 3, 1).flatten(1), bias, self.proj.weight),
            self.patch_size,
            relu=isinstance(self.act, nn.ReLU),
            layout=self.layout,
            input_layout=self.input_layout,
        )


class PatchProduct(nn.Module):
    """Deploy form of `PatchEmbed`: gather patches positions-first, then one linear layer."""

    def __init__(self, proj: nn.Linear, patch_size: int, *, relu: bool, layout: Layout, input_layout: Layout) -> None:
        super().__init__()
        self.proj = proj
        self.act = nn.ReLU(inplace=True) if relu else nn.Identity()
        self.patch_size = patch_size
        self.layout: Layout = layout
        self.input_layout: Layout = input_layout

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) or (B, H, W, C) to (B, H/p, W/p, dim) or (B, dim, H/p, W/p)."""
        x = to_channels_first(x, self.input_layout)
        p = self.patch_size
        if in_graph_of_images() and x.dtype == torch.float32 and type(self.proj) is Linear:
            return self._convolved(x)
        batch, channels, height, width = x.shape
        rows, columns = height // p, width // p
        patches = x.permute(2, 3, 0, 1).reshape(rows, p, columns, p, batch, channels).permute(0, 2, 4, 1, 3, 5)
        embedded = self.act(self.proj(patches.reshape(rows, columns, batch, p * p * channels)))
        return from_positions_first(embedded, self.layout)

    def _convolved(self, x: Tensor) -> Tensor:
        """The convolution that it was: ONNX Runtime's transposition of six dimensions takes longer."""
        p = self.patch_size
        kernel = self.proj.weight.unflatten(1, (p, p, -1)).permute(0, 3, 1, 2)
        embedded = self.act(F.conv2d(x, kernel, self.proj.bias, stride=p))
        return embedded.permute(0, 2, 3, 1) if self.layout == "BHWC" else embedded


def folded_conv(conv: nn.Conv2d, weight: Tensor, bias: Tensor | None, *, layout: Layout) -> nn.Conv2d:
    """A convolution like another one, with a folded kernel and bias, for maps that lie in memory as ``layout``."""
    like = conv.weight
    folded = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,  # type: ignore[arg-type]
        stride=conv.stride,  # type: ignore[arg-type]
        padding=conv.padding,  # type: ignore[arg-type]
        dilation=conv.dilation,  # type: ignore[arg-type]
        groups=conv.groups,
        padding_mode=conv.padding_mode,
        bias=bias is not None,
        device="meta",
    )
    # the order that its maps have: the kernel then needs no reordering in every call
    order = torch.channels_last if layout == "BHWC" else torch.contiguous_format
    folded.weight = nn.Parameter(
        parameter(weight, like).detach().contiguous(memory_format=order), requires_grad=like.requires_grad
    )
    keep_order(folded)
    if bias is not None:
        folded.bias = parameter(bias, like)
    return folded


def _in_order(x: Tensor, layout: Layout) -> Tensor:
    """A (B, C, H, W) map in the memory order in which a convolution returns a contiguous map of ``layout``."""
    return x.contiguous(memory_format=torch.channels_last) if layout == "BHWC" else x
