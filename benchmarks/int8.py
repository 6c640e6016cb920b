"""int8 against float32: images per second of deploy forms, and top-1 of trained ones on real images.

    python benchmarks/int8.py --models RUN_FOLDER --data IMAGE_FOLDER --csv FILE
    python benchmarks/int8.py --models resmlp_s12 hiremlp_t --csv FILE

A trained model is calibrated on images of the training split and scored on the validation split. Without ``--data`` the
weights are random, so is calibration, and only speed means something. All contenders of a model and batch size take
turns in one run. Ends with the table of docs/int8.md.
"""

import argparse
import contextlib
import csv
import dataclasses
import functools
import io
import logging
import statistics
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import openvino
import torch
from torch import nn

import visionmlp
from visionmlp.data.decode import decode
from visionmlp.data.sources import open_evaluation_data
from visionmlp.data.transforms import Preprocessing
from visionmlp.deploy.certificate import randomise
from visionmlp.deploy.division import part_of
from visionmlp.deploy.graphs import export_program, openvino_model
from visionmlp.deploy.in_openvino import openvino_call
from visionmlp.deploy.quantize import CALIBRATION_IMAGES, calibration_images, quantize_onnx, quantize_openvino
from visionmlp.deploy.runtimes import session_of
from visionmlp.deploy.session import Call
from visionmlp.measure.timing import describe_machine, interleave
from visionmlp.models.checkpoint import CheckpointInfo, default_preprocessing

EAGER = "PyTorch float32, packed"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One contender at one batch size."""

    model: str
    size: int
    batch: int
    contender: str
    images_per_second: float
    over_own_float32: float
    over_best_float32: float
    int8_products: str
    """Of all products and convolutions; empty where the runtime does not say."""
    agreement: float
    """Percent of the images that get the class of PyTorch's float32."""
    top1: float | None


def int8_products(graph: openvino.Model) -> str:
    """How many of a graph's products run in int8."""
    operations = openvino.Core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}).get_runtime_model()
    infos = [node.get_rt_info() for node in operations.get_ops()]
    precisions = [
        info["runtimePrecision"].astype(str)
        for info in infos
        if info["layerType"].astype(str) in ("Convolution", "FullyConnected", "MatMul")
    ]
    quantised = sum(precision in ("i8", "u8") for precision in precisions)
    return f"{quantised} of {len(precisions)}"


def onnx_call(path: Path, threads: int) -> Call:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images})[0]


def eager_call(model: nn.Module) -> Call:
    def call(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return model(torch.from_numpy(images)).numpy()

    return call


def contenders(
    model: nn.Module, shape: tuple[int, ...], calibration: Sequence[np.ndarray], threads: int, folder: Path
) -> tuple[dict[str, Call], dict[str, str]]:
    """Calls by name, and the int8 products of those that say."""
    example = torch.zeros(shape)
    part = example[: part_of(len(example), threads)]
    divided = len(part) < len(example)
    graph = openvino_model(export_program(model, part, batch=len(part)))
    plain, int8 = folder / "plain.onnx", folder / "int8.onnx"
    with contextlib.redirect_stdout(io.StringIO()):
        program = torch.onnx.export(model, (example,), dynamo=True, verbose=False, input_names=["images"])
    assert program is not None
    program.save(plain, external_data=False)
    quantize_onnx(plain, int8, calibration)
    quantised = quantize_openvino(graph, calibration)
    calls = {
        EAGER: eager_call(visionmlp.prepack(model)),
        "AOTInductor float32": session_of(model, example, runtime="aotinductor", threads=threads),
        "OpenVINO float32": openvino_call(graph, "float32", threads, divided=divided),
        "OpenVINO int8": openvino_call(quantised, "int8", threads, divided=divided),
        "ONNX Runtime float32": onnx_call(plain, threads),
        "ONNX Runtime int8": onnx_call(int8, threads),
    }
    return calls, {"OpenVINO int8": int8_products(quantised)}


def in_batches(call: Call, images: np.ndarray, batch: int) -> np.ndarray:
    """Logits of all images; the last batch is filled up, as the graphs take one size."""
    filled = np.concatenate([images, np.zeros_like(images[: -len(images) % batch])])
    logits = [np.array(call(filled[start : start + batch])) for start in range(0, len(filled), batch)]
    return np.concatenate(logits)[: len(images)]


def load(reference: str, data: str | None) -> tuple[nn.Module, CheckpointInfo]:
    model, info = visionmlp.load_model(reference)
    if data is None:
        randomise(model)
    if info.preprocessing is None:
        info = dataclasses.replace(info, preprocessing=default_preprocessing(model))
    return visionmlp.reparameterize(model), info


def real_images(data: str, info: CheckpointInfo, limit: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Validation images and labels, all or a fixed choice."""
    source = open_evaluation_data(data, class_names=info.class_names)
    assert info.preprocessing is not None
    evaluation = Preprocessing.from_saved(info.preprocessing)
    transform = evaluation.transform()
    order = torch.randperm(len(source), generator=torch.Generator().manual_seed(0)).tolist()[:limit]
    turned = evaluation.exif_orientation
    images = [
        transform(decode(source.read(index), evaluation.mode, warn=warnings.warn, exif_orientation=turned)).numpy()
        for index in order
    ]
    return np.stack(images), np.array([source.label(index) for index in order])


def measure(reference: str, args: argparse.Namespace, folder: Path) -> list[Row]:
    model, info = load(reference, args.data)
    assert info.preprocessing is not None
    channels, side, width = info.preprocessing["input_size"]
    generator = np.random.default_rng(0)
    labels = None
    if args.data is None:
        draw = generator.standard_normal
        calibration = [draw((1, channels, side, width), dtype=np.float32) for _ in range(16)]
        images = draw((max(args.batch_sizes), channels, side, width), dtype=np.float32)
    else:
        calibration = list(calibration_images(args.data, info.preprocessing, count=args.calibration_images))
        images, labels = real_images(args.data, info, args.limit)
    rows = []
    for batch in args.batch_sizes:
        shape = (batch, channels, side, width)
        calls, products = contenders(model, shape, calibration, args.threads, folder)
        predicted = {name: in_batches(call, images, batch).argmax(1) for name, call in calls.items()}
        timed = generator.standard_normal(shape, dtype=np.float32)
        turns = {name: functools.partial(call, timed) for name, call in calls.items()}
        durations = interleave(turns, seconds=args.seconds)
        rates = {name: batch / statistics.median(samples) for name, samples in durations.items()}
        best = max(rate for name, rate in rates.items() if "float32" in name)
        for name, rate in rates.items():
            rows.append(
                Row(
                    model=info.model,
                    size=side,
                    batch=batch,
                    contender=name,
                    images_per_second=rate,
                    over_own_float32=rate / rates[name.replace("int8", "float32")],
                    over_best_float32=rate / best,
                    int8_products=products.get(name, ""),
                    agreement=100 * float((predicted[name] == predicted[EAGER]).mean()),
                    top1=None if labels is None else 100 * float((predicted[name] == labels).mean()),
                )
            )
    return rows


def markdown(rows: Sequence[Row]) -> str:
    lines = [
        "| model, pixels | batch | runtime | images/s | over its float32 | over the best float32 | int8 products "
        "| same class | top-1 |",
        "|---|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        top1 = "" if row.top1 is None else f"{row.top1:.2f} %"
        # random weights tell classes apart by rounding alone
        agreement = "" if row.top1 is None else f"{row.agreement:.1f} %"
        lines.append(
            f"| {row.model}, {row.size} | {row.batch} | {row.contender} | {row.images_per_second:.1f} "
            f"| {row.over_own_float32:.2f} x | {row.over_best_float32:.2f} x | {row.int8_products} "
            f"| {agreement} | {top1} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", required=True, help="run folders, checkpoints, or names of models")
    parser.add_argument("--data", help="folder with train/ and val/; the models are trained")
    parser.add_argument("--limit", type=int, help="score so many images instead of all")
    parser.add_argument("--calibration-images", type=int, default=CALIBRATION_IMAGES)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=3.0, help="time for each contender")
    parser.add_argument("--csv", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export"):
        logging.getLogger(name).setLevel(logging.ERROR)
    stamp = dataclasses.asdict(describe_machine(torch.device("cpu")))
    rows: list[Row] = []
    with args.csv.open("w", newline="") as file, tempfile.TemporaryDirectory() as folder:
        writer = csv.DictWriter(file, [*(field.name for field in dataclasses.fields(Row)), *stamp])
        writer.writeheader()
        for reference in args.models:
            for row in measure(reference, args, Path(folder)):
                rows.append(row)
                writer.writerow({**dataclasses.asdict(row), **stamp})
            file.flush()
    print(markdown(rows))
    print(f"\n{stamp['cpu']}, {stamp['threads']} threads, {stamp['date']}")


if __name__ == "__main__":
    main()
