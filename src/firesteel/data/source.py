"""What the user gave as `data`, resolved where the call was made, and how this machine's workers read it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, final

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads

from firesteel.data import given
from firesteel.data.columns import ROW, Columns, Features, is_vector
from firesteel.datasets import Dataset
from firesteel.errors import UsageError

HELD = "__validation"  # the indicator column of rows that came as `validation=` data


@final
@dataclass(frozen=True)
class TableSource:
    """Rows in this process."""

    table: pa.Table
    columns: Columns


@final
@dataclass(frozen=True)
class MappedSource:
    """An Arrow file that processes of this machine map."""

    path: str
    columns: Columns


@final
@dataclass(frozen=True)
class ParquetSource:
    """Parquet files; `held` are others, for validation."""

    path: str
    columns: Columns
    held: str | None = None


@final
@dataclass(frozen=True)
class FrameSource:
    """A Spark DataFrame, classic or Connect."""

    frame: Any
    columns: Columns


Source = TableSource | ParquetSource | FrameSource


def resolve(
    data: Any,
    features: Features = "features",
    label: str | None = "label",
    weight: str | None = None,
    validation: Any = None,
    target: Literal["class", "value"] = "class",
) -> tuple[Source, float]:
    """The source, and the share of rows that workers hold out themselves (0 where a column says which).

    Args:
        data: a Spark DataFrame, the path of a Parquet file or folder, a `pyarrow.Table`, a pandas DataFrame, a data set
            of `firesteel.datasets`, or (X, y) or (X, y, weights) of arrays or tensors. Arrays become columns named
            features, label and weight. X of bytes, or of more than two dimensions, is an `Image` of its own shape:
            bytes are scaled by 1/255, other numbers left as they are. X of integers, [n, T], is `Tokens`; a list of arrays
            of unequal length, [T] or [T, d], a `Sequence`. y is [n], or [n, T] for a class of every step.
        validation: a share of the rows, at least 0 and below 1; the name of a boolean column that is True for held-out
            rows; data of the same kind as `data`; or None.

    Raises:
        UsageError: data of a kind that is not known, a missing column, no rows, a share outside 0 .. 1, validation data
            that does not fit the training data.

    >>> source, share = resolve((np.zeros((10, 3)), np.zeros(10, int)), validation=0.2)
    >>> source.columns.features, share
    ('features', 0.2)
    """
    share, held, indicator = 0.0, None, None
    if isinstance(validation, bool):
        raise UsageError("validation is a share such as 0.1, the name of a boolean column, other data, or None.")
    if isinstance(validation, int | float | np.floating | np.integer):
        if not 0 <= validation < 1:
            raise UsageError(f"validation={validation}: a share must be at least 0 and below 1.")
        share = float(validation)
    elif isinstance(validation, str) and not (isinstance(data, str | os.PathLike) and _is_path(validation)):
        indicator = validation
    elif validation is not None:
        held = validation
    columns = Columns(features, label, weight, indicator, target)
    source = _source(data, columns)
    if held is not None:
        source = _with_held(source, _source(held, columns))
    source.columns.check(_schema(source))
    if _no_rows(source):
        raise UsageError("the data has no rows.")
    return source, share


def _no_rows(source: Source) -> bool:
    """Whether it is known here, without a Spark job, that there is not a single row."""
    if isinstance(source, TableSource):
        return not source.table.num_rows
    return isinstance(source, ParquetSource) and not any(f.count_rows() for f in _dataset(source.path).get_fragments())


def _is_path(text: str) -> bool:
    return "/" in text or text.endswith(".parquet") or os.path.exists(text)


def _source(data: Any, columns: Columns) -> Source:
    if isinstance(data, Dataset):
        data = data.train
    if isinstance(data, pa.Table):
        return TableSource(data, columns)
    if isinstance(data, str | os.PathLike):
        path = os.fspath(data)
        if "://" not in path and not os.path.exists(path):
            raise UsageError(f"there is no file or folder {path!r}.")
        return ParquetSource(path, columns)
    if isinstance(data, tuple) and len(data) in (2, 3):
        return _from_arrays(data, columns)
    if type(data).__module__.startswith("pyspark.sql") and type(data).__name__ == "DataFrame":
        return FrameSource(data, columns)
    if type(data).__module__.startswith("pandas") and hasattr(data, "to_dict"):
        return TableSource(pa.Table.from_pandas(data, preserve_index=False), columns)
    raise UsageError(
        f"data is a {type(data).__name__}; give a Spark DataFrame, the path of Parquet files, a pyarrow.Table, "
        "a tuple (X, y) or (X, y, weights) of arrays or tensors, or a data set of firesteel.datasets."
    )


def _from_arrays(data: tuple[Any, ...], columns: Columns) -> TableSource:
    features: Features = columns.features
    x = given.rows(data[0], features)
    found = [given.array(name, values) for name, values in zip(("y", "weights"), data[1:], strict=False)]
    for name, values in zip(("y", "weights"), found, strict=False):
        if len(values) != len(x):
            raise UsageError(f"X has {len(x)} rows, but {name} has {len(values)}.")
    y = found[0]
    if features == "features":
        features = given.features_of(x)
    name = features if isinstance(features, str) else "features" if isinstance(features, list) else features.column
    label = columns.label or "label"
    table = {name: given.column(x), label: given.column(y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y)}
    weight = columns.weight
    if len(found) == 2:
        weight = weight or "weight"
        if found[1].size != len(x):
            raise UsageError(f"weights has the shape {found[1].shape}; give one number a row: [{len(x)}].")
        table[weight] = given.column(found[1].reshape(-1))
    return TableSource(pa.table(table), replace(columns, features=features, label=label, weight=weight))


def _schema(source: Source) -> pa.Schema:
    if isinstance(source, TableSource):
        return source.table.schema
    if isinstance(source, ParquetSource):
        schema = _dataset(source.path).schema
        return schema.append(pa.field(HELD, pa.bool_())) if source.held else schema
    from firesteel.data.frame import arrow_schema

    return arrow_schema(source.frame)


def _dataset(path: str) -> Any:
    try:
        found: Any = pads.dataset(path, format="parquet")
    except (pa.ArrowInvalid, OSError) as error:
        raise UsageError(f"{path!r} cannot be read as Parquet: {str(error).splitlines()[0]}") from error
    if not found.files:
        raise UsageError(f"there are no Parquet files in {path!r}.")
    return found


def _fit(source: Source, held: Source) -> None:
    """Raise UsageError where validation data would not become the same tensors as the training data."""
    columns, schema, other = source.columns, _schema(source), _schema(held)
    columns.check(schema)
    try:
        columns.check(other)
    except UsageError as error:
        raise UsageError(f"the validation data does not fit the training data: {error}") from error
    if held.columns.weight and not columns.weight:
        raise UsageError("the validation data has weights, but the training data has none; give both or neither.")
    if _no_rows(held):
        raise UsageError("the validation data has no rows.")
    for name in columns.needed():
        exact = name in columns.feature_names() and not isinstance(columns.features, str | list)
        kind, its = schema.field(name).type, other.field(name).type
        if _family(kind, exact) != _family(its, exact):
            # Bytes are scaled and integers stay integers, so that a mixture would change the meaning of the training rows.
            raise UsageError(f"column '{name}' has the type {kind}, but in the validation data {its}; cast one of them.")


def _family(kind: pa.DataType, exact: bool) -> str:
    """Types of one family can be united; with `exact` also the sort of number matters."""
    if is_vector(kind):
        return "vector"
    if pa.types.is_fixed_size_list(kind):
        return f"{kind.list_size} of {_family(kind.value_type, exact)}"
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return f"list of {_family(kind.value_type, exact)}"
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        return str(kind)
    if not exact:
        return "number"
    return "byte" if pa.types.is_uint8(kind) else "integer" if pa.types.is_integer(kind) else "float"


def _with_held(source: Source, held: Source) -> Source:
    if type(source) is type(held):
        _fit(source, held)
    columns = replace(source.columns, validation=HELD)
    if isinstance(source, TableSource) and isinstance(held, TableSource):
        names = source.columns.needed()
        parts = [
            t.select(names).append_column(HELD, pa.repeat(pa.scalar(flag), len(t)))
            for t, flag in ((source.table, False), (held.table, True))
        ]
        return TableSource(pa.concat_tables(parts, promote_options="permissive"), columns)
    if isinstance(source, ParquetSource) and isinstance(held, ParquetSource):
        return ParquetSource(source.path, columns, held.path)
    if isinstance(source, FrameSource) and isinstance(held, FrameSource):
        from firesteel.data.frame import united

        return FrameSource(united(source.frame, held.frame, source.columns.needed(), HELD), columns)
    raise UsageError("validation data must be of the same kind as the training data (two DataFrames, two paths, two tables).")


def stream(source: TableSource | MappedSource | ParquetSource, rank: int, size: int) -> Iterator[pa.RecordBatch]:
    """Worker `rank`'s rows, those with number % size == rank, with their number as `__row`; 0 <= rank < size.

    >>> table = pa.table({"features": [0.0, 1.0, 2.0, 3.0, 4.0], "label": [0, 1, 0, 1, 0]})
    >>> [batch.column("__row").to_pylist() for batch in stream(TableSource(table, Columns()), rank=1, size=2)]
    [[1, 3]]
    """
    row = 0
    for batch in _batches(source):
        first = (rank - row) % size
        mine = np.arange(first, batch.num_rows, size)
        if len(mine):
            part = batch if size == 1 else batch.take(pa.array(mine))
            arrays = [*part.columns, pa.array(mine + row)]
            yield pa.RecordBatch.from_arrays(arrays, [*part.schema.names, ROW])
        row += batch.num_rows


def _batches(source: TableSource | MappedSource | ParquetSource) -> Iterator[pa.RecordBatch]:
    names = source.columns.needed()
    if isinstance(source, TableSource):
        yield from source.table.select(names).to_batches(max_chunksize=65536)
    elif isinstance(source, MappedSource):
        with pa.memory_map(source.path) as file:
            yield from pa.ipc.open_file(file).read_all().select(names).to_batches(max_chunksize=65536)
    else:
        paths = [(source.path, False)] + ([(source.held, True)] if source.held else [])
        for path, held in paths:
            dataset, wanted = _dataset(path), [n for n in names if n != HELD]
            for batch in dataset.to_batches(
                columns=wanted, batch_size=_batch_rows(dataset), batch_readahead=2, fragment_readahead=1
            ):
                yield batch.append_column(HELD, pa.repeat(pa.scalar(held), len(batch))) if source.held else batch


def _batch_rows(dataset: Any) -> int:
    """Rows a batch, so that some 64 MB are read at a time whether a row is a number or a photograph."""
    first = next((f for f in dataset.get_fragments() if f.count_rows()), None)
    if first is None:
        return 65536
    footer = first.metadata
    stored_bytes = sum(footer.row_group(i).total_byte_size for i in range(footer.num_row_groups))
    return int(np.clip(2**26 * footer.num_rows // max(stored_bytes, 1), 1, 65536))
