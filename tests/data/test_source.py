"""What `data` and `validation` may be, what they become, and how workers read them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from firesteel import UsageError
from firesteel.data.columns import ROW, Columns, Image, Tokens
from firesteel.data.shard import build_shard
from firesteel.data.source import ParquetSource, TableSource, resolve, stream

X = np.arange(24, dtype=np.float32).reshape(8, 3)
Y = np.arange(8) % 2
BYTES = np.arange(8 * 4, dtype=np.uint8).reshape(8, 2, 2)


def rows(source, rank=0, size=1):
    shard = build_shard(stream(source, rank, size), source.columns, 2**30)
    return shard.block(0, shard.rows)


def write(path, table):
    pq.write_table(table, path)
    return str(path)


TABLE = pa.table({"features": X.tolist(), "label": Y})


# ---- arrays ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "features"),
    [
        (X, "features"),
        (X.astype(np.float64), "features"),
        (X.astype(np.float16), "features"),
        (X[:, 0], "features"),
        (X.astype(">f4"), "features"),
        (np.asfortranarray(X), "features"),
        (torch.from_numpy(X).requires_grad_(), "features"),
        (torch.from_numpy(X).bfloat16(), "features"),
        (X.astype(int), Tokens("features")),
        (X.reshape(8, 3, 1), Image("features", (3, 1))),
        (BYTES, Image("features", (2, 2))),
        (X.tolist(), "features"),
    ],
    ids=lambda x: f"{getattr(x, 'dtype', '')}{list(np.shape(x))}" if not isinstance(x, str) else x,
)
def test_arrays_become_the_same_tensors(x, features):
    source, share = resolve((x, Y))
    assert source.columns.features == features and share == 0
    batch = rows(source)
    expected = x.detach().float().numpy() if isinstance(x, torch.Tensor) else np.asarray(x)
    expected = expected.reshape(8, 1) if expected.ndim == 1 else expected
    scale = np.float32(1 / 255) if expected.dtype == np.uint8 else 1
    np.testing.assert_allclose(batch.inputs[0].numpy(), expected * scale, rtol=1e-6)
    assert batch.inputs[0].dtype == (torch.int64 if isinstance(features, Tokens) else torch.float32)
    assert batch.target.tolist() == Y.tolist()


def test_weights_and_names():
    source, _ = resolve((X, Y, np.arange(8.0)), features="x", label="y", weight="w")
    assert source.columns == Columns("x", "y", "w") and rows(source).weight == 28
    assert resolve((X, Y, np.ones((8, 1))))[0].columns.weight == "weight"


BAD_ARRAYS = {
    "rows that differ": ((X, Y[:-1]), "X has 8 rows, but y has 7"),
    "weights that differ": ((X, Y, Y[:-1]), "X has 8 rows, but weights has 7"),
    "two weights a row": ((X, Y, np.ones((8, 2))), r"weights has the shape \(8, 2\)"),
    "text": ((X, ["a"] * 8), "y has the type <U1; it must hold numbers"),
    "objects": ((np.array([None] * 8), Y), "X has the type object"),
    "ragged lists": (([[1.0], [1.0, 2.0]], [0, 1]), "X cannot be read as an array"),
    "a single number": ((3.0, Y), "X is a single number"),
    "no rows": ((X[:0], Y[:0]), "the data has no rows"),
    "a tuple of one": ((X,), "data is a tuple; give a Spark DataFrame"),
    "nothing known": (object(), "data is a object; give"),
}


@pytest.mark.parametrize("name", BAD_ARRAYS)
def test_bad_arrays(name):
    data, message = BAD_ARRAYS[name]
    with pytest.raises(UsageError, match=message):
        resolve(data)


# ---- validation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0, 0.25, np.float32(0.25), np.float64(0.25)])
def test_a_share(share):
    source, found = resolve((X, Y), validation=share)
    assert found == share and type(found) is float and source.columns.validation is None


@pytest.mark.parametrize("share", [-0.1, 1, 1.0, 2, float("nan"), True])
def test_a_share_that_cannot_be(share):
    with pytest.raises(UsageError, match="share"):
        resolve((X, Y), validation=share)


def test_an_indicator_column():
    table = TABLE.append_column("late", pa.array([i > 5 for i in range(8)]))
    source, share = resolve(table, validation="late")
    train, held = build_shard(stream(source, 0, 1), source.columns, 2**30).split(share, torch.Generator())
    assert (train.rows, held.rows) == (6, 2)
    with pytest.raises(UsageError, match=r"no column 'lat'\. Did you mean 'late'"):
        resolve(table, validation="lat")


def test_validation_data_follows_the_training_data(tmp_path):
    other = pa.table({"features": (X[:3] + 100).tolist(), "label": [1, 1, 1], "more": ["x"] * 3})
    paths = write(tmp_path / "a.parquet", TABLE), write(tmp_path / "b.parquet", other)
    for data, held in ((TABLE, other), ((X, Y), (X[:3] + 100, np.ones(3, np.float32))), paths):
        source, share = resolve(data, validation=held)
        parts = [build_shard(stream(source, k, 2), source.columns, 2**30).split(share, torch.Generator()) for k in (0, 1)]
        train, kept = ([x for part in parts for x in part[i].block(0, part[i].rows).inputs[0][:, 0].tolist()] for i in (0, 1))
        assert sorted(train) == X[:, 0].tolist() and sorted(kept) == [100, 103, 106]


BAD_VALIDATION = {
    "of another kind": (TABLE, Path(), "validation data must be of the same kind"),
    "without the label": (TABLE, TABLE.drop_columns(["label"]), "validation data does not fit.*no column 'label'"),
    "without rows": (TABLE, TABLE.slice(0, 0), "the validation data has no rows"),
    "of another width": ((X, Y), (X[:, :2], Y), r"'features' has the type .*\[3\], but in the validation data .*\[2\]"),
    # United they would be floats, and the training rows no longer be scaled by 1/255.
    "floats beside bytes": (
        (BYTES, Y),
        (BYTES / np.float32(255), Y),
        "'features' has the type .*uint8.*validation data .*float",
    ),
    "weights only here": ((X, Y), (X, Y, Y), "validation data has weights, but the training data has none"),
    "no weights here": ((X, Y, Y), (X, Y), "validation data does not fit.*no column 'weight'"),
    "a number beside lists": (TABLE, pa.table({"features": [1.0], "label": [0]}), "'features' has the type list"),
    "an object": (TABLE, object(), "data is a object"),
}


@pytest.mark.parametrize("name", BAD_VALIDATION)
def test_bad_validation_data(name):
    data, held, message = BAD_VALIDATION[name]
    with pytest.raises(UsageError, match=message):
        resolve(data, validation=held)


# ---- streams ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 11])
def test_every_kind_of_source_deals_the_same_rows(size, tmp_path):
    for part in range(4):
        write(tmp_path / f"{part}.parquet", TABLE.slice(2 * part, 2))
    chunked = pa.concat_tables([TABLE.slice(0, 1), TABLE.slice(1, 5), TABLE.slice(6)])
    for source in (resolve(x)[0] for x in (TABLE, chunked, tmp_path, str(tmp_path))):
        for rank in range(size):
            batches = list(stream(source, rank, size))
            numbers = [n for batch in batches for n in batch.column(ROW).to_pylist()]
            values = [v[0] for batch in batches for v in batch.column("features").to_pylist()]
            assert numbers == list(range(rank, 8, size)) and values == [3.0 * n for n in numbers]
            assert all(batch.schema.names == ["features", "label", ROW] and batch.num_rows for batch in batches)


def test_only_the_needed_columns_are_read(tmp_path):
    wide = TABLE.append_column("text", pa.array(["x"] * 8))
    for source in (resolve(wide)[0], resolve(write(tmp_path / "x.parquet", wide))[0]):
        assert next(stream(source, 0, 2)).schema.names == ["features", "label", ROW]


def test_large_rows_come_in_small_batches(tmp_path):
    """What is in memory at a time is bounded in bytes, not in rows."""
    rng = np.random.default_rng(0)
    photographs = [rng.bytes(2**20) for _ in range(80)]
    path = write(tmp_path / "x.parquet", pa.table({"p": photographs, "label": range(80)}))
    batches = list(stream(ParquetSource(path, Columns(Image("p", (2**20,)))), 0, 1))
    assert max(batch.num_rows for batch in batches) <= 64
    assert [p for batch in batches for p in batch.column("p").to_pylist()] == photographs
    small = write(tmp_path / "y.parquet", pa.table({"x": np.arange(70_000.0), "label": np.zeros(70_000, int)}))
    assert max(b.num_rows for b in stream(ParquetSource(small, Columns("x")), 0, 1)) == 65536


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "junk.parquet").write_text("not Parquet")
    (tmp_path / "empty").mkdir()
    empty = write(tmp_path / "none.parquet", TABLE.slice(0, 0))
    for path, message in (
        (tmp_path / "nowhere", "no file or folder"),
        (tmp_path / "junk.parquet", "cannot be read as Parquet"),
        (tmp_path / "empty", "no Parquet files"),
        (empty, "the data has no rows"),
        ("nowhere://x", "cannot be read as Parquet"),
    ):
        with pytest.raises(UsageError, match=message):
            resolve(path)


def test_a_table_is_not_copied():
    source, _ = resolve(TABLE)
    assert isinstance(source, TableSource) and source.table is TABLE
    one = next(stream(source, 0, 1))
    assert one.column("label").buffers()[1].address == TABLE["label"].chunk(0).buffers()[1].address
