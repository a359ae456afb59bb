"""Pictures: digits, MNIST, CIFAR-10."""

from __future__ import annotations

import hashlib
import os
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np

from firesteel.datasets.dataset import Array, Dataset, folder_of, found, read
from firesteel.errors import UsageError


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
    both: Any = load_digits()
    x, y = (both.data / 16).astype(np.float32), both.target.astype(np.int64)
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
        folder = folder_of("mnist", None)
        if "FIRESTEEL_DATA" not in os.environ:
            _download(folder)
    x, y, xt, yt = (_idx(Path(folder), name) for name in _MNIST)
    for images, labels, part in ((x, y, "train"), (xt, yt, "t10k")):
        if images.shape[1:] != (28, 28) or labels.ndim != 1 or len(images) != len(labels):
            raise UsageError(
                f"the {part} files in {folder} do not belong together: images {images.shape}, labels {labels.shape}; "
                "MNIST has [n, 28, 28] and [n]."
            )
    return Dataset("mnist", (x, y.astype(np.int64)), (xt, yt.astype(np.int64)), 10)


def _idx(folder: Path, name: str) -> Array:
    path = found(folder, name)
    if path is None:
        raise UsageError(f"MNIST needs {folder / name}.gz (or {name}); put the four IDX files into {folder}.")
    data = read(path)
    if len(data) < 8 or data[:3] != b"\0\0\x08" or len(data) < 4 + 4 * data[3]:
        raise UsageError(f"{folder / name} is not an IDX file of bytes.")
    shape = tuple(int(n) for n in np.frombuffer(data, ">i4", data[3], 4))
    if len(data) != 4 + 4 * data[3] + int(np.prod(shape)):
        raise UsageError(f"{folder / name} is of the wrong length: its header promises {shape}.")
    return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(shape).copy()


def _download(folder: Path) -> None:
    for name, digest in _MNIST.items():
        path = folder / f"{name}.gz"
        if found(folder, name) is not None:
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


def cifar10(folder: str | Path | None = None) -> Dataset:
    """CIFAR-10: colour images of 3 x 32 x 32 bytes, 10 classes, from the files of its binary version (packed or not).

    To train, the rows of data_batch_1.bin .. data_batch_5.bin, 10,000 each, of those that are there; to test, those of
    test_batch.bin or, where that is not, of test_first2000.bin, its first 2,000.

    Without a folder: `$FIRESTEEL_DATA/cifar10`, else `~/.cache/firesteel/cifar10`. Nothing is downloaded.

    Raises:
        UsageError: there is no file to train or none to test on, or one is not what it should be.
    """
    place = folder_of("cifar10", folder)
    train = [path for n in range(1, 6) if (path := found(place, f"data_batch_{n}.bin"))]
    test = found(place, "test_batch.bin") or found(place, "test_first2000.bin")
    if not train or test is None:
        raise UsageError(
            f"CIFAR-10 needs {place / 'data_batch_1.bin'} (or more of the five) and test_batch.bin (or test_first2000.bin), "
            "packed by gzip or not; put them there: they are in cifar-10-binary.tar.gz of "
            "https://www.cs.toronto.edu/~kriz/cifar.html."
        )
    parts = [_cifar(path) for path in train]
    x, y = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return Dataset("cifar10", (x, y), _cifar(test), 10)


def _cifar(path: Path) -> tuple[Array, Array]:
    """Rows of a class and 3 x 1024 bytes each."""
    data = np.frombuffer(read(path), np.uint8)
    if not len(data) or len(data) % 3073:
        raise UsageError(f"{path} is no binary CIFAR-10 file: it has {len(data)} bytes, and a row has 3073.")
    rows = data.reshape(-1, 3073)
    if rows[:, 0].max() > 9:
        raise UsageError(f"{path} is no binary CIFAR-10 file: it has a class {rows[:, 0].max()}, and there are 0 .. 9.")
    return rows[:, 1:].reshape(-1, 3, 32, 32).copy(), rows[:, 0].astype(np.int64)
