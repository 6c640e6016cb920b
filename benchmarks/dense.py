"""What a segmentation head costs on each family, and whole large images: seconds and memory.

    python benchmarks/dense.py --threads 2

Of each family the feature levels alone and UperNet on them, in deploy form and float32, take turns. Then the networks
of ``--whole`` get one large image each, in a process of their own, whose peak memory is read when it ends. RepMLPNet
has the embeddings of its paper's Table 6 (5x5, depth-wise). Weights are fresh: speed does not depend on them.

Writes the part "speed" of docs/results/dense.md, between its markers, and the rows of the first table as CSV beside it.
"""

import argparse
import dataclasses
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

import visionmlp
from runs import fill_part
from visionmlp.bench.bench import Measurement, bench, write_rows
from visionmlp.measure.catalog import count_macs
from visionmlp.measure.timing import describe_machine, peak_memory
from visionmlp.models.dense_network import dense_backbone

DOCUMENT = Path(__file__).parents[1] / "docs" / "results" / "dense.md"
MODELS = (
    # whose windows of 256 pixels divide 512
    "repmlpnet_t256",
    "resmlp_s12",
    "mlpmixer_s16",
    "asmlp_t",
    "hiremlp_t",
    "vip_s7",
    "cyclemlp_b1",
    "dynamixer_s",
    "sparsemlp_moe_s",
)
WHOLE = ("cyclemlp_b1", "repmlpnet_d256")
CITYSCAPES_CLASSES = 19
MIB = 2**20
COLUMNS = (
    *("family", "model", "head", "form", "dtype", "height", "width", "batch_size"),
    *("params", "macs", "images_per_second", "p50_ms", "calls", "peak_mib"),
)

SPEED = """{machine}. Deploy form, float32, PyTorch.

One image of {side}x{side}: the feature levels that a head takes, and UperNet (512 channels, 150 classes) on them, in
turns. Families of one image size see it in windows of their own size.

| model | images/s | with UperNet | times slower | MACs G | with UperNet | memory MiB | with UperNet |
|---|---|---|---|---|---|---|---|
{families}

Memory is weights, image and the largest sum of tensors alive in one call. Made from [{csv}]({csv}).

A whole image of {height}x{width} at once, UperNet of 19 classes, each network in a process of its own:

| model | seconds an image | MACs G | tensors MiB | process MiB | after loading MiB |
|---|---|---|---|---|---|
{whole}

"tensors" is counted as above, "process" is the largest resident memory of all, "after loading" the largest before the
first image, with both forms of the weights. `python benchmarks/dense.py --threads {threads}` makes both tables.
"""


def compared(name: str, args: argparse.Namespace) -> list[Measurement]:
    result = bench(
        [name],
        batch_sizes=(1,),
        input_sizes=(args.side,),
        forms=("deploy",),
        heads=("levels", "upernet"),
        seconds=args.seconds,
        threads=args.threads,
        gemm_sides=(1024,),  # their rate is not shown
    )
    if result.failures:
        raise SystemExit(f"{name}: {result.failures}")
    return result.measurements


def family_row(alone: Measurement, headed: Measurement) -> str:
    speeds = alone.images_per_second, headed.images_per_second
    return (
        f"| {alone.family} `{alone.model}` | {speeds[0]:.2f} | {speeds[1]:.2f} | {speeds[0] / speeds[1]:.1f} "
        f"| {alone.macs / 1e9:.1f} | {headed.macs / 1e9:.1f} "
        f"| {alone.peak_mib:.0f} | {headed.peak_mib:.0f} |"
    )


def resident() -> float:
    """MiB: the most that this process ever had."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage's value begins with that of the process which started this one
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # bytes on macOS


def whole_image(name: str, size: tuple[int, int], seconds: float, threads: int) -> dict[str, float]:
    """One network on one image, in this process."""
    torch.set_num_threads(threads)
    backbone = (
        visionmlp.create_model(name, num_classes=0, embed_depthwise=5)
        if name.startswith("repmlpnet")
        else dense_backbone(name)
    )
    network = visionmlp.create_segmenter(backbone, num_classes=CITYSCAPES_CLASSES).eval()
    network = visionmlp.reparameterize(network)
    del backbone
    image = torch.randn(1, 3, *size)
    loaded, durations = resident(), []
    with torch.inference_mode():
        network(image)
        while len(durations) < 3 or sum(durations) < seconds:
            start = time.perf_counter()
            network(image)
            durations.append(time.perf_counter() - start)
    process = resident()
    return {
        "seconds": statistics.median(durations),
        "macs": count_macs(network, (3, *size)),
        "tensors": peak_memory(network, image) / MIB,
        "process": process,
        "loaded": loaded,
    }


def whole_row(name: str, args: argparse.Namespace) -> str:
    numbers = [*map(str, args.whole_size), str(args.seconds), str(args.threads)]
    output = subprocess.check_output([sys.executable, __file__, "--child", name, *numbers], text=True)
    got = json.loads(output.splitlines()[-1])
    return (
        f"| `{name}` | {got['seconds']:.2f} | {got['macs'] / 1e9:.0f} | {got['tensors']:.0f} | {got['process']:.0f} "
        f"| {got['loaded']:.0f} |"
    )


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        name, height, width, seconds, threads = sys.argv[2:]
        print(json.dumps(whole_image(name, (int(height), int(width)), float(seconds), int(threads))))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=list(MODELS), metavar="NAME", help="of the first table")
    parser.add_argument("--side", type=int, default=512, help="of its images")
    parser.add_argument("--whole", nargs="*", default=list(WHOLE), metavar="NAME", help="of the second table")
    parser.add_argument("--whole-size", type=int, nargs=2, default=(1024, 2048), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--seconds", type=float, default=20.0, help="to measure each network")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--document", type=Path, default=DOCUMENT, help="page to fill in")
    args = parser.parse_args()

    pairs = []
    for name in args.models:
        pairs.append(compared(name, args))
        print(family_row(*pairs[-1]), flush=True)
    torch.set_num_threads(args.threads)
    machine = describe_machine(torch.device("cpu"))
    whole = []
    for name in args.whole:
        whole.append(whole_row(name, args))
        print(whole[-1], flush=True)

    table = args.document.with_name(f"{args.document.stem}_speed.csv")
    rows = [
        {name: getattr(row, name) for name in COLUMNS} | dataclasses.asdict(machine) for pair in pairs for row in pair
    ]
    write_rows(rows, table)
    speed = SPEED.format(
        machine=machine,
        side=args.side,
        height=args.whole_size[0],
        width=args.whole_size[1],
        families="\n".join(family_row(*pair) for pair in pairs),
        whole="\n".join(whole),
        csv=table.name,
        threads=args.threads,
    )
    if not args.document.exists():
        args.document.write_text("# Dense prediction\n")
    fill_part(args.document, "speed", speed)


if __name__ == "__main__":
    main()
