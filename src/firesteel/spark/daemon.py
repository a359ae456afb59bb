"""A Python daemon for executors that has PyTorch imported before it forks workers.

Set `spark.python.daemon.module` to `firesteel.spark.daemon` when the application starts: a fresh Python worker then is ready in
milliseconds instead of seconds. Firesteel must be installed on the executors.
"""

from __future__ import annotations

if __name__ == "__main__":
    import torch._dynamo  # noqa: F401  (the first optimizer of a process imports it, which takes most of a second)
    from pyspark.daemon import manager

    import firesteel.process  # noqa: F401

    manager()
