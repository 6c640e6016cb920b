"""Deployment with a certificate: the deploy form computes the same, and this is what it saves."""

import copy
import dataclasses
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from rich.table import Table
from torch import Tensor, nn

from visionmlp.errors import CheckpointError, InvalidConfig, VisionMLPError
from visionmlp.files import OutputError, beside
from visionmlp.layers.affine import Affine
from visionmlp.layers.fusible import is_training_form, reparameterize
from visionmlp.measure.catalog import count_macs, count_params, count_text
from visionmlp.measure.timing import check_seconds, interleave
from visionmlp.models.backbone import Backbone
from visionmlp.models.checkpoint import CheckpointInfo, load_checkpoint, save_checkpoint

FLOAT64_LIMIT = 1e-10
FLOAT32_LIMIT = 1e-5
_ROUNDINGS = 4
"""Both forms round, each somewhat differently on every input."""
BATCHES = 4
BATCH_SIZE = 2

_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, Affine)


class CertificateError(VisionMLPError):
    """The two forms differ by more than rounding; nothing was written."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """What one form costs."""

    params: int
    macs: int
    """Multiply-accumulates of one image."""
    modules: int
    """Modules without parts of their own."""
    norms: int
    """Of these, normalisations and affine maps."""
    latency_ms: float
    """Median of one call, both forms taking turns."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Certificate:
    """Largest differences of the outputs over random images, relative to the largest output, and both forms' costs."""

    float64: float
    """Real weights, model and fusion in float64."""
    randomised: float
    """Random weights, biases and norm statistics in float64: finds fusions that are right only for fresh norms.

    Not in float32, where random weights let rounding grow to 1e-4 in the deepest models, however right the fusion.
    """
    float32: float
    """Real weights, the deploy form as written."""
    rounding: float
    """The training form in float32 against itself in float64: what arithmetic alone does to this model."""
    batch_size: int
    """Images per call behind the latencies."""
    training: Cost
    deploy: Cost

    @property
    def float32_limit(self) -> float:
        """1e-5; more for a model that rounds so much by itself, which no fusion can undercut."""
        return max(FLOAT32_LIMIT, _ROUNDINGS * self.rounding)

    @property
    def passed(self) -> bool:
        """Whether every difference is within its limit; one that is not a number is not."""
        return self.float64 <= FLOAT64_LIMIT and self.randomised <= FLOAT64_LIMIT and self.float32 <= self.float32_limit


def relative_error(reference: Tensor, other: Tensor) -> float:
    """Largest absolute difference over the largest absolute reference."""
    scale = reference.abs().max().clamp_min(torch.finfo(reference.dtype).tiny)
    return ((reference - other).abs().max() / scale).item()


def randomise(model: nn.Module, *, seed: int = 0) -> None:
    """Give every parameter and running statistic, in place, a random value that keeps signals near unit size.

    Matrices and kernels are drawn as usual for their fan-in; vectors of scales and variances lie in [0.5, 1.5], all
    other vectors are normal with deviation 0.5: no bias is zero, no scale one, no two channels alike.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if not tensor.is_floating_point():
                continue
            noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            if tensor.squeeze().dim() > 1:
                noise *= (tensor[0].numel()) ** -0.5
            elif name.rpartition(".")[2] in ("bias", "beta", "running_mean"):
                noise *= 0.5
            else:
                noise = 1 + 0.5 * noise.clamp(-1, 1)
            tensor.copy_(noise)


def certify(
    model: nn.Module, input_size: tuple[int, int, int], *, batch_size: int = 1, seconds: float = 2.0
) -> tuple[nn.Module, Certificate]:
    """The deploy form of a model and the certificate for it.

    Args:
        model: training form in evaluation mode, on the CPU in float32; not changed.
        input_size: (C, H, W) of the random images.
        batch_size: images per call of the latency measurement.
        seconds: time to measure each form.

    Raises:
        InvalidConfig: for a batch size or a time that cannot be measured.
    """
    if batch_size < 1:
        raise InvalidConfig(f"batch-size must be at least 1, got {batch_size}")
    check_seconds(seconds)
    deployed = reparameterize(model)
    double = copy.deepcopy(model).double()
    float64 = _difference(double, reparameterize(double), input_size)
    rounding = _difference(double, model, input_size)
    randomise(double)
    randomised = _difference(double, reparameterize(double), input_size)
    del double
    image = torch.randn(batch_size, *input_size)
    with torch.inference_mode():
        durations = interleave({form: _call(form, image) for form in (model, deployed)}, seconds=seconds)
    training, deploy = (_cost(form, input_size, durations[form]) for form in (model, deployed))
    return deployed, Certificate(
        float64=float64,
        randomised=randomised,
        float32=_difference(model, deployed, input_size),
        rounding=rounding,
        batch_size=batch_size,
        training=training,
        deploy=deploy,
    )


def deploy(
    model: Backbone,
    info: CheckpointInfo,
    output: Path,
    *,
    force: bool = False,
    batch_size: int = 1,
    seconds: float = 2.0,
) -> Certificate:
    """Write a model's deploy form, once its certificate holds and the file reads back as the same model.

    Args:
        model: training form in evaluation mode, on the CPU; not changed. In another precision than float32 it is
            converted first, so what is certified and written is float32.
        info: where it came from; class names and preprocessing are carried over.
        output: ``.safetensors`` file.
        force: replace an existing file.
        batch_size: images per call of the latency measurement.
        seconds: time to measure each form.

    Raises:
        CertificateError: if the forms differ, or the file does not reproduce the model.
        CheckpointError: if the model is a deploy form already.
        InvalidConfig: for a batch size or a time that cannot be measured.
        OutputError: if the output exists, is the training form itself, or cannot be written.
    """
    if not is_training_form(model):
        raise CheckpointError(f"{info.source} is in deploy form already")
    output, source = Path(output), Path(info.source)
    if output.exists() and source.exists() and output.samefile(source):
        raise OutputError(f"{output} holds the training form, which cannot be recovered; give another --output")
    if next(model.parameters()).dtype != torch.float32:
        model = copy.deepcopy(model).float()
    input_size = (model.config.in_chans, *model.config.img_size)
    with beside(output, force=force, suffix=".safetensors") as partial:
        deployed, certificate = certify(model, input_size, batch_size=batch_size, seconds=seconds)
        if not certificate.passed:
            raise CertificateError(
                f"the deploy form of {model.name} differs from its training form: float64 {certificate.float64:.1e}, "
                f"with random weights {certificate.randomised:.1e} (limit {FLOAT64_LIMIT:.0e}), "
                f"float32 {certificate.float32:.1e} (limit {certificate.float32_limit:.0e}); nothing was written"
            )
        assert isinstance(deployed, Backbone)
        save_checkpoint(partial, deployed, class_names=info.class_names, preprocessing=info.preprocessing)
        reread, _ = load_checkpoint(partial)
        # outputs agree to rounding only: matrix libraries choose their kernels by the alignment of the weights
        if not _difference(deployed, reread, input_size) <= FLOAT32_LIMIT:
            raise CertificateError(f"the checkpoint of {model.name} does not read back as written; nothing was kept")
    return certificate


def certificate_table(certificate: Certificate) -> Table:
    """The certificate as it is printed."""
    before, after = certificate.training, certificate.deploy
    table = Table(title="certificate", title_justify="left")
    table.add_column("")
    for heading in ("training form", "deploy form", "change"):
        table.add_column(heading, justify="right")
    for label, old, new, text in (
        ("parameters", before.params, after.params, count_text),
        ("multiply-accumulates", before.macs, after.macs, count_text),
        ("leaf modules", before.modules, after.modules, str),
        ("norms and affines", before.norms, after.norms, str),
        (f"latency, ms, batch {certificate.batch_size}", before.latency_ms, after.latency_ms, "{:.2f}".format),
    ):
        table.add_row(label, text(old), text(new), f"{new / old - 1:+.0%}" if old else "")
    table.add_section()
    for label, error, limit in (
        ("max relative error, float64", certificate.float64, FLOAT64_LIMIT),
        ("same, random weights and norms", certificate.randomised, FLOAT64_LIMIT),
        ("max relative error, float32", certificate.float32, certificate.float32_limit),
    ):
        table.add_row(label, f"limit {limit:.0e}", f"{error:.1e}", "ok" if error <= limit else "FAILED")
    return table


def _difference(reference: nn.Module, other: nn.Module, input_size: tuple[int, int, int]) -> float:
    """Largest `relative_error` over several batches of normal noise, each model in its own dtype."""
    dtypes = [next(model.parameters()).dtype for model in (reference, other)]
    generator = torch.Generator().manual_seed(0)
    errors = []
    with torch.inference_mode():
        for _ in range(BATCHES):
            images = torch.randn(BATCH_SIZE, *input_size, generator=generator)
            errors.append(relative_error(reference(images.to(dtypes[0])), other(images.to(dtypes[1]))))
    # max() would drop a NaN that is not first
    return torch.tensor(errors).max().item()


def _call(model: nn.Module, images: Tensor) -> Callable[[], object]:
    return lambda: model(images)


def _cost(model: nn.Module, input_size: tuple[int, int, int], durations: list[float]) -> Cost:
    leaves = [module for module in model.modules() if next(module.children(), None) is None]
    return Cost(
        params=count_params(model),
        macs=count_macs(model, input_size),
        modules=len(leaves),
        norms=sum(isinstance(module, _NORMS) for module in leaves),
        latency_ms=1e3 * statistics.median(durations),
    )
