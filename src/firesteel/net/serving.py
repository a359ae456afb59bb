"""A server process: one shard of the center behind a TCP socket.

Each connection has a thread of its own; merging takes a lock, reading and writing sockets does not, so a slow or dead worker
holds up nobody. A connection that does not begin with the run's token is not served.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import os
import pickle
import signal
import socket
import ssl
import sys
import tempfile
import threading
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, final

import pyarrow as pa
import torch

from firesteel.checkpoint import Folder, pack, unpack
from firesteel.errors import UsageError
from firesteel.net import snapshots, wire
from firesteel.net.center import Center, Rules
from firesteel.net.door import Door
from firesteel.net.meeting import open_store
from firesteel.net.merging import Merging
from firesteel.net.protocol import Vec
from firesteel.sealing import seal

_HELLO_SECONDS = 10.0  # for TLS and the token


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


@final
class Server:
    """One shard. `number` 0 also holds the running statistics."""

    def __init__(self, serving: Serving, number: int, folder: str) -> None:
        family = socket.AF_INET6 if ":" in serving.bind else socket.AF_INET
        self._listener: socket.socket = socket.create_server((serving.bind, 0), family=family, backlog=1024)
        self.port: int = self._listener.getsockname()[1]
        self._tls: ssl.SSLContext | None = _tls(folder, *serving.certificate) if serving.certificate else None
        self._token: bytes = serving.token.encode()
        self._door: Door = Door()
        self._serving: Serving = serving
        self._number: int = number
        self._folder: str = folder
        own = serving.params[cut(serving.params.numel(), serving.shards)[number]].clone()
        statistics = None if number else serving.statistics
        self._type: str = wire.name(own.dtype)
        sys.setswitchinterval(1e-4)  # streams are short of breath: at Python's 5 ms one would wait for another's turn to end
        self._lock: threading.Lock = threading.Lock()
        self._changed: threading.Condition = threading.Condition(self._lock)
        self._numbers: int = own.numel() + (0 if statistics is None else statistics.numel())
        self._kept, self._marks = _files(folder, number, self._numbers * own.element_size())
        self.center: Center = Center(own, Merging(serving.strategy), serving.workers, statistics, serving.rules, self._keep)
        self._bounded: bool = serving.rules.max_ahead is not None
        self._zero: float | None = None
        self._stop: bool = False
        self._finished: threading.Event = threading.Event()
        self._rows: dict[str, str] = {}  # fingerprint of each worker's, for a run that goes on later
        self._due: threading.Event = threading.Event()
        self._writing: threading.Lock = threading.Lock()
        self._asked: int = 0  # snapshots asked for
        self._written: int = 0  # how many of them the newest one on disk answers
        if serving.run_dir is not None:
            threading.Thread(target=self._write_snapshots, daemon=True).start()

    def restore(self, data: bytes) -> None:
        """Go on from a snapshot."""
        tensors, plain = unpack(data)
        self.center.restore(tensors, plain, plain["run"] == self._serving.store[2])
        self._zero, self._rows = time.perf_counter() - plain["seconds"], plain["rows"]

    def _seconds(self) -> float:
        now = time.perf_counter()
        if self._zero is None:
            self._zero = now
        return now - self._zero

    # ---- who comes in ------------------------------------------------------------------------------------------------

    def serve(self) -> None:
        """Take connections until `shutdown`."""
        while True:
            connection = None
            try:
                connection, _ = self._listener.accept()
                if self._tls:
                    connection = self._tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
                self._door.enter(connection)
                threading.Thread(target=self._meet, args=(connection,), daemon=True).start()
            except (OSError, RuntimeError):
                if self._listener.fileno() < 0:
                    return
                if connection is not None:
                    self._door.leave(connection)
                    connection.close()
                self._door.send_away_the_oldest()
                time.sleep(0.05)  # the system is out of files or threads, and gives them back in its own time

    def shutdown(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits there
        self._listener.close()

    def _meet(self, connection: socket.socket) -> None:
        """A connection's whole life. Whatever it does wrong ends it, and nothing else."""
        line = None
        try:
            connection.settimeout(_HELLO_SECONDS)
            if isinstance(connection, ssl.SSLSocket):
                connection.do_handshake()
            line = wire.Line(connection)
            line.be_done_within(_HELLO_SECONDS)
            told = line.read_hello()
            if not hmac.compare_digest(str(told.get("token")).encode(errors="replace"), self._token):
                raise UsageError("this server serves one run, and the call does not carry its token.")
            self._door.leave(connection)
            if "action" in told:
                self._answer(line, told)
            else:
                self._exchange(line, told)
        except Exception as error:
            if line is not None:  # if it has gone, the words are lost
                line.refuse(f"{type(error).__name__}: {error}")
        finally:
            self._door.leave(connection)
            connection.close()

    # ---- a worker's stream -------------------------------------------------------------------------------------------

    def _exchange(self, line: wire.Line, told: dict[str, Any]) -> None:
        worker, attempt, rows = int(told["worker"]), int(told["attempt"]), str(told["rows"])
        if told["type"] != self._type:
            raise UsageError(f"numbers of type {told['type']} for parameters of type {self._type}.")
        center, lock = self.center, self._lock
        if told["statistics"] != self._numbers - center.params.numel():
            raise UsageError(
                f"{told['statistics']} running statistics where {self._numbers - center.params.numel()} are expected."
            )
        with lock:
            sequence, steps_done = center.join(worker, attempt, self._seconds())
            statistics = center.statistics_for(worker)
            self._rows[str(worker)] = rows
        try:
            line.wait_at_most(None)
            line.write(wire.answer(wire.WELCOME, sequence, steps_done), wire.raw(statistics))
            # Two buffers, for the worker's last pull and for what comes next: first its push, then, as that is hot in the
            # processor's cache, the center that goes back.
            size = center.params.numel()
            buffers = [torch.empty(self._numbers, dtype=center.params.dtype) for _ in range(2)]
            last, spare = [(b, wire.raw(b), b[:size], wire.raw(b[:size])) for b in buffers]
            while True:
                kind, follow, sequence, note = line.read_ask()
                if follow != (len(spare[1]) if kind in (wire.PUSH, wire.EXCHANGE) else 0):
                    raise UsageError(f"a message of kind {kind} with {follow} bytes of numbers.")
                if follow:
                    line.read(spare[1])
                if kind in (wire.PUSH, wire.EXCHANGE):
                    with lock:
                        _ = center.push(worker, attempt, sequence, note, spare[0], self._seconds(), kind == wire.EXCHANGE)
                        if self._bounded:
                            self._changed.notify_all()
                if kind in (wire.PULL, wire.EXCHANGE):
                    with lock:
                        while self._bounded and center.must_wait(worker) and not self._halted():
                            _ = self._changed.wait(1.0)
                        said = wire.DIVERGED if center.diverged else wire.STOPPED if self._halted() else 0
                        version = center.pull(worker, attempt, self._seconds(), spare[2], said)
                    line.write(wire.answer(wire.CENTER, version, said), spare[3])
                    last, spare = spare, last
                elif kind == wire.AGREE:
                    with lock:
                        center.agree(worker, attempt, sequence, note.steps_done, self._seconds())
                elif kind == wire.LEAVE:
                    break
        finally:
            with lock:
                center.leave(worker, attempt, self._seconds())
                self._changed.notify_all()
        self._save()  # a worker that has gone could not send its pushes again
        line.write(wire.answer(wire.DONE, 0, 0))

    def _halted(self) -> bool:
        limit = self._serving.max_seconds
        if limit is not None and self._zero is not None and self._seconds() >= limit:
            self._stop = True
        return self._stop

    # ---- the caller's side -------------------------------------------------------------------------------------------

    def _answer(self, line: wire.Line, told: dict[str, Any]) -> None:
        action = told["action"]
        text = b""
        if action == "status":
            with self._lock:
                text = json.dumps(self._status()).encode()
        elif action == "stop":
            with self._lock:
                self._stop = True
                self._changed.notify_all()
        elif action == "diverged":
            with self._lock:
                self.center.roll_back(int(told["worker"]), int(told["sequence"]), str(told["why"]))
                self._changed.notify_all()
        elif action == "finish":
            self._finish()
        else:
            raise UsageError(f"there is no action {action!r}.")
        line.write(wire.answer(wire.DONE, len(text), 0), text)
        if action == "finish":
            self._finished.set()

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
            with contextlib.suppress(OSError):
                self._save()

    def _save(self) -> None:
        """Return when a snapshot of what is merged by now is on disk, if there is to be one; many that wait share one."""
        serving = self._serving
        if serving.run_dir is None:
            return
        with self._lock:
            self._asked += 1
            mine = self._asked
        with self._writing:  # so that an older one never comes after a newer one
            if self._written >= mine:
                return
            with self._lock:
                number = self._asked
                tensors, plain = self.center.snapshot()
                plain |= {"seconds": self._seconds(), "run": serving.store[2], "settings": serving.settings, "rows": self._rows}
                data = pack(tensors, plain)
            Folder(serving.run_dir).put(snapshots.name(self._number), data)
            self._written = number

    def _finish(self) -> None:
        with self._lock:
            center, seconds = self.center, self._seconds()
            tensors, plain = center.snapshot()
            data = pack(tensors, {**plain, "status": self._status(), "mark": center.mark(seconds)})
            _ = Path(self._folder, f"final-{self._number}").write_bytes(data)
            table = center.table()
        with contextlib.suppress(OSError):
            self._save()  # what comes after the last publish point is not lost to a run that goes on later
        path = os.path.join(self._folder, f"log-{self._number}")
        with pa.OSFile(path, "wb") as sink, pa.ipc.new_file(sink, table.schema) as out:
            out.write_table(table)

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


def _tls(folder: str, certificate: bytes, key: bytes) -> ssl.SSLContext:
    """Python reads keys from files only: from one that is gone again at once, in a folder that only this user can enter."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        _ = file.write(key + b"\n" + certificate)
        file.flush()
        context.load_cert_chain(file.name)
    return context


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
            snapshot = Folder(serving.run_dir).get(snapshots.name(number))
            if snapshot is not None:
                server.restore(snapshot)
        place = f"{prefix}/servers/{number}/{generation}"
        store.set(place, seal(serving.token, place, f"{serving.host}:{server.port}".encode()))
        threading.Thread(target=server.serve, daemon=True).start()
        server.wait_until_finished()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
