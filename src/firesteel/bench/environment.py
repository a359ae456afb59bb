"""What a trial ran on: versions, hardware, the state of the source."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import torch


def environment() -> dict[str, Any]:
    """Of this process, now."""
    return {**_machine(), "started": time.strftime("%Y-%m-%dT%H:%M:%S%z")}


@functools.cache
def _machine() -> dict[str, Any]:
    versions = {package: _version(package) for package in ("firesteel", "torch", "numpy", "pyarrow", "pyspark")}
    return {
        "git": _git(),
        "python": platform.python_version(),
        **{name: version for name, version in versions.items() if version},
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git() -> str | None:
    """The commit of Firesteel's own source, with "+" where files differ from it; None where it was installed without."""
    here = Path(__file__).parent
    try:
        _ = _said(["git", "-C", str(here), "ls-files", "--error-unmatch", "environment.py"])
        commit = _said(["git", "-C", str(here), "rev-parse", "--short=12", "HEAD"])
        changed = _said(["git", "-C", str(here), "status", "--porcelain", "--untracked-files=no"])
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+" if changed else "")


def _said(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
