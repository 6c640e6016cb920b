"""Runs that are killed, find the disk full or lose a checkpoint, resumed to their end, against runs left alone.

    OMP_NUM_THREADS=1 python benchmarks/faults.py --work FOLDER

For each kind of run, tiny models on small generated data: at least 20 SIGKILLs (half at a random time, half aimed at
steps, writes and evaluations in turn), disks that are full in a checkpoint's write, and newest checkpoints that are
damaged. Every run is resumed to its end; weights, moving average, teacher, optimizer and tables must equal those of a
run left alone bit by bit. Writes docs/results/faults.md. Needs fork, so Linux or macOS.
"""

import argparse
import collections
import contextlib
import ctypes
import functools
import mmap
import os
import random
import re
import resource
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib.figure
import torch
from safetensors.torch import load_file

from fault_data import write_classes, write_scenes, write_sentences
from visionmlp.engine import loop, run_folder
from visionmlp.engine.checkpoints import Checkpoints
from visionmlp.engine.run_folder import Table
from visionmlp.errors import VisionMLPError
from visionmlp.tasks.classify import run as classify
from visionmlp.tasks.detect import run as detect
from visionmlp.tasks.register import load_task
from visionmlp.tasks.segment import run as segment
from visionmlp.tasks.self_supervised import run as self_supervised
from visionmlp.tasks.translate import run as translate

DOCUMENT = Path(__file__).parents[1] / "docs" / "results" / "faults.md"
PHASES = ("start", "data", "step", "write", "evaluation", "report")
AIMS = ("step", "write", "evaluation")
LIMIT = 120.0
"""Seconds that a session may take before it counts as hanging."""

COMMON: dict[str, Any] = {
    "epochs": 4,
    "batch_size": 8,
    "lr": 1e-3,
    "warmup_epochs": 1.0,
    "log_every": 1,
    "save_every": 2,
    "threads": 1,
    "accelerator": "cpu",
}
CLASSES = {**COMMON, "data": "classes", "model": "resmlp_test", "num_workers": 0}
SCENES = {**COMMON, "data": "scenes", "ema_decay": 0.9, "num_workers": 1, "pictures": 1}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "classify: mixup, moving average, 2 loaders, 2 parts": (
        "classify",
        {
            **CLASSES,
            "model": "repmlpnet_test",
            "num_workers": 2,
            "accumulate": 2,
            "ema_decay": 0.9,
            "clip_grad": 1.0,
            "mixup": 0.4,
            "cutmix": 1.0,
            "auto_augment": "rand-m9-mstd0.5-inc1",
            "erasing": 0.25,
            "drop_path_rate": 0.3,
            "label_smoothing": 0.1,
        },
    ),
    "classify: distilled, with a teacher's cache": (
        "classify",
        {**CLASSES, "distill": "soft", "distill_temperature": 3.0},
    ),
    "dino": (
        "dino",
        {**CLASSES, "out_dim": 32, "hidden_dim": 16, "bottleneck_dim": 8, "local_crops": 2, "local_size": 16},
    ),
    "moco": ("moco", {**CLASSES, "projector_dim": 8, "projector_hidden": 16}),
    "segment: UperNet, a loader": (
        "segment",
        {
            **SCENES,
            "model": "hiremlp_test",
            "head": "upernet",
            "head_channels": 8,
            "auxiliary_channels": 4,
            "crop_size": [32, 32],
            "scale_range": [0.8, 1.25],
        },
    ),
    "detect: Mask R-CNN, a loader": (
        "detect",
        {
            **SCENES,
            "model": "cyclemlp_test",
            "head": "mask_rcnn",
            "settings": {"fc_channels": 16, "roi_batch": 16, "rpn_post_nms": [40, 40], "score_thresh": 0.0},
            "fpn_channels": 8,
            "min_size": [48, 64],
            "max_size": 96,
        },
    ),
    "translate: dropout, moving average, 2 parts": (
        "translate",
        {
            **COMMON,
            "data": "sentences",
            "source": "in",
            "target": "out",
            "vocab_size": 277,
            "model": "resmlp_seq2seq_test",
            "model_args": {"dropout": 0.2, "dim": 32, "hidden_dim": 64, "num_heads": 4, "max_length": 16},
            "batch_size": 128,
            "ema_decay": 0.9,
            "label_smoothing": 0.1,
            "accumulate": 2,
            "shown": 2,
        },
    ),
}


class Phase:
    """What a session is doing, in memory that its killer can read."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, 8 * (1 + len(PHASES)))
        cells = ctypes.c_int64 * (1 + len(PHASES))
        self.cells = cells.from_buffer(self.memory)

    def reset(self) -> None:
        """Before a session."""
        for index in range(len(self.cells)):
            self.cells[index] = 0

    @property
    def name(self) -> str:
        """Now."""
        return PHASES[self.cells[0]]

    def entered(self, name: str) -> int:
        """How often so far."""
        return self.cells[1 + PHASES.index(name)]

    @contextlib.contextmanager
    def of(self, name: str) -> Iterator[None]:
        """The session does this within the block."""
        before, index = self.cells[0], PHASES.index(name)
        self.cells[0] = index
        self.cells[1 + index] += 1
        try:
            yield
        finally:
            self.cells[0] = before

    def watch(self, owner: Any, method: str, name: str) -> None:
        """Let a method say that it is at work."""
        function: Callable[..., Any] = getattr(owner, method)

        @functools.wraps(function)
        def watched(*arguments: Any, **keywords: Any) -> Any:
            with self.of(name):
                return function(*arguments, **keywords)

        setattr(owner, method, watched)


def watch_all(phase: Phase) -> None:
    phase.watch(loop._Loop, "run_epochs", "data")  # whatever is nothing of the rest
    phase.watch(loop._Loop, "update", "step")
    phase.watch(loop._Loop, "evaluate", "evaluation")
    phase.watch(loop._Loop, "save", "write")
    phase.watch(run_folder.Table, "append", "write")
    phase.watch(loop._Loop, "_keep", "write")
    for module in (classify, self_supervised, segment, detect, translate):
        phase.watch(module, "write_report", "report")


def fill_disk(at: int, share: float) -> None:
    """From the ``at``-th checkpoint on, no file of this process may grow beyond a share of a checkpoint's size."""
    save, calls = Checkpoints.save, iter(range(1_000_000))

    def full(self: Checkpoints, step: int, model: Any, state: dict[str, Any]) -> None:
        if next(calls) >= at:
            largest = max(path.stat().st_size for path in self.folder.iterdir())
            resource.setrlimit(resource.RLIMIT_FSIZE, (int(share * largest), resource.RLIM_INFINITY))
        save(self, step, model, state)

    Checkpoints.save = full  # type: ignore[method-assign]


def session(task: str, fields: dict[str, Any], log: Path, *, full: tuple[int, float] | None = None) -> int:
    """Start or resume a run in a process of its own, which leads a group; its process id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.setsid()
        with log.open("a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        if full is not None:
            fill_disk(*full)
        warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
        begun = any(Path(fields["output"]).glob("checkpoints/*.state"))
        definition = load_task(task)
        definition.train(definition.config.from_plain(fields), resume=begun)
        code = 0
    except VisionMLPError as error:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))  # for the log
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def ended(child: int, deadline: float) -> int | None:
    """The exit code of a session, or None if it is still at work; the end of all that hangs."""
    pid, status = os.waitpid(child, os.WNOHANG)
    if pid:
        return os.waitstatus_to_exitcode(status)
    if time.monotonic() > deadline:
        kill(child)
        raise SystemExit("a session hangs")
    return None


def kill(child: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(child, 0)


def finish(child: int) -> int:
    deadline = time.monotonic() + LIMIT
    while (code := ended(child, deadline)) is None:
        time.sleep(0.002)
    return code


def kill_somewhere(child: int, phase: Phase, aim: str | None, chance: random.Random, seconds: float) -> str | int:
    """Kill a session, at a random time or within the phase that is aimed at; where it fell, or the exit code if it
    ended first."""
    started, wait = time.monotonic(), chance.uniform(0, seconds)
    times = chance.randint(1, {"step": 8, "write": 16, "evaluation": 2}.get(aim or "", 1))
    deadline = started + LIMIT
    while (phase.entered(aim) < times) if aim else (time.monotonic() < started + wait):
        if (code := ended(child, deadline)) is not None:
            return code
        time.sleep(0.0002)
    if aim:
        time.sleep(chance.uniform(0, 0.003))
    os.killpg(child, signal.SIGSTOP)  # so that what it was doing is what it dies in
    if (code := ended(child, deadline)) is not None:
        return code
    where = phase.name
    kill(child)
    return where


def damage_newest(folder: Path, chance: random.Random) -> Path | None:
    """Cut or empty the newest checkpoint, if another one is there; the file."""
    states = sorted(folder.glob("step-*.state"))
    if len(states) < 2:
        return None
    path = states[-1] if chance.random() < 0.5 else states[-1].with_suffix(".safetensors")
    content = path.read_bytes()
    path.write_bytes(content[: chance.randrange(len(content))] if content and chance.random() < 0.5 else b"")
    return path


def steps_named(text: str) -> set[str]:
    """Steps whose checkpoints a log calls damaged."""
    return set(re.findall(r"checkpoint of step (\d+) is damaged", text))


def steps_kept(run: Path) -> list[int]:
    """Steps of which there are both parts of a checkpoint."""
    states = sorted((run / "checkpoints").glob("step-*.state"))
    return [int(path.stem.partition("-")[2]) for path in states if path.with_suffix(".safetensors").exists()]


def same(first: Any, second: Any) -> bool:
    """Whether two checkpoints' contents are equal bit by bit."""
    if isinstance(first, torch.Tensor):
        return isinstance(second, torch.Tensor) and first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(value, second[name]) for name, value in first.items())
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


def differences(first: Path, second: Path) -> list[str]:
    """What differs at the end of two runs: the newest checkpoint, the shipped weights, the tables without times."""
    newest = [sorted((folder / "checkpoints").glob("step-*.state"))[-1] for folder in (first, second)]
    found = [] if newest[0].name == newest[1].name else ["last step"]
    states = [torch.load(path, map_location="cpu", weights_only=True) for path in newest]
    found += [name for name in {**states[0], **states[1]} if not same(*(state.get(name) for state in states))]
    if not same(*(load_file(path.with_suffix(".safetensors")) for path in newest)):
        found.append("weights")
    if not same(*(load_file(folder / "model.safetensors") for folder in (first, second))):
        found.append("model.safetensors")
    for name in ("train.csv", "metrics.csv", "router.csv"):
        rows = [Table(folder / name).rows() for folder in (first, second)]
        untimed = [[{k: v for k, v in row.items() if not k.endswith("_per_second")} for row in table] for table in rows]
        if str(untimed[0]) != str(untimed[1]):  # text, as what no object could be scored for is NaN
            found.append(name)
    for name in ("confusion.csv", "classes.csv", "translations.txt"):  # of some tasks each
        files = [folder / name for folder in (first, second)]
        if len({path.read_bytes() if path.exists() else b"" for path in files}) > 1:
            found.append(name)
    if left := [path.name for path in second.rglob(".*")]:
        found.append(f"{', '.join(left)} left over")
    return found


def run_kind(kind: str, work: Path, phase: Phase, chance: random.Random, kills: int) -> str:
    """All faults of one kind of run; its row of the table."""
    task, options = KINDS[kind]
    place = work / kind.partition(",")[0].replace(": ", "-")
    place.mkdir()
    log = place / "log.txt"

    def fields(name: str) -> dict[str, Any]:
        own = {"teacher": str(work / "teacher"), "teacher_cache": str(place / f"{name}-cache")}
        taught = own if "distill" in options else {}
        return {**options, **taught, "data": str(work / options["data"]), "output": str(place / name)}

    begin = time.monotonic()
    if finish(session(task, fields("whole"), log)):
        raise SystemExit(f"the run left alone failed, see {log}")
    alone = time.monotonic() - begin
    fell: collections.Counter[str] = collections.Counter()
    full = damaged = runs = aims = 0
    unequal: list[str] = []
    said = log.open()
    while fell.total() < kills:
        name = f"run{runs}"
        here = fields(name)
        unnamed: set[str] = set()  # steps whose checkpoints are damaged and which no session has named yet
        for _ in range(chance.randint(2, 6)):
            if chance.random() < 0.15:
                code = finish(session(task, here, log, full=(chance.randint(1, 6), chance.uniform(0.05, 0.95))))
                if code == 0:
                    break
                text = said.read()
                unnamed -= steps_named(text)
                if code != 2 or not re.search(r"^error: cannot write", text, re.MULTILINE) or "Traceback" in text:
                    unequal.append(f"{name}: a full disk ended with exit code {code}")
                full += 1
                continue
            phase.reset()
            child = session(task, here, log)
            aim = None if chance.random() < 0.5 else AIMS[(aims := aims + 1) % len(AIMS)]
            where = kill_somewhere(child, phase, aim, chance, alone)
            if isinstance(where, int):
                unequal += [f"{name}: a resumed session ended with exit code {where}"] if where else []
                break
            fell[where] += 1
            unnamed -= steps_named(said.read())
            if chance.random() < 0.2 and (path := damage_newest(place / name / "checkpoints", chance)):
                step = str(int(path.stem.partition("-")[2]))
                damaged += step not in unnamed  # a session may have died before it looked
                unnamed.add(step)
        kept = steps_kept(place / name)
        code = finish(session(task, here, log))
        text = said.read()
        # what a session has named and died before it removed is named again
        left = [step for step in kept if str(step) not in steps_named(text) and step > 0]
        unnamed -= steps_named(text)
        if left and f"resumed at step {left[-1]} of" not in text:
            unequal.append(f"{name}: the last session did not resume at step {left[-1]}")
        unequal += [f"{name}: nobody named the damaged checkpoint of step {step}" for step in unnamed]
        if code:
            unequal.append(f"{name}: the last session ended with exit code {code}")
        elif found := differences(place / "whole", place / name):
            unequal.append(f"{name}: {', '.join(found)}")
        runs += 1
    for line in unequal:
        print(f"{kind}: {line}", flush=True)
    places = " | ".join(str(fell[name]) for name in PHASES)
    verdict = "yes" if not unequal else f"NO, {len(unequal)}"
    seconds = time.monotonic() - begin
    return f"| {kind} | {runs} | {fell.total()} | {places} | {full} | {damaged} | {verdict} | {seconds:.0f} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for runs, which is emptied")
    parser.add_argument("--kills", type=int, default=20, help="of each kind of run, at least")
    parser.add_argument("--seed", type=int, default=0, help="of the times and places")
    args = parser.parse_args()
    shutil.rmtree(args.work, ignore_errors=True)
    args.work.mkdir(parents=True)
    write_classes(args.work / "classes")
    write_scenes(args.work / "scenes")
    write_sentences(args.work / "sentences")
    matplotlib.figure.Figure().subplots()  # fonts, once
    phase, chance = Phase(), random.Random(args.seed)
    watch_all(phase)
    taught = {**CLASSES, "epochs": 2, "data": str(args.work / "classes"), "output": str(args.work / "teacher")}
    if finish(session("classify", taught, args.work / "teacher.log")):
        raise SystemExit(f"the teacher failed, see {args.work}/teacher.log")
    rows = []
    for kind in KINDS:
        rows.append(run_kind(kind, args.work, phase, chance, args.kills))
        print(rows[-1], flush=True)
    command = f"OMP_NUM_THREADS=1 python benchmarks/faults.py --work FOLDER --kills {args.kills} --seed {args.seed}"
    DOCUMENT.write_text(TEXT.format(rows="\n".join(rows), command=command, phases=" | ".join(PHASES)))
    return int(any("| NO" in row for row in rows))


TEXT = """# Runs that are killed, find the disk full, or lose a checkpoint

```
{command}
```

Tiny models on generated images or sentences, 24 steps of 8 images in 4 epochs (of translation, as many as its tokens
give), a checkpoint every two steps and an evaluation after each epoch. Each run was interrupted several times and then
resumed to its end. Half of the SIGKILLs came at a random time, the others were aimed at a step, a write and an
evaluation in turn; the columns say where they fell (*start*: reading data, building and restoring; *data*: waiting for
a batch; *write*: checkpoints, best weights and tables; *report*: figures and page). *Full disk*: a checkpoint's write
failed at a random byte (`RLIMIT_FSIZE`), and the run ended with one line and exit code 2. *Damaged*: the newest
checkpoint was cut or emptied behind a kill; the run said so and took the one before.

At the end the newest checkpoint (weights, optimizer, moving average, teacher and centre), `model.safetensors`, the
tables without their times, the confusion matrix, the scores of classes and the translations were compared with those
of a run left alone, bit by bit. One core of a shared machine.

| kind of run | runs | kills | {phases} | full disk | damaged | all bit-equal | seconds |
|---|---|---|---|---|---|---|---|---|---|---|---|---|
{rows}

On real images: [resume.md](resume.md).
"""


if __name__ == "__main__":
    sys.exit(main())
