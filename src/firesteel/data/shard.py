"""One worker's rows as tensors, in memory or in a memory-mapped file, and batches of them."""

from __future__ import annotations

import math
import tempfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, final

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from firesteel.data import arrays
from firesteel.data.arrays import Array, Column
from firesteel.data.columns import ROW, Columns, Image
from firesteel.errors import UsageError


@final
@dataclass(frozen=True)
class Batch:
    """Some rows. `weight` is the sum of their weights, or their number."""

    inputs: tuple[Tensor, ...]  # what the model is called with: [B, ...], or for sequences [B, T, ...] and lengths [B]
    target: Tensor | None  # int64 [B] (of every step: [B, T]) for classes, floats [B, d] for values
    weights: Tensor | None  # float32 [B]
    rows: int
    weight: float

    def cut(self, start: int, stop: int) -> Batch:
        """Rows start .. stop - 1 of the batch, as views."""
        cut = lambda x: None if x is None else x[start:stop]  # noqa: E731
        weights = cut(self.weights)
        weight = float(stop - start) if weights is None else float(weights.sum())
        return Batch(tuple(x[start:stop] for x in self.inputs), cut(self.target), weights, stop - start, weight)

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        if device.type == "cpu":
            return self
        move = lambda x: None if x is None else x.to(device, non_blocking=True)  # noqa: E731
        inputs = tuple(x.to(device, non_blocking=True) for x in self.inputs)
        return replace(self, inputs=inputs, target=move(self.target), weights=move(self.weights))


@final
@dataclass(frozen=True)
class Shard:
    """Rows by number, 0 .. rows - 1, in the data's own order.

    `order` maps them to where they lie, if not in order: sub-shards share memory with their whole, and rows in a file or of
    sequences stay where they arrived. A shard that got no rows at all does not know their width; its batches have no inputs.

        >>> rows = pa.record_batch({"features": [[1.0, 2.0], [3.0, 4.0]], "label": [0, 1], "__row": [0, 1]})
        >>> shard = build_shard([rows], Columns(), max_memory_bytes=2**30)
        >>> shard.take(torch.tensor([1, 0])).inputs[0]
        tensor([[3., 4.],
                [1., 2.]])
    """

    rows: int
    columns: Columns
    values: Tensor | None = None  # [stored, ...], or for sequences [all steps, ...]
    starts: Tensor | None = None  # where each row's sequence starts, int64 [stored + 1]
    target: Tensor | None = None
    weights: Tensor | None = None
    flags: Tensor | None = None  # the validation column
    order: Tensor | None = None

    def take(self, index: Tensor) -> Batch:
        """The rows of an index, int64 [B], as a batch."""
        return self._gather(index if self.order is None else self.order[index])

    def block(self, start: int, stop: int) -> Batch:
        """Rows start .. stop - 1, 0 <= start <= stop <= rows; where they lie in order a view, not to be written to."""
        if self.order is not None:
            return self._gather(self.order[start:stop])
        if self.starts is not None:
            return self._gather(torch.arange(start, stop))
        cut = slice(start, stop)
        inputs = () if self.values is None else (self._scaled(self.values[cut]),)
        return self._batch(inputs, stop - start, *(x if x is None else x[cut] for x in (self.target, self.weights)))

    def _gather(self, at: Tensor) -> Batch:
        if self.values is None:
            return Batch((), None, None, 0, 0.0)
        inputs = self._padded(at) if self.starts is not None else (self._scaled(self.values.index_select(0, at)),)
        return self._batch(inputs, len(at), *(x if x is None else x.index_select(0, at) for x in (self.target, self.weights)))

    @staticmethod
    def _batch(inputs: tuple[Tensor, ...], rows: int, target: Tensor | None, weights: Tensor | None) -> Batch:
        return Batch(inputs, target, weights, rows, float(rows) if weights is None else float(weights.sum()))

    def _scaled(self, x: Tensor) -> Tensor:
        if x.dtype != torch.uint8:
            return x
        scale = self.columns.features.scale if isinstance(self.columns.features, Image) else 1.0
        return x.to(getattr(torch, self.columns.dtype)).mul_(scale)

    def _padded(self, at: Tensor) -> tuple[Tensor, Tensor]:
        assert self.values is not None and self.starts is not None
        first = self.starts[at]
        lengths = self.starts[at + 1] - first  # [B]
        steps = torch.arange(int(lengths.max()) if len(at) else 0)  # [T]
        inside = steps < lengths[:, None]  # [B, T]
        where = (first[:, None] + steps).clamp_(max=max(len(self.values) - 1, 0))
        x = self.values[where]  # [B, T, ...]
        return x.masked_fill_(~inside.view(*inside.shape, *[1] * (x.dim() - 2)), 0), lengths

    def select(self, index: Tensor) -> Shard:
        """A part of the rows, in the order of `index`, sharing the memory of the whole."""
        return replace(self, rows=len(index), order=index if self.order is None else self.order[index])

    def split(self, share: float, generator: torch.Generator) -> tuple[Shard, Shard]:
        """Rows to train on and rows held out: by the validation column, else a random `share` of them."""
        if self.flags is not None:
            held = self.flags if self.order is None else self.flags[self.order]
            return self.select((~held).nonzero().view(-1)), self.select(held.nonzero().view(-1))
        if not share:
            return self, self.select(torch.empty(0, dtype=torch.long))
        mixed, count = torch.randperm(self.rows, generator=generator), round(share * self.rows)
        return self.select(mixed[count:].sort().values), self.select(mixed[:count].sort().values)

    def sample(self, share: float) -> Shard:
        """A share of the rows, 0 < share <= 1, rounded up, at even distances: of rows sorted by class, some of each."""
        count = math.ceil(share * self.rows)
        return self.select(torch.arange(count) * self.rows // max(count, 1))

    @property
    def classes(self) -> int | None:
        """The largest label + 1, where labels are classes and there are rows."""
        if self.columns.target != "class" or self.target is None or not self.rows:
            return None
        return int((self.target if self.order is None else self.target[self.order]).max()) + 1

    @property
    def nbytes(self) -> int:
        """Bytes of all that is stored."""
        found = (self.values, self.starts, self.target, self.weights, self.flags)
        return sum(x.numel() * x.element_size() for x in found if x is not None)

    def fingerprint(self) -> str:
        """Equal for equal rows in equal order, on any day and machine: the number of rows and a checksum of them all.

        It reads the rows as they are stored (bytes unscaled, sequences unpadded), a few thousand at a time.
        """
        check = 0
        for start in range(0, self.rows, 4096):
            for x in self._stored(start, min(start + 4096, self.rows)):
                if not start:  # the same bytes in another type or shape are other rows
                    check = zlib.crc32(f"{x.dtype} {tuple(x.shape[1:])}".encode(), check)
                raw: Any = x.contiguous().view(-1).view(torch.uint8).numpy()
                check = zlib.crc32(raw, check)
        return f"{self.rows}-{check:08x}"

    def _stored(self, start: int, stop: int) -> list[Tensor]:
        """All that is stored of rows start .. stop - 1, in their order."""
        at = slice(start, stop) if self.order is None else self.order[start:stop]
        found = [x[at] for x in (self.target, self.weights) if x is not None]
        if self.starts is None:
            return found if self.values is None else [self.values[at], *found]
        assert self.values is not None
        first = self.starts[:-1][at]
        lengths = self.starts[1:][at] - first
        # step j of the block belongs to the row that owns it: first[row] + (j - where the row begins in the block)
        shift = (first - lengths.cumsum(0) + lengths).repeat_interleave(lengths)
        return [self.values[shift + torch.arange(len(shift))], lengths, *found]


@final
@dataclass
class _Pile:
    """Chunks of one array that grows: in memory first, in an unlinked file once it is told to spill."""

    chunks: list[Array] = field(default_factory=list)
    file: Any = None
    rows: int = 0
    dtype: np.dtype[Any] | None = None
    inner: tuple[int, ...] = ()

    def add(self, chunk: Array) -> None:
        if not self.rows:  # also when all chunks so far were empty: sequences without steps do not know their width
            self.chunks, self.dtype, self.inner = [], chunk.dtype, chunk.shape[1:]
        self.rows += len(chunk)
        if self.file is not None:
            np.ascontiguousarray(chunk).tofile(self.file)
        else:
            self.chunks.append(chunk)

    @property
    def nbytes(self) -> int:
        return sum(c.nbytes for c in self.chunks)

    def spill(self, folder: str | None) -> None:
        # The folder's entry goes at once: the file lives as long as its mapping does, and no crash leaves it behind.
        self.file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        for chunk in self.chunks:
            np.ascontiguousarray(chunk).tofile(self.file)
        self.chunks = []

    def tensor(self, places: Array | None = None) -> Tensor:
        """All rows; in memory each at its place, in a file as they came."""
        if self.file is not None and self.rows and self.dtype is not None:
            self.file.flush()
            shape = (self.rows, *self.inner)
            return torch.from_numpy(np.memmap(self.file, self.dtype, "r+", shape=shape))
        # A copy, as Arrow's memory may not be written to. Each chunk is let go once it is copied, so that rows in Arrow's
        # own memory are there once and not twice.
        whole, at = np.empty((self.rows, *self.inner), self.dtype), 0
        self.chunks.reverse()
        while self.chunks:
            chunk = self.chunks.pop()
            whole[slice(at, at + len(chunk)) if places is None else places[at : at + len(chunk)]] = chunk
            at += len(chunk)
        return torch.from_numpy(whole)


def check_rows(rank: int, now: str, then: str) -> None:
    """Raise UsageError unless a worker's rows have the fingerprint they had in the run to resume."""
    if now != then:
        raise UsageError(
            f"worker {rank}'s rows are not those of the run to resume (fingerprint {now}, then {then}). Resume on the same "
            "data in the same partitions, or start anew from run.model."
        )


def build_shard(
    batches: Iterable[pa.RecordBatch], columns: Columns, max_memory_bytes: int, spill_dir: str | None = None
) -> Shard:
    """Arrow record batches, with a column `__row` of global row numbers, as one shard.

    Args:
        batches: the columns that `columns.needed()` names, and `__row`, int64.
        max_memory_bytes: beyond this size rows go to a memory-mapped file while they stream in.
        spill_dir: where that file lies; the system's folder for temporary files if None.

    Raises:
        UsageError: nulls, NaN or infinity, unequal lengths, impossible labels or weights; names column and first row.

    >>> rows = pa.record_batch({"x": [0.5, 1.5], "label": [0, 1], "__row": [0, 1]})
    >>> build_shard([rows], Columns("x"), max_memory_bytes=2**30).rows
    2
    """
    piles: dict[str, _Pile] = {}
    spilled = False
    for batch in batches:
        if not batch.num_rows:
            continue
        found = _convert(batch, columns)
        values = found["values"]
        if len(values):
            _same(columns.feature_names()[0], values, piles.get("values"))
        elif piles:  # sequences without a single step
            found["values"] = values.reshape(0, *piles["values"].inner).astype(piles["values"].dtype)
        if columns.label is not None:
            _same(columns.label, found["target"], piles.get("target"))
        for name, chunk in found.items():
            # A batch lies in memory as one piece: a view of its smallest column would keep all of it there.
            piles.setdefault(name, _Pile()).add(chunk if name == "values" else chunk.copy())
        if not spilled and piles["values"].nbytes > max_memory_bytes:
            piles["values"].spill(spill_dir)
            spilled = True
    if not piles:
        return Shard(0, columns)
    rows = piles.pop(ROW).tensor()
    order = None if bool((rows[1:] > rows[:-1]).all()) else rows.argsort()
    places = None
    if order is not None and not spilled and "lengths" not in piles:
        # The copy into one piece puts them in order: a pass over all rows then need not gather them, each time anew.
        places, order = np.argsort(order.numpy()), None
    tensors = {name: pile.tensor(places) for name, pile in piles.items()}
    lengths = tensors.pop("lengths", None)
    starts = None if lengths is None else torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
    return Shard(len(rows), columns, starts=starts, order=order, **tensors)


def _same(name: str, values: Array, pile: _Pile | None) -> None:
    """Rows of one width and type only: in a file there is no telling them apart again."""
    if pile is None or not pile.rows or (pile.inner, pile.dtype) == (values.shape[1:], values.dtype):
        return
    sizes = [int(np.prod(x)) for x in (values.shape[1:], pile.inner)]
    if sizes[0] != sizes[1]:
        raise UsageError(f"column '{name}' has {sizes[0]} numbers in some rows and {sizes[1]} in others.")
    raise UsageError(f"column '{name}' is {values.dtype} in some rows and {pile.dtype} in others; cast it to one type.")


def _convert(batch: pa.RecordBatch, columns: Columns) -> dict[str, Array]:
    # A number too large for its new type becomes infinity, which is refused by name below; NumPy need not warn before.
    with np.errstate(over="ignore", invalid="ignore"):
        return _convert_quietly(batch, columns)


def _convert_quietly(batch: pa.RecordBatch, columns: Columns) -> dict[str, Array]:
    rows = batch.column(ROW).to_numpy(zero_copy_only=False)

    def column(name: str) -> Column:
        return Column(name, batch.column(name), rows)

    values, lengths = arrays.feature(columns, [column(name) for name in columns.feature_names()])
    found = {ROW: rows, "values": values}
    if lengths is not None:
        found["lengths"] = lengths
    if columns.label is not None:
        found["target"] = arrays.target(columns, column(columns.label))
    if columns.weight is not None:
        found["weights"] = arrays.weights(column(columns.weight))
    if columns.validation is not None:
        found["flags"] = arrays.flags(column(columns.validation))
    return found
