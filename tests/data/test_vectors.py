"""Spark ML's vectors, dense and sparse by turns, against a matrix that NumPy holds."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from firesteel.data.columns import ROW, Columns, Image
from firesteel.data.shard import build_shard

KIND = pa.struct(
    [("type", pa.int8()), ("size", pa.int32()), ("indices", pa.list_(pa.int32())), ("values", pa.list_(pa.float64()))]
)


def table(matrix, sparse):
    """The rows of a matrix as Spark stores them: a sparse one lists its non-zero entries."""
    rows = []
    for row, of_indices in zip(matrix, sparse, strict=True):
        (at,) = row.nonzero()
        if of_indices:
            rows.append({"type": 0, "size": len(row), "indices": at.tolist(), "values": row[at].tolist()})
        else:
            rows.append({"type": 1, "size": None, "indices": None, "values": row.tolist()})
    return pa.table({"v": pa.array(rows, KIND), "label": [0] * len(rows), ROW: range(len(rows))})


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 25), st.integers(1, 9), st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.5, 1.0]), st.integers(1, 30))
def test_vectors_are_the_rows_of_a_matrix(rows, width, seed, share, chunk):
    rng = np.random.default_rng(seed)
    matrix = np.where(rng.random((rows, width)) < 0.5, 0, rng.standard_normal((rows, width)))
    given_rows = table(matrix, rng.random(rows) < share)
    shard = build_shard(given_rows.to_batches(max_chunksize=chunk), Columns("v"), 2**30)
    np.testing.assert_array_equal(shard.block(0, rows).inputs[0].numpy(), matrix.astype(np.float32))
    exact = build_shard(given_rows.to_batches(), Columns("v", dtype="float64"), 2**30)
    np.testing.assert_array_equal(exact.block(0, rows).inputs[0].numpy(), matrix)
    part = build_shard(given_rows.slice(rows // 2).to_batches(), Columns("v"), 2**30)  # Arrow slices start at an offset
    np.testing.assert_array_equal(part.block(0, part.rows).inputs[0].numpy(), matrix[rows // 2 :].astype(np.float32))


def test_images_and_targets_of_vectors():
    matrix = np.array([[0.0, 2.0, 0.0, 4.0], [5.0, 0.0, 7.0, 0.0]])
    given_rows = table(matrix, [True, False])
    image = build_shard(given_rows.to_batches(), Columns(Image("v", (2, 2))), 2**30).take(torch.tensor([1, 0])).inputs[0]
    assert image.tolist() == [[[5, 0], [7, 0]], [[0, 2], [0, 4]]]  # not bytes, so not scaled
    values = build_shard(given_rows.to_batches(), Columns("label", "v", target="value"), 2**30).block(0, 2).target
    assert values.tolist() == matrix.tolist()
