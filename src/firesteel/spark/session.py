"""A Spark session made for a command."""

from __future__ import annotations

import atexit
import os
import sys
from typing import Any

from firesteel.errors import UsageError


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
        return _stopped_at_exit(builder.remote(remote).getOrCreate())
    if master:
        builder = builder.master(master)
    builder = builder.appName("firesteel").config("spark.ui.showConsoleProgress", "false").config("spark.log.level", "ERROR")
    return _stopped_at_exit(builder.getOrCreate())


def _stopped_at_exit(session: Any) -> Any:
    """Spark's processes end badly and loudly when the driver goes without a word."""
    _ = atexit.register(session.stop)
    return session
