"""Real training runs that are killed in mid-epoch and resumed, against the same runs left alone.

    python benchmarks/resume.py --cifar100 FOLDER --imagenette FOLDER --work FOLDER

Every run is a `visionmlp train` of a few hundred steps. The second run of each pair gets SIGKILL and `--resume`; its
weights must equal the first one's bit by bit. Writes docs/results/resume.md. `faults.py` does it to all tasks, in
small.
"""

import argparse
import concurrent.futures
import csv
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

from faults import differences

DOCUMENT = Path(__file__).parents[1] / "docs" / "results" / "resume.md"
STEPS, KILLED_AFTER = 200, 110
COMMON = [
    *("--max-steps", str(STEPS), "--log-every", "10", "--save-every", "40"),
    *("--warmup-epochs", "0.05", "--num-workers", "1", "--label-smoothing", "0.1", "--threads", "1"),
]
RUNS = {
    "repmlpnet_cifar": ("cifar100", ["--batch-size", "8", "--lr", "1e-3", "--crop", "pad", "--ema-decay", "0.98"]),
    "resmlp_s12": (
        "imagenette",
        ["--batch-size", "4", "--img-size", "160", "--lr", "5e-4", "--drop-path-rate", "0.05"],
    ),
    "mlpmixer_s16": ("imagenette", ["--batch-size", "4", "--img-size", "160", "--lr", "5e-4", "--mixup", "0.2"]),
}


def command(model: str, data: str, output: str) -> list[str]:
    return ["train", model, "--data", data, "--output", output, *COMMON, *RUNS[model][1]]


def losses(folder: Path) -> list[tuple[int, float]]:
    table = folder / "train.csv"
    if not table.exists():
        return []
    with table.open() as lines:
        return [(int(row["step"]), float(row["loss"])) for row in csv.DictReader(lines)]


def run_alone(model: str, data: Path, output: Path) -> None:
    """Train without interruption."""
    with output.with_suffix(".log").open("a") as file:
        words = [sys.executable, "-m", "visionmlp", *command(model, str(data), str(output))]
        subprocess.run(words, check=True, stdout=file, stderr=file)


def run_killed(model: str, data: Path, output: Path) -> int:
    """Start, kill after KILLED_AFTER steps without warning, resume; the step of the last line before the kill."""
    with output.with_suffix(".log").open("a") as file:
        words = [sys.executable, "-m", "visionmlp", *command(model, str(data), str(output))]
        process = subprocess.Popen(words, stdout=file, stderr=file, start_new_session=True)
        while not (rows := losses(output)) or rows[-1][0] < KILLED_AFTER:
            if process.poll() is not None:
                raise SystemExit(f"{model} ended before it could be killed, see {output}.log")
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        resume = [sys.executable, "-m", "visionmlp", "train", "--resume", "--output", str(output)]
        subprocess.run(resume, check=True, stdout=file, stderr=file)
    return rows[-1][0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar100", type=Path, required=True)
    parser.add_argument("--imagenette", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    rows = []
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        pending = {}
        for model, (dataset, _) in RUNS.items():
            for run in (run_alone, run_killed):
                output = args.work / f"{model}-{run.__name__[4:]}"
                pending[model, run] = pool.submit(run, model, getattr(args, dataset), output)
    for model, (dataset, _) in RUNS.items():
        alone, killed = args.work / f"{model}-alone", args.work / f"{model}-killed"
        step = pending[model, run_killed].result()
        pending[model, run_alone].result()
        differ = differences(alone, killed)
        equal = not {"weights", "model.safetensors"} & set(differ)
        tables = not any(name.endswith(".csv") for name in differ)
        trace = losses(alone)
        rows.append(
            f"| {model} | {dataset} | {sum(loss for _, loss in trace[:3]) / 3:.3f} "
            f"| {sum(loss for _, loss in trace[-3:]) / 3:.3f} | {step} | {'yes' if equal else 'NO'} "
            f"| {'yes' if tables else 'NO'} |"
        )
        print(rows[-1], flush=True)
    commands = "\n".join(f"visionmlp {shlex.join(command(m, d, f'runs/{m}'))}" for m, (d, _) in RUNS.items())
    DOCUMENT.write_text(TEXT.format(rows="\n".join(rows), commands=commands, steps=STEPS))


TEXT = """# Training on real images, killed and resumed

{steps} steps each, on two CPU cores. Losses are means over the first and the last 30 steps. Every run was done twice:
once left alone, once killed by SIGKILL in mid-epoch and resumed. All tensors of the final weights, the moving average
included, were compared bit by bit; so were the tables.

| model | data | loss at start | loss at end | killed after step | weights bit-equal | tables complete |
|---|---|---|---|---|---|---|
{rows}

```
{commands}
```

`python benchmarks/resume.py` repeats this.
"""


if __name__ == "__main__":
    main()
