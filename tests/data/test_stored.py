"""How a shard keeps its rows: fingerprints, files, memory that may be written to, sequences without steps."""

from __future__ import annotations

import gc
import os
import warnings

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from firesteel.data.columns import ROW, Columns, Image, Sequence
from firesteel.data.shard import build_shard

N = 300
_rng = np.random.default_rng(0)
PIXELS = _rng.integers(0, 256, (N, 12), dtype=np.uint8)
LISTS = [_rng.random(n).astype(np.float32).tolist() for n in _rng.integers(0, 9, N)]
TABLE = pa.table(
    {
        "pixels": [row.tobytes() for row in PIXELS],
        "plain": PIXELS.astype(np.float32).tolist(),
        "steps": pa.array(LISTS, pa.list_(pa.float32())),
        "label": np.arange(N) % 7,
        "w": np.arange(N) / N,
        ROW: np.arange(N),
    }
)
KINDS = {
    "bytes": Columns(Image("pixels", (3, 2, 2)), weight="w"),
    "numbers": Columns("plain", weight="w"),
    "sequences": Columns(Sequence("steps"), weight="w"),
}


def build(columns, table=TABLE, chunk=64, memory=2**30, folder=None):
    return build_shard(table.to_batches(max_chunksize=chunk), columns, memory, folder)


def changed(name, row, value):
    values = TABLE[name].to_pylist()
    values[row] = value
    return TABLE.set_column(TABLE.column_names.index(name), name, pa.array(values, TABLE[name].type))


@pytest.mark.parametrize("kind", KINDS)
def test_a_fingerprint_is_of_the_rows_and_of_nothing_else(kind, tmp_path):
    columns = KINDS[kind]
    first = build(columns).fingerprint()
    shuffled = TABLE.take(pa.array(np.random.default_rng(1).permutation(N)))
    assert first == build(columns, chunk=7).fingerprint()  # not of the batches
    assert first == build(columns, shuffled).fingerprint()  # not of the order of arrival
    assert first == build(columns, memory=1, folder=str(tmp_path)).fingerprint()  # not of the place
    name = columns.feature_names()[0]
    other = {"pixels": b"\1" * 12, "plain": [0.0] * 12, "steps": [1.0]}[name]
    for table in (changed(name, 299, other), changed("label", 0, 5), changed("w", 150, 9.0), TABLE.slice(1)):
        assert build(columns, table).fingerprint() != first
    turned = TABLE.drop_columns([ROW]).take(pa.array(np.arange(N)[::-1])).append_column(ROW, TABLE[ROW])
    assert build(columns, turned).fingerprint() != first


def test_a_fingerprint_is_the_same_on_another_day():
    """Written down once: a run that is resumed after an upgrade must know its own rows."""
    table = pa.table({"x": [[1.0, 2.0], [3.0, 4.0]], "label": [0, 1], ROW: [0, 1]})
    assert build(Columns("x"), table).fingerprint() == "2-b63ae082"
    assert build_shard([], Columns(), 1).fingerprint() == "0-00000000"


def test_where_sequences_are_cut_counts():
    def shard(lists):
        return build(Columns(Sequence("x")), pa.table({"x": lists, "label": [0, 0], ROW: [0, 1]}))

    assert shard([[1, 2], [3]]).fingerprint() != shard([[1], [2, 3]]).fingerprint()


def test_a_part_has_the_fingerprint_of_its_rows():
    whole = build(KINDS["sequences"])
    rows = torch.tensor([3, 290, 17])
    alone = TABLE.take(pa.array(rows.numpy())).set_column(TABLE.column_names.index(ROW), ROW, pa.array([0, 1, 2]))
    assert whole.select(rows).fingerprint() == build(KINDS["sequences"], alone).fingerprint()


@pytest.mark.parametrize("kind", KINDS)
def test_a_spilled_shard_leaves_nothing_behind(kind, tmp_path):
    gc.collect()  # what earlier tests have left open is theirs
    files = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shard = build(KINDS[kind], memory=1000, folder=str(tmp_path))
        plain = build(KINDS[kind])
        assert os.listdir(tmp_path) == []
        index = torch.randperm(N, generator=torch.Generator().manual_seed(0))[:64]
        for a, b in zip(shard.take(index).inputs, plain.take(index).inputs, strict=True):
            assert torch.equal(a, b)
        shard.values[0] = 0  # the file belongs to this shard alone, so that writing is safe
        assert not shard.values[0].any() and plain.values.any()
    if files:
        del shard
        gc.collect()
        assert len(os.listdir("/proc/self/fd")) == files


def test_shards_do_not_write_into_arrow_memory():
    batch = pa.record_batch({"x": pa.array([[1.0, 2.0]], pa.list_(pa.float32())), "label": [0], ROW: [0]})
    shard = build_shard([batch], Columns("x"), 2**30)
    shard.values.add_(1)
    assert batch.column("x").to_pylist() == [[1.0, 2.0]]


def test_a_batch_does_not_write_into_the_shard():
    """Models may work in place on what `take` gives them."""
    for columns in KINDS.values():
        shard = build(columns)
        before = shard.fingerprint()
        batch = shard.take(torch.arange(10))
        for x in (*batch.inputs, batch.target, batch.weights):
            x.add_(1)
        assert shard.fingerprint() == before


def test_a_file_is_used_only_beyond_the_limit(tmp_path):
    folder = str(tmp_path / "not there")
    assert build(KINDS["bytes"], memory=PIXELS.nbytes, folder=folder).rows == N
    with pytest.raises(FileNotFoundError):
        build(KINDS["bytes"], memory=PIXELS.nbytes - 1, folder=folder)


@pytest.mark.parametrize("memory", [1, 2**30], ids=["spilled", "converted"])
def test_batches_are_let_go(tmp_path, memory):
    """A batch of a stream is one piece of memory: neither its labels nor its row numbers may keep it there."""
    batches, rows, width = 40, 100, 500
    schema = pa.schema(
        {"x": pa.list_(pa.float64(), width), "label": pa.int64(), "w": pa.float32(), "held": pa.bool_(), ROW: pa.int64()}
    )
    path = str(tmp_path / "stream")
    with pa.OSFile(path, "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for i in range(batches):
            x = pa.FixedSizeListArray.from_arrays(pa.array(np.full(rows * width, float(i))), width)
            small = [np.zeros(rows, np.int64), np.ones(rows, np.float32), np.zeros(rows, bool), np.arange(rows) + i * rows]
            writer.write_batch(pa.record_batch([x, *map(pa.array, small)], schema=schema))
    before, most = pa.total_allocated_bytes(), 0

    def watched(stream):
        nonlocal most
        for batch in stream:
            most = max(most, pa.total_allocated_bytes() - before)
            yield batch

    with pa.OSFile(path) as source, pa.ipc.open_stream(source) as reader:
        shard = build_shard(watched(reader), Columns("x", "label", "w", "held"), memory, str(tmp_path))
    one_bytes = rows * width * 8
    assert one_bytes <= most < 4 * one_bytes
    assert shard.rows == batches * rows and shard.block(rows, rows + 1).inputs[0][0, 0] == 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=12), st.integers(1, 5), st.sampled_from([1, 2**30]), st.booleans())
@example([0, 2], 1, 2**30, False)  # drawn too seldom: a batch without steps, first
@example([2, 0], 1, 2**30, False)  # last
@example([2, 0], 1, 1, False)  # last, in a file
@example([0, 0], 1, 2**30, False)  # nothing but such batches
def test_sequences_without_steps(lengths, chunk, memory, flat):
    """Also where a whole batch has no step, so that its width is not known."""
    step = 1.0 if flat else [1.0, 2.0]
    kind = pa.list_(pa.float32()) if flat else pa.list_(pa.list_(pa.float32()))
    lists = pa.array([[step] * n for n in lengths], kind)
    table = pa.table({"x": lists, "label": [0] * len(lengths), ROW: range(len(lengths))})
    shard = build(Columns(Sequence("x")), table, chunk, memory)
    x, found = shard.take(torch.arange(len(lengths))).inputs
    assert found.tolist() == lengths and x.shape[:2] == (len(lengths), max(lengths))
    for row, n in zip(x, lengths, strict=True):
        assert row[:n].tolist() == [step] * n and not row[n:].any()


def test_a_shard_without_rows_knows_its_width_if_it_ever_had_one():
    shard = build(KINDS["bytes"])
    none = shard.select(torch.empty(0, dtype=torch.long))
    assert none.block(0, 0).inputs[0].shape == (0, 3, 2, 2) and none.classes is None
    assert build_shard([], KINDS["bytes"], 1).block(0, 0).inputs == ()
    assert build_shard([TABLE.to_batches()[0].slice(0, 0)], KINDS["bytes"], 1).rows == 0
