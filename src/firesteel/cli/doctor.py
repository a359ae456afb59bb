"""`firesteel doctor`: is this machine, or this cluster, fit for a long run?"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal, final

import numpy as np
import pyarrow as pa
import torch
from rich.console import Console

from firesteel.errors import FiresteelError
from firesteel.local.world import Local
from firesteel.spark import world
from firesteel.spark.session import spark_session
from firesteel.spark.world import Spark

PACKAGES = ("firesteel", "torch", "pyarrow", "numpy", "safetensors", "cloudpickle", "pyspark", "pandas")


@final
@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    state: Literal["ok", "warning", "FAIL"]
    what: str
    remedy: str = ""


@final
@dataclass(frozen=True)
class Doctor:
    """Check this machine, or a Spark cluster, before a long run.

    Examples:
      firesteel doctor
      firesteel doctor --on spark --master spark://host:7077 --workers 4
      firesteel doctor --on spark --remote sc://host:15002 --workers 2 --run-dir s3://bucket/runs/1

    Looks at Java, Python and packages here and on every executor, at slots and settings that gangs cannot live with, and lets
    workers meet, to see whether they reach each other and how fast. Each failure comes with its remedy.
    """

    on: Literal["local", "spark"] = "local"
    """This machine, or Spark."""
    workers: int = 2
    """Number of workers that are to run."""
    master: str | None = None
    """Spark's master."""
    remote: str | None = None
    """A Spark Connect server."""
    run_dir: str | None = None
    """A run folder that all workers must see."""
    json: bool = False
    """Print one JSON object instead."""

    def run(self) -> int:
        findings: list[Finding] = []
        for finding in self._findings():
            findings.append(finding)
            if not self.json:
                _print(finding)
        failed = any(f.state == "FAIL" for f in findings)
        if self.json:
            print(json.dumps({"fit": not failed, "findings": [asdict(f) for f in findings]}))
        return int(failed)

    def _findings(self) -> Iterator[Finding]:
        here = versions()
        yield Finding("ok", f"Python {here['python']} on {platform.machine()}, {os.cpu_count()} cores")
        yield Finding("ok", ", ".join(f"{p} {here[p]}" for p in PACKAGES if here[p]))
        if self.on == "local":
            yield from _gang(Local(workers=self.workers, start_seconds=30), self.run_dir)
            return
        if self.remote is None:
            yield _java()
        session = spark_session(self.master, self.remote)
        on = Spark(workers=self.workers, session=session)
        if self.remote is None:
            yield from _application(session, self.workers)
        yield from _executors(session, self.workers, here)
        yield from _gang(on, self.run_dir)


def _print(finding: Finding) -> None:
    colour = {"ok": "green", "warning": "yellow", "FAIL": "bold red"}[finding.state]
    console = Console(highlight=False)
    console.print(f"[{colour}]{finding.state:>8}[/]  ", end="")
    console.print(finding.what, markup=False)
    if finding.remedy:
        console.print(f"          -> {finding.remedy}", markup=False)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that must agree, "" where one is missing."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = ""
    return found


def _java() -> Finding:
    home = os.environ.get("JAVA_HOME")
    binary = os.path.join(home, "bin", "java") if home else shutil.which("java")
    remedy = "install Java 17 or newer (Debian: apt-get install openjdk-17-jre-headless), or set JAVA_HOME"
    if not binary or not os.path.exists(binary):
        return Finding("FAIL", "no Java was found", remedy)
    said = subprocess.run([binary, "-version"], capture_output=True, text=True, check=False).stderr
    version = re.search(r'version "(\d+)', said)
    if version is None or int(version.group(1)) < 17:
        return Finding("FAIL", f"Java is too old: {said.splitlines()[0] if said else binary}", remedy)
    return Finding("ok", f"Java {version.group(1)}, {binary}")


def _application(session: Any, workers: int) -> Iterator[Finding]:
    conf = session.sparkContext.getConf()
    until, have = time.monotonic() + 20, world.slots(session)
    while have < workers and time.monotonic() < until and not session.sparkContext.master.startswith("local["):
        have = world.slots(session)
    if have < workers:
        remedy = f"train with workers={max(have, 1)}, or give Spark more cores"
        yield Finding("FAIL", f"Spark can run {have} tasks at once, {workers} workers were asked for", remedy)
    else:
        yield Finding("ok", f"{have} slots for {workers} workers ({session.sparkContext.master})")
    for name in ("spark.dynamicAllocation.enabled", "spark.speculation"):
        if conf.get(name, "false") == "true":
            yield Finding("FAIL", f"{name} is true, which a gang cannot live with", f"set {name}=false")


def _executors(session: Any, workers: int, here: dict[str, str]) -> Iterator[Finding]:
    def look(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import importlib.metadata as metadata
        import platform
        import socket

        for _ in batches:
            pass
        found = {"python": platform.python_version(), "host": socket.gethostname()}
        for package in packages:
            try:
                found[package] = metadata.version(package)
            except metadata.PackageNotFoundError:
                found[package] = ""
        yield pa.RecordBatch.from_pydict({"found": [json.dumps(found)]})

    packages = PACKAGES
    look.__module__ = "__main__"  # travels by value: executors that lack Firesteel can still say so
    try:
        frame = session.range(workers).repartition(workers).mapInArrow(look, "found string")
        seen = [json.loads(text) for text in frame.toArrow()["found"].to_pylist()]
    except Exception as error:
        yield Finding("FAIL", f"no task could run: {str(error).splitlines()[0]}", "look at Spark's own log")
        return
    for host in {s["host"] for s in seen}:
        there = next(s for s in seen if s["host"] == host)
        if there["python"].split(".")[:2] != here["python"].split(".")[:2]:
            remedy = "set PYSPARK_PYTHON on both sides to one version"
            yield Finding("FAIL", f"{host}: Python {there['python']}, here {here['python']}", remedy)
        for package in PACKAGES:
            if not there[package] and here[package]:
                yield Finding("FAIL", f"{host}: no package {package}", f"pip install {package}=={here[package]} there")
            elif there[package] != here[package]:
                yield Finding("warning", f"{host}: {package} {there[package]}, here {here[package]}", "install one version")
        yield Finding("ok", f"executor on {host}: Python {there['python']}, torch {there['torch'] or 'missing'}")


@final
@dataclass(frozen=True)
class _Measure:
    """Times a large and a small all-reduce; worker 0 leaves the figures in its parameters."""

    rounds: int = 20

    async def run(self, worker: Any, net: Any) -> Any:
        figures = []
        for numel in (1_000_000, 1):
            x = torch.ones(numel)
            await net.all_reduce(x)
            began = time.perf_counter()
            for _ in range(self.rounds):
                await net.all_reduce(x)
            figures.append((time.perf_counter() - began) / self.rounds)
        result = torch.zeros_like(worker.params)
        result[0], result[1] = figures[0] * 1e3, figures[1] * 1e3
        return result


def _gang(on: Local | Spark, run_dir: str | None) -> Iterator[Finding]:
    from firesteel.train import train

    x, y = np.zeros((on.workers * 2, 2), np.float32), np.zeros(on.workers * 2, np.int64)
    model = torch.nn.Linear(2, 1, bias=False)
    try:
        run = train(
            model,
            (x, y.astype(np.float32)),
            loss="mse",
            strategy=_Measure(),
            on=on,
            validation=None,
            progress="none",
            run_dir=run_dir,
        )
    except FiresteelError as error:
        yield Finding("FAIL", f"{on.workers} workers could not meet: {error}", "see docs/spark.md, 'When workers do not meet'")
        return
    large, small = next(run.model.parameters()).detach().view(-1).tolist()
    if on.workers > 1:
        rate = 2 * (on.workers - 1) / on.workers * 4 / (large / 1e3)
        speed = f"all-reduce of 4 MB: {large:.2f} ms ({rate:,.0f} MB/s a worker), of one number: {small:.2f} ms"
        said = f"{on.workers} workers met; {speed}"
        slow = rate < 20
        remedy = "ModelAveraging with a long period sends least" if slow else ""
        yield Finding("warning" if slow else "ok", said, remedy)
    if run_dir is not None:
        yield Finding("ok", f"all workers see the run folder {run_dir}")
