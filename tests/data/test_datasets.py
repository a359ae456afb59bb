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

from firesteel import Image, Sequence, Tokens, UsageError, datasets

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
    monkeypatch.setattr(datasets.images, "_MNIST", {n: hashlib.sha256(served[n]).hexdigest() for n in NAMES})
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
    with pytest.raises(UsageError, match="mnist, cifar10, japanese_vowels, tinyshakespeare, a9a, higgs, and NAME:FOLDER"):
        datasets.load(name)


def test_tables_for_spark():
    table = datasets.dataset._table(np.arange(8, dtype=np.uint8).reshape(2, 2, 2), np.array([1, 0]))
    assert table.schema == pa.schema({"features": pa.binary(), "label": pa.int64()})
    assert table["features"].to_pylist() == [bytes(range(4)), bytes(range(4, 8))]
    table = datasets.dataset._table(np.ones((2, 3), np.float32), np.array([1, 0]))
    assert table["features"].type == pa.list_(pa.float32()) and table["label"].to_pylist() == [1, 0]


# ---- CIFAR-10 --------------------------------------------------------------------------------------------------------


def pictures(labels: list[int]) -> bytes:
    """Rows of the binary version: a class and 3 x 1024 bytes, which here count from the class."""
    return b"".join(bytes([label]) + bytes((label + i) % 256 for i in range(3072)) for label in labels)


def test_cifar10_takes_the_files_that_are_there(tmp_path, monkeypatch):
    (tmp_path / "cifar10").mkdir()
    (tmp_path / "cifar10" / "data_batch_1.bin.gz").write_bytes(gzip.compress(pictures([3, 9])))
    (tmp_path / "cifar10" / "data_batch_4.bin").write_bytes(pictures([0]))
    (tmp_path / "cifar10" / "test_first2000.bin").write_bytes(pictures([5, 6]))
    monkeypatch.setenv("FIRESTEEL_DATA", str(tmp_path))
    found = datasets.cifar10()
    assert found.train[1].tolist() == [3, 9, 0] and found.test[1].tolist() == [5, 6] and found.classes == 10
    assert found.train[0].shape == (3, 3, 32, 32) and found.train[0].dtype == np.uint8
    assert found.train[0][0, 1, 0, 2] == (3 + 1024 + 2) % 256
    (tmp_path / "cifar10" / "test_batch.bin").write_bytes(pictures([7]))
    assert datasets.load(f"cifar10:{tmp_path / 'cifar10'}").test[1].tolist() == [7]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (pictures([1])[:-1], "data_batch_1.bin is no binary CIFAR-10 file: it has 3072 bytes, and a row has 3073"),
        (pictures([10]), "it has a class 10, and there are 0 .. 9"),
        (b"", "it has 0 bytes"),
        (None, r"CIFAR-10 needs .*data_batch_1.bin .*test_batch.bin .* put them there: .*cifar-10-binary.tar.gz"),
    ],
    ids=["cut short", "a class too many", "empty", "missing"],
)
def test_damaged_cifar10(tmp_path, data, message):
    (tmp_path / "test_batch.bin").write_bytes(pictures([1]))
    if data is not None:
        (tmp_path / "data_batch_1.bin").write_bytes(data)
    with pytest.raises(UsageError, match=message):
        datasets.cifar10(tmp_path)


# ---- Japanese Vowels -------------------------------------------------------------------------------------------------


def vowels(*rows: tuple[int, int]) -> str:
    """A file of rows (steps, class): number t of coefficient d is t + d / 10."""
    lines = [":".join(",".join(str(t + d / 10) for t in range(n)) for d in range(12)) + f":{c}" for n, c in rows]
    return "\n".join(["# a comment: of three, words", "@problemName vowels", "@data", *lines, ""])


def test_vowels_are_arrays_of_unequal_length(tmp_path, monkeypatch):
    (tmp_path / "JapaneseVowels_TRAIN.ts").write_text(vowels((2, 1), (3, 9)))
    (tmp_path / "JapaneseVowels_TEST.ts.gz").write_bytes(gzip.compress(vowels((1, 4)).encode()))
    found = datasets.load(f"japanese_vowels:{tmp_path}")
    x, y = found.train
    assert [rows.shape for rows in x] == [(2, 12), (3, 12)] and y.tolist() == [0, 8] and found.test[1].tolist() == [3]
    assert x[1].dtype == np.float32 and x[1][2, 5] == np.float32(2.5) and found.features == Sequence("features")
    table = datasets.dataset._table(*found.train)
    assert np.allclose(table["features"].to_pylist()[0], x[0]) and table["label"].to_pylist() == [0, 8]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (vowels((2, 10)), r"line 4 has 12 rows of numbers and the class 10; there must be 12 of one length"),
        (vowels((2, 1)).replace("0.0,", "0.0,7,"), "line 4 is no row of numbers and a class"),
        (vowels((2, 1)).replace("0.0", "x"), "line 4 is no row of numbers and a class"),
        (vowels((2, 1)).replace(":1\n", "\n"), "line 4"),
        (vowels(), "has no rows after a line @data"),
        ("", "has no rows after a line @data"),
        (None, "Japanese Vowels needs .*JapaneseVowels_TRAIN.ts and JapaneseVowels_TEST.ts.*put them there"),
    ],
)
def test_damaged_vowels(tmp_path, text, message):
    (tmp_path / "JapaneseVowels_TEST.ts").write_text(vowels((1, 4)))
    if text is not None:
        (tmp_path / "JapaneseVowels_TRAIN.ts").write_text(text)
    with pytest.raises(UsageError, match=message):
        datasets.japanese_vowels(tmp_path)


# ---- Tiny Shakespeare ------------------------------------------------------------------------------------------------


def test_windows_of_text(tmp_path):
    text = "the quick brown fox jumps over the lazy dog. " * 2  # 90 characters: 81 and 9
    (tmp_path / "input.txt").write_text(text)
    found = datasets.tinyshakespeare(tmp_path, steps=4)
    symbols = sorted(set(text))
    (x, y), (xt, yt) = found.train, found.test
    assert x.shape == y.shape == (20, 4) and xt.shape == yt.shape == (2, 4) and found.classes == len(symbols) == 28
    assert "".join(symbols[i] for i in x.reshape(-1)) == text[:80] and "".join(symbols[i] for i in y.reshape(-1)) == text[1:81]
    assert "".join(symbols[i] for i in xt.reshape(-1)) == text[81:89] and "".join(symbols[i] for i in yt[1]) == text[86:90]
    assert x.dtype == np.int64 and found.features == Tokens("features")
    table = datasets.dataset._table(*found.train)
    assert table["label"].type == pa.list_(pa.int64()) and table["label"].to_pylist() == y.tolist()
    with pytest.raises(UsageError, match="has 90 characters: too few for windows of 9 in its last tenth"):
        datasets.tinyshakespeare(tmp_path, steps=9)
    with pytest.raises(UsageError, match=r"tinyshakespeare\(steps=0\)"):
        datasets.tinyshakespeare(tmp_path, steps=0)
    with pytest.raises(UsageError, match=r"needs .*input.txt; put it there: https://"):
        datasets.load(f"tinyshakespeare:{tmp_path / 'elsewhere'}")


# ---- a9a and HIGGS ---------------------------------------------------------------------------------------------------


def test_a9a_is_dense_and_its_classes_begin_at_0(tmp_path, monkeypatch):
    (tmp_path / "libsvm").mkdir()
    (tmp_path / "libsvm" / "a9a.gz").write_bytes(gzip.compress(b"-1 3:1 123:1 \n+1 1:0.5\n-1 \n"))
    (tmp_path / "libsvm" / "a9a.t").write_bytes(b"+1 2:1")
    monkeypatch.setenv("FIRESTEEL_DATA", str(tmp_path))
    found = datasets.load("a9a")
    (x, y), (xt, yt) = found.train, found.test
    assert x.shape == (3, 123) and x.dtype == np.float32 and xt.shape == (1, 123) and found.classes == 2
    assert np.argwhere(x).tolist() == [[0, 2], [0, 122], [1, 0]] and x[1, 0] == 0.5 and np.argwhere(xt).tolist() == [[0, 1]]
    assert y.tolist() == [0, 1, 0] and yt.tolist() == [1] and y.dtype == np.int64


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"+1 1:1\n-1 3:1 1", "a9a, line 2 is no row of a9a"),
        (b"+1 1:1\n\n-1 3:1 11:", "a9a, line 3 is no row of a9a"),
        (b"-1 3:one\n", "a9a, line 1 is no row of a9a"),
        (b"-1 3:nan\n", "a9a, line 1 is no row of a9a: the class must be .1 or -1, and values finite"),
        (b"-1 1:1 124:1\n", "a9a, line 1 is no row of a9a: .*124 features"),
        (b"-1 0:1\n", "a9a, line 1 is no row of a9a: Invalid index 0"),
        (b"-1 2:1 2:1\n", "a9a, line 1 is no row of a9a: .*sorted and unique"),
        (b"-1 2:1\n2 2:1\n", "a9a, line 2 is no row of a9a: the class must be"),
        (b"", "a9a has no rows"),
        (None, r"a9a needs .*a9a and a9a.t, packed by gzip or not; put them there: https://"),
    ],
    ids=[
        "cut in an index",
        "cut in a value",
        "a word",
        "NaN",
        "124 features",
        "index 0",
        "twice",
        "class 2",
        "empty",
        "missing",
    ],
)
def test_damaged_a9a(tmp_path, data, message):
    (tmp_path / "a9a.t").write_bytes(b"+1 2:1\n")
    if data is not None:
        (tmp_path / "a9a").write_bytes(data)
    with pytest.raises(UsageError, match=message):
        datasets.a9a(tmp_path)


def test_a9a_cut_while_packed_and_without_scikit_learn(tmp_path, monkeypatch):
    (tmp_path / "a9a.gz").write_bytes(gzip.compress(b"-1 3:1\n" * 100)[:-9])
    (tmp_path / "a9a.t").write_bytes(b"+1 2:1\n")
    with pytest.raises(UsageError, match=r"a9a\.gz cannot be unpacked"):
        datasets.a9a(tmp_path)
    (tmp_path / "a9a.gz").unlink()
    (tmp_path / "a9a").write_bytes(b"-1 3:1\n")
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(UsageError, match=r"^a9a is read by scikit-learn: pip install 'firesteel\[bench\]'"):
        datasets.a9a(tmp_path)


def collision(label: float, first: float = 0.5) -> str:
    return ",".join(f"{value:g}" for value in (label, *(first + i for i in range(28))))


def test_higgs_has_the_class_first(tmp_path):
    (tmp_path / "higgs_train_10k_3sf.csv.gz").write_bytes(gzip.compress(f"{collision(1)}\n{collision(0, 2)}".encode()))
    (tmp_path / "higgs_test_5k.csv").write_text(collision(0, 1e-3) + "\n")
    found = datasets.load(f"higgs:{tmp_path}")
    (x, y), (xt, yt) = found.train, found.test
    assert x.shape == (2, 28) and x.dtype == np.float32 and y.tolist() == [1, 0] and y.dtype == np.int64
    assert x[1].tolist() == [2.0 + i for i in range(28)] and xt[0, 0] == np.float32(1e-3) and yt.tolist() == [0]
    assert found.classes == 2 and x.flags.c_contiguous


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            f"{collision(1)}\n{collision(1)[:20]}",
            "10k_3sf.csv, line 2 has 6 numbers, the first of them 1; there must be a class",
        ),
        (f"{collision(1)}\n{collision(1)}e\n", "10k_3sf.csv, line 2 is no row of numbers: .*27.5e"),
        (f"{collision(1)}\n\n{collision(1)}", "10k_3sf.csv, line 2 is no row of numbers"),
        (collision(2), "line 1 has 29 numbers, the first of them 2"),
        (collision(1)[:-4] + "nan", "line 1 has 29 numbers, .* 28 finite numbers"),
        (collision(1) + ",3", "line 1 has 30 numbers"),
        ("", "10k_3sf.csv has no rows"),
        (None, r"HIGGS needs .*higgs_train_10k_3sf.csv and higgs_test_5k.csv, packed by gzip or not; put them there"),
    ],
    ids=["cut short", "a word", "a hole", "class 2", "NaN", "30 numbers", "empty", "missing"],
)
def test_damaged_higgs(tmp_path, text, message):
    (tmp_path / "higgs_test_5k.csv").write_text(collision(0))
    if text is not None:
        (tmp_path / "higgs_train_10k_3sf.csv").write_text(text)
    with pytest.raises(UsageError, match=message):
        datasets.higgs(tmp_path)


def test_how_frames_are_read():
    assert datasets.digits().features == "features"
    pixels = (np.zeros((2, 3, 32, 32), np.uint8), np.zeros(2, np.int64))
    assert datasets.Dataset("", pixels, pixels, 1).features == Image("features", (3, 32, 32))


# ---- the real files --------------------------------------------------------------------------------------------------


def real(name: str) -> pytest.MarkDecorator:
    there = Path(os.environ.get("FIRESTEEL_DATA", "nowhere"), name).is_dir()
    return pytest.mark.skipif(not there, reason=f"needs the files of {name}: set FIRESTEEL_DATA to the folder of {name}/")


@real("mnist")
def test_the_real_files():
    found = datasets.mnist()
    assert found.train[0].shape == (60000, 28, 28) and found.test[0].shape == (10000, 28, 28)
    assert np.bincount(found.train[1])[:3].tolist() == [5923, 6742, 5958]
    folder = Path(os.environ["FIRESTEEL_DATA"]) / "mnist"
    for name, digest in datasets.images._MNIST.items():
        if (folder / f"{name}.gz").exists():
            assert hashlib.sha256((folder / f"{name}.gz").read_bytes()).hexdigest() == digest


@real("cifar10")
def test_the_real_cifar10():
    found = datasets.cifar10()
    x, y = found.train
    assert x.shape[1:] == (3, 32, 32) and len(x) == len(y) and len(x) % 10_000 == 0
    assert np.bincount(y[:10_000]).tolist() == [1005, 974, 1032, 1016, 999, 937, 1030, 1001, 1025, 981]
    assert len(found.test[1]) in (2000, 10_000)


@real("japanese_vowels")
def test_the_real_vowels():
    found = datasets.japanese_vowels()
    (x, y), (xt, yt) = found.train, found.test
    assert len(x) == 270 and len(xt) == 370
    assert np.bincount(y).tolist() == [30] * 9 and np.bincount(yt).tolist() == [31, 35, 88, 44, 29, 24, 40, 50, 29]
    lengths = [len(rows) for rows in (*x, *xt)]
    assert min(lengths) == 7 and max(lengths) == 29


@real("tinyshakespeare")
def test_the_real_text():
    found = datasets.tinyshakespeare(steps=100)
    assert found.classes == 65 and len(found.train[0]) == 10_038 and len(found.test[0]) == 1115
    assert np.array_equal(found.train[0][1:, 0], found.train[1][:-1, -1])


@real("libsvm")
def test_the_real_a9a():
    found = datasets.a9a()
    (x, y), (xt, yt) = found.train, found.test
    assert x.shape == (32_561, 123) and xt.shape == (16_281, 123)
    assert np.bincount(y).tolist() == [24_720, 7841] and np.bincount(yt).tolist() == [12_435, 3846]
    assert np.isin(x, (0, 1)).all() and np.flatnonzero(xt[-1]).tolist() == [
        2,
        7,
        15,
        18,
        38,
        39,
        50,
        62,
        66,
        72,
        73,
        75,
        81,
        82,
    ]


@real("higgs_uci")
def test_the_real_higgs():
    found = datasets.higgs()
    (x, y), (xt, yt) = found.train, found.test
    assert x.shape == (10_000, 28) and xt.shape == (5000, 28)
    assert np.bincount(y).tolist() == [4705, 5295] and np.bincount(yt).tolist() == [2315, 2685]
    assert np.isin(x.mean(0).round(), (0, 1)).all() and 0.15 < x.std(0).min() < x.std(0).max() < 1.5
    assert np.allclose(xt[0, :3], (0.6238780022, 0.4596590996, -0.3165118694))
