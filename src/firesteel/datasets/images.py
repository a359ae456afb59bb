"""Named data sets, to begin with and to measure on."""

from __future__ import annotations

import gzip
import hashlib
import os
import urllib.request
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import pyarrow as pa

from firesteel.errors import UsageError

Arrays = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]


@final
@dataclass(frozen=True, eq=False)
class Dataset:
    """Training and test rows, (X, y) each; `train` is what `firesteel.train` uses."""

    name: str
    train: Arrays
    test: Arrays
    classes: int

    def frame(self, spark: Any) -> tuple[Any, Any]:
        """Training and test rows as Spark DataFrames with the columns features (array<float>, or bytes) and label."""
        return tuple(spark.createDataFrame(_table(x, y)) for x, y in (self.train, self.test))  # pyright: ignore[reportReturnType]


def _table(x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> pa.Table:
    flat = np.ascontiguousarray(x.reshape(len(x), -1))
    if flat.dtype == np.uint8:
        offsets = pa.array(np.arange(len(x) + 1, dtype=np.int32) * flat.shape[1])
        features = pa.Array.from_buffers(pa.binary(), len(x), [None, offsets.buffers()[1], pa.py_buffer(flat)])
    else:
        offsets = pa.array(np.arange(len(x) + 1, dtype=np.int32) * flat.shape[1])
        features = pa.ListArray.from_arrays(offsets, pa.array(flat.reshape(-1)))
    return pa.table({"features": features, "label": pa.array(y.astype(np.int64))})


def digits() -> Dataset:
    """Handwritten digits bundled with scikit-learn: 1,797 rows of 8 x 8 grey values in 0 .. 1, 10 classes, a fifth for testing.

    The split is the same every time and holds a fifth of every class, rounded up.

    Raises:
        UsageError: scikit-learn is not installed.

    >>> digits().train[0].shape, digits().test[0].shape
    ((1433, 64), (364, 64))
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UsageError("the digits come with scikit-learn: pip install 'firesteel[bench]'.") from error
    found: Any = load_digits()
    x, y = (found.data / 16).astype(np.float32), found.target.astype(np.int64)
    mixed = np.random.default_rng(0).permutation(len(x))
    # Every fifth row of each class is for testing.
    place = np.empty(len(x), np.int64)
    for label in range(10):
        of_class = mixed[y[mixed] == label]
        place[of_class] = np.arange(len(of_class))
    test, train = mixed[place[mixed] % 5 == 0], mixed[place[mixed] % 5 != 0]
    return Dataset("digits", (x[train], y[train]), (x[test], y[test]), 10)


_MNIST = {
    "train-images-idx3-ubyte": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "train-labels-idx1-ubyte": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k-images-idx3-ubyte": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1-ubyte": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}
_MNIST_URL = "https://ossci-datasets.s3.amazonaws.com/mnist/"


def mnist(folder: str | Path | None = None) -> Dataset:
    """MNIST: 60,000 and 10,000 images of 28 x 28 bytes, 10 classes, from the four IDX files (packed or not).

    Without a folder: `$FIRESTEEL_DATA/mnist`, else the user's cache, into which the files are downloaded (11 MB) and
    checked against their SHA-256.

    Raises:
        UsageError: files are missing and cannot be downloaded, or are not what they should be.
    """
    if folder is None:
        known = os.environ.get("FIRESTEEL_DATA")
        folder = Path(known) / "mnist" if known else Path.home() / ".cache" / "firesteel" / "mnist"
        if not known:
            _download(folder)
    x, y, xt, yt = (_idx(Path(folder), name) for name in _MNIST)
    for images, labels, part in ((x, y, "train"), (xt, yt, "t10k")):
        if images.shape[1:] != (28, 28) or labels.ndim != 1 or len(images) != len(labels):
            raise UsageError(
                f"the {part} files in {folder} do not belong together: images {images.shape}, labels {labels.shape}; "
                "MNIST has [n, 28, 28] and [n]."
            )
    return Dataset("mnist", (x, y.astype(np.int64)), (xt, yt.astype(np.int64)), 10)


def _idx(folder: Path, name: str) -> np.ndarray[Any, Any]:
    packed, plain = folder / f"{name}.gz", folder / name
    if packed.exists():
        try:
            data = gzip.decompress(packed.read_bytes())
        except (OSError, EOFError, zlib.error) as error:
            raise UsageError(f"{packed} cannot be unpacked: {error}. Fetch it again.") from error
    elif plain.exists():
        data = plain.read_bytes()
    else:
        raise UsageError(f"MNIST needs {packed} (or {plain.name}); put the four IDX files into {folder}.")
    if len(data) < 8 or data[:3] != b"\0\0\x08" or len(data) < 4 + 4 * data[3]:
        raise UsageError(f"{folder / name} is not an IDX file of bytes.")
    shape = tuple(int(n) for n in np.frombuffer(data, ">i4", data[3], 4))
    if len(data) != 4 + 4 * data[3] + int(np.prod(shape)):
        raise UsageError(f"{folder / name} is of the wrong length: its header promises {shape}.")
    return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(shape).copy()


def _download(folder: Path) -> None:
    for name, digest in _MNIST.items():
        path = folder / f"{name}.gz"
        if path.exists() or (folder / name).exists():
            continue
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with urllib.request.urlopen(f"{_MNIST_URL}{name}.gz", timeout=20) as answer:
                data = answer.read()
        except OSError as error:
            raise UsageError(
                f"MNIST is not in {folder} and cannot be downloaded ({error}). Put the four IDX files there, or name their "
                "folder: firesteel.datasets.mnist('folder')."
            ) from error
        if hashlib.sha256(data).hexdigest() != digest:
            raise UsageError(f"{name}.gz came with the wrong checksum; it was not kept.")
        aside = path.with_suffix(".part")
        _ = aside.write_bytes(data)
        _ = aside.rename(path)


def load(name: str) -> Dataset:
    """A data set by name: "digits", "mnist", or "mnist:FOLDER".

    >>> load("digits").classes
    10
    """
    kind, _, folder = name.partition(":")
    if kind == "digits" and not folder:
        return digits()
    if kind == "mnist":
        return mnist(folder or None)
    raise UsageError(f"there is no data set {name!r}; there are digits, mnist and mnist:FOLDER.")
