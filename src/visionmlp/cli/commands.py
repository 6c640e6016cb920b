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
)
from visionmlp.cli.parser import UsageError, add_fields, options_from
from visionmlp.cli.train import add_train_options, train

if TYPE_CHECKING:
    from rich.console import Console

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
    from visionmlp.tools.catalog import catalog, catalog_rows, catalog_table

    entries = catalog(options.pattern, family=options.family)
    if options.json:
        _print_json(catalog_rows(entries))
    else:
        _console().print(catalog_table(entries))
    return 0


def evaluate(options: EvalOptions) -> int:
    """Print a model's scores on a dataset."""
    from visionmlp.cli.evaluation import evaluate_model, scores_table

    model, info = _load_trained(options)
    scores = evaluate_model(model, info, options)
    if options.json:
        _print_json(scores)
    else:
        _console().print(scores_table(scores))
    return 0


def predict(options: PredictOptions) -> int:
    """Print the classes of images; images that cannot be read are named on standard error."""
    from visionmlp.tools.predict import predict, predictions_table

    model, info = _load_trained(options)
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
    from visionmlp.tools.convert import convert_from_official, convert_to_official

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
    from visionmlp.tools.certificate import certificate_table, deploy

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
    """Write an ONNX file and print how closely ONNX Runtime reproduces the model."""
    from visionmlp.tools.export import export_onnx

    if options.batch != "dynamic" and not options.batch.isdecimal():
        raise UsageError(f"--batch takes 'dynamic' or a number, got {options.batch!r}")
    model, info = _load(options)
    errors = export_onnx(
        model,
        info,
        options.output,
        form=options.form,
        batch="dynamic" if options.batch == "dynamic" else int(options.batch),
        opset=options.opset,
        force=options.force,
    )
    if _is_fresh(options, info):
        _note(f"note: {info.model} has no trained weights; the file holds its structure, with random weights")
    _note_float32(model)
    for size, error in errors.items():
        sys.stdout.write(f"ONNX Runtime at batch {size}: max relative error {error:.1e}\n")
    sys.stdout.write(f"wrote {options.output} ({options.output.stat().st_size / 2**20:.1f} MiB)\n")
    return 0


def bench(options: BenchOptions) -> int:
    """Measure and print; optionally write a CSV file."""
    from contextlib import nullcontext

    from visionmlp.tools.bench import bench, bench_table, write_csv
    from visionmlp.tools.files import beside

    with beside(options.csv, force=options.force) if options.csv else nullcontext() as partial:
        result = bench(
            options.models,
            batch_sizes=options.batch_size,
            dtype=options.dtype,
            forms=options.form,
            runtimes=options.runtime,
            compare=options.compare,
            seconds=options.seconds,
            threads=options.threads,
            device=options.device,
            channels_last=options.channels_last,
        )
        _console().print(bench_table(result))
        if partial:
            write_csv(result, partial)
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
        examples=["predict runs/digits image.png folder/", "predict model.safetensors - --json < image.jpg"],
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
        summary="ONNX file, checked against ONNX Runtime",
        description=(
            "Write a model as one ONNX file with its class names and preprocessing in metadata_props.\n"
            "The file appears only if ONNX Runtime gives PyTorch's outputs, at batch 1 and 5 for a dynamic batch.\n"
            "Of a model with fresh weights the structure is exported, with random weights."
        ),
        examples=["export runs/digits --output digits.onnx", "export resmlp_s12 --output resmlp.onnx --batch 8"],
    ),
    "bench": _command(
        BenchOptions,
        bench,
        summary="speed, GEMM efficiency and memory",
        description=(
            "Measure models in inference mode. All contenders take turns, so a machine whose speed drifts treats them\n"
            "alike; latencies are medians after a warm-up.\n"
            "  GEMM efficiency  2 x MACs x images/s over the GEMM rate. MACs are those of the form that is measured,\n"
            "                   matrix products and convolutions. The GEMM rate is the best of square matrix products\n"
            "                   of side 1024, 2048 and 4096 in the same dtype, measured in turns with the models.\n"
            "  peak MiB         weights, images and the largest sum of tensors alive in one call, as PyTorch's\n"
            "                   allocator sees them; scratch memory inside matrix libraries is not in it."
        ),
        examples=[
            "bench repmlpnet_t224 resmlp_s24 mlpmixer_b16 --batch-size 1 8",
            "bench resmlp_s24 --form deploy --compare timm --csv bench.csv",
            "bench runs/digits --runtime eager compile --threads 1",
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
