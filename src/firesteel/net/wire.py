"""What goes over the wire between a worker and a server: Arrow batches of plain floats, and short notes beside them.

One stream (Flight's DoExchange) carries one worker's talk with one server:

    worker                                   server
    command {"worker", "attempt"}       ->
                                        <-   WELCOME  pushes so far, steps at the last of them
    AGREE    pushes that all shards have ->
    PUSH     note + numbers             ->
    PULL, or EXCHANGE (both in one)     ->
                                        <-   CENTER   version, stop + numbers
    LEAVE                               ->

Nothing is ever unpickled. Every message has a fixed size or a size that the server knows, and is refused otherwise.
"""

from __future__ import annotations

import struct
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from firesteel.errors import UsageError
from firesteel.net.center import Note

WELCOME, CENTER = 1, 2
AGREE, PUSH, PULL, EXCHANGE, LEAVE = 11, 12, 13, 14, 15
STOPPED, DIVERGED = 1, 2  # what a CENTER says beside the numbers

_ARROW = {torch.float32: pa.float32(), torch.float64: pa.float64()}
_PUSH = struct.Struct("<Bqqqqddddd")
_TWO = struct.Struct("<Bqq")


def schema(dtype: torch.dtype) -> pa.Schema:
    """One column of numbers."""
    if dtype not in _ARROW:
        raise UsageError(f"parameters of type {dtype} cannot go to a server; use model.float() or model.double().")
    return pa.schema([pa.field("x", _ARROW[dtype], nullable=False)])


def batch(x: Tensor, of: pa.Schema) -> pa.RecordBatch:
    """A contiguous tensor, [n], as a record batch on the same memory."""
    numbers: Any = x.detach().numpy()
    column = pa.Array.from_buffers(of.field(0).type, len(numbers), [None, pa.py_buffer(numbers)], 0)
    return pa.RecordBatch.from_arrays([column], schema=of)


def tensor(found: pa.RecordBatch | None, of: pa.Schema) -> Tensor:
    """A record batch as a tensor on the same memory, [n], which nobody else has.

    Raises:
        UsageError: it is not one column of numbers of the agreed type, without nulls.
    """
    if found is None or found.schema != of or found.column(0).null_count:
        raise UsageError("a message without the numbers that belong to it.")
    array = found.column(0)
    if not len(array):
        return torch.empty(0, dtype=torch.float32)
    return torch.from_dlpack(array)


def push_note(sequence: int, note: Note, kind: int = PUSH) -> bytes:
    return _PUSH.pack(
        kind,
        sequence,
        note.steps,
        note.steps_done,
        note.rows,
        note.weight,
        note.loss_sum,
        note.waited_seconds,
        note.epochs,
        note.points,
    )


def read_push(data: bytes) -> tuple[int, Note]:
    try:
        _, sequence, *rest = _PUSH.unpack(data)
    except struct.error as error:
        raise UsageError(f"a push with a note of {len(data)} bytes: {error}.") from None
    note = Note(*rest)
    if sequence < 1 or note.steps < 0 or note.steps_done < 0 or note.rows < 0 or not 0 <= note.epochs < 2**40:
        raise UsageError(f"a push with an impossible note: {note}.")
    if not 0 <= note.points < 2**40:
        raise UsageError(f"a push with an impossible note: {note}.")
    return sequence, note


def two(kind: int, first: int, second: int) -> bytes:
    """A message of two whole numbers."""
    return _TWO.pack(kind, first, second)


def read_two(data: bytes) -> tuple[int, int]:
    try:
        _, first, second = _TWO.unpack(data)
    except struct.error as error:
        raise UsageError(f"a message of {len(data)} bytes: {error}.") from None
    return first, second
