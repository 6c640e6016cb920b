"""Textbook formulations of the families, as one writes them down from the papers; what our forms are measured against.

Parameters have the authors' names, so that weights come from ``to_official`` and the outputs can be compared. MLP-Mixer
and ResMLP are timm's. Sparse-MLP has no public code, and none here.
"""

from collections.abc import Callable
from typing import NamedTuple

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import deform_conv2d

import visionmlp
from visionmlp.bench.contenders import TIMM_MODELS
from visionmlp.models.backbone import Backbone


class Pair(NamedTuple):
    """One network twice, with equal weights, both as they are trained, in evaluation mode."""

    ours: Backbone
    theirs: nn.Module


def pair(name: str, *, seed: int = 0) -> Pair:
    """A model of ours and its textbook formulation.

    RepMLPNet's merges its branches when `deployed` asks for it, as its paper does.
    """
    torch.manual_seed(seed)
    ours = visionmlp.create_model(name).eval()
    if name in TIMM_MODELS:
        theirs = timm.create_model(TIMM_MODELS[name]).eval()
        _stir(theirs)
        visionmlp.load_official(ours, theirs.state_dict())
        return Pair(ours, theirs)
    _stir(ours)
    theirs = NETWORKS[name.partition("_")[0]](ours.config)
    theirs.load_state_dict(dict(ours.to_official(ours.state_dict())))
    return Pair(ours, theirs.eval())


@torch.no_grad()
def _stir(network: nn.Module) -> None:
    """Away from the start, where heads are zero and norms do nothing."""
    for parameter in network.parameters():
        parameter.add_(0.02 * torch.randn_like(parameter))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)


def deployed(network: nn.Module) -> nn.Module:
    """The textbook network as its authors serve it: RepMLPNet with merged branches, the others as they are."""
    for module in network.modules():
        if isinstance(module, RepMLP):
            module.inject()
    return network


class Residual(nn.Module):
    """``x + mixer(norm(x))``, ``x + mlp(norm(x))``; the mixer's name is that of the authors."""

    def __init__(self, mixer: str, norm: Callable[[], nn.Module], mixing: nn.Module, mlp: nn.Module) -> None:
        super().__init__()
        self.mixer = mixer
        self.norm1, self.norm2 = norm(), norm()
        self.add_module(mixer, mixing)
        self.mlp = mlp

    def forward(self, x: Tensor) -> Tensor:
        x = x + getattr(self, self.mixer)(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class MLP(nn.Module):
    """Two linear layers and a GELU over channels, of a map in either layout."""

    def __init__(self, layer: Callable[[int, int], nn.Module], dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = layer(dim, hidden), layer(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Embedding(nn.Module):
    """A convolution, with a norm and ReLU or neither."""

    def __init__(self, conv: nn.Conv2d, norm: nn.Module | None = None, *, relu: bool = False) -> None:
        super().__init__()
        self.proj = conv
        if norm is not None:
            self.norm = norm
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        x = self.proj(x)
        x = self.norm(x) if hasattr(self, "norm") else x
        return x.relu() if self.relu else x


def pointwise(inputs: int, outputs: int, *, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 1, bias=bias)


def weighted(branches: list[Tensor], weights: Tensor) -> Tensor:
    """The sum of three branches by weights of each image and channel, softmax over the branches."""
    a, b, c = weights
    return branches[0] * a + branches[1] * b + branches[2] * c


# ---- AS-MLP: (B, C, H, W)


def one_group(dim: int) -> nn.GroupNorm:
    return nn.GroupNorm(1, dim)


class AxialShift(nn.Module):
    def __init__(self, dim: int, size: int) -> None:
        super().__init__()
        self.size = size
        self.conv1, self.conv2_1, self.conv2_2, self.conv3 = (pointwise(dim, dim) for _ in range(4))
        self.norm1, self.norm2 = one_group(dim), one_group(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.norm1(self.conv1(x)))
        pad, (height, width) = self.size // 2, x.shape[2:]
        parts = F.pad(x, (pad, pad, pad, pad)).chunk(self.size, 1)
        moved = []
        for axis in (3, 2):
            shifted = [part.roll(shift, axis) for part, shift in zip(parts, range(-pad, pad + 1), strict=True)]
            moved.append(torch.cat(shifted, 1).narrow(2, pad, height).narrow(3, pad, width))
        x = F.gelu(self.conv2_1(moved[0])) + F.gelu(self.conv2_2(moved[1]))
        return self.conv3(self.norm2(x))


class Merging(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = one_group(4 * dim)
        self.reduction = pointwise(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        corners = [x[:, :, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(torch.cat(corners, 1)))


class ASStage(nn.Module):
    def __init__(self, dim: int, depth: int, size: int, ratio: float, *, merge: bool) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            *(
                Residual(
                    "axial_shift",
                    lambda: one_group(dim),
                    AxialShift(dim, size),
                    MLP(pointwise, dim, int(dim * ratio)),
                )
                for _ in range(depth)
            )
        )
        if merge:
            self.downsample = Merging(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(x)
        return self.downsample(x) if hasattr(self, "downsample") else x


class ASMLP(nn.Module):
    def __init__(self, config) -> None:
        super().__init__()
        dims = [config.dim * 2**stage for stage in range(len(config.blocks))]
        self.patch_embed = Embedding(nn.Conv2d(3, dims[0], 4, 4), one_group(dims[0]))
        last = len(dims) - 1
        self.layers = nn.Sequential(
            *(
                ASStage(dim, depth, config.shift_size, config.mlp_ratio, merge=stage < last)
                for stage, (dim, depth) in enumerate(zip(dims, config.blocks, strict=True))
            )
        )
        self.norm = one_group(dims[-1])
        self.head = nn.Linear(dims[-1], config.num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.layers(self.patch_embed(x))).mean((2, 3)))


# ---- Hire-MLP: (B, C, H, W)


class Hire(nn.Module):
    def __init__(self, dim: int, region: int, step: int) -> None:
        super().__init__()
        self.region, self.step = region, step
        for axis in "hw":
            self.add_module(f"mlp_{axis}1", pointwise(region * dim, dim // 2, bias=False))
            self.add_module(f"mlp_{axis}1_norm", nn.BatchNorm2d(dim // 2))
            self.add_module(f"mlp_{axis}2", pointwise(dim // 2, region * dim))
        self.mlp_c = pointwise(dim, dim)
        self.reweight = MLP(pointwise, dim, dim // 4)
        self.reweight.fc2 = pointwise(dim // 4, 3 * dim)
        self.proj = pointwise(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, dim, height, width = x.shape
        p, s = self.region, self.step
        h, w = (x.roll(s, 2), x.roll(s, 3)) if s else (x, x)
        below, beside = -height % p, -width % p
        if below:
            h = F.pad(h, (0, 0, 0, below), mode="circular")
        if beside:
            w = F.pad(w, (0, beside, 0, 0), mode="circular")
        rows, columns = (height + below) // p, (width + beside) // p
        h = h.reshape(batch, dim, rows, p, width).permute(0, 1, 3, 2, 4).reshape(batch, dim * p, rows, width)
        w = w.reshape(batch, dim, height, columns, p).permute(0, 1, 4, 2, 3).reshape(batch, dim * p, height, columns)
        h = self.mlp_h2(self.mlp_h1_norm(self.mlp_h1(h)).relu())
        w = self.mlp_w2(self.mlp_w1_norm(self.mlp_w1(w)).relu())
        h = h.reshape(batch, dim, p, rows, width).permute(0, 1, 3, 2, 4).reshape(batch, dim, rows * p, width)
        w = w.reshape(batch, dim, p, height, columns).permute(0, 1, 3, 4, 2).reshape(batch, dim, height, columns * p)
        h, w = h[:, :, :height], w[:, :, :, :width]
        if s:
            h, w = h.roll(-s, 2), w.roll(-s, 3)
        c = self.mlp_c(x)
        weights = self.reweight((h + w + c).mean((2, 3), keepdim=True))
        weights = weights.reshape(batch, dim, 3).permute(2, 0, 1).softmax(0)[..., None, None]
        return self.proj(weighted([h, w, c], weights))


class HireMLP(nn.Module):
    def __init__(self, config) -> None:
        super().__init__()
        dims = config.dims
        self.patch_embed = Embedding(nn.Conv2d(3, dims[0], 7, 4, 2), nn.BatchNorm2d(dims[0]), relu=True)
        parts: list[nn.Module] = []
        for stage, (dim, depth) in enumerate(zip(dims, config.blocks, strict=True)):
            if stage:
                conv = nn.Conv2d(dims[stage - 1], dim, 3, 2, 1)
                parts.append(Embedding(conv, nn.BatchNorm2d(dim), relu=True))
            blocks = []
            for index in range(depth):
                step = index % config.step_strides[stage] * config.step_dilations[stage]
                mixing = Hire(dim, config.region_sizes[stage], step)
                mlp = MLP(pointwise, dim, int(dim * config.mlp_ratio))
                blocks.append(Residual("attn", lambda width=dim: nn.BatchNorm2d(width), mixing, mlp))
            parts.append(nn.Sequential(*blocks))
        self.network = nn.Sequential(*parts)
        self.norm = nn.BatchNorm2d(dims[-1])
        self.head = nn.Linear(dims[-1], config.num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.network(self.patch_embed(x))).mean((2, 3)))


# ---- ViP, CycleMLP, DynaMixer: (B, H, W, C) between convolutions


class ThreeBranches(nn.Module):
    """A mixer along the height, one along the width, one over channels, weighted, and a projection."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mlp_c = nn.Linear(dim, dim, bias=False)
        self.reweight = MLP(nn.Linear, dim, dim // 4)
        self.reweight.fc2 = nn.Linear(dim // 4, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def along(self, x: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        batch, dim = len(x), x.shape[-1]
        h, w = self.along(x)
        c = self.mlp_c(x)
        weights = self.reweight((h + w + c).permute(0, 3, 1, 2).flatten(2).mean(2))
        weights = weights.reshape(batch, dim, 3).permute(2, 0, 1).softmax(0)[:, :, None, None]
        return self.proj(weighted([h, w, c], weights))


class Permute(ThreeBranches):
    def __init__(self, dim: int, segments: int) -> None:
        super().__init__(dim)
        self.segments = segments
        self.mlp_h, self.mlp_w = nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim, bias=False)

    def along(self, x: Tensor) -> tuple[Tensor, Tensor]:
        batch, height, width, dim = x.shape
        n, s = self.segments, dim // self.segments
        cut = x.reshape(batch, height, width, n, s)
        h = self.mlp_h(cut.permute(0, 3, 2, 1, 4).reshape(batch, n, width, height * s))
        w = self.mlp_w(cut.permute(0, 1, 3, 2, 4).reshape(batch, height, n, width * s))
        h = h.reshape(batch, n, width, height, s).permute(0, 3, 2, 1, 4).reshape(x.shape)
        return h, w.reshape(batch, height, n, width, s).permute(0, 1, 3, 2, 4).reshape(x.shape)


class CycleFC(nn.Module):
    """A 1x1 convolution whose channels read positions beside their own, by a deformable convolution."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.empty(dim, dim, 1, 1)), nn.Parameter(torch.empty(dim))
        self.register_buffer("offset", torch.empty(1, 2 * dim, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        return deform_conv2d(x, self.offset.expand(batch, -1, height, width), self.weight, self.bias)


class Cycle(ThreeBranches):
    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.sfc_h, self.sfc_w = CycleFC(dim), CycleFC(dim)

    def along(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.permute(0, 3, 1, 2)
        return self.sfc_h(x).permute(0, 2, 3, 1), self.sfc_w(x).permute(0, 2, 3, 1)


class DynaMixing(nn.Module):
    """(B, L, C): tokens of a line mixed by a matrix that is made of them."""

    def __init__(self, dim: int, length: int, heads: int, reduced: int) -> None:
        super().__init__()
        self.length, self.heads, self.reduced = length, heads, reduced
        self.compress = nn.Linear(dim, heads * reduced)
        self.generate = nn.Linear(length * reduced, length**2)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, dim = x.shape
        z = self.compress(x).reshape(batch, length, self.heads, self.reduced).permute(0, 2, 1, 3)
        matrix = self.generate(z.reshape(batch, self.heads, -1)).reshape(batch, self.heads, length, length).softmax(-2)
        heads = x.reshape(batch, length, self.heads, dim // self.heads).permute(0, 2, 3, 1)
        return self.out((heads @ matrix).permute(0, 3, 1, 2).reshape(batch, length, dim))


class Dyna(ThreeBranches):
    def __init__(self, dim: int, length: int, heads: int, reduced: int) -> None:
        super().__init__(dim)
        self.mix_h, self.mix_w = (DynaMixing(dim, length, heads, reduced) for _ in range(2))

    def along(self, x: Tensor) -> tuple[Tensor, Tensor]:
        batch, height, width, dim = x.shape
        h = self.mix_h(x.permute(0, 2, 1, 3).reshape(-1, height, dim))
        h = h.reshape(batch, width, height, dim).permute(0, 2, 1, 3)
        return h, self.mix_w(x.reshape(-1, width, dim)).reshape(x.shape)


class Downsample(nn.Module):
    """A convolution on a map in (B, H, W, C)."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.proj = conv

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class ChannelsLast(nn.Module):
    """The skeleton that the three share."""

    def __init__(self, stem: nn.Conv2d, parts: list[nn.Module], classes: int) -> None:
        super().__init__()
        self.patch_embed = Embedding(stem)
        self.network = nn.Sequential(*parts)
        dim = next(part for part in parts[::-1] if isinstance(part, nn.Sequential))[0].norm1.normalized_shape[0]
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.network(self.patch_embed(x).permute(0, 2, 3, 1))
        return self.head(self.norm(x.flatten(1, 2)).mean(1))


def stage(dim: int, depth: int, ratio: float, mixing: Callable[[], nn.Module]) -> nn.Sequential:
    def norm() -> nn.LayerNorm:
        return nn.LayerNorm(dim)

    return nn.Sequential(
        *(Residual("attn", norm, mixing(), MLP(nn.Linear, dim, int(dim * ratio))) for _ in range(depth))
    )


def cyclemlp(config) -> ChannelsLast:
    parts: list[nn.Module] = []
    for index, (dim, depth, ratio) in enumerate(zip(config.dims, config.blocks, config.mlp_ratios, strict=True)):
        if index:
            parts.append(Downsample(nn.Conv2d(config.dims[index - 1], dim, 3, 2, 1)))
        parts.append(stage(dim, depth, ratio, lambda width=dim: Cycle(width)))
    return ChannelsLast(nn.Conv2d(3, config.dims[0], 7, 4, 2), parts, config.num_classes)


def isotropic(config, mixing: Callable[[int, int], nn.Module]) -> ChannelsLast:
    """ViP and DynaMixer: ``mixing`` takes a stage and the side of its map."""
    side, parts = config.img_size[0] // config.patch_size, []
    for index, (dim, depth) in enumerate(zip(config.dims, config.blocks, strict=True)):
        if index in config.downsample_before:
            parts.append(Downsample(nn.Conv2d(config.dims[index - 1], dim, 2, 2)))
            side //= 2
        parts.append(stage(dim, depth, config.mlp_ratio, lambda at=index, length=side: mixing(at, length)))
    return ChannelsLast(nn.Conv2d(3, config.dims[0], config.patch_size, config.patch_size), parts, config.num_classes)


def vip(config) -> ChannelsLast:
    return isotropic(config, lambda at, _: Permute(config.dims[at], config.segments[at]))


def dynamixer(config) -> ChannelsLast:
    return isotropic(config, lambda at, side: Dyna(config.dims[at], side, config.segments[at], config.reduced_dim))


# ---- RepMLPNet: (B, C, H, W)


class ConvNorm(nn.Module):
    def __init__(self, conv: nn.Conv2d, *, relu: bool = False) -> None:
        super().__init__()
        self.conv, self.bn, self.relu = conv, nn.BatchNorm2d(conv.out_channels), relu

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv(x))
        return x.relu() if self.relu else x


class RepMLP(nn.Module):
    """Gates, a fully connected layer over positions for each share-set, and convolutions beside it."""

    def __init__(self, dim: int, side: tuple[int, int], sets: int, kernels: tuple[int, ...], reduction: int) -> None:
        super().__init__()
        self.side, self.sets, self.kernels = side, sets, kernels
        positions = side[0] * side[1]
        self.gp = MLP(pointwise, dim, dim // reduction)
        self.fc3 = nn.Conv2d(positions * sets, positions * sets, 1, groups=sets, bias=False)
        self.fc3_bn = nn.BatchNorm2d(sets)
        for kernel in kernels:
            conv = nn.Conv2d(sets, sets, kernel, padding=kernel // 2, groups=sets, bias=False)
            self.add_module(f"repconv{kernel}", ConvNorm(conv))
        self.injected = False

    def forward(self, x: Tensor) -> Tensor:
        gate = self.gp.fc2(self.gp.fc1(F.adaptive_avg_pool2d(x, 1)).relu()).sigmoid()
        sets = x.reshape(-1, self.sets, *self.side)
        y = self.fc3(sets.reshape(-1, self.sets * self.side[0] * self.side[1], 1, 1)).reshape(sets.shape)
        if not self.injected:
            y = self.fc3_bn(y)
            for kernel in self.kernels:
                y = y + getattr(self, f"repconv{kernel}")(sets)
        return y.reshape(x.shape) * gate

    @torch.no_grad()
    def inject(self) -> None:
        """Merge norms and convolutions into the fully connected layer."""
        positions = self.side[0] * self.side[1]
        zero = torch.zeros(1, self.sets, *self.side)
        basis = torch.eye(positions).reshape(positions, 1, *self.side).expand(-1, self.sets, -1, -1)
        bias, matrix = self._parallel(zero), self._parallel(basis)
        matrix = (matrix - bias).reshape(positions, self.sets * positions).t()
        scale, shift = _affine(self.fc3_bn)
        merged = nn.Conv2d(*2 * [self.sets * positions], 1, groups=self.sets)
        weight = self.fc3.weight.flatten(1) * scale.repeat_interleave(positions)[:, None] + matrix
        merged.weight.copy_(weight[..., None, None])
        merged.bias.copy_(bias.flatten() + shift.repeat_interleave(positions))
        self.fc3, self.injected = merged, True

    def _parallel(self, x: Tensor) -> Tensor:
        return sum((getattr(self, f"repconv{kernel}")(x) for kernel in self.kernels), torch.zeros(()))


def _affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return scale, norm.bias - norm.running_mean * scale


class RepFFN(nn.Module):
    def __init__(self, dim: int, ratio: int) -> None:
        super().__init__()
        self.ffn_fc1 = ConvNorm(pointwise(dim, dim * ratio, bias=False))
        self.ffn_fc2 = ConvNorm(pointwise(dim * ratio, dim, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.ffn_fc2(F.gelu(self.ffn_fc1(x)))


class RepUnit(nn.Module):
    def __init__(self, dim: int, mixing: RepMLP, ratio: int) -> None:
        super().__init__()
        self.prebn1, self.prebn2 = nn.BatchNorm2d(dim), nn.BatchNorm2d(dim)
        self.repmlp_block, self.ffn_block = mixing, RepFFN(dim, ratio)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.repmlp_block(self.prebn1(x))
        return x + self.ffn_block(self.prebn2(x))


class RepMLPNet(nn.Module):
    def __init__(self, config) -> None:
        super().__init__()
        dims = config.dims
        self.conv_embedding = ConvNorm(nn.Conv2d(3, dims[0], 4, 4, bias=False), relu=True)
        self.embeds = nn.ModuleList(ConvNorm(nn.Conv2d(dim, 2 * dim, 2, 2, bias=False), relu=True) for dim in dims[:-1])
        self.stages = nn.ModuleList()
        for stage_index, (dim, depth, sets) in enumerate(zip(dims, config.blocks, config.share_sets, strict=True)):
            side = tuple(length // (4 * 2**stage_index) for length in config.img_size)
            units = [
                RepUnit(dim, RepMLP(dim, side, sets, config.kernel_sizes, config.reduction), config.ffn_ratio)
                for _ in range(depth)
            ]
            self.stages.append(nn.Sequential(*units))
        self.head_norm = nn.BatchNorm2d(dims[-1])
        self.head = nn.Linear(dims[-1], config.num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_embedding(x)
        for index, units in enumerate(self.stages):
            x = units(x if index == 0 else self.embeds[index - 1](x))
        return self.head(self.head_norm(x).mean((2, 3)))


NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "repmlpnet": RepMLPNet,
    "asmlp": ASMLP,
    "hiremlp": HireMLP,
    "vip": vip,
    "cyclemlp": cyclemlp,
    "dynamixer": dynamixer,
}
