"""The whole story on real images: train with locality, merge it, prove it, measure it, ship it."""

from pathlib import Path

import torch
from rich.console import Console

from visionmlp.deploy.certificate import certificate_table, deploy
from visionmlp.deploy.export import export_model
from visionmlp.engine import RunFolder
from visionmlp.errors import VisionMLPError
from visionmlp.models.checkpoint import load_checkpoint, load_model
from visionmlp.models.repmlpnet import RepMLPBlock
from visionmlp.ops.fold import affine_of_linear, batchnorm_affine
from visionmlp.recipes.small_images import digits
from visionmlp.report.plots import kernel_rows
from visionmlp.tasks.classify.run import evaluate, train

EXPECTED_TOP1 = 98.0
"""Percent of the held-out digits; `digits` reaches more."""
_BATCH_SIZE = 32
_SECONDS = 4.0


class DemoFailed(VisionMLPError):
    """The demo ran, but a number it promises was not reached."""


def run(output: Path) -> None:
    """Train a small RepMLPNet on handwritten digits, re-parameterise, verify, compare speed, export; all into a folder.

    Command: ``visionmlp demo``. Cost: about a minute on two CPU cores.

    Args:
        output: new folder; if it exists, a number is appended to its name, and nothing is lost.

    Raises:
        DemoFailed: if accuracy or speed fall short of what README promises.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a model this small gains nothing from a second one, and loses much on a busy machine
    try:
        _run(_free(output), Console())
    finally:
        torch.set_num_threads(threads)


def _run(output: Path, console: Console) -> None:
    trained_folder = output / "run"

    console.rule("1  train: convolution branches beside fully-connected token mixing")
    train(digits(output=trained_folder))
    model, info = load_model(trained_folder)
    result = evaluate(model, info, data="sklearn/digits")
    last = RunFolder(trained_folder).metrics.rows()[-1]["top1"]
    console.print(
        f"accuracy on {result['images']} held-out handwritten digits: {result['top1']:.2f} % "
        f"(best epoch; {last:.2f} % after the last one)"
    )

    console.rule("2  deploy: the branches and every norm merge into matrix products")
    deployed_file = output / "deploy.safetensors"
    certificate = deploy(model, info, deployed_file, batch_size=_BATCH_SIZE, seconds=_SECONDS)
    console.print(certificate_table(certificate))
    deployed, deployed_info = load_checkpoint(deployed_file)
    deployed_result = evaluate(deployed, deployed_info, data="sklearn/digits")
    speedup = certificate.training.latency_ms / certificate.deploy.latency_ms
    console.print(f"deploy form: accuracy {deployed_result['top1']:.2f} %, {speedup:.2f} times as fast")

    console.rule("3  look: what Locality Injection did to the fc3 kernel")
    block = next(module for module in model.modules() if isinstance(module, RepMLPBlock))
    with torch.no_grad():
        before, _ = affine_of_linear(block.fc3, None, *batchnorm_affine(block.norm))
        after, _ = block.folded()
    kernels_file = kernel_rows(before[0], after[0], block.grid, output / "kernels.png")
    console.print("rows of the matrix, before and after: the neighbourhood of each position stands out")

    console.rule("4  ship: ONNX, checked against ONNX Runtime")
    onnx_file = output / "model.onnx"
    checks = export_model(model, info, onnx_file).checks
    console.print(", ".join(f"batch {check.batch}: relative error {check.error:.1e}" for check in checks))

    console.rule("everything is here")
    for path, what in (
        (trained_folder / "report.html", "the run: curves, confusion matrix, configuration; open it in a browser"),
        (trained_folder / "curves.png", "learning curves"),
        (trained_folder / "confusion.png", "confusion matrix"),
        (kernels_file, "fc3 kernel rows before and after Locality Injection"),
        (trained_folder / "model.safetensors", "training form"),
        (deployed_file, "deploy form"),
        (onnx_file, "ONNX model, dynamic batch"),
    ):
        console.print(f"  {path}", style="bold", highlight=False, soft_wrap=True, end="")
        console.print(f"  {what}", highlight=False, soft_wrap=True)
    console.print(f"next: visionmlp predict {deployed_file} your_digit.png", highlight=False, soft_wrap=True)
    worst = min(last, result["top1"], deployed_result["top1"])
    if worst < EXPECTED_TOP1:
        raise DemoFailed(f"accuracy {worst:.2f} % is below the {EXPECTED_TOP1} % that this demo should reach")
    if speedup <= 1:
        raise DemoFailed(f"the deploy form ran {speedup:.2f} times as fast as the training form; is the machine busy?")


def _free(output: Path) -> Path:
    candidate, number = output, 1
    while candidate.exists():
        number += 1
        candidate = output.with_name(f"{output.name}-{number}")
    return candidate
