"""Tables of numbers, two classes each: a9a, HIGGS."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from firesteel.datasets.dataset import Array, Arrays, Dataset, folder_of, found, read
from firesteel.errors import UsageError

_A9A_FEATURES, _HIGGS_FEATURES = 123, 28


def a9a(folder: str | Path | None = None) -> Dataset:
    """a9a (Platt 1999): who earns over 50,000 dollars a year, by the census; 32,561 and 16,281 rows of 123 zeros and ones.

    X is float32 [n, 123]; y is 0 for the file's -1 and 1 for +1, of which there are 24 %. From the files a9a and a9a.t of the
    LIBSVM collection (packed or not), read by scikit-learn.

    Without a folder: `$FIRESTEEL_DATA/libsvm`, else `~/.cache/firesteel/libsvm`. Nothing is downloaded.

    Raises:
        UsageError: a file is missing, or a line is not what it should be; or scikit-learn is not installed.
    """
    place = folder_of("libsvm", folder)
    train, test = found(place, "a9a"), found(place, "a9a.t")
    if train is None or test is None:
        raise UsageError(
            f"a9a needs {place / 'a9a'} and a9a.t, packed by gzip or not; put them there: "
            "https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/binary.html has them."
        )
    return Dataset("a9a", _libsvm(train), _libsvm(test), 2)


def _libsvm(path: Path) -> Arrays:
    data = read(path)
    try:
        x, y = _parsed(data)
    except ImportError as error:
        raise UsageError("a9a is read by scikit-learn: pip install 'firesteel[bench]'.") from error
    except ValueError:
        number, error = next(_refused(data))
        raise UsageError(f"{path}, line {number} is no row of a9a: {error}.") from error
    if not len(y):
        raise UsageError(f"{path} has no rows.")
    return x.toarray(), (y > 0).astype(np.int64)


def _parsed(data: bytes) -> tuple[Any, Array]:
    """X, sparse, and y of a row a line: +1 or -1, then number:value of what is not 0, numbered 1 .. 123 in ascending order."""
    from sklearn.datasets import load_svmlight_file

    load: Any = load_svmlight_file  # its types are narrower than what it takes
    x, y = load(io.BytesIO(data), n_features=_A9A_FEATURES, dtype=np.float32, zero_based=False)
    if not (np.abs(y) == 1).all() or not np.isfinite(x.data).all():
        raise ValueError("the class must be +1 or -1, and values finite")
    return x, y


def _refused(data: bytes) -> Iterator[tuple[int, ValueError]]:
    """The lines that are no rows, as scikit-learn does not number them."""
    for number, line in enumerate(data.splitlines(), 1):
        try:
            _ = _parsed(line)
        except ValueError as error:
            yield number, error


def higgs(folder: str | Path | None = None) -> Dataset:
    """HIGGS (Baldi et al. 2014), a sample: which collisions make a Higgs boson; 10,000 and 5,000 rows of 28 numbers.

    X is float32 [n, 28], as measured: means of 0 or 1 and deviations of 0.2 to 1.4, which a network takes as they are; where
    more is asked of them, scale both parts by the training rows' mean and deviation. y is 1 for a boson, 53 % of the rows.
    From the files higgs_train_10k_3sf.csv (of three significant digits) and higgs_test_5k.csv, packed or not: the class and
    28 numbers a line, as HIGGS.csv of the UCI archive has them.

    Without a folder: `$FIRESTEEL_DATA/higgs_uci`, else `~/.cache/firesteel/higgs_uci`. Nothing is downloaded.

    Raises:
        UsageError: a file is missing, or a line is not what it should be.
    """
    place = folder_of("higgs_uci", folder)
    train, test = found(place, "higgs_train_10k_3sf.csv"), found(place, "higgs_test_5k.csv")
    if train is None or test is None:
        raise UsageError(
            f"HIGGS needs {place / 'higgs_train_10k_3sf.csv'} and higgs_test_5k.csv, packed by gzip or not; put them there: "
            "lines of HIGGS.csv of https://archive.ics.uci.edu/dataset/280/higgs."
        )
    return Dataset("higgs", _collisions(train), _collisions(test), 2)


def _collisions(path: Path) -> Arrays:
    rows: list[Array] = []
    for number, line in enumerate(read(path).decode("utf-8", "replace").splitlines(), 1):
        try:
            row = np.array(line.split(","), np.float32)
        except ValueError as error:
            raise UsageError(f"{path}, line {number} is no row of numbers: {error}.") from error
        if len(row) != 1 + _HIGGS_FEATURES or row[0] not in (0, 1) or not np.isfinite(row).all():
            raise UsageError(
                f"{path}, line {number} has {len(row)} numbers, the first of them {row[0]:g}; there must be a class, 0 or 1, "
                f"and {_HIGGS_FEATURES} finite numbers."
            )
        rows.append(row)
    if not rows:
        raise UsageError(f"{path} has no rows.")
    table = np.stack(rows)
    return np.ascontiguousarray(table[:, 1:]), table[:, 0].astype(np.int64)
