"""``visionmlp export``."""

import dataclasses
import sys

from visionmlp.cli.command import plain_command
from visionmlp.cli.options import ExportOptions
from visionmlp.cli.output import note_precision, say
from visionmlp.cli.usage import UsageError
from visionmlp.tasks.register import task_of


def export(options: ExportOptions) -> int:
    """Write an exported file and print how closely its runtime reproduces the model."""
    if task_of(options.model) == "translate":
        return _export_translator(options)
    if options.batch != "dynamic" and not options.batch.isdecimal():
        raise UsageError(f"--batch takes 'dynamic' or a number, got {options.batch!r}")
    if len(options.input_size or (1,)) > 2:
        raise UsageError("--input-size takes a side, or height and width")

    from visionmlp.deploy.export import export_model
    from visionmlp.deploy.formats import RUNNERS
    from visionmlp.deploy.networks import classifier_of, exportable
    from visionmlp.deploy.quantize import calibration_images
    from visionmlp.deploy.session import preprocessing_of
    from visionmlp.tasks.loading import is_fresh, load_network

    network, info = load_network(options)
    model = exportable(network, info.source)
    calibration = None
    if options.calibration is not None:
        calibration = calibration_images(
            options.calibration,
            preprocessing_of(*classifier_of(model, info, "calibration")),
            count=options.calibration_images,
            split=options.calibration_split,
            root=options.data_root,
        )
    report = export_model(
        model,
        info,
        options.output,
        format=options.format,
        form=options.form,
        batch="dynamic" if options.batch == "dynamic" else int(options.batch),
        dynamic_size=options.dynamic_size,
        input_size=_size(options.input_size),
        dtype=options.dtype,
        calibration=calibration,
        opset=options.opset,
        force=options.force,
    )
    if is_fresh(options, info):
        say(f"note: {info.model} has no trained weights; the file holds its structure, with random weights")
    if options.dtype == "float32":
        note_precision(model)
    if report.sides:
        sys.stdout.write(f"takes images with sides from {report.sides.least} in steps of {report.sides.step} pixels\n")
    for weights, checks in (("", report.checks), (", random weights", report.random_checks)):
        for check in checks:
            size = f", {check.size[0]}x{check.size[1]}" if report.sides else ""
            sys.stdout.write(
                f"{RUNNERS[report.format]} at batch {check.batch}{size}{weights}: max relative error "
                f"{check.error:.1e}, limit {check.limit:.0e}\n"
            )
    if report.agreement:
        sys.stdout.write(
            f"int8 on {report.agreement.images} calibration images: same class as float32 for "
            f"{report.agreement.top1:.1f} %, correlation of the logits {report.agreement.correlation:.3f}\n"
        )
    for path in report.files:
        sys.stdout.write(f"wrote {path} ({path.stat().st_size / 2**20:.1f} MiB)\n")
    return 0


def _export_translator(options: ExportOptions) -> int:
    """Write a folder of graphs."""
    taken = ("model", "output", "opset", "force")
    for field in dataclasses.fields(options):
        if field.name not in taken and getattr(options, field.name) != field.default:
            raise UsageError(f"--{field.name.replace('_', '-')} is for models of images; a translator has --opset only")
    if options.output.suffix:
        raise UsageError(
            f"a translator is exported to a folder of ONNX graphs; give --output FOLDER, not {options.output}"
        )

    from visionmlp.deploy.translator import LIMIT, export_translator
    from visionmlp.models.translator_files import load_translator

    network, info = load_translator(options.model)
    report = export_translator(network, info, options.output, opset=options.opset, force=options.force)
    for check in report.checks:
        sys.stdout.write(
            f"ONNX Runtime with {check.sentences} x {check.hypotheses} hypotheses, {check.source} source tokens, "
            f"{check.steps} steps: max relative error {check.error:.1e}, limit {LIMIT:.0e}\n"
        )
    for path in report.files:
        sys.stdout.write(f"wrote {path} ({path.stat().st_size / 2**20:.1f} MiB)\n")
    return 0


def _size(sides: tuple[int, ...] | None) -> tuple[int, int] | None:
    return None if sides is None else (sides[0], sides[-1])


EXPORT = plain_command(
    "export",
    ExportOptions,
    export,
    summary="ONNX, OpenVINO, torch.export or a checkpoint, checked in its runtime",
    description=(
        "Write a model, with class names and preprocessing inside, for `visionmlp predict` and other programs.\n"
        "The file appears only if its runtime gives PyTorch's outputs, at batch 1 and 5 for a dynamic batch:\n"
        "within 1e-4 of the largest logit in float32; in bf16 and fp16 four times what PyTorch itself loses\n"
        "to rounding. The same is tried with random weights first, since zero weights would let any graph pass.\n"
        "Of a model with fresh weights the structure is exported, with random weights. A run of --task segment is\n"
        "exported with its head: logits (B, classes, H, W) at the size of the images. A translator becomes a folder\n"
        "of ONNX graphs with its tokenizer, for `visionmlp translate`; see docs/translation.md."
    ),
    examples=[
        "export runs/digits --output digits.onnx",
        "export resmlp_s12 --output resmlp.xml --batch 8 --dtype bf16",
        "export cyclemlp_b1 --output cyclemlp.pt2 --dynamic-size --form training",
        "export runs/camvid --output camvid.onnx --input-size 360 480 --batch 1",
        "export runs/multi30k --output multi30k-onnx",
        "export runs/imagenette --output int8.xml --dtype int8 --calibration imagenette/",
    ],
)
