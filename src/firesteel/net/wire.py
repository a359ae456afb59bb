"""What goes over the wire between a worker and a server: plain floats behind heads of a fixed size, over one TCP stream.

One connection carries one worker's talk with one server:

    worker                                   server
    hello: length and JSON              ->                      token, worker, attempt, rows, type and sizes of numbers
                                        <-   WELCOME + numbers  pushes so far, steps at the last of them; running statistics
    AGREE                               ->                      pushes that all shards have
    PUSH + numbers                      ->
    PULL, or EXCHANGE (both in one)     ->
                                        <-   CENTER + numbers   version, stop
    LEAVE                               ->
                                        <-   DONE               all pushes are merged and, with a run folder, in a snapshot
                                        <-   REFUSED + text     in place of any other answer; then the server hangs up

The caller's requests are a hello with an `action`, answered by DONE + text. Nothing is ever unpickled. Every message has a
size that its reader knows beforehand, or says one that is checked before anything is read.
"""

from __future__ import annotations

import contextlib
import json
import math
import socket
import ssl
import struct
import time
from typing import Any, final

import torch
from torch import Tensor

from firesteel.errors import UsageError
from firesteel.net.center import Note

WELCOME, CENTER, REFUSED, DONE = 1, 2, 3, 4
AGREE, PUSH, PULL, EXCHANGE, LEAVE = 11, 12, 13, 14, 15
STOPPED, DIVERGED = 1, 2  # what a CENTER says beside the numbers

NOTHING = Note(0, 0, 0, 0.0, 0.0, 0.0, 0.0, 0.0)
_ASK = struct.Struct("<Bqqqqqddddd")  # kind, bytes of numbers that follow, sequence, note
_ANSWER = struct.Struct("<Bqq")
_HELLO = struct.Struct("<I")
_LONGEST = 2**16  # bytes of a hello
_LONGEST_TEXT = 2**20  # bytes behind a REFUSED or a DONE
_SMALL = 2**16  # bytes of numbers that are copied behind their head, to go out in one call
_NAMES = {torch.float32: "float32", torch.float64: "float64"}


def name(dtype: torch.dtype) -> str:
    """How a hello calls the type of the numbers."""
    if dtype not in _NAMES:
        raise UsageError(f"parameters of type {dtype} cannot go to a server; use model.float() or model.double().")
    return _NAMES[dtype]


def raw(x: Tensor) -> memoryview:
    """The bytes of a contiguous tensor, [n], in place."""
    numbers: Any = x.detach().view(torch.uint8).numpy()
    return memoryview(numbers)


# ---- messages --------------------------------------------------------------------------------------------------------


def ask(kind: int, sequence: int = 0, note: Note = NOTHING, follow: int = 0) -> bytes:
    """The head of a worker's message; `follow` bytes of numbers come behind it."""
    return _ASK.pack(kind, follow, sequence, *note)


def answer(kind: int, first: int, second: int) -> bytes:
    """The head of a server's message. Behind REFUSED and DONE come `first` bytes of text."""
    return _ANSWER.pack(kind, first, second)


class Refused(Exception):
    """What a server has said in place of an answer."""


@final
class Line:
    """A connection that gives and takes whole messages. One thread reads and writes it."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _notice_death(connection)
        self._socket: socket.socket = connection
        self._until: float | None = None
        # The kernel fills all of a buffer before it wakes us; TLS comes by records and takes no flags.
        self._flags: int = 0 if isinstance(connection, ssl.SSLSocket) else socket.MSG_WAITALL
        self._ask: bytearray = bytearray(_ASK.size)
        self._answer: bytearray = bytearray(_ANSWER.size)

    def wait_at_most(self, seconds: float | None) -> None:
        """For a single read or write; None waits for as long as it takes."""
        self._until = None
        self._socket.settimeout(seconds)

    def be_done_within(self, seconds: float) -> None:
        """For all reads from now on together, so that a byte now and then does not keep the line open."""
        self._until = time.monotonic() + seconds

    def read(self, into: memoryview | bytearray) -> None:
        """Fill `into`.

        Raises:
            ConnectionError: the other side has hung up.
        """
        left = memoryview(into)
        while left:
            if self._until is not None:
                self._socket.settimeout(max(self._until - time.monotonic(), 1e-3))
            got = self._socket.recv_into(left, 0, self._flags)
            if not got:
                raise ConnectionResetError("the other side has hung up")
            left = left[got:]

    def write(self, head: bytes, body: memoryview | bytes = b"") -> None:
        """Returns when the system has all of it: what was written may be changed then."""
        if len(body) <= _SMALL:
            self._socket.sendall(b"".join((head, body)))
        else:
            self._socket.sendall(head)
            self._socket.sendall(body)

    def write_hello(self, told: dict[str, Any]) -> None:
        text = json.dumps(told).encode()
        self.write(_HELLO.pack(len(text)), text)

    def read_hello(self) -> dict[str, Any]:
        """
        Raises:
            ValueError: it is too long, or no JSON.
        """
        head = bytearray(_HELLO.size)
        self.read(head)
        (size,) = _HELLO.unpack(head)
        if size > _LONGEST:
            raise UsageError(f"a hello of {size} bytes.")
        told = json.loads(self.read_text(size))
        if not isinstance(told, dict):
            raise UsageError("a hello that is no JSON object.")
        return told

    def read_ask(self) -> tuple[int, int, int, Note]:
        """Kind, bytes that follow, sequence, note.

        Raises:
            UsageError: no worker of ours would say this.
        """
        self.read(self._ask)
        kind, follow, sequence, *rest = _ASK.unpack(self._ask)
        note = Note(*rest)
        if not AGREE <= kind <= LEAVE:
            raise UsageError(f"a message of unknown kind {kind}.")
        if kind in (PUSH, EXCHANGE) and sequence < 1:
            raise UsageError(f"a push of number {sequence}.")
        if min(note.steps, note.steps_done, note.rows) < 0 or not (0 <= note.epochs < 2**40 and 0 <= note.points < 2**40):
            raise UsageError(f"a message with an impossible note: {note}.")
        return kind, follow, sequence, note

    def read_answer(self, expected: int) -> tuple[int, int]:
        """The two numbers of the head of an answer of the `expected` kind.

        Raises:
            Refused: the server has refused what was asked.
            ConnectionError: no server of ours would say this.
        """
        self.read(self._answer)
        kind, first, second = _ANSWER.unpack(self._answer)
        if kind == REFUSED:
            raise Refused(self.read_text(first))
        if kind != expected:
            raise ConnectionAbortedError(f"it answered with kind {kind} where {expected} was due")
        return first, second

    def read_text(self, size: int) -> str:
        """
        Raises:
            ConnectionError: it is too long.
        """
        if not 0 <= size <= _LONGEST_TEXT:
            raise ConnectionAbortedError(f"it announced a text of {size} bytes")
        text = bytearray(size)
        self.read(text)
        return text.decode(errors="replace")

    def refuse(self, why: str) -> None:
        """Say why, and hang up once the other side has, or has had time to."""
        with contextlib.suppress(OSError):
            text = why.encode()[:_LONGEST_TEXT]
            self.wait_at_most(1.0)
            self.write(answer(REFUSED, len(text), 0), text)
            self._socket.shutdown(socket.SHUT_WR)
            self.drain(5.0)  # a socket that is closed before all was read would take the words back

    def drain(self, seconds: float = math.inf) -> None:
        """Read on, for nothing, until the other side hangs up."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and self._socket.recv(2**20):
            pass

    def close(self) -> None:
        self._socket.close()


def _notice_death(connection: socket.socket) -> None:
    """Without this a connection to a host that has lost its power would stay open for ever."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 20), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, option):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def connect(location: str, root: bytes | None, seconds: float) -> Line:
    """A line to a server, whose certificate `root` vouches for; None is without TLS."""
    host, _, port = location.rpartition(":")
    connection = socket.create_connection((host, int(port)), seconds)
    if root is not None:
        trust = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        trust.load_verify_locations(cadata=root.decode())
        trust.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # a certificate may be trusted itself, not only who signed it
        connection = trust.wrap_socket(connection, server_hostname=host)
    return Line(connection)
