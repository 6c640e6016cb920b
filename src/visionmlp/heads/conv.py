"""Convolutions of the heads for dense prediction, with the names that they have in mmseg's and mmdet's checkpoints.

Maps are (B, C, H, W).
"""

from torch import Tensor, nn

from visionmlp.errors import InvalidConfig
from visionmlp.layers.collective import are_several
from visionmlp.layers.fusible import Fusible, parameter
from visionmlp.ops.eager import is_symbolic
from visionmlp.ops.fold import affine_of_linear, batchnorm_affine
from visionmlp.ops.small_maps import conv2d_of_any_size


class Conv(nn.Module):
    """A convolution with bias alone; odd kernels keep the size of the map.

    Args:
        in_channels: of the map.
        out_channels: of the result.
        kernel_size: side of the kernel.
        stride: positions of the map between those of the result.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride=stride, padding=kernel_size // 2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', ceil(H / stride), ceil(W / stride))."""
        return conv2d_of_any_size(self.conv, x)


class ConvNormAct(Fusible):
    """A convolution without bias, BatchNorm, ReLU; odd kernels keep the size of the map.

    Fresh kernels are normal with variance 2 / (C' * k * k), He et al.'s for the backward pass (arXiv 1502.01852,
    section 2.2), as in mmcv.

    Args:
        in_channels: of the map.
        out_channels: of the result.
        kernel_size: side of the kernel.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")
        self.bn: nn.Module = nn.BatchNorm2d(out_channels)
        self.activate = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H, W).

        Raises:
            InvalidConfig: in training, where a channel has one value, which has no variance.
        """
        x = self.conv(x)
        _require_variance(self.bn, x)
        return self.activate(self.bn(x))

    def fused(self) -> nn.Module:
        """A convolution with bias, and ReLU."""
        weight, bias = affine_of_linear(self.conv.weight, None, *batchnorm_affine(self.bn))
        return ConvAct(
            parameter(weight, self.conv.weight),
            parameter(bias, self.conv.weight),
            padding=self.conv.kernel_size[0] // 2,
        )


class ConvAct(nn.Module):
    """Deploy form of `ConvNormAct`."""

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter, *, padding: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2], padding=padding, device="meta")
        self.conv.weight, self.conv.bias = weight, bias
        self.activate = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H, W)."""
        return self.activate(self.conv(x))


def _require_variance(norm: nn.Module, x: Tensor) -> None:
    """Name what PyTorch refuses, and let pass what a norm over several processes can do."""
    if not norm.training or not isinstance(norm, nn.modules.batchnorm._BatchNorm) or is_symbolic(x):
        return
    over_processes = type(norm) is not nn.BatchNorm2d and are_several()
    if x.numel() == x.shape[1] and not over_processes:
        raise InvalidConfig(
            "a BatchNorm of the head sees one value per channel, as UperNet's pooling to 1x1 gives of one image; "
            "train with at least two images in each process and part of a batch, or synchronise norms over processes"
        )
