"""Arrow columns as NumPy arrays, without a Python loop over rows.

Every function takes one column of one record batch and raises UsageError with the column's name and the first bad row,
counted from the batch's first row in the data's own order (`rows`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from firesteel.data.columns import Columns, Image, Sequence, Tokens, is_vector
from firesteel.errors import UsageError

Array = np.ndarray[Any, Any]
_compute: Any = pc  # its functions are made at run time, so a type checker does not know them


@final
@dataclass(frozen=True)
class Column:
    """A column of a batch with what its errors need."""

    name: str
    array: pa.Array
    rows: Array  # the rows' global numbers, int64 [n]

    def fail(self, bad: Any, what: str) -> UsageError:
        count, first = int(bad.sum()), int(self.rows[int(np.argmax(bad))])
        partition, within = divmod(first, 2**33)  # how Spark numbers rows
        place = f"row {within} of partition {partition}" if partition else f"row {within}"
        rows = f"{count} row{'s' if count > 1 else ''}, the first is {place}"
        return UsageError(f"column '{self.name}' {what} ({rows}).")

    def no_nulls(self) -> None:
        if self.array.null_count:
            raise self.fail(self.array.is_null().to_numpy(zero_copy_only=False), "holds nulls; drop or fill them")


def finite(column: Column, values: Array) -> Array:
    """The values, [n, ...], if none is NaN or infinite."""
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        bad = ~np.isfinite(values.reshape(len(values), -1)).all(1)
        raise column.fail(bad, "holds NaN or infinity; drop or replace these rows")
    return values


def lists(column: Column) -> tuple[pa.Array, Array]:
    """Flat values and the length of each row's list, int64 [n]."""
    column.no_nulls()
    array = column.array
    if pa.types.is_fixed_size_list(array.type):
        lengths = np.full(len(array), array.type.list_size, np.int64)
    else:
        lengths = np.asarray(_compute.list_value_length(array)).astype(np.int64)
    values = array.flatten()
    if values.null_count:
        owner = np.repeat(np.arange(len(array)), lengths)[values.is_null().to_numpy(zero_copy_only=False)]
        raise column.fail(np.isin(np.arange(len(array)), owner), "holds nulls inside its lists; fill them")
    return values, lengths


def numbers(column: Column, way_out: str | None = None) -> Array:
    """One number, list, vector or run of bytes a row as [n, d]; lists must have equal length, or `way_out` says what to do."""
    array, kind = column.array, column.array.type
    if is_vector(kind):
        return _vectors(column)
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        return _bytes(column)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        values, lengths = lists(column)
        return _plain(values).reshape(len(array), _one_length(column, lengths, way_out))
    column.no_nulls()
    return _plain(array).reshape(-1, 1)


def _plain(values: pa.Array) -> Array:
    return values.to_numpy(zero_copy_only=False)


def _one_length(column: Column, lengths: Array, way_out: str | None = None) -> int:
    if not len(lengths):
        return 0
    if not (lengths == lengths[0]).all():
        raise column.fail(
            lengths != lengths[0],
            f"holds lists of unequal length, from {lengths.min()} to {lengths.max()}; "
            + (way_out or f"for sequences use firesteel.Sequence('{column.name}')"),
        )
    return int(lengths[0])


def _bytes(column: Column) -> Array:
    column.no_nulls()
    array = column.array
    if pa.types.is_fixed_size_binary(array.type):
        width = array.type.byte_width
        flat = np.frombuffer(array.buffers()[1], np.uint8)[array.offset * width : (array.offset + len(array)) * width]
        return flat.reshape(len(array), width)
    width = _one_length(column, np.asarray(_compute.binary_length(array)).astype(np.int64))
    offsets = np.frombuffer(array.buffers()[1], np.int64 if pa.types.is_large_binary(array.type) else np.int32)
    start = int(offsets[array.offset]) if len(array) else 0
    data = np.frombuffer(array.buffers()[2], np.uint8) if array.buffers()[2] is not None else np.empty(0, np.uint8)
    return data[start : start + len(array) * width].reshape(len(array), width)


def _vectors(column: Column) -> Array:
    """Dense or sparse ML vectors, also mixed, as [n, d] float64."""
    column.no_nulls()
    kind, size, indices, values = (f for f in column.array.flatten())
    flat, lengths = _plain(values.flatten()), np.asarray(_compute.list_value_length(values)).astype(np.int64)
    sparse = _plain(kind) == 0
    if not sparse.any():
        return flat.reshape(len(lengths), _one_length(column, lengths))
    widths = np.where(sparse, np.nan_to_num(_plain(size.fill_null(0))), lengths).astype(np.int64)
    width = _one_length(column, widths)
    out = np.zeros((len(lengths), width), flat.dtype)
    row = np.repeat(np.arange(len(lengths)), lengths)
    of_sparse = sparse[row]
    out[row[of_sparse], _plain(indices.flatten())] = flat[of_sparse]
    out[~sparse] = flat[~of_sparse].reshape(-1, width)
    return out


def feature(columns: Columns, batch: list[Column]) -> tuple[Array, Array | None]:
    """The features of a batch: values, [n, ...] (uint8, int64 or float), and for sequences the lengths, int64 [n]."""
    spec, dtype = columns.features, np.dtype(columns.dtype)
    if isinstance(spec, Sequence):
        return _sequence(batch[0], spec, dtype)
    if isinstance(spec, Tokens):
        values, lengths = lists(batch[0])
        return _plain(values).astype(np.int64).reshape(len(lengths), _one_length(batch[0], lengths)), None
    if isinstance(spec, Image):
        found = numbers(batch[0])
        size = int(np.prod(spec.shape))
        if len(found) and found.shape[1] != size:
            raise UsageError(f"column '{spec.column}' has {found.shape[1]} numbers a row, but shape {spec.shape} needs {size}.")
        found = found if found.dtype == np.uint8 else finite(batch[0], found.astype(dtype, copy=False))
        return found.reshape(len(found), *spec.shape), None
    parts = [finite(c, numbers(c).astype(dtype, copy=False)) for c in batch]
    return parts[0] if len(parts) == 1 else np.concatenate(parts, 1), None


def _sequence(column: Column, spec: Sequence, dtype: np.dtype[Any]) -> tuple[Array, Array]:
    values, lengths = lists(column)
    if spec.max_length is not None and (lengths > spec.max_length).any():
        raise column.fail(lengths > spec.max_length, f"holds lists longer than max_length={spec.max_length}")
    if pa.types.is_list(values.type) or pa.types.is_large_list(values.type) or pa.types.is_fixed_size_list(values.type):
        inner, widths = lists(Column(column.name, values, np.repeat(column.rows, lengths)))
        flat = _plain(inner).reshape(len(values), _one_length(column, widths))
    else:
        flat = _plain(values)
    flat = flat.astype(np.int64 if flat.dtype.kind in "iub" else dtype, copy=False)
    if flat.dtype.kind == "f" and not np.isfinite(flat).all():
        owner = np.repeat(np.arange(len(lengths)), lengths)[~np.isfinite(flat.reshape(len(flat), -1)).all(1)]
        raise column.fail(np.isin(np.arange(len(lengths)), owner), "holds NaN or infinity; drop or replace these rows")
    return flat, lengths


def target(columns: Columns, column: Column) -> Array:
    """Labels: int64 [n], or [n, T] of lists, for classes; floats [n, d] for values."""
    found = finite(column, numbers(column, "labels must have as many entries in every row: cut longer rows into windows"))
    if columns.target == "value":
        return found.astype(columns.dtype, copy=False)
    whole = found.astype(np.int64)
    if found.dtype.kind == "f" and not (whole == found).all():
        bad = (whole != found).any(1)
        raise column.fail(bad, "must hold classes 0, 1, 2, ..., but has fractions; for values use loss='mse'")
    if (whole < 0).any():
        raise column.fail((whole < 0).any(1), "must hold classes 0, 1, 2, ..., but has negative ones; index them first")
    scalar = whole.shape[1] == 1 and not _is_list_type(column.array.type)
    return whole[:, 0] if scalar else whole


def _is_list_type(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def weights(column: Column) -> Array:
    """Weights >= 0, float32 [n]."""
    found = finite(column, numbers(column)[:, 0].astype(np.float32))
    if (found < 0).any():
        raise column.fail(found < 0, "holds negative weights")
    return found


def flags(column: Column) -> Array:
    """Booleans, [n]."""
    column.no_nulls()
    return _plain(column.array).astype(bool)
