"""Freed memory stays with the process: the next tensor of its size is no fresh pages."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

import visionmlp

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")

_MEASURE = """
import resource, sys, torch, visionmlp

def tensors():  # larger than what glibc keeps by itself, and many that it cuts off the end of its memory
    torch.ones(20_000_000)
    del [torch.ones(1_000_000) for _ in range(20)][:]

def page_faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    tensors()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

{prepare}
tensors()
rounds = [page_faults() for _ in range(4)]
print("page faults:", min(rounds), max(rounds))
"""
_TRAINING = """
from pathlib import Path
from tests.engine.toy import config_for, toy_fit
toy_fit(config_for(Path("run")))
"""
_PREPARED = {
    "keep_freed_memory": "visionmlp.keep_freed_memory()",
    "prepack": "visionmlp.prepack(visionmlp.reparameterize(visionmlp.create_model('resmlp_test').eval()))",
    "training": _TRAINING,
    "command": "from visionmlp.cli.main import main; main(['models', 'resmlp_test'])",
}


def page_faults(prepare: str, folder: Path) -> tuple[int, int]:
    """The least and the most of four rounds."""
    chosen = ("MALLOC_", "GLIBC_TUNABLES", "VISIONMLP_KEEP_MEMORY")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(chosen)}
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    measured = subprocess.run(
        [sys.executable, "-c", _MEASURE.format(prepare=prepare)],
        capture_output=True,
        text=True,
        check=True,
        cwd=folder,
        env=environment,
    )
    least, most = map(int, measured.stdout.split("page faults: ")[1].split())
    return least, most


@pytest.mark.parametrize("prepare", _PREPARED.values(), ids=_PREPARED)
def test_freed_memory_is_used_again(prepare, tmp_path):
    # the least: something small that stays may cut what was freed in two, and the largest tensor needs new memory once
    assert page_faults(prepare, tmp_path)[0] < 1000


def test_without_it_pages_are_fresh(tmp_path):
    assert page_faults("", tmp_path)[1] > 10_000


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("VISIONMLP_KEEP_MEMORY", "0"),
        ("MALLOC_TRIM_THRESHOLD_", "131072"),
        ("MALLOC_MMAP_THRESHOLD_", "131072"),
        ("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=131072"),
    ],
)
def test_the_environment_comes_first(name, value, monkeypatch):
    monkeypatch.setenv(name, value)
    assert not visionmlp.keep_freed_memory()
