"""Named data sets: what they hold, and what is said where files are missing or damaged."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import struct
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from firesteel import UsageError, datasets

NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def idx(x: np.ndarray) -> bytes:
    return struct.pack(f">HBB{x.ndim}i", 0, 8, x.ndim, *x.shape) + x.tobytes()


@pytest.fixture
def folder(tmp_path):
    """Four small files of the right form, two of them packed."""
    rng = np.random.default_rng(0)
    for name, rows in zip(NAMES, (5, 5, 3, 3), strict=True):
        x = rng.integers(0, 10, (rows, 28, 28) if "images" in name else rows, dtype=np.uint8)
        if "train" in name:
            (tmp_path / f"{name}.gz").write_bytes(gzip.compress(idx(x)))
        else:
            (tmp_path / name).write_bytes(idx(x))
    return tmp_path


def test_digits_are_split_by_class():
    found = datasets.load("digits")
    (x, y), (xt, yt) = found.train, found.test
    assert x.shape == (1433, 64) and xt.shape == (364, 64) and found.classes == 10
    assert x.dtype == np.float32 and x.min() == 0 and x.max() == 1 and y.dtype == np.int64
    share = np.bincount(yt) / (np.bincount(y) + np.bincount(yt))
    assert np.all((share >= 0.2) & (share < 0.21))  # a fifth of every class, rounded up
    assert np.array_equal(datasets.digits().train[0], x)
    assert len(np.unique(np.concatenate([x, xt]), axis=0)) == 1797  # no row in both


def test_digits_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(UsageError, match=r"pip install 'firesteel\[bench\]'"):
        datasets.digits()


def test_packed_and_plain_files(folder, monkeypatch):
    found = datasets.load(f"mnist:{folder}")
    assert found.train[0].shape == (5, 28, 28) and found.train[0].dtype == np.uint8 and found.test[1].shape == (3,)
    monkeypatch.setenv("FIRESTEEL_DATA", str(folder.parent))
    folder.rename(folder.parent / "mnist")
    assert np.array_equal(datasets.mnist().train[0], found.train[0])


DAMAGE = {
    "missing": (
        lambda f: (f / f"{NAMES[0]}.gz").unlink(),
        r"MNIST needs .*train-images-idx3-ubyte.gz .*put the four IDX files",
    ),
    "not packed": (lambda f: (f / f"{NAMES[0]}.gz").write_bytes(b"junk"), "cannot be unpacked"),
    "cut while packed": (
        lambda f: (f / f"{NAMES[0]}.gz").write_bytes((f / f"{NAMES[0]}.gz").read_bytes()[:-20]),
        "cannot be unpacked",
    ),
    "not IDX": (lambda f: (f / NAMES[2]).write_bytes(b"something else"), "not an IDX file of bytes"),
    "cut in its header": (lambda f: (f / NAMES[2]).write_bytes(b"\0\0\x08\x03\0\0\0\1"), "not an IDX file of bytes"),
    "floats": (lambda f: (f / NAMES[2]).write_bytes(b"\0\0\x0d\x01" + b"\0\0\0\1" + b"\0" * 4), "not an IDX file of bytes"),
    "cut short": (lambda f: (f / NAMES[2]).write_bytes(idx(np.zeros((3, 28, 28), np.uint8))[:-1]), "wrong length"),
    "too long": (lambda f: (f / NAMES[2]).write_bytes(idx(np.zeros((3, 28, 28), np.uint8)) + b"x"), "wrong length"),
    "other images": (
        lambda f: (f / NAMES[2]).write_bytes(idx(np.zeros((3, 32, 32), np.uint8))),
        "t10k files .*belong together",
    ),
    "labels of another part": (
        lambda f: (f / NAMES[3]).write_bytes(idx(np.zeros(4, np.uint8))),
        "t10k files .*belong together",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_files(folder, name):
    damage, message = DAMAGE[name]
    damage(folder)
    with pytest.raises(UsageError, match=message):
        datasets.mnist(folder)


def test_downloads_are_checked_and_kept(folder, tmp_path_factory, monkeypatch):
    home = tmp_path_factory.mktemp("home")
    monkeypatch.delenv("FIRESTEEL_DATA", raising=False)
    monkeypatch.setattr(Path, "home", lambda: home)
    served = {}
    for name in NAMES:
        packed = folder / f"{name}.gz"
        served[name] = packed.read_bytes() if packed.exists() else gzip.compress((folder / name).read_bytes())
    asked = []

    def serve(url, timeout):
        asked.append(url)
        return io.BytesIO(served[url.rsplit("/", 1)[1].removesuffix(".gz")])

    monkeypatch.setattr("urllib.request.urlopen", serve)
    with pytest.raises(UsageError, match="wrong checksum; it was not kept"):
        datasets.mnist()  # these are not the real files
    assert not [p for p in home.rglob("*") if p.is_file()]
    monkeypatch.setattr(datasets, "_MNIST", {n: hashlib.sha256(served[n]).hexdigest() for n in NAMES})
    asked.clear()
    assert datasets.mnist().train[0].shape == (5, 28, 28) and len(asked) == 4
    assert datasets.mnist().train[0].shape == (5, 28, 28) and len(asked) == 4  # from the cache


def test_no_network(tmp_path, monkeypatch):
    def fail(url, timeout):
        raise OSError("no route")

    monkeypatch.delenv("FIRESTEEL_DATA", raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setattr("urllib.request.urlopen", fail)
    with pytest.raises(UsageError, match=r"cannot be downloaded \(no route\)\. Put the four IDX files there"):
        datasets.mnist()


@pytest.mark.parametrize("name", ["minst", "digits:3", ""])
def test_unknown_names(name):
    with pytest.raises(UsageError, match="there are digits, mnist and mnist:FOLDER"):
        datasets.load(name)


def test_tables_for_spark():
    table = datasets._table(np.arange(8, dtype=np.uint8).reshape(2, 2, 2), np.array([1, 0]))
    assert table.schema == pa.schema({"features": pa.binary(), "label": pa.int64()})
    assert table["features"].to_pylist() == [bytes(range(4)), bytes(range(4, 8))]
    table = datasets._table(np.ones((2, 3), np.float32), np.array([1, 0]))
    assert table["features"].type == pa.list_(pa.float32()) and table["label"].to_pylist() == [1, 0]


@pytest.mark.skipif(
    "FIRESTEEL_DATA" not in os.environ, reason="needs the MNIST files: set FIRESTEEL_DATA to the folder of mnist/"
)
def test_the_real_files():
    found = datasets.mnist()
    assert found.train[0].shape == (60000, 28, 28) and found.test[0].shape == (10000, 28, 28)
    assert np.bincount(found.train[1])[:3].tolist() == [5923, 6742, 5958]
    folder = Path(os.environ["FIRESTEEL_DATA"]) / "mnist"
    for name, digest in datasets._MNIST.items():
        if (folder / f"{name}.gz").exists():
            assert hashlib.sha256((folder / f"{name}.gz").read_bytes()).hexdigest() == digest
