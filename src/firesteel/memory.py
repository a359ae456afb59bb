"""What this process holds in memory, as the system counts it."""

from __future__ import annotations

import contextlib
import ctypes
from pathlib import Path

_MMAP_THRESHOLD = -3  # in malloc.h
_STATUS = Path("/proc/self/status")


def resident_bytes() -> int:
    """Now; 0 where the system does not tell."""
    return _read("VmRSS")


def peak_bytes() -> int:
    """At most, since `forget_peak`; 0 where the system does not tell."""
    return _read("VmHWM")


def forget_peak() -> None:
    """Let the peak begin anew: Spark's Python workers live longer than a run."""
    with contextlib.suppress(OSError):
        _ = Path("/proc/self/clear_refs").write_text("5")


def _read(name: str) -> int:
    with contextlib.suppress(OSError):
        for line in _STATUS.read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * 1024
    return 0


def give_back(at_once_bytes: int = 8 * 2**20) -> None:
    """Hand freed memory back to the system, now and, in pieces of so many bytes or more, whenever it is freed.

    glibc else keeps up to 64 MB of it, and more between what is still in use, for what may be asked for next. Other C libraries
    do as they like.
    """
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        _ = library.mallopt(_MMAP_THRESHOLD, at_once_bytes)
        _ = library.malloc_trim(0)
