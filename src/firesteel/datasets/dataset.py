"""What a named data set is, and where its files are."""

from __future__ import annotations

import gzip
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import pyarrow as pa

from firesteel.data import given
from firesteel.data.columns import Features
from firesteel.errors import UsageError

Array = np.ndarray[Any, Any]
Arrays = tuple[Any, Array]  # X: an array [n, ...], or a list of arrays [T, d]; y: int64 [n], or [n, T] for each step's class


@final
@dataclass(frozen=True, eq=False)
class Dataset:
    """Training and test rows, (X, y) each; `train` is what `firesteel.train` uses."""

    name: str
    train: Arrays
    test: Arrays
    classes: int

    @property
    def features(self) -> Features:
        """How to read the column features of `frame`: `firesteel.train(..., features=data.features)`."""
        return given.features_of(self.train[0])

    def frame(self, spark: Any) -> tuple[Any, Any]:
        """Training and test rows as Spark DataFrames with the columns features (lists, or bytes) and label."""
        return tuple(spark.createDataFrame(_table(x, y)) for x, y in (self.train, self.test))  # pyright: ignore[reportReturnType]


def _table(x: Any, y: Array) -> pa.Table:
    return pa.table({"features": given.column(x) if isinstance(x, list) else _lists(x), "label": _labels(y)})


def _labels(y: Array) -> pa.Array:
    y = y.astype(np.int64)
    return pa.array(y) if y.ndim == 1 else _lists(y)


def _lists(x: Array) -> pa.Array:
    flat = np.ascontiguousarray(x.reshape(len(x), -1))
    offsets = pa.array(np.arange(len(x) + 1, dtype=np.int32) * flat.shape[1])
    if flat.dtype == np.uint8:
        return pa.Array.from_buffers(pa.binary(), len(x), [None, offsets.buffers()[1], pa.py_buffer(flat)])
    return pa.ListArray.from_arrays(offsets, pa.array(flat.reshape(-1)))


def folder_of(name: str, folder: str | Path | None) -> Path:
    """The folder of a data set: as given, else `$FIRESTEEL_DATA/NAME`, else in the user's cache."""
    known = os.environ.get("FIRESTEEL_DATA")
    return Path(folder) if folder is not None else (Path(known) if known else Path.home() / ".cache" / "firesteel") / name


def found(folder: Path, name: str) -> Path | None:
    """The file of that name, packed (.gz) or plain, if it is there."""
    return next((path for path in (folder / f"{name}.gz", folder / name) if path.exists()), None)


def read(path: Path) -> bytes:
    """A file's bytes, unpacked.

    Raises:
        UsageError: it cannot be unpacked.
    """
    if path.suffix != ".gz":
        return path.read_bytes()
    try:
        return gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError(f"{path} cannot be unpacked: {error}. Fetch it again.") from error
