"""Our forms against the textbook formulation of each family, with the same weights in the same runtime.

    python benchmarks/textbook_speed.py --csv textbook_speed.csv
    ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 python benchmarks/textbook_speed.py   # as without AVX-512
    python benchmarks/textbook_speed.py --runtimes eager training --apart   # and as its own scripts run it

All contenders of a model and a batch size take turns; times are medians, float32, 224x224. Eager mode is our packed
deploy form against the textbook network as its authors serve it; OpenVINO and ONNX Runtime are `visionmlp.deploy`'s
sessions against the textbook network converted and run as the runtime's own documentation does it, and against the
textbook network in `visionmlp.deploy`'s sessions ("session"), which divide batches: what is left is our forms' alone.
"training" is forward and backward pass of both in training mode. A number above 1 says how many times as fast ours is;
"limit" is what that number would be if ours took no longer than its multiply-accumulates at the rate of the best matrix
product of the same run.

Ours keeps freed memory for its process (`visionmlp.keep_freed_memory`), where the textbook gains by it as well. With
``--apart`` the textbook is measured a second time, in a process that nothing of ours has changed and that takes turns
with this one: what a user has who runs the one or the other.
"""

import argparse
import contextlib
import copy
import dataclasses
import io
import multiprocessing
import os
import statistics
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import visionmlp
from textbook import deployed, pair
from visionmlp.bench.bench import write_rows
from visionmlp.bench.runners import count_step_macs
from visionmlp.deploy.runtimes import session_of
from visionmlp.files import beside
from visionmlp.measure.catalog import count_macs
from visionmlp.measure.gemm import gemm_calls, gemm_rate
from visionmlp.measure.timing import TrainingStep, describe_machine, interleave

MODELS = (
    "repmlpnet_t224",
    "cyclemlp_b1",
    "hiremlp_t",
    "asmlp_t",
    "dynamixer_s",
    "vip_s7",
    "resmlp_s24",
    "mlpmixer_b16",
)
RUNTIMES = ("eager", "openvino", "onnxruntime", "training")
OF_PYTORCH = ("eager", "training")
TOLERANCE = 1e-5
"""Of the largest output, in float32."""
TRAINING_TOLERANCE = 1e-9
"""Of the largest output and of the largest gradient of the images, in float64: below it rounding moves values over the
kink of a ReLU."""
IMAGE = (3, 224, 224)
GEMM_SIDES = (1024, 2048)

Call = Callable[[], object]


def contenders(name: str, batch: int, runtime: str, threads: int) -> dict[str, Call]:
    """Calls of ours and of the textbook's, after a comparison of what they compute."""
    ours, theirs = pair(name)
    images = torch.randn(batch, *IMAGE)
    if runtime == "training":
        visionmlp.keep_freed_memory()  # as visionmlp.train does
        steps = {"ours": _training_step(ours, images), "textbook": _training_step(theirs, images)}
        _compare_training(name, ours, theirs, images)
        return steps
    forms = {"ours": visionmlp.reparameterize(ours), "textbook": deployed(theirs)}
    if runtime == "eager":
        forms["ours"] = visionmlp.prepack(forms["ours"])
        calls = {side: _inference(form, images) for side, form in forms.items()}
    else:
        plain = _plain_openvino if runtime == "openvino" else _plain_onnx
        calls = {
            "ours": _session(forms["ours"], images, runtime, threads),
            "textbook": plain(forms["textbook"], images, threads),
            "session": _session(forms["textbook"], images, runtime, threads),
        }
    with torch.inference_mode():
        expected = forms["textbook"](images)
    for side, call in calls.items():
        error = ((torch.as_tensor(call()) - expected).abs().max() / expected.abs().max()).item()
        if not error < TOLERANCE:
            raise RuntimeError(
                f"{name} in {runtime}: {side} is off PyTorch's textbook by {error:.1e} of the largest output"
            )
    return calls


@contextlib.contextmanager
def apart(name: str, batch: int, runtime: str, threads: int) -> Iterator[Call]:
    """A call of the textbook's in a process of its own, as PyTorch starts it."""
    spawning = multiprocessing.get_context("spawn")
    here, there = spawning.Pipe()
    process = spawning.Process(target=_serve, args=(there, name, batch, runtime, threads), daemon=True)
    process.start()
    there.close()  # else its end would not be noticed

    def call() -> None:
        here.send(True)
        here.recv()

    try:
        yield call
    finally:
        here.close()
        process.join()


def _serve(connection: Connection, name: str, batch: int, runtime: str, threads: int) -> None:
    torch.set_num_threads(threads)
    theirs, images = pair(name).theirs, torch.randn(batch, *IMAGE)
    call = _training_step(theirs, images) if runtime == "training" else _inference(deployed(theirs), images)
    with contextlib.suppress(EOFError):
        while connection.recv():
            call()
            connection.send(True)


def _compare_training(name: str, ours: nn.Module, theirs: nn.Module, images: Tensor) -> None:
    """Raise RuntimeError unless both give the same outputs and, to the images, the same gradients."""
    images = images[:2].double().requires_grad_()
    outputs = [copy.deepcopy(model).double()(images) for model in (ours, theirs)]
    gradients = [torch.autograd.grad(output.square().sum(), images)[0] for output in outputs]
    for what, (mine, expected) in (("outputs", outputs), ("gradients", gradients)):
        error = ((mine - expected).abs().max() / expected.abs().max()).item()
        if not error < TRAINING_TOLERANCE:
            raise RuntimeError(f"{name} in training: {what} are off the textbook's by {error:.1e} of the largest")


def _training_step(model: nn.Module, images: Tensor) -> TrainingStep:
    for module in model.train().modules():
        if isinstance(module, nn.BatchNorm2d) and len(images) == 1:  # a statistic of one image is none
            module.eval()
    return TrainingStep(model, model, images, 1000)


def _inference(model: nn.Module, images: Tensor) -> Call:
    return torch.inference_mode()(lambda: model(images))


def _session(model: nn.Module, images: Tensor, runtime: str, threads: int) -> Call:
    session, values = session_of(model, images, runtime=runtime, threads=threads), images.numpy()  # type: ignore[arg-type]
    return lambda: session(values)


def _plain_openvino(model: nn.Module, images: Tensor, threads: int) -> Call:
    import openvino

    converted = openvino.convert_model(torch.export.export(model, (images,)))
    converted.reshape(list(images.shape))  # the converter drops sizes; without them it takes up to a seventh longer
    # by itself it computes in bfloat16 where the processor can
    hints = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.compile_model(converted, "CPU", hints)
    values = images.numpy()
    return lambda: next(iter(compiled(values).values()))


def _plain_onnx(model: nn.Module, images: Tensor, threads: int) -> Call:
    import onnxruntime

    with contextlib.redirect_stdout(io.StringIO()):
        program = torch.onnx.export(model, (images,), dynamo=True, verbose=False, input_names=["images"])
    assert program is not None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    graph = program.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    values = images.numpy()
    return lambda: session.run(None, {"images": values})[0]


def measured(
    name: str, batches: list[int], runtimes: list[str], seconds: float, *, with_apart: bool
) -> Iterator[dict[str, object]]:
    model = pair(name).ours
    macs = {
        "inference": count_macs(visionmlp.reparameterize(model), IMAGE),
        "training": count_step_macs(model.train(), IMAGE),
    }
    threads = torch.get_num_threads()
    for batch in batches:
        calls: dict[tuple[str, str], Call] = {}
        with contextlib.ExitStack() as processes:
            for runtime in runtimes:
                try:
                    made = contenders(name, batch, runtime, threads)
                except Exception as error:  # as runtimes and exporters raise what they raise
                    print(f"{name}, batch {batch}, {runtime}: {' '.join(str(error).split())[:200]}", flush=True)
                    continue
                if with_apart and runtime in OF_PYTORCH:
                    made["apart"] = processes.enter_context(apart(name, batch, runtime, threads))
                calls |= {(runtime, side): call for side, call in made.items()}
            products = gemm_calls(torch.float32, torch.device("cpu"), GEMM_SIDES)
            durations = interleave({**calls, **products}, seconds=seconds)
        rate = gemm_rate({key: durations[key] for key in products}).best
        for runtime in dict.fromkeys(runtime for runtime, _ in calls):
            milliseconds = {
                side: 1e3 * statistics.median(durations[runtime, side]) for of, side in calls if of == runtime
            }
            mine, theirs, alone, session = (milliseconds.get(side) for side in ("ours", "textbook", "apart", "session"))
            assert mine is not None
            assert theirs is not None
            least = 2e3 * batch * macs["training" if runtime == "training" else "inference"] / rate
            yield {
                "model": name,
                "batch_size": batch,
                "runtime": runtime,
                "ours_ms": round(mine, 2),
                "textbook_ms": round(theirs, 2),
                "times": round(theirs / mine, 3),
                "limit": round(theirs / least, 3),
                "apart_ms": "" if alone is None else round(alone, 2),
                "times_apart": "" if alone is None else round(alone / mine, 3),
                "session_ms": "" if session is None else round(session, 2),
                "times_session": "" if session is None else round(session / mine, 3),
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS, choices=MODELS, metavar="MODEL")
    parser.add_argument("--batch-size", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--runtimes", nargs="+", default=RUNTIMES, choices=RUNTIMES)
    parser.add_argument("--seconds", type=float, default=5.0, help="time for each contender")
    parser.add_argument("--apart", action="store_true", help="PyTorch's textbook in a process of its own as well")
    parser.add_argument("--csv", type=Path)
    arguments = parser.parse_args()
    if os.environ.get("ONEDNN_MAX_CPU_ISA"):
        print("OpenVINO and ONNX Runtime cannot be held to older instructions on this processor and are left out")
        arguments.runtimes = [runtime for runtime in arguments.runtimes if runtime in OF_PYTORCH]

    machine = dataclasses.asdict(describe_machine(torch.device("cpu")))
    rows: list[dict[str, object]] = []
    for name in arguments.models:
        rows_of_model = measured(
            name, arguments.batch_size, arguments.runtimes, arguments.seconds, with_apart=arguments.apart
        )
        for row in rows_of_model:
            rows.append({**row, **machine, "isa": torch.backends.cpu.get_cpu_capability()})
            print(row, flush=True)
    columns = [(runtime, batch) for runtime in arguments.runtimes for batch in arguments.batch_size]
    table = Table("model", *(f"{runtime}, batch {batch}" for runtime, batch in columns))
    for name in arguments.models:
        found = {
            (row["runtime"], row["batch_size"]): f"{row['times']:.2f} of {row['limit']:.2f}"
            + (f", apart {row['times_apart']:.2f}" if row["times_apart"] else "")
            + (f", session {row['times_session']:.2f}" if row["times_session"] else "")
            for row in rows
            if row["model"] == name
        }
        table.add_row(name, *(found.get(column, "") for column in columns))
    Console(width=140).print(table)
    if arguments.csv:
        with beside(arguments.csv, force=True) as partial:
            write_rows(rows, partial)


if __name__ == "__main__":
    main()
