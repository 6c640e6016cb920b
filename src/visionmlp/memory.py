"""Memory of the process: what is freed stays for what is computed next."""

import contextlib
import ctypes
import os
import platform

# of mallopt(3)
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_MOST_AT_THE_END = 2**31 - 1
_LARGEST_BLOCKS = (1 << 30, 32 << 20)
"""Bytes up to which a block is kept: the second is as far as older versions of glibc let it be set."""


def keep_freed_memory() -> bool:
    """Let this process keep, on Linux, what it frees for its next tensors, as PyTorch does on CUDA.

    glibc gives maps of megabytes back to the system when they are freed, and gets them again page by page, each filled
    with zeros: up to a sixth of a training step and a third of a large image's time on CPUs. Freed memory then counts
    to the process until it ends; its peak stays about the same. `visionmlp.prepack`, training and all commands call
    this. ``VISIONMLP_KEEP_MEMORY=0`` turns it off, and where glibc's own variables say something
    (``MALLOC_TRIM_THRESHOLD_``, ``MALLOC_MMAP_THRESHOLD_``, ``GLIBC_TUNABLES``), nothing is changed.

    Returns:
        Whether it is so: not where the environment decides otherwise, and not with another C library.
    """
    if _environment_decides() or platform.libc_ver()[0] != "glibc":
        return False
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        kept = any(mallopt(_M_MMAP_THRESHOLD, size) for size in _LARGEST_BLOCKS)
        return bool(kept and mallopt(_M_TRIM_THRESHOLD, _MOST_AT_THE_END))
    return False


def _environment_decides() -> bool:
    return (
        os.environ.get("VISIONMLP_KEEP_MEMORY") == "0"
        or "glibc.malloc." in os.environ.get("GLIBC_TUNABLES", "")
        or any(f"MALLOC_{name}_" in os.environ for name in ("TRIM_THRESHOLD", "MMAP_THRESHOLD", "MMAP_MAX"))
    )
