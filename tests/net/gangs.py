"""Real gangs of processes for tests of the net: every rank runs the same coroutine and reports what it got."""

from __future__ import annotations

import multiprocessing as mp
import secrets
import traceback
from typing import Any

import torch

from firesteel.net.control import Control
from firesteel.net.meeting import Meeting, join, leave, serve_store
from firesteel.net.protocol import drive
from firesteel.trace import Trace


def _member(rank: int, size: int, port: int, secret: str, share: bool, program: Any, out: Any, seconds: float) -> None:
    torch.set_num_threads(1)
    trace, control = Trace(rank), Control()
    try:
        meeting = Meeting(rank, size, "127.0.0.1", port, secret, timeout_seconds=seconds, share_memory=share)
        net = join(meeting, trace, control, torch.device("cpu"))
        result = drive(program(net))
        leave(net)
        out.put((rank, "ok", result, trace.bytes_sent))
    except BaseException as error:
        out.put((rank, "error", f"{type(error).__name__}: {error}\n{traceback.format_exc()}", 0))


def gang(size: int, program: Any, share: bool, seconds: float = 30.0, silent: int = 0) -> dict[int, tuple[str, Any, int]]:
    """rank -> ("ok", result, bytes sent) or ("error", text, 0); `silent` workers never report and are killed in the end."""
    store, context = serve_store("127.0.0.1"), mp.get_context("fork")
    out, secret = context.Queue(), secrets.token_hex(8)
    members = [
        context.Process(target=_member, args=(r, size, store.port, secret, share, program, out, seconds), daemon=True)
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
