"""The commands: what each is for, its options, and the call it makes. Heavy imports are inside the calls."""

import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace

from visionmlp.cli.options import (
    BenchOptions,
    ConvertOptions,
    DemoOptions,
    DeployOptions,
    EvalOptions,
    ExportOptions,
    ModelOptions,
    ModelsOptions,
    PredictOptions,
    ServedOptions,
)
from visionmlp.cli.parser import UsageError, add_fields, options_from
from visionmlp.cli.train import add_train_options, train
from visionmlp.errors import require

if TYPE_CHECKING:
    from rich.console import Console

    from visionmlp.deploy.session import SessionModel
    from visionmlp.models.backbone import Backbone
    from visionmlp.models.checkpoint import CheckpointInfo

_PIPE_WIDTH = 200
"""Columns of a table that goes to a file or another program."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """One sub-command."""

    summary: str
    """Its line in ``visionmlp --help``."""
    description: str
    """The first paragraph of its own help."""
    examples: Sequence[str]
    """Command lines that work, for the end of its help."""
    add_options: Callable[[ArgumentParser, Sequence[str]], None]
    """Adds the options to the parser; sees the words of the command line too."""
    run: Callable[[Namespace], int]
    """Does it; returns the exit code."""

    @property
    def epilog(self) -> str:
        """The end of the help."""
        return "\n".join(["examples:", *(f"  visionmlp {example}" for example in self.examples)])


def _command(options: type, call: Callable[[Any], int], **texts: Any) -> Command:
    """A command whose options are the fields of a dataclass."""
    return Command(
        add_options=lambda parser, _words: add_fields(parser, options),
        run=lambda namespace: call(options_from(namespace, options)),
        **texts,
    )


def models(options: ModelsOptions) -> int:
    """Print the table of models."""
    from visionmlp.measure.catalog import catalog, catalog_rows, catalog_table

    entries = catalog(options.pattern, family=options.family)
    if options.json:
        _print_json(catalog_rows(entries))
    else:
        _console().print(catalog_table(entries))
    return 0


def evaluate(options: EvalOptions) -> int:
    """Print a model's scores on a dataset."""
    from visionmlp.cli.evaluation import evaluate_model, scores_table

    model, info = _load_served(options)
    scores = evaluate_model(model, info, options)
    if options.json:
        _print_json(scores)
    else:
        _console().print(scores_table(scores))
    return 0


def predict(options: PredictOptions) -> int:
    """Print the classes of images; images that cannot be read are named on standard error."""
    from visionmlp.tasks.classify.predict import predict, predictions_table

    model, info = _load_served(options)
    predictions = list(
        predict(
            model,
            info,
            options.inputs,
            top_k=options.top_k,
            batch_size=options.batch_size,
            device=options.device,
        )
    )
    unreadable = [prediction for prediction in predictions if prediction.error]
    if options.json:
        _print_json([dataclasses.asdict(prediction) for prediction in predictions])
    elif len(unreadable) < len(predictions):
        _console().print(predictions_table(predictions))
    for prediction in unreadable:
        _note(f"error: {prediction.image}: {prediction.error}")
    return 2 if unreadable else 0


def convert(options: ConvertOptions) -> int:
    """Write the weights in the other format."""
    from visionmlp.deploy.convert import convert_from_official, convert_to_official

    if options.to == "official":
        if options.ema or options.img_size is not None:
            raise UsageError(
                "--ema and --img-size say how to read the authors' file; leave them out with --to official"
            )
        model, lost = convert_to_official(options.source, options.output, name=options.model, force=options.force)
        if lost:
            settings = ", ".join(f"{option}={getattr(model.config, option)!r}" for option in lost)
            _note(f"note: the authors' files hold weights only; give their code {settings}")
    else:
        if options.model is None:
            raise UsageError("--model must be given: the authors' files do not say which model they hold")
        if options.img_size is not None and len(options.img_size) not in (1, 2):
            raise UsageError(f"--img-size takes a side, or height and width, got {len(options.img_size)} numbers")
        model = convert_from_official(
            options.source,
            options.model,
            options.output,
            img_size=(options.img_size[0], options.img_size[-1]) if options.img_size else None,
            ema=options.ema,
            force=options.force,
        )
    count = sum(parameter.numel() for parameter in model.parameters())
    sys.stdout.write(f"{model.name}, {count:,} parameters\nwrote {options.output}\n")
    return 0


def deploy(options: DeployOptions) -> int:
    """Write the deploy form and print its certificate."""
    from visionmlp.deploy.certificate import certificate_table, deploy

    model, info = _load(options)
    output = options.output or _deploy_output(options)
    certificate = deploy(
        model, info, output, force=options.force, batch_size=options.batch_size, seconds=options.seconds
    )
    _note_float32(model)
    _console().print(certificate_table(certificate))
    sys.stdout.write(f"wrote {output}\n")
    return 0


def export(options: ExportOptions) -> int:
    """Write an exported file and print how closely its runtime reproduces the model."""
    from visionmlp.deploy.export import export_model
    from visionmlp.deploy.formats import RUNNERS
    from visionmlp.deploy.quantize import calibration_images
    from visionmlp.deploy.session import preprocessing_of

    if options.batch != "dynamic" and not options.batch.isdecimal():
        raise UsageError(f"--batch takes 'dynamic' or a number, got {options.batch!r}")
    model, info = _load(options)
    calibration = None
    if options.calibration is not None:
        calibration = calibration_images(
            options.calibration,
            preprocessing_of(model, info),
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
        dtype=options.dtype,
        calibration=calibration,
        opset=options.opset,
        force=options.force,
    )
    if _is_fresh(options, info):
        _note(f"note: {info.model} has no trained weights; the file holds its structure, with random weights")
    if options.dtype == "float32":
        _note_float32(model)
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


def bench(options: BenchOptions) -> int:
    """Measure and print; optionally write a CSV file and a figure. Contenders that failed are named at the end."""
    import contextlib

    from visionmlp.bench.bench import bench, bench_table, write_csv
    from visionmlp.bench.figures import speed_figure
    from visionmlp.files import beside

    if options.profile:
        return _bench_profile(options)
    with contextlib.ExitStack() as files:
        table, plot = (
            files.enter_context(beside(path, force=options.force, suffix=suffix)) if path else None
            for path, suffix in ((options.csv, ""), (options.plot, ".png"))
        )
        if plot:
            require("matplotlib", extra="plots")  # now, not after the measurement
        result = bench(
            options.models,
            batch_sizes=options.batch_size,
            input_sizes=options.input_size,
            dtypes=options.dtype,
            forms=options.form,
            runtimes=options.runtime,
            training=options.training,
            compare=options.compare,
            seconds=options.seconds,
            threads=options.threads,
            device=options.device,
            channels_last=options.channels_last,
        )
        _console().print(bench_table(result))
        if table:
            write_csv(result, table)
        if plot:
            speed_figure([dataclasses.asdict(row) for row in result.measurements], plot, stamp=str(result.machine))
    for path in (options.csv, options.plot):
        if path:
            sys.stdout.write(f"wrote {path}\n")
    for contender, reason in result.failures.items():
        _note(f"error: {contender}: {reason}")
    return 2 if result.failures else 0


def _bench_profile(options: BenchOptions) -> int:
    from contextlib import nullcontext

    from visionmlp.bench.profile_tables import profile_tables, write_profiles
    from visionmlp.bench.roofline import profile_models
    from visionmlp.files import beside

    if options.runtime != ("eager",) or options.training or "int8" in options.dtype or options.plot:
        raise UsageError(
            "--profile shows eager inference in float32 or bfloat16, as tables and CSV; leave out the rest"
        )
    with beside(options.csv, force=options.force) if options.csv else nullcontext() as partial:
        profiles = profile_models(
            options.models,
            batch_sizes=options.batch_size,
            input_sizes=options.input_size,
            dtypes=options.dtype,
            forms=options.form,
            compare=options.compare,
            seconds=options.seconds,
            threads=options.threads,
            device=options.device,
            channels_last=options.channels_last,
        )
        for profile in profiles:
            _console().print(profile_tables(profile))
        if partial:
            write_profiles(profiles, partial)
    if options.csv:
        sys.stdout.write(f"wrote {options.csv}\n")
    return 0


def demo(options: DemoOptions) -> int:
    """Run the demo."""
    from visionmlp.recipes.demo import run

    run(options.output)
    return 0


COMMANDS = {
    "models": _command(
        ModelsOptions,
        models,
        summary="table of models: parameters, MACs, the paper's accuracy",
        description="List the models with their size, counted here, and what their papers state.",
        examples=["models", "models resmlp", "models 'mlpmixer_*16' --json", "models --family repmlpnet"],
    ),
    "train": Command(
        summary="train a classifier",
        description=(
            "Train a classifier; everything about the run lands in one folder: config, metrics, checkpoints, report.\n"
            "Options are taken from, in rising order: their defaults, --recipe, --config, the command line."
        ),
        examples=[
            "train --recipe digits --output runs/digits",
            "train resmlp_s12 --data folder_with_train_and_val --img-size 160 --output runs/resmlp",
            "train --config run.yaml --output runs/second --epochs 20",
            "train --config run.yaml --print-config",
            "train --resume --output runs/digits",
        ],
        add_options=add_train_options,
        run=train,
    ),
    "eval": _command(
        EvalOptions,
        evaluate,
        summary="top-1, top-5 and loss on a dataset",
        description="Measure a model's accuracy on a dataset.",
        examples=[
            "eval runs/digits",
            "eval resmlp_s12 --checkpoint resmlp_12.pth --data imagenet/val --split validation",
            "eval int8.xml --data imagenette/",
        ],
    ),
    "predict": _command(
        PredictOptions,
        predict,
        summary="classes of images",
        description=(
            "Print the most probable classes of images.\n"
            "An image that cannot be read, or a folder without images, is named on standard error; the others are\n"
            "still predicted, and the exit code is 2."
        ),
        examples=[
            "predict runs/digits image.png folder/",
            "predict model.safetensors - --json < image.jpg",
            "predict model.xml folder/ --threads 2",
            "predict runs/digits folder/ --runtime onnxruntime",
        ],
    ),
    "convert": _command(
        ConvertOptions,
        convert,
        summary="the authors' weights into a checkpoint of ours, and back",
        description=(
            "Read the authors' file and write a checkpoint that says which model it holds; or, with --to official,\n"
            "write weights as the authors' code reads them. No value changes: there and back gives the same tensors."
        ),
        examples=[
            "convert resmlp_24_dist.pth --model resmlp_s24 --output resmlp_s24.safetensors",
            "convert checkpoint.pth --model cyclemlp_b1 --ema --output b1.safetensors",
            "convert runs/digits --to official --output digits.pth",
        ],
    ),
    "deploy": _command(
        DeployOptions,
        deploy,
        summary="re-parameterise a trained model, with a certificate",
        description=(
            "Write the deploy form of a model: its branches and norms folded into plain matrix products.\n"
            "It is written only if both forms agree on random images: to 1e-10 of the largest output in float64,\n"
            "with the real weights and with random weights and norm statistics, and to 1e-5 in float32\n"
            "(or four times what the training form itself loses to rounding, if that is more)."
        ),
        examples=[
            "deploy runs/digits",
            "deploy repmlpnet_t224 --checkpoint RepMLPNet-T224.pth --output t224.safetensors",
        ],
    ),
    "export": _command(
        ExportOptions,
        export,
        summary="ONNX, OpenVINO, torch.export or a checkpoint, checked in its runtime",
        description=(
            "Write a model, with class names and preprocessing inside, for `visionmlp predict` and other programs.\n"
            "The file appears only if its runtime gives PyTorch's outputs, at batch 1 and 5 for a dynamic batch:\n"
            "within 1e-4 of the largest logit in float32; in bf16 and fp16 four times what PyTorch itself loses\n"
            "to rounding. The same is tried with random weights first, since zero weights would let any graph pass.\n"
            "Of a model with fresh weights the structure is exported, with random weights."
        ),
        examples=[
            "export runs/digits --output digits.onnx",
            "export resmlp_s12 --output resmlp.xml --batch 8 --dtype bf16",
            "export cyclemlp_b1 --output cyclemlp.pt2 --dynamic-size --form training",
            "export runs/imagenette --output int8.xml --dtype int8 --calibration imagenette/",
        ],
    ),
    "bench": _command(
        BenchOptions,
        bench,
        summary="speed, GEMM efficiency and memory",
        description=(
            "Measure models. All contenders take turns, so a machine whose speed drifts treats them alike; latencies\n"
            "are medians after a warm-up. docs/bench.md explains every option by example.\n"
            "  GEMM efficiency  2 x MACs x images/s over the GEMM rate. MACs are those of the form that is measured,\n"
            "                   matrix products and convolutions. The GEMM rate is the best of square matrix products\n"
            "                   of side 1024, 2048 and 4096 in the same dtype (float32 for int8), by torch.matmul and\n"
            "                   by oneDNN, measured in turns with the models.\n"
            "  peak MiB         weights, images and the largest sum of tensors alive in one call, as PyTorch's\n"
            "                   allocator sees them; scratch memory inside matrix libraries is not in it.\n"
            "A contender that fails is named at the end, and the exit code is 2; the others are still measured."
        ),
        examples=[
            "bench repmlpnet_t224 resmlp_s24 mlpmixer_b16 --batch-size 1 8",
            "bench resmlp_s24 --form deploy --compare timm peers --runtime eager openvino --plot speed.png",
            "bench cyclemlp_b1 asmlp_t --form deploy --input-size 224 448 896 --batch-size 1 --plot sizes.png",
            "bench resmlp_s24 --form deploy --dtype float32 bfloat16 int8 --runtime openvino --csv bench.csv",
            "bench hiremlp_t --form deploy --batch-size 8 --profile",
            "bench runs/digits --runtime eager compile --training --threads 1",
        ],
    ),
    "demo": _command(
        DemoOptions,
        demo,
        summary="the whole story on real digits, in three minutes",
        description="Train a small RepMLPNet on handwritten digits, deploy it, compare speed, export it, draw figures.",
        examples=["demo", "demo --output my_demo"],
    ),
}


def _load(options: ModelOptions) -> "tuple[Backbone, CheckpointInfo]":
    """The model that the options name."""
    from visionmlp.models.checkpoint import load_model

    return load_model(options.model, checkpoint=options.checkpoint, pretrained=options.pretrained)


def _load_trained(options: ModelOptions) -> "tuple[Backbone, CheckpointInfo]":
    """The same, for commands whose result means nothing without training: fresh weights are pointed out."""
    model, info = _load(options)
    if _is_fresh(options, info):
        _note(
            f"note: {info.model} has fresh weights; give a run folder, a checkpoint file, --checkpoint or --pretrained"
        )
    return model, info


def _load_served(options: ServedOptions) -> "tuple[Backbone | SessionModel, CheckpointInfo]":
    """The same, in the runtime that the options name."""
    import torch

    from visionmlp.deploy.runtimes import RUNTIMES, check_threads, open_session, session_of_model
    from visionmlp.deploy.session import SessionModel

    path = Path(options.model)
    check_threads(options.threads)
    if path.suffix not in RUNTIMES and options.runtime in (None, "torch"):
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        return _load_trained(options)
    if options.device != "cpu":
        raise UsageError(f"exported models run on cpu here; leave out --device {options.device}")
    if path.suffix in RUNTIMES:
        if options.checkpoint is not None or options.pretrained:
            raise UsageError(f"{path} holds weights already; give --checkpoint or --pretrained with a model name only")
        session = open_session(path, runtime=options.runtime, threads=options.threads)
    else:
        model, info = _load_trained(options)
        assert options.runtime in ("onnxruntime", "openvino", "aotinductor")
        session = session_of_model(model, info, runtime=options.runtime, threads=options.threads)
    return SessionModel(session), session.metadata.info(options.model)


def _is_fresh(options: ModelOptions, info: "CheckpointInfo") -> bool:
    """Whether the options name a model only, without any weights."""
    weights = options.checkpoint is not None or options.pretrained
    return not weights and options.model.partition(".")[0] == info.model


def _note_float32(model: "Backbone") -> None:
    """Point out that a file was not written in the precision of its checkpoint."""
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    if dtype != "float32":
        _note(f"note: the checkpoint is in {dtype}; what was written is in float32")


def _deploy_output(options: DeployOptions) -> Path:
    source = options.checkpoint or Path(options.model)
    if source.is_dir():
        return source / "deploy.safetensors"
    return source.with_name(f"{source.stem}-deploy.safetensors")


def _console() -> "Console":
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=_PIPE_WIDTH)


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def _note(line: str) -> None:
    sys.stderr.write(" ".join(line.split()) + "\n")
