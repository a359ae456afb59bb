"""From Arrow to tensors: every kind of column against plain Python, in any order, in memory and spilled."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import firesteel
from firesteel.data.batches import Plan, total_steps
from firesteel.data.columns import ROW, Columns, Image, Sequence, Tokens
from firesteel.data.shard import build_shard
from firesteel.data.source import resolve, stream


def batches(table: pa.Table, size: int, order=None):
    """Record batches of `size` rows, numbered, in any order."""
    table = table.append_column(ROW, pa.array(range(len(table)), pa.int64()))
    if order is not None:
        table = table.take(pa.array(order))
    return table.to_batches(max_chunksize=size) if size else []


FLOATS = st.floats(-1e6, 1e6, width=32)


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(1, 30), st.integers(1, 5), st.integers(1, 7), st.sampled_from([10**9, 1]))
def test_rows_come_out_as_they_went_in(data, rows, width, chunk, memory):
    x = np.array(data.draw(st.lists(st.lists(FLOATS, min_size=width, max_size=width), min_size=rows, max_size=rows)))
    y = data.draw(st.lists(st.integers(0, 9), min_size=rows, max_size=rows))
    w = data.draw(st.lists(st.floats(0, 10, width=32), min_size=rows, max_size=rows))
    order = data.draw(st.permutations(range(rows)))
    table = pa.table({"f": x.tolist(), "y": y, "w": w, "one": x[:, 0]})
    columns = Columns(["f", "one"], "y", "w")
    shard = build_shard(batches(table, chunk, order), columns, memory)
    index = torch.tensor(data.draw(st.lists(st.integers(0, rows - 1), max_size=10)), dtype=torch.long)
    batch = shard.take(index)
    expected = np.concatenate([x, x[:, :1]], 1).astype(np.float32)
    np.testing.assert_array_equal(batch.inputs[0].numpy(), expected[index.numpy()])
    np.testing.assert_array_equal(batch.target.numpy(), np.array(y)[index.numpy()])
    assert batch.weight == pytest.approx(sum(w[i] for i in index), rel=1e-5, abs=1e-6)
    assert shard.classes == max(y) + 1
    assert shard.fingerprint() == build_shard(batches(table, rows), columns, 10**9).fingerprint()


@settings(max_examples=40, deadline=None)
@given(st.data(), st.integers(1, 20), st.integers(0, 3))
def test_sequences_are_padded_with_their_lengths(data, rows, depth):
    one = FLOATS if depth == 0 else st.lists(FLOATS, min_size=depth, max_size=depth)
    sequences = data.draw(st.lists(st.lists(one, min_size=1, max_size=6), min_size=rows, max_size=rows))
    kind = pa.list_(pa.float32() if depth == 0 else pa.list_(pa.float32()))
    table = pa.table({"s": pa.array(sequences, kind), "label": [0] * rows})
    shard = build_shard(batches(table, 3), Columns(Sequence("s")), 10**9)
    index = data.draw(st.lists(st.integers(0, rows - 1), min_size=1, max_size=8))
    x, lengths = shard.take(torch.tensor(index)).inputs
    assert lengths.tolist() == [len(sequences[i]) for i in index]
    for row, i in enumerate(index):
        n = len(sequences[i])
        np.testing.assert_array_equal(x[row, :n].numpy(), np.array(sequences[i], np.float32))
        assert not x[row, n:].any()


def test_images_tokens_and_values():
    pixels = np.arange(2 * 12, dtype=np.uint8).reshape(2, 12)
    table = pa.table(
        {"p": [row.tobytes() for row in pixels], "t": [[1, 2], [3, 4]], "v": [0.5, 1.5], "label": [0, 1], "u": [[1.0, 2.0]] * 2}
    )
    image = build_shard(batches(table, 1), Columns(Image("p", (3, 2, 2))), 10**9)
    assert image.values.dtype == torch.uint8  # one byte a pixel in memory
    np.testing.assert_allclose(image.block(0, 2).inputs[0].numpy(), pixels.reshape(2, 3, 2, 2) / np.float32(255))
    tokens = build_shard(batches(table, 2), Columns(Tokens("t"), "v", target="value"), 10**9).block(0, 2)
    assert tokens.inputs[0].tolist() == [[1, 2], [3, 4]] and tokens.target.tolist() == [[0.5], [1.5]]
    wide = build_shard(batches(table, 2), Columns("t", "u", target="value", dtype="float64"), 10**9).block(0, 2)
    assert wide.target.shape == (2, 2) and wide.inputs[0].dtype == torch.float64


def vector(dense=None, sparse=None):
    if dense is not None:
        return {"type": 1, "size": None, "indices": None, "values": dense}
    size, indices, values = sparse
    return {"type": 0, "size": size, "indices": indices, "values": values}


def test_dense_and_sparse_vectors_also_mixed():
    kind = pa.struct(
        [("type", pa.int8()), ("size", pa.int32()), ("indices", pa.list_(pa.int32())), ("values", pa.list_(pa.float64()))]
    )
    vectors = [vector([1.0, 0, 2]), vector(sparse=(3, [2], [5.0])), vector(sparse=(3, [], [])), vector([0.0, 1, 0])]
    table = pa.table({"features": pa.array(vectors, kind), "label": [0, 1, 0, 1]})
    for size in (1, 2, 4):
        x = build_shard(batches(table, size), Columns(), 10**9).block(0, 4).inputs[0]
        assert x.tolist() == [[1, 0, 2], [0, 0, 5], [0, 0, 0], [0, 1, 0]]


def test_a_large_shard_lives_in_a_file_that_nobody_sees(tmp_path):
    table = pa.table({"features": np.random.rand(500, 8).tolist(), "label": [1] * 500})
    spilled = build_shard(batches(table, 50), Columns(), 2000, str(tmp_path))
    plain = build_shard(batches(table, 50), Columns(), 10**9)
    assert list(tmp_path.iterdir()) == []
    index = torch.randperm(500)
    assert torch.equal(spilled.take(index).inputs[0], plain.take(index).inputs[0])
    assert spilled.fingerprint() == plain.fingerprint()


def test_no_rows_at_all():
    shard = build_shard([], Columns(), 10)
    assert shard.rows == 0 and shard.take(torch.empty(0, dtype=torch.long)).rows == 0
    first, second = shard.split(0.5, torch.Generator())
    assert first.rows == second.rows == 0


@pytest.mark.parametrize(
    ("rows", "share", "chosen"),
    [(10, 0.3, [0, 3, 6]), (10, 0.31, [0, 2, 5, 7]), (7, 1.0, list(range(7))), (3, 0.01, [0]), (0, 0.5, [])],
)
def test_a_share_of_the_rows_comes_from_all_along_them(rows, share, chosen):
    table = pa.record_batch({"features": np.arange(rows, dtype=np.float32), "label": [0] * rows, "__row": np.arange(rows)})
    part = build_shard([table] if rows else [], Columns(), 2**30).sample(share)
    assert part.rows == len(chosen)
    assert not chosen or part.block(0, part.rows).inputs[0].view(-1).tolist() == chosen


def test_splits_hold_each_row_once():
    table = pa.table(
        {"features": np.arange(40).reshape(20, 2).tolist(), "label": [0] * 20, "held": [i % 4 == 0 for i in range(20)]}
    )
    shard = build_shard(batches(table, 20, range(19, -1, -1)), Columns(), 10**9)
    train, held = shard.split(0.25, torch.Generator().manual_seed(0))
    rows = [s.block(0, s.rows).inputs[0][:, 0].tolist() for s in (train, held)]
    assert len(rows[1]) == 5 and sorted(rows[0] + rows[1]) == list(range(0, 40, 2))
    marked = build_shard(batches(table, 3), Columns(validation="held"), 10**9).split(0.0, torch.Generator())
    assert marked[1].block(0, 5).inputs[0][:, 0].tolist() == [0, 8, 16, 24, 32]


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 200), st.integers(1, 5), st.integers(1, 40), st.integers(1, 3))
def test_every_row_once_an_epoch_and_as_many_batches_everywhere(rows, workers, batch, epochs):
    shares = [len(range(k, rows, workers)) for k in range(workers)]
    most = max(shares)
    steps = total_steps(most, batch, epochs, None)
    for rank, share in enumerate(shares):
        plan = Plan(share, most, batch, steps, 0, rank)
        seen = [plan.index(step) for step in range(1, steps + 1)]
        assert len(seen) == -(-most // batch) * epochs
        assert all(len(i) <= batch for i in seen)
        for epoch in range(epochs):
            of_epoch = torch.cat(seen[epoch * plan.epoch_steps : (epoch + 1) * plan.epoch_steps])
            assert sorted(of_epoch.tolist()) == list(range(share))
    if share > 30:  # two orders of so many rows are never the same by chance
        assert not torch.equal(plan.order(0), plan.order(1))


@given(st.integers(1, 40), st.integers(1, 5))
@settings(max_examples=30, deadline=None)
def test_rows_are_dealt_out_like_cards(rows, size):
    source, _ = resolve((np.arange(rows, dtype=np.float32)[:, None], np.zeros(rows, np.int64)))
    for rank in range(size):
        shard = build_shard(stream(source, rank, size), source.columns, 10**9)
        got = shard.block(0, shard.rows).inputs[0].view(-1).tolist() if shard.rows else []
        assert got == list(range(rank, rows, size))


def test_a_parquet_folder_is_the_same_as_its_rows(tmp_path):
    import pyarrow.parquet as pq

    table = pa.table({"features": np.arange(60.0).reshape(30, 2).tolist(), "label": [0, 1, 2] * 10})
    for part in range(3):
        pq.write_table(table.slice(part * 10, 10), tmp_path / f"part-{part}.parquet")
    source, _ = resolve(str(tmp_path))
    shard = build_shard(stream(source, 1, 2), source.columns, 10**9)
    assert shard.block(0, 15).inputs[0][:, 0].tolist() == [2.0 * i for i in range(1, 30, 2)]


def test_validation_data_of_its_own():
    x = np.arange(20, dtype=np.float32).reshape(10, 2)
    source, share = resolve((x, np.zeros(10)), validation=(x[:3] + 100, np.ones(3)))
    train, held = build_shard(stream(source, 0, 1), source.columns, 10**9).split(share, torch.Generator())
    assert train.rows == 10 and held.block(0, 3).inputs[0][:, 0].tolist() == [100, 102, 104]


def test_float64_networks_train_in_float64():
    x, y = np.random.default_rng(0).standard_normal((40, 3)), np.zeros(40)
    run = firesteel.train(
        lambda: torch.nn.Linear(3, 1).double(), (x, y), loss="mse", on=firesteel.Local(1), epochs=1, progress="none"
    )
    assert run.model.weight.dtype == torch.float64
