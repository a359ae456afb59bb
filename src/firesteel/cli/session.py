"""Where a command runs: this machine, or a Spark session made for it."""

from __future__ import annotations

import os
import sys
from typing import Any

from firesteel.errors import UsageError
from firesteel.local.world import Local
from firesteel.spark.world import Spark


def spark_session(master: str | None, remote: str | None) -> Any:
    """A session on the master or Spark Connect server given; whatever Spark's own settings name if neither is."""
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    try:
        from pyspark.sql import SparkSession
    except ImportError as error:
        raise UsageError("--on spark needs PySpark: pip install 'firesteel[spark]'.") from error
    if master and remote:
        raise UsageError("give --master or --remote, not both.")
    builder: Any = SparkSession.builder
    if remote:
        return builder.remote(remote).getOrCreate()
    if master:
        builder = builder.master(master)
    builder = builder.appName("firesteel").config("spark.ui.showConsoleProgress", "false").config("spark.log.level", "ERROR")
    return builder.getOrCreate()


def world(on: str, workers: int, master: str | None, remote: str | None) -> Local | Spark:
    """The world that the flags name."""
    if on == "local":
        if master or remote:
            raise UsageError("--master and --remote go with --on spark.")
        return Local(workers=workers)
    return Spark(workers=workers, session=spark_session(master, remote))
