"""The servers of a run, as seen by the process that starts them: start, watch, start again, collect."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import cloudpickle
import numpy as np
import pyarrow as pa
import torch

from firesteel.checkpoint import Board, pack, unpack
from firesteel.errors import ClusterError, RendezvousTimeout
from firesteel.job import Apart
from firesteel.net import certificates
from firesteel.net.center import Rules
from firesteel.net.client import Address, Caller, Finder
from firesteel.net.protocol import Vec
from firesteel.net.serving import Serving, cut
from firesteel.net.wire import Refused
from firesteel.nursery import Nursery
from firesteel.results import by_part, ipc, rows
from firesteel.server import TLS, Server
from firesteel.stopping import HURRY

_START_SECONDS = 30.0


@final
@dataclass(frozen=True)
class Collected:
    """What the servers of a run leave behind."""

    params: Vec
    statistics: Vec
    kept: list[tuple[dict[str, float], Vec, Vec]]
    """The models kept on the way: mark, parameters, statistics."""
    log: pa.Table
    """`center.LOG` of all shards, with the column `shard`."""
    status: dict[str, Any]
    mark: dict[str, float]
    hurried: bool = False
    """Whether somebody waits for the end, so that evaluation is left out."""


@final
class Hosts:
    """A context in which the servers run."""

    def __init__(self, serving: Serving, server: Server, store: Any, root: bytes | None) -> None:
        self._serving: Serving = serving
        self._server: Server = server
        self._store: Any = store
        self._folder: tempfile.TemporaryDirectory[str] = tempfile.TemporaryDirectory(prefix="firesteel-servers-")
        self._nursery: Nursery = Nursery.get()
        self._pids: dict[int, int] = {}
        self._generation: dict[int, int] = {}
        self._ended: deque[dict[str, int]] = deque()  # servers that have ended and are not yet started again
        self._missed: int = 0
        self._board: Board | None = None
        self._hurried: bool = False
        self.restarts: int = 0
        self.finder: Finder = Finder(serving.store[2], serving.shards, serving.token, root)

    @property
    def work(self) -> Apart:
        """What workers need to know to come."""
        seconds = self._server.restart_seconds if self._serving.run_dir is not None else 0.0
        return Apart(self.finder, self._serving.params.numel(), seconds)

    def __enter__(self) -> Hosts:
        _ = Path(self._folder.name, "servers.pkl").write_bytes(cloudpickle.dumps(self._serving))
        for number in range(self._serving.shards):
            self._start(number)
        try:
            self._await({number: 1 for number in range(self._serving.shards)})
        except BaseException:
            self.__exit__()
            raise
        self._caller: Caller = Caller(self.finder.find(self._store))
        return self

    def _await(self, generations: dict[int, int]) -> None:
        """Wait for servers to leave their addresses.

        Raises:
            RendezvousTimeout: they did not, or ended before they did.
        """
        names = [f"{self._serving.store[2]}/servers/{number}/{g}" for number, g in generations.items()]
        until = time.monotonic() + _START_SECONDS
        while not self._store.check(names):
            for event in self._nursery.news(self._folder.name, 0.05):
                if "born" in event:
                    self._pids[event["rank"]] = event["born"]
                elif event["exit"] in [self._pids.get(number) for number in generations]:
                    raise RendezvousTimeout("a server of the center ended as it started; what it said is above.")
                else:
                    self._ended.append(event)
            if time.monotonic() > until:
                raise RendezvousTimeout(f"the servers of the center did not start within {_START_SECONDS:g} s.")

    def __exit__(self, kind: type[BaseException] | None = None, *_: object) -> None:
        if kind is not None:
            with contextlib.suppress(Exception):  # the servers may be what has gone wrong
                self.collect()
        for pid in self._pids.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._folder.cleanup()

    def _start(self, number: int) -> None:
        self._nursery.fork("firesteel.net.serving:live", self._folder.name, number)

    def watch(self) -> dict[str, Any] | None:
        """How the run stands, or None while a server is being started again.

        Raises:
            ClusterError: a server has died and cannot be started again, or has been silent for too long.
        """
        for event in self._nursery.news(self._folder.name, 0.0):
            if "born" in event:
                self._pids[event["rank"]] = event["born"]
            else:
                self._ended.append(event)
        while self._ended:
            event = self._ended.popleft()
            number = next(n for n, pid in self._pids.items() if pid == event["exit"])
            why = signal.Signals(-event["status"]).name if event["status"] < 0 else f"status {event['status']}"
            if self._serving.run_dir is None or not self._server.restart_seconds or self.restarts >= 3 * self._serving.shards:
                hint = "" if self._serving.run_dir else " With run_dir it would have been started again from its last snapshot."
                raise ClusterError(f"server {number} of the center was ended by {why}.{hint}")
            self.restarts += 1
            self._start(number)
            self._caller = Caller(self._wait_for(number))
        try:
            found = self._caller.status()
        except (OSError, Refused) as error:
            self._missed += 1
            if self._missed > 3:
                raise ClusterError(f"the server of the center does not answer: {error}") from None
            return None
        self._missed = 0
        return found

    def _wait_for(self, number: int) -> Address:
        """The addresses, once server `number` has given its new one."""
        self._generation[number] = self._generation.get(number, 1) + 1
        self._await({number: self._generation[number]})
        return self.finder.find(self._store)

    def tick(self, board: Board, epochs: float | None) -> None:
        """Called several times a second: watch the servers, hand on requests to stop, tell the progress."""
        self._board = board
        status = self.watch()
        if status is None:
            return
        asked = None if status["stopped"] else board.get("stop")
        if asked is not None:
            self._hurried = asked == HURRY
            self.stop()
        step = status["steps"] / self._serving.workers
        state = {
            "step": round(step),
            "total_steps": round(step * epochs / status["epoch"]) if epochs and status["epoch"] else None,
            "max_seconds": self._serving.max_seconds,
            "epoch": status["epoch"],
            "loss": status["loss_sum"] / status["weight"] if status["weight"] else float("nan"),
            "samples": status["samples"],
            "seconds": status["seconds"],
            "stage": "training",
        }
        if status["version"]:
            board.put("progress.json", json.dumps(state).encode())

    def stop(self) -> None:
        """Ask for the end: workers learn it at their next pull."""
        with contextlib.suppress(OSError, Refused):
            self._caller.stop()

    def collect(self) -> Collected:
        """End the servers and take what they hold.

        Raises:
            ClusterError: a server has died at the very end, and what it held with it.
        """
        with contextlib.suppress(OSError, Refused):  # a server that is gone has left no files, which is told below
            self._caller.finish()
        shards, folder = range(self._serving.shards), self._folder.name
        for n in shards:
            if not Path(folder, f"log-{n}").exists():
                raise ClusterError(f"server {n} of the center was lost before it could hand over what it held.")
        finals = [unpack(Path(folder, f"final-{n}").read_bytes()) for n in shards]
        logs = []
        for n in shards:
            table = pa.ipc.open_file(Path(folder, f"log-{n}").read_bytes()).read_all()
            logs.append(table.add_column(0, "shard", pa.array(np.full(len(table), n))))
        marks = [[json.loads(line) for line in Path(folder, f"marks-{n}").read_text().splitlines()] for n in shards]
        params = torch.cat([tensors["params"] for tensors, _ in finals])
        first = finals[0]
        found = Collected(
            params,
            first[0]["statistics"],
            _joined([self._kept(n, len(marks[n])) for n in shards], marks),
            pa.concat_tables(logs),
            first[1]["status"],
            first[1]["mark"],
            self._hurried,
        )
        found.status["restarts"] = self.restarts
        found.status["steps"] = min(f["status"]["steps"] for _, f in finals)  # a shard may have lost what others have
        found.status["diverged"] = next((d for _, f in finals if (d := f["status"]["diverged"])), None)
        self._keep_model(found)
        return found

    def _keep_model(self, found: Collected) -> None:
        """Where the caller looks for the last good model when a run has failed."""
        if self._board is not None and found.mark["version"]:
            tensors = {"params": found.params, "statistics": found.statistics}
            self._board.put("model.safetensors", pack(tensors, {"step": int(found.mark["steps"] // self._serving.workers)}))

    def _kept(self, number: int, count: int) -> list[tuple[Vec, Vec]]:
        part = cut(self._serving.params.numel(), self._serving.shards)[number]
        statistics = 0 if number else self._serving.statistics.numel()
        width = part.stop - part.start + statistics
        raw = bytearray(Path(self._folder.name, f"kept-{number}").read_bytes())
        if not raw:
            return []
        flat = torch.frombuffer(raw, dtype=self._serving.params.dtype).view(-1, width)[:count]
        return [(row[: width - statistics], row[width - statistics :]) for row in flat]


def _joined(kept: list[list[tuple[Vec, Vec]]], marks: list[list[dict[str, float]]]) -> list[tuple[dict[str, float], Vec, Vec]]:
    """Models from the parts that the shards kept at the same point; what a restarted server did again counts once."""
    for shard in range(len(kept)):
        alive: list[int] = []
        for number, mark in enumerate(marks[shard]):
            while alive and marks[shard][alive[-1]]["version"] >= mark["version"]:
                _ = alive.pop()
            alive.append(number)
        kept[shard] = [kept[shard][n] for n in alive]
        marks[shard] = [marks[shard][n] for n in alive]
    count = min(len(m) for m in marks)
    return [(marks[0][n], torch.cat([k[n][0] for k in kept]), kept[0][n][1]) for n in range(count)]


@final
@dataclass(frozen=True)
class Serve:
    """How to start the servers of a run, once it is known where."""

    strategy: Any
    params: Vec
    statistics: Vec
    workers: int
    server: Server
    secret: str
    max_seconds: float | None
    run_dir: str | None
    settings: dict[str, Any]
    own: tuple[bytes, bytes, bytes] | None
    """Certificate, key and root of the user's own, as the caller's machine holds them; see `own_certificate`."""

    def __call__(self, host: str, store: Any, port: int, bind: str | None = None) -> Hosts:
        """Servers that listen at `bind`, known to workers as `host`, where a store listens at `port`."""
        certificate, root = self.own[:2] if self.own else None, self.own[2] if self.own else None
        if self.server.tls is True:
            certificate = certificates.make(host)
            root = certificate[0]
        rules = Rules(self.server.max_ahead, self.server.max_growth, self.server.record_every)
        serving = Serving(
            self.strategy,
            self.params,
            self.statistics,
            self.workers,
            self.server.shards,
            host,
            bind or host,
            secrets.token_hex(32),
            rules,
            (host, port, self.secret),
            certificate,
            self.max_seconds,
            self.run_dir,
            self.settings,
        )
        return Hosts(serving, self.server, store, root)


def own_certificate(server: Server) -> tuple[bytes, bytes, bytes] | None:
    """What `Server(tls=TLS(...))` names, read on this machine."""
    if not isinstance(server.tls, TLS):
        return None
    certificate = Path(server.tls.certificate).read_bytes()
    root = Path(server.tls.root).read_bytes() if server.tls.root is not None else certificate
    return certificate, Path(server.tls.key).read_bytes(), root


def told(work: Apart) -> str:
    """What workers need to know, as text; it holds the run's token."""
    finder = work.finder
    root = finder.root.decode() if finder.root else None
    return json.dumps([finder.prefix, finder.shards, finder.token, root, work.size, work.restart_seconds])


def heard(text: str) -> Apart:
    """The reverse of `told`."""
    prefix, shards, token, root, size, seconds = json.loads(text)
    return Apart(Finder(prefix, shards, token, root.encode() if root else None), size, seconds)


def to_rows(collected: Collected) -> Iterator[pa.RecordBatch]:
    """What the servers hold, as results of the worker that hosts them."""
    models = [*collected.kept, (collected.mark, collected.params, collected.statistics)]
    tensors = {"params": torch.stack([m[1] for m in models]), "statistics": torch.stack([m[2] for m in models])}
    plain = {"marks": [m[0] for m in models], "status": collected.status, "hurried": collected.hurried}
    yield from rows("center", 0, pack(tensors, plain))
    yield from rows("log", 0, ipc(collected.log))


def from_rows(batches: list[pa.RecordBatch]) -> Collected:
    """The reverse of `to_rows`, from the results of all workers."""
    parts = by_part(batches)
    tensors, plain = unpack(parts["center", 0])
    *kept, last = zip(plain["marks"], tensors["params"], tensors["statistics"], strict=True)
    log = pa.ipc.open_stream(parts["log", 0]).read_all()
    return Collected(last[1], last[2], list(kept), log, plain["status"], last[0], plain["hurried"])
