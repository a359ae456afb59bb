"""Spark's side of the data plane: a DataFrame's rows, dealt out to workers as Arrow batches."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from firesteel.data.columns import ROW, Columns
from firesteel.data.source import HELD, FrameSource, ParquetSource, TableSource

_compute: Any = pc  # its functions are made at run time, so a type checker does not know them


def arrow_schema(frame: Any) -> pa.Schema:
    """The schema as workers will see it, vectors unwrapped; starts no Spark job."""
    from pyspark.errors import PySparkTypeError
    from pyspark.sql.pandas.types import to_arrow_schema
    from pyspark.sql.types import StructField, StructType, UserDefinedType

    found = []
    for f in frame.schema.fields:
        udt = isinstance(f.dataType, UserDefinedType)
        stored = StructField(f.name, f.dataType.sqlType(), f.nullable) if udt else f
        try:
            found.append(to_arrow_schema(StructType([stored])).field(0))
        except PySparkTypeError:  # a type that Arrow does not carry: fine as long as nobody asks for the column
            found.append(pa.field(f.name, pa.null()))
    return pa.schema(found)


def _quoted(name: str) -> str:
    """A name as Spark reads it: `sepal.length` is otherwise the field `length` of a struct `sepal`."""
    return "`" + name.replace("`", "``") + "`"


def _plain(frame: Any, columns: Columns) -> list[Any]:
    """The needed columns; vectors as the struct they are stored as, which costs Spark nothing."""
    from pyspark.sql import functions as F
    from pyspark.sql.types import UserDefinedType

    kinds = {f.name: f.dataType for f in frame.schema.fields}
    return [
        (F.unwrap_udt(F.col(_quoted(name))) if isinstance(kinds[name], UserDefinedType) else F.col(_quoted(name))).alias(name)
        for name in columns.needed()
    ]


def deal(source: FrameSource, workers: int, shuffle: bool = True) -> Any:
    """The DataFrame in `workers` partitions, with the global order of rows as `__row`.

    With `shuffle`, row i of partition p goes to worker (i + p) % workers: even to a row, the same every time, and without
    the sort by hash that Spark's own round-robin needs for that. A frame of one partition gives the same shards as
    `source.stream`. Without `shuffle`, partitions stay as they are, and there must be `workers` of them.
    """
    from pyspark.sql import functions as F

    frame = source.frame
    numbered = frame.select(*_plain(frame, source.columns), F.monotonically_increasing_id().alias(ROW))
    if not shuffle:
        return numbered
    within = F.col(ROW).bitwiseAND((1 << 33) - 1)  # the id is partition * 2**33 + row in the partition
    return numbered.repartitionById(workers, ((within + F.shiftright(ROW, 33)) % workers).cast("int"))


def frame_of(source: TableSource | ParquetSource | FrameSource, session: Any = None) -> Any:
    """The source as a DataFrame of `session`, or of the active one."""
    if isinstance(source, FrameSource):
        return source.frame
    if session is None:
        from pyspark.sql import SparkSession

        session = SparkSession.getActiveSession() or SparkSession.builder.getOrCreate()
    if isinstance(source, TableSource):
        return session.createDataFrame(source.table)
    frame = session.read.parquet(source.path)
    if source.held is None:
        return frame
    names = [n for n in source.columns.needed() if n != HELD]
    return united(frame, session.read.parquet(source.held), names, HELD)


def dealt_tables(source: FrameSource, workers: int, shuffle: bool) -> list[pa.Table]:
    """The rows that `deal` gives to each worker, collected to this process."""
    from pyspark.sql import functions as F

    whole = deal(source, workers, shuffle).withColumn("__worker", F.spark_partition_id()).toArrow()
    number = whole.column("__worker")
    return [whole.filter(_compute.equal(number, rank)).drop_columns(["__worker"]) for rank in range(workers)]


def to_table(frame: Any, columns: Columns) -> pa.Table:
    """All needed columns, collected to this process."""
    return frame.select(*_plain(frame, columns)).toArrow()


def united(frame: Any, held: Any, names: list[str], flag: str) -> Any:
    """Both DataFrames' columns, and a boolean column that is True for the rows of `held`."""
    from pyspark.sql import functions as F

    cols = [F.col(_quoted(name)) for name in names]
    first, second = (f.select(*cols, F.lit(v).alias(flag)) for f, v in ((frame, False), (held, True)))
    return first.unionByName(second)
