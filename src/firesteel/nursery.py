"""A process that has PyTorch imported and forks a worker or a server when it is told to.

Importing PyTorch takes seconds; a fork of this process takes milliseconds. It is started once, by the first run on this
machine, and ends with its parent: it reads from a socket whose other end only the parent holds. Forking the parent
itself would not do: it may run threads, whose locks a fork copies but not their owners.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import importlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
from typing import final

_PR_SET_PDEATHSIG = 1


def _die_with_parent() -> None:
    if sys.platform.startswith("linux"):
        _ = ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main(descriptor: int) -> None:
    """The nursery's life: requests come in as JSON lines, exits of workers go out as JSON lines."""
    import torch._dynamo  # noqa: F401  (the first optimizer of a process imports it, which takes most of a second)

    import firesteel.process  # noqa: F401  (imported here so that the workers need not)

    parent = socket.socket(fileno=descriptor)
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    _ = signal.set_wakeup_fd(wake_write)
    _ = signal.signal(signal.SIGCHLD, lambda *_: None)
    selector = selectors.DefaultSelector()
    _ = selector.register(parent, selectors.EVENT_READ)
    _ = selector.register(wake_read, selectors.EVENT_READ)
    children: set[int] = set()
    inbox = b""
    while True:
        for key, _ in selector.select():
            if key.fd == wake_read:
                _ = os.read(wake_read, 4096)
                for pid in list(children):
                    done, status = os.waitpid(pid, os.WNOHANG)
                    if done:
                        children.discard(pid)
                        _tell(parent, {"exit": pid, "status": os.waitstatus_to_exitcode(status)})
                continue
            data = parent.recv(65536)
            if not data:
                for pid in children:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                return
            inbox += data
            *lines, inbox = inbox.split(b"\n")
            for line in lines:
                order = json.loads(line)
                pid = os.fork()
                if pid == 0:
                    _ = signal.set_wakeup_fd(-1)
                    _ = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    _die_with_parent()
                    parent.close()
                    module, _, life = order["life"].partition(":")
                    getattr(importlib.import_module(module), life)(order["folder"], order["rank"])
                    os._exit(70)  # never reached: a life ends its process
                children.add(pid)
                _tell(parent, {"born": pid, "rank": order["rank"], "folder": order["folder"]})


def _tell(parent: socket.socket, message: dict[str, object]) -> None:
    with contextlib.suppress(OSError):
        parent.sendall(json.dumps(message).encode() + b"\n")


@final
class Nursery:
    """The parent's end. Several runs may use it at once, from several threads."""

    _one: Nursery | None = None
    _lock: threading.Lock = threading.Lock()

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        code = f"from firesteel.nursery import main; main({theirs.fileno()})"
        # A session of its own: Ctrl-C in a terminal goes to all of a session, and stopping is this process's business.
        self.process: subprocess.Popen[bytes] = subprocess.Popen(
            [sys.executable, "-c", code],
            pass_fds=[theirs.fileno()],
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        )
        theirs.close()
        self._socket: socket.socket = ours
        self._news: dict[str, list[dict[str, int]]] = {}
        self._folder_of: dict[int, str] = {}
        self._changed: threading.Condition = threading.Condition()
        threading.Thread(target=self._listen, daemon=True).start()

    @classmethod
    def get(cls) -> Nursery:
        with cls._lock:
            if cls._one is None or cls._one.process.poll() is not None:
                cls._one = cls()
                _ = atexit.register(cls._one.close)
            return cls._one

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # close alone would not wake the thread that reads from it
        self._socket.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            _ = self.process.wait(5)

    def fork(self, life: str, folder: str, rank: int) -> None:
        """Fork a process that calls `life`, "module:function", with a folder of its own and a number, and never returns."""
        with self._changed:
            self._news.setdefault(folder, [])
        self._socket.sendall(json.dumps({"life": life, "folder": folder, "rank": rank}).encode() + b"\n")

    def news(self, folder: str, seconds: float) -> list[dict[str, int]]:
        """What has happened to the folder's processes, waiting at most `seconds` for something to happen."""
        with self._changed:
            _ = self._changed.wait_for(lambda: self._news[folder] or self.process.poll() is not None, seconds)
            news, self._news[folder] = self._news[folder], []
            return news

    def _listen(self) -> None:
        inbox = b""
        with contextlib.suppress(OSError):
            while data := self._socket.recv(65536):
                inbox += data
                *lines, inbox = inbox.split(b"\n")
                with self._changed:
                    for line in lines:
                        message = json.loads(line)
                        if "born" in message:
                            self._folder_of[message["born"]] = message["folder"]
                        folder = self._folder_of.get(message.get("born", message.get("exit")))
                        if folder in self._news:
                            self._news[folder].append(message)
                    self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()
