"""How long the command keeps its user waiting before it does anything, beside Python alone and ``import torch``.

    python benchmarks/startup.py

All commands take turns, so a machine whose speed drifts treats them alike. Writes docs/results/startup.md.
"""

import argparse
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

import visionmlp

DOCUMENT = Path(__file__).parents[1] / "docs" / "results" / "startup.md"
COMMANDS = {
    "python -c pass": ["-c", "pass"],
    'python -c "import torch"': ["-c", "import torch"],
    **{
        f"visionmlp {words}": ["-c", "import sys, visionmlp_command as c; sys.exit(c.main())", *shlex.split(words)]
        for words in (
            "--help",
            "--version",
            "models",
            "train resmlp_s12 --bath-size 8",
            "eval resmlp_s12 --dta imagenet",
            "bench resmlp_s12 --froms deploy",
            "predict resmpl_s12 photo.jpg",
        )
    },
}

PAGE = """# Start

Seconds from a command to its end, of commands that compute nothing: help, the table of models, an option and a model's
name with letters exchanged. They import no torch; a test sees to it.

| command | median | least | over `python -c pass` | share of `import torch` |
|---|---|---|---|---|
{rows}

{runs} runs of each, all in turns, after one of each that is not counted; {machine}.
Made by `python benchmarks/startup.py`.
"""


def seconds(words: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *words], capture_output=True, check=False)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=11, help="of each command")
    runs = parser.parse_args().runs
    times: dict[str, list[float]] = {command: [] for command in COMMANDS}
    for turn in range(runs + 1):
        for command, words in COMMANDS.items():
            taken = seconds(words)
            if turn:  # the first reads files from the disk
                times[command].append(taken)
    medians = {command: statistics.median(taken) for command, taken in times.items()}
    bare, imported = medians["python -c pass"], medians['python -c "import torch"']
    rows = [
        f"| `{command}` | {median:.2f} s | {min(times[command]):.2f} s | {median - bare:.2f} s "
        f"| {median / imported:.0%} |"
        for command, median in medians.items()
    ]
    machine = (
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python {platform.python_version()}, "
        f"PyTorch {torch.__version__}, visionmlp {visionmlp.__version__}"
    )
    DOCUMENT.write_text(PAGE.format(rows="\n".join(rows), runs=runs, machine=machine))
    print(DOCUMENT.read_text())


if __name__ == "__main__":
    main()
