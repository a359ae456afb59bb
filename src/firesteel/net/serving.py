"""A server process: one shard of the center behind Arrow Flight.

Each worker has a stream and a thread of its own; merging takes a lock, reading and writing sockets does not, so a slow or
dead worker holds up nobody. Requests without the run's token never reach a handler.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, final

import pyarrow as pa
import pyarrow.flight as flight
import torch

from firesteel.checkpoint import Folder, pack, unpack
from firesteel.errors import FiresteelError, UsageError
from firesteel.net import wire
from firesteel.net.center import Center, Rules
from firesteel.net.meeting import open_store
from firesteel.net.protocol import Vec


@final
@dataclass(frozen=True)
class Serving:
    """All that the servers of a run need to know; pickled into a folder that only this user can enter."""

    strategy: Any
    params: Vec
    """The initial center, [P] of all shards."""
    statistics: Vec
    """The initial running statistics, [Q]; they ride along with the first shard's pushes."""
    workers: int
    shards: int
    host: str
    """The address to tell to workers."""
    bind: str
    """The address to listen at, mostly the same."""
    token: str
    rules: Rules
    store: tuple[str, int, str]
    """Host, port and prefix of the store in which servers leave their addresses."""
    certificate: tuple[bytes, bytes] | None
    """Certificate and private key, PEM."""
    max_seconds: float | None
    run_dir: str | None
    """Where snapshots go from which a lost server is started again."""
    settings: dict[str, Any]
    """What a snapshot must agree on to be resumed."""


def cut(size: int, shards: int) -> list[slice]:
    """The coordinates of each shard."""
    return [slice(size * i // shards, size * (i + 1) // shards) for i in range(shards)]


# ---- who may come in -------------------------------------------------------------------------------------------------


@final
class _Gate(flight.ServerMiddlewareFactory):
    def __init__(self, token: str) -> None:
        super().__init__()
        self._expected: bytes = f"Bearer {token}".encode()

    def start_call(self, info: Any, headers: dict[str, list[str]]) -> None:
        given = headers.get("authorization", [""])[0]
        if not hmac.compare_digest(given.encode(), self._expected):
            raise flight.FlightUnauthenticatedError("this server serves one run, and the call does not carry its token")


# ---- the server ------------------------------------------------------------------------------------------------------


@final
class Server(flight.FlightServerBase):
    """One shard. `number` 0 also holds the running statistics."""

    def __init__(self, serving: Serving, number: int, folder: str) -> None:
        where = f"[{serving.bind}]:0" if ":" in serving.bind else f"{serving.bind}:0"
        tls = {"tls_certificates": [serving.certificate]} if serving.certificate else {}
        scheme = "grpc+tls" if serving.certificate else "grpc"
        super().__init__(f"{scheme}://{where}", middleware={"gate": _Gate(serving.token)}, **tls)
        self._serving: Serving = serving
        self._number: int = number
        self._folder: str = folder
        own = serving.params[cut(serving.params.numel(), serving.shards)[number]].clone()
        statistics = None if number else serving.statistics
        self._schema: pa.Schema = wire.schema(own.dtype)
        sys.setswitchinterval(1e-4)  # streams are short of breath: at Python's 5 ms one would wait for another's turn to end
        self._changed: threading.Condition = threading.Condition()
        size = own.numel() + (0 if statistics is None else statistics.numel())
        self._kept, self._marks = _files(folder, number, size * own.element_size())
        self.center: Center = Center(own, serving.strategy, serving.workers, statistics, serving.rules, self._keep)
        self._bounded: bool = serving.rules.max_ahead is not None
        self._zero: float | None = None
        self._stop: bool = False
        self._finished: threading.Event = threading.Event()
        self._snapshot_name: str = f"center-{number}.safetensors"
        self._due: threading.Event = threading.Event()
        self._writing: threading.Lock = threading.Lock()
        if serving.run_dir is not None:
            threading.Thread(target=self._write_snapshots, daemon=True).start()

    def restore(self, data: bytes) -> None:
        """Go on from a snapshot."""
        tensors, plain = unpack(data)
        self.center.restore(tensors, plain, plain["run"] == self._serving.store[2])
        self._zero = time.perf_counter() - plain["seconds"]

    def _seconds(self) -> float:
        now = time.perf_counter()
        if self._zero is None:
            self._zero = now
        return now - self._zero

    # ---- a worker's stream -------------------------------------------------------------------------------------------

    def do_exchange(self, context: Any, descriptor: Any, reader: Any, writer: Any) -> None:
        worker, attempt = _who(descriptor)
        center, changed = self.center, self._changed
        with changed:
            try:
                sequence, steps_done = center.join(worker, attempt, self._seconds())
            except _BAD as error:
                raise _refusal(error) from None
        try:
            writer.begin(self._schema)
            writer.write_metadata(pa.py_buffer(wire.two(wire.WELCOME, sequence, steps_done)))
            buffers = [torch.empty_like(center.params) for _ in range(2)]  # one in the wire, one to fill
            batches = {id(b): wire.batch(b, self._schema) for b in buffers}
            while True:
                try:
                    chunk = reader.read_chunk()
                except StopIteration:
                    return
                if chunk.app_metadata is None or not len(chunk.app_metadata):
                    raise flight.FlightServerError("a message without a note")
                note = chunk.app_metadata.to_pybytes()
                kind = note[0]
                try:
                    if kind == wire.PUSH or kind == wire.EXCHANGE:
                        number, what = wire.read_push(note)
                        delta = wire.tensor(chunk.data, self._schema)
                        with changed:
                            _ = center.push(worker, attempt, number, what, delta, self._seconds())
                            if self._bounded:
                                changed.notify_all()
                    if kind == wire.PULL or kind == wire.EXCHANGE:
                        buffers.reverse()
                        with changed:
                            while self._bounded and center.must_wait(worker) and not self._halted():
                                _ = changed.wait(1.0)
                            said = wire.DIVERGED if center.diverged else wire.STOPPED if self._halted() else 0
                            version = center.pull(worker, attempt, self._seconds(), buffers[0], said)
                        writer.write_with_metadata(batches[id(buffers[0])], pa.py_buffer(wire.two(wire.CENTER, version, said)))
                    elif kind == wire.AGREE:
                        with changed:
                            center.agree(worker, attempt, *wire.read_two(note), self._seconds())
                    elif kind == wire.LEAVE:
                        return
                    elif kind != wire.PUSH:
                        raise UsageError(f"a message of unknown kind {kind}.")
                except _BAD as error:
                    raise _refusal(error) from None
        finally:
            with changed:
                center.leave(worker, attempt, self._seconds())
                changed.notify_all()

    def _halted(self) -> bool:
        limit = self._serving.max_seconds
        if limit is not None and self._zero is not None and self._seconds() >= limit:
            self._stop = True
        return self._stop

    # ---- the caller's side -------------------------------------------------------------------------------------------

    def do_action(self, context: Any, action: Any) -> Any:
        if action.type == "status":
            with self._changed:
                text = json.dumps(self._status())
            return [flight.Result(pa.py_buffer(text.encode()))]
        if action.type == "stop":
            with self._changed:
                self._stop = True
                self._changed.notify_all()
            return []
        if action.type == "diverged":
            try:
                told = json.loads(action.body.to_pybytes())
                with self._changed:
                    self.center.roll_back(int(told["worker"]), int(told["sequence"]), str(told["why"]))
                    self._changed.notify_all()
            except _BAD as error:
                raise _refusal(error) from None
            return []
        if action.type == "finish":
            self._finish()
            return []
        raise flight.FlightServerError(f"there is no action {action.type!r}")

    def _status(self) -> dict[str, Any]:
        center = self.center
        seconds = self._seconds() if self._zero is not None else 0.0
        return {
            **center.mark(seconds),
            "joined": len(center.members),
            "active": sum(m.active for m in center.members.values()),
            "most_at_once": center.most_at_once,
            "diverged": center.diverged,
            "stopped": self._halted(),
        }

    # ---- what is kept ------------------------------------------------------------------------------------------------

    def _keep(self, params: Vec, statistics: Vec, mark: dict[str, float]) -> None:
        for x in (params, statistics):
            self._kept.write(x.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        self._kept.flush()
        self._marks.write(json.dumps(mark) + "\n")
        self._marks.flush()
        self._due.set()

    def _write_snapshots(self) -> None:
        """Beside the serving, as a folder may answer slowly."""
        while True:
            _ = self._due.wait()
            self._due.clear()
            self._write_snapshot()

    def _write_snapshot(self) -> None:
        serving = self._serving
        assert serving.run_dir is not None
        with self._writing:  # so that an older one never comes after a newer one
            with self._changed:
                tensors, plain = self.center.snapshot()
                plain |= {"seconds": self._seconds(), "run": serving.store[2], "settings": serving.settings}
                data = pack(tensors, plain)
            with contextlib.suppress(OSError):
                Folder(serving.run_dir).put(self._snapshot_name, data)

    def _finish(self) -> None:
        with self._changed:
            center, seconds = self.center, self._seconds()
            center.check()
            tensors, plain = center.snapshot()
            data = pack(tensors, {**plain, "status": self._status(), "mark": center.mark(seconds)})
            _ = Path(self._folder, f"final-{self._number}").write_bytes(data)
            table = center.table()
        if self._serving.run_dir is not None and not center.diverged:
            self._write_snapshot()  # what comes after the last publish point is not lost to a run that goes on later
        path = os.path.join(self._folder, f"log-{self._number}")
        with pa.OSFile(path, "wb") as sink, pa.ipc.new_file(sink, table.schema) as out:
            out.write_table(table)
        self._finished.set()

    def wait_until_finished(self) -> None:
        _ = self._finished.wait()


def _files(folder: str, number: int, model_bytes: int) -> tuple[Any, Any]:
    """The files of kept models and of their marks, without what a killed server may have half written at their ends."""
    marks, kept = Path(folder, f"marks-{number}"), Path(folder, f"kept-{number}")
    if marks.exists():
        whole = marks.read_bytes().rpartition(b"\n")
        _ = marks.write_bytes(whole[0] + whole[1])
        os.truncate(kept, model_bytes * (whole[0] + whole[1]).count(b"\n"))
    return kept.open("ab"), marks.open("a")


_BAD = (FiresteelError, ValueError, KeyError, TypeError)


def _refusal(error: BaseException) -> flight.FlightServerError:
    """An error of ours as Flight's: told to the sender, whose stream ends; the server goes on."""
    return flight.FlightServerError(f"{type(error).__name__}: {error}")


def _who(descriptor: Any) -> tuple[int, int]:
    try:
        told = json.loads(descriptor.command)
        return int(told["worker"]), int(told["attempt"])
    except _BAD as error:
        raise _refusal(error) from None


def live(folder: str, number: int) -> NoReturn:
    """Serve shard `number` of the run whose files are in `folder`, until told to finish; then end the process."""
    code = 1
    try:
        _ = signal.signal(signal.SIGINT, signal.SIG_IGN)
        torch.set_num_threads(1)
        _ = torch.set_flush_denormal(True)
        # Written by the parent a moment ago, into a folder that only this user can enter.
        serving: Serving = pickle.loads(Path(folder, "servers.pkl").read_bytes())
        host, port, prefix = serving.store
        store = open_store(host, port, 20.0)
        generation = store.add(f"{prefix}/servers/{number}/generation", 1)
        server = Server(serving, number, folder)
        if serving.run_dir is not None:
            snapshot = Folder(serving.run_dir).get(f"center-{number}.safetensors")
            if snapshot is not None:
                server.restore(snapshot)
        shown = f"[{serving.host}]" if ":" in serving.host else serving.host
        scheme = "grpc+tls" if serving.certificate else "grpc+tcp"
        store.set(f"{prefix}/servers/{number}/{generation}", f"{scheme}://{shown}:{server.port}")
        threading.Thread(target=server.serve, daemon=True).start()
        server.wait_until_finished()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
