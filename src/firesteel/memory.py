"""What this process holds in memory, as the system counts it."""

from __future__ import annotations

import contextlib
from pathlib import Path

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
