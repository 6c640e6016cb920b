"""``visionmlp bench``."""

import contextlib
import dataclasses
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from visionmlp.cli.bench_input import BENCH_INPUT, is_about_input
from visionmlp.cli.command import Command, plain_command
from visionmlp.cli.options import BenchOptions
from visionmlp.cli.output import console, say
from visionmlp.cli.usage import UsageError
from visionmlp.errors import require
from visionmlp.files import beside

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser


def bench(options: BenchOptions) -> int:
    """Measure and print; optionally write a CSV file and a figure. Contenders that failed are named at the end."""
    if options.profile:
        return _profile(options)

    from visionmlp.bench.bench import bench, bench_table, write_csv
    from visionmlp.bench.figures import speed_figure

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
            heads=options.head,
            runtimes=options.runtime,
            training=options.training,
            compare=options.compare,
            seconds=options.seconds,
            threads=options.threads,
            device=options.device,
            channels_last=options.channels_last,
        )
        console().print(bench_table(result))
        if table:
            write_csv(result, table)
        if plot:
            speed_figure([dataclasses.asdict(row) for row in result.measurements], plot, stamp=str(result.machine))
    for path in (options.csv, options.plot):
        if path:
            sys.stdout.write(f"wrote {path}\n")
    for contender, reason in result.failures.items():
        say(f"error: {contender}: {reason}")
    return 2 if result.failures else 0


def _profile(options: BenchOptions) -> int:
    if options.runtime != ("eager",) or options.training or "int8" in options.dtype or options.plot:
        raise UsageError("--profile shows eager inference in any dtype but int8, as tables and CSV; leave out the rest")

    from visionmlp.bench.profile_tables import profile_tables, write_profiles
    from visionmlp.bench.roofline import profile_models

    with beside(options.csv, force=options.force) if options.csv else contextlib.nullcontext() as partial:
        profiles = profile_models(
            options.models,
            batch_sizes=options.batch_size,
            input_sizes=options.input_size,
            dtypes=options.dtype,
            forms=options.form,
            heads=options.head,
            compare=options.compare,
            seconds=options.seconds,
            threads=options.threads,
            device=options.device,
            channels_last=options.channels_last,
        )
        for profile in profiles:
            console().print(profile_tables(profile))
        if partial:
            write_profiles(profiles, partial)
    if options.csv:
        sys.stdout.write(f"wrote {options.csv}\n")
    return 0


_MODELS = plain_command(
    "bench",
    BenchOptions,
    bench,
    summary="speed, GEMM efficiency and memory",
    description=(
        "Measure models. All contenders take turns, so a machine whose speed drifts treats them alike; latencies\n"
        "are medians after a warm-up. docs/bench.md explains every option by example.\n"
        "  GEMM efficiency  2 x MACs x images/s over the GEMM rate. MACs are those of the form that is measured,\n"
        "                   matrix products and convolutions. The GEMM rate is the best of square matrix products\n"
        "                   of side 1024, 2048 and 4096 (4096 and 8192 on CUDA) in the same dtype (float32 for\n"
        "                   int8), by torch.matmul and by oneDNN, measured in turns with the models.\n"
        "  peak MiB         weights, images and the largest sum of tensors alive in one call, as PyTorch's\n"
        "                   allocator sees them; scratch memory inside matrix libraries is not in it.\n"
        "A contender that fails is named at the end, and the exit code is 2; the others are still measured."
    ),
    examples=[
        "bench repmlpnet_t224 resmlp_s24 mlpmixer_b16 --batch-size 1 8",
        "bench resmlp_s24 --form deploy --compare timm peers --runtime eager openvino --plot speed.png",
        "bench cyclemlp_b1 asmlp_t --form deploy --input-size 224 448 896 --batch-size 1 --plot sizes.png",
        "bench resmlp_s24 --form deploy --dtype float32 bfloat16 int8 --runtime openvino --csv bench.csv",
        "bench asmlp_t --form deploy --device cuda --dtype bfloat16 --runtime compile-cuda-graphs --batch-size 256",
        "bench hiremlp_t --form deploy --batch-size 8 --profile",
        "bench cyclemlp_b1 resmlp_s12 --head levels upernet --form deploy --input-size 512 --batch-size 1",
        "bench runs/digits --runtime eager compile --training --threads 1",
        "bench resmlp_s12 --data photos --img-size 128 --num-workers 0 1 2",
    ],
)


def _command(words: Sequence[str]) -> Command:
    return BENCH_INPUT if is_about_input(words) else _MODELS


def _add_options(parser: "ArgumentParser", words: Sequence[str]) -> None:
    command = _command(words)
    parser.description, parser.epilog = command.description, command.epilog
    command.add_options(parser, words)


BENCH = dataclasses.replace(
    _MODELS,
    check=lambda words: _command(words).check(words),
    add_options=_add_options,
    run=lambda namespace: (_MODELS if "models" in namespace else BENCH_INPUT).run(namespace),
)
