"""Real gangs of processes for tests of the net: every rank runs the same coroutine and reports what it got.

Members are forked from a server process that has imported torch and started no thread: a fork of the tests' own
process, which has many, can inherit a lock that nobody will ever release.
"""

from __future__ import annotations

import multiprocessing as mp
import secrets
import traceback
from typing import Any

import cloudpickle
import torch

from firesteel.net.control import Control
from firesteel.net.meeting import Meeting, join, leave, serve_store
from firesteel.net.protocol import drive
from firesteel.trace import Trace

CONTEXT = mp.get_context("forkserver")
CONTEXT.set_forkserver_preload(["firesteel.net.meeting"])


def _member(rank: int, size: int, port: int, secret: str, share: bool, program: bytes, out: Any, seconds: float) -> None:
    torch.set_num_threads(1)
    trace, control = Trace(rank), Control()
    try:
        meeting = Meeting(rank, size, "127.0.0.1", port, secret, timeout_seconds=seconds, share_memory=share)
        net = join(meeting, trace, control, torch.device("cpu"))
        result = drive(cloudpickle.loads(program)(net))
        leave(net)
        out.put((rank, "ok", result, trace.bytes_sent))
    except BaseException as error:
        out.put((rank, "error", f"{type(error).__name__}: {error}\n{traceback.format_exc()}", 0))


def gang(size: int, program: Any, share: bool, seconds: float = 30.0, silent: int = 0) -> dict[int, tuple[str, Any, int]]:
    """rank -> ("ok", result, bytes sent) or ("error", text, 0); `silent` workers never report and are killed in the end."""
    store, out, secret, shipped = serve_store("127.0.0.1"), CONTEXT.Queue(), secrets.token_hex(8), cloudpickle.dumps(program)
    members = [
        CONTEXT.Process(target=_member, args=(r, size, store.port, secret, share, shipped, out, seconds), daemon=True)
        for r in range(size)
    ]
    for m in members:
        m.start()
    found = {}
    for _ in range(size - silent):
        rank, kind, result, sent = out.get(timeout=60)
        found[rank] = (kind, result, sent)
    for m in members:
        if silent:
            m.kill()
        m.join(10)
    return found
