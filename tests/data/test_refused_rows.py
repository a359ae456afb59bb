"""Rows that cannot be trained on are refused with the column, how many there are and which is the first."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from firesteel import UsageError
from firesteel.data.columns import ROW, Columns, Image, Sequence, Tokens
from firesteel.data.shard import build_shard

VECTOR = pa.struct(
    [("type", pa.int8()), ("size", pa.int32()), ("indices", pa.list_(pa.int32())), ("values", pa.list_(pa.float64()))]
)


def sparse(size, indices, values):
    return {"type": 0, "size": size, "indices": indices, "values": values}


def build(columns=None, first_row=100, memory=2**30, **given):
    """A shard of one batch whose rows are numbered from 100."""
    table = pa.table({"label": [0] * len(next(iter(given.values()))), **given})
    table = table.append_column(ROW, pa.array(range(first_row, first_row + len(table)), pa.int64()))
    return build_shard(table.to_batches(), columns or Columns("x"), memory)


REFUSED = {
    "a null number": (dict(x=[1.0, None, None]), r"'x' holds nulls.*2 rows, the first is row 101"),
    "a null list": (dict(x=[[1.0], None]), r"'x' holds nulls.*1 row, the first is row 101"),
    "a null inside a list": (dict(x=[[1.0], [2.0], [None]]), r"'x' holds nulls inside its lists.*first is row 102"),
    "a null vector": (dict(x=pa.array([sparse(2, [0], [1.0]), None], VECTOR)), r"'x' holds nulls.*row 101"),
    "a null label": (dict(x=[1.0, 2.0], label=[0, None]), r"'label' holds nulls.*row 101"),
    "NaN": (dict(x=[[1.0, 2.0], [np.nan, 1.0], [1.0, 2.0]]), r"'x' holds NaN or infinity.*1 row, the first is row 101"),
    "infinity": (dict(x=[1.0, -np.inf]), r"'x' holds NaN or infinity.*row 101"),
    "too large for float32": (dict(x=[1.0, 1e300]), r"'x' holds NaN or infinity.*row 101"),
    "NaN in a sparse vector": (dict(x=pa.array([sparse(2, [0], [np.nan])], VECTOR)), r"'x' holds NaN or infinity.*row 100"),
    "lists of unequal length": (dict(x=[[1.0], [1.0, 2.0]]), r"'x' holds lists of unequal length, from 1 to 2.*Sequence"),
    "vectors of unequal size": (
        dict(x=pa.array([sparse(2, [0], [1.0]), sparse(3, [0], [1.0])], VECTOR)),
        r"'x' holds lists of unequal length, from 2 to 3",
    ),
    "half a class": (dict(x=[1.0, 2.0], label=[0.0, 0.5]), r"'label' must hold classes.*fractions.*row 101"),
    "a class beyond int64": (dict(x=[1.0, 2.0], label=[0.0, 1e300]), r"'label' must hold classes.*row 101"),
    "a negative class": (dict(x=[1.0, 2.0, 3.0], label=[-1, 0, -2]), r"'label'.*negative.*2 rows, the first is row 100"),
    "a NaN label": (dict(x=[1.0], label=[np.nan]), r"'label' holds NaN"),
    "a negative weight": (dict(x=[1.0, 2.0], w=[0.0, -1.0], columns=Columns("x", weight="w")), r"'w'.*negative.*row 101"),
    "lists of classes of unequal length": (
        dict(x=[1.0, 2.0], label=[[0, 1], [0]]),
        r"'label' holds lists of unequal length, from 1 to 2; labels must have as many entries in every row.*row 101",
    ),
    "a fraction in a list of classes": (dict(x=[1.0, 2.0], label=[[0, 1], [0, 0.5]]), r"'label' must hold classes.*row 101"),
    "a null weight": (dict(x=[1.0, 2.0], w=[0.0, None], columns=Columns("x", weight="w")), r"'w' holds nulls.*row 101"),
    "an infinite weight": (dict(x=[1.0], w=[np.inf], columns=Columns("x", weight="w")), r"'w' holds NaN or infinity"),
    "a null indicator": (dict(x=[1.0, 2.0], v=[True, None], columns=Columns("x", validation="v")), r"'v' holds nulls.*row 101"),
    "bytes that do not fit": (
        dict(x=[b"abc", b"abc"], columns=Columns(Image("x", (2, 2)))),
        r"'x' has 3 numbers a row, but shape \(2, 2\) needs 4",
    ),
    "bytes of unequal length": (dict(x=[b"abcd", b"abc"], columns=Columns(Image("x", (2, 2)))), r"'x'.*from 3 to 4.*row 101"),
    "tokens of unequal length": (dict(x=[[1], [1, 2]], columns=Columns(Tokens("x"))), r"'x' holds lists of unequal length"),
    "a sequence too long": (
        dict(x=[[1], [1, 2, 3]], columns=Columns(Sequence("x", max_length=2))),
        r"'x' holds lists longer than max_length=2 \(1 row, the first is row 101\)",
    ),
    "NaN in a sequence": (dict(x=[[1.0], [], [0.0, np.nan]], columns=Columns(Sequence("x"))), r"'x' holds NaN.*row 102"),
    "steps of unequal width": (
        dict(x=[[[1.0]], [[1.0, 2.0]]], columns=Columns(Sequence("x"))),
        r"'x'.*unequal length.*row 101",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    given, message = REFUSED[name]
    with pytest.raises(UsageError, match=message):
        build(**given)


@pytest.mark.parametrize("memory", [2**30, 1], ids=["in memory", "spilled"])
def test_batches_must_agree(memory):
    """In a file rows of two kinds could not be told apart, so the second batch is refused before it is written."""

    def batches(*arrays):
        for i, x in enumerate(arrays):
            yield pa.record_batch({"x": x, "label": pa.array([0]), ROW: pa.array([i])})

    with pytest.raises(UsageError, match="'x' has 1 numbers in some rows and 2 in others"):
        build_shard(batches(pa.array([[1.0, 2.0]]), pa.array([[1.0]])), Columns("x"), memory)
    labels = (pa.record_batch({"x": [1.0], "label": [[0] * n], ROW: [n]}) for n in (1, 2))
    with pytest.raises(UsageError, match="'label' has 2 numbers in some rows and 1 in others"):
        build_shard(labels, Columns("x"), memory)
    narrow, wide = pa.array([[1]], pa.list_(pa.uint8())), pa.array([[1.0]], pa.list_(pa.float32()))
    with pytest.raises(UsageError, match="'x' is float32 in some rows and uint8 in others"):
        build_shard(batches(narrow, wide), Columns(Image("x", (1,))), memory)


def test_spark_ml_labels_are_classes():
    """Spark ML's labels are doubles: 0.0, 1.0, ..."""
    shard = build(x=[1.0, 2.0, 3.0], label=[0.0, 2.0, 1.0])
    assert shard.block(0, 3).target.tolist() == [0, 2, 1] and shard.classes == 3
