"""From a DataFrame to the workers: the same rows as without Spark, dealt out evenly, whatever the columns are."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch

from firesteel import UsageError, datasets
from firesteel.data.columns import ROW, Columns, Image, Sequence, Tokens
from firesteel.data.frame import arrow_schema, deal, to_table
from firesteel.data.shard import build_shard
from firesteel.data.source import FrameSource, TableSource, resolve, stream

pytestmark = pytest.mark.spark
ROWS = 23
KINDS = {
    "vectors": Columns("features"),
    "numbers": Columns(["features", "numbers", "a.b"], "a.b", "w", target="value"),
    "bytes": Columns(Image("pixels", (2, 1, 1)), validation="held"),
    "tokens": Columns(Tokens("ids")),
    "sequences": Columns(Sequence("steps")),
}


@pytest.fixture(scope="module")
def frame(spark):
    """Dense and sparse vectors by turns, and a column of every other kind, in one partition."""
    from pyspark.ml.linalg import Vectors, VectorUDT
    from pyspark.sql.types import DataType, StructType

    schema = StructType().add("features", VectorUDT())
    for name, kind in (
        ("numbers", "array<float>"),
        ("ids", "array<int>"),
        ("steps", "array<array<float>>"),
        ("pixels", "binary"),
        ("label", "double"),
        ("w", "double"),
        ("held", "boolean"),
        ("a.b", "double"),
    ):
        schema = schema.add(name, DataType.fromDDL(kind))
    rows = [
        (
            Vectors.dense([i, 1.0]) if i % 2 else Vectors.sparse(2, [0], [float(i)]),
            [float(i), 2.0],
            [i, i + 1],
            [[float(i)]] * (i % 4),
            bytearray([i, 255]),
            float(i % 3),
            0.5 + i,
            i % 5 == 0,
            i / 2,
        )
        for i in range(ROWS)
    ]
    return spark.createDataFrame(rows, schema).coalesce(1).cache()


def shards(dealt, columns):
    """What each worker would build, by partition, from batches as they come out of Spark."""
    from pyspark.sql import functions as F

    table = dealt.select("*", F.spark_partition_id().alias("part")).toArrow()
    parts = np.asarray(table["part"])
    return {
        int(part): build_shard(table.filter(pa.array(parts == part)).drop_columns(["part"]).to_batches(), columns, 2**30)
        for part in np.unique(parts)
    }


def numbers_of(dealt):
    """The rows' numbers by the partition they lie in."""
    found = dealt.selectExpr(ROW, "spark_partition_id() AS part").toArrow()
    parts, rows = np.asarray(found["part"]), np.asarray(found[ROW])
    return {int(part): sorted(rows[parts == part].tolist()) for part in np.unique(parts)}


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_shards_as_without_spark(frame, kind):
    columns = KINDS[kind]
    columns.check(arrow_schema(frame))
    local = TableSource(to_table(frame, columns), columns)
    assert local.table.schema.names == columns.needed()
    dealt = deal(FrameSource(frame, columns), 3)
    assert dealt.columns == [*columns.needed(), ROW]
    found = shards(dealt, columns)
    assert sorted(found) == [0, 1, 2]
    for rank, shard in found.items():
        expected = build_shard(stream(local, rank, 3), columns, 2**30)
        assert shard.rows == len(range(rank, ROWS, 3)) and shard.fingerprint() == expected.fingerprint()
        for a, b in zip(shard.block(0, shard.rows).inputs, expected.block(0, shard.rows).inputs, strict=True):
            assert torch.equal(a, b)


def test_rows_hold_what_the_frame_held(frame):
    table = to_table(frame, Columns("features"))
    table = table.append_column(ROW, pa.array(np.arange(ROWS)))
    batch = build_shard(table.to_batches(), Columns("features"), 2**30).block(0, ROWS)
    assert batch.inputs[0].tolist() == [[i, i % 2] for i in range(ROWS)]
    assert batch.target.tolist() == [i % 3 for i in range(ROWS)]


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_several_partitions_are_dealt_evenly_and_the_same_every_time(spark, workers):
    frame = spark.range(0, 101, 1, 3).selectExpr("CAST(id AS double) AS features", "0 AS label")
    dealt = [numbers_of(deal(FrameSource(frame, Columns()), workers)) for _ in range(2)]
    assert dealt[0] == dealt[1] and sorted(dealt[0]) == list(range(workers))
    assert len({n for rows in dealt[0].values() for n in rows}) == 101
    sizes = [len(rows) for rows in dealt[0].values()]
    assert max(sizes) - min(sizes) <= 3  # at most one row for each partition of the frame
    for part in range(3):  # and as even within each of them
        within = [sum(n >> 33 == part for n in rows) for rows in dealt[0].values()]
        assert max(within) - min(within) <= 1


def test_without_shuffle_partitions_stay(spark):
    frame = spark.range(0, 10, 1, 2).selectExpr("CAST(id AS double) AS features", "0 AS label")
    assert numbers_of(deal(FrameSource(frame, Columns()), 2, shuffle=False)) == {
        0: list(range(5)),
        1: [(1 << 33) + i for i in range(5)],
    }


def test_a_schema_costs_no_job(spark, frame):
    context = spark.sparkContext
    context.setJobGroup("schema", "what arrow_schema starts")
    try:
        schema = arrow_schema(frame.selectExpr("*", "make_ym_interval(1, 2) AS odd"))
        source, _ = resolve(frame, validation="held")
        _ = deal(source, 2)
        assert not context.statusTracker().getJobIdsForGroup("schema")
        _ = frame.count()
        assert context.statusTracker().getJobIdsForGroup("schema")  # a job would have been seen
    finally:
        context.setLocalProperty("spark.jobGroup.id", None)
    assert schema.names == [*frame.columns, "odd"]  # a column that Arrow does not carry does no harm
    assert schema.field("features").type == to_table(frame, Columns()).schema.field("features").type
    with pytest.raises(UsageError, match="'odd' has the type"):
        Columns("odd").check(schema)


def test_validation_data_of_its_own(spark, frame):
    source, share = resolve(frame, validation=frame.limit(4))
    table = to_table(source.frame, source.columns).append_column(ROW, pa.array(np.arange(ROWS + 4)))
    train, held = build_shard(table.to_batches(), source.columns, 2**30).split(share, torch.Generator())
    assert (train.rows, held.rows) == (ROWS, 4)
    assert held.block(0, 4).inputs[0].tolist() == [[i, i % 2] for i in range(4)]


def test_frames_that_cannot_be_used(spark, frame):
    twice = frame.select("features", "label", "label")
    with pytest.raises(UsageError, match="2 columns 'label'"):
        resolve(twice)
    with pytest.raises(UsageError, match=r"no column 'Label'.*Did you mean 'label'"):
        resolve(frame, label="Label")
    with pytest.raises(UsageError, match=r"validation data does not fit.*no column 'label'"):
        resolve(frame, validation=frame.drop("label"))
    with pytest.raises(UsageError, match=r"'features' has the type struct.*but in the validation data list"):
        resolve(frame, validation=frame.selectExpr("numbers AS features", "label"))
    with pytest.raises(UsageError, match="of the same kind"):
        resolve(frame, validation=(np.zeros((2, 2)), np.zeros(2)))


def test_data_sets_as_frames(spark):
    train, test = datasets.digits().frame(spark)
    assert train.schema.simpleString() == "struct<features:array<float>,label:bigint>" and test.count() == 364
    columns = Columns()
    x = datasets.digits().train[0]
    table = to_table(train, columns).append_column(ROW, pa.array(np.arange(len(x))))
    found = build_shard(table.to_batches(), columns, 2**30).block(0, len(x)).inputs[0]
    np.testing.assert_array_equal(found.numpy(), x)
