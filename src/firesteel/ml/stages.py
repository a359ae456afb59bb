"""Saving and loading of our stages, beside Spark's own metadata so that Pipelines find them."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any, final

from pyspark.ml.util import DefaultParamsReader, DefaultParamsWriter, MLReader, MLWriter
from pyspark.sql import SparkSession

from firesteel import persistence
from firesteel.checkpoint import Folder
from firesteel.errors import UsageError
from firesteel.ml.params import from_json, to_json

_FILES = ("model.json", "model.safetensors", "model.pt2", "model.pkl")


def located(path: str) -> str:
    """A path without a scheme as Spark means it: on its default file system, which on this machine starts at our own folder."""
    if "://" in path:
        return path
    session: Any = SparkSession.active()
    if not type(session).__module__.startswith("pyspark.sql.connect"):
        conf = session.sparkContext._jsc.hadoopConfiguration()
        if not conf.get("fs.defaultFS", "file:///").startswith("file:"):
            jvm_path = session.sparkContext._jvm.org.apache.hadoop.fs.Path(path)
            return jvm_path.getFileSystem(conf).makeQualified(jvm_path).toString()
    return os.path.abspath(path)


@final
class StageWriter(MLWriter):
    """Writes `metadata/` as Spark does, and for a model the folder `model/`."""

    def __init__(self, stage: Any, format: persistence.Format = "auto") -> None:
        super().__init__()
        self._stage: Any = stage
        self._format: persistence.Format = format

    def _handleOverwrite(self, path: str) -> None:
        Folder(located(path)).delete("")  # Spark's own way needs the JVM, which Spark Connect does not offer

    def saveImpl(self, path: str) -> None:
        stage, path = self._stage, located(path)
        ours = {p.name: to_json(p.name, v) for p, v in stage._paramMap.items()}
        if hasattr(stage, "_write_model"):
            with tempfile.TemporaryDirectory(prefix="firesteel-") as aside:
                stage._write_model(aside, self._format)
                for name in _FILES:
                    file = Path(aside, name)
                    if file.exists():
                        Folder(path).put(f"model/{name}", file.read_bytes())
        DefaultParamsWriter.saveMetadata(stage, path, SparkSession.active(), {"firesteel": ours}, paramMap={})


@final
class StageReader(MLReader[Any]):
    """Reads what `StageWriter` wrote."""

    def __init__(self, cls: Any) -> None:
        super().__init__()
        self._cls: Any = cls

    def load(self, path: str) -> Any:
        path = located(path)
        metadata = DefaultParamsReader.loadMetadata(path, SparkSession.active())
        expected = f"{self._cls.__module__}.{self._cls.__name__}"
        if metadata["class"] != expected:
            raise UsageError(f"{path} holds a {metadata['class']}, not a {expected}.")
        stage = self._cls._empty()
        stage._resetUid(metadata["uid"])
        stage._set(**{name: from_json(value) for name, value in metadata["firesteel"].items()})
        if hasattr(stage, "_read_model"):
            with tempfile.TemporaryDirectory(prefix="firesteel-") as aside:
                for name in _FILES:
                    data = Folder(path).get(f"model/{name}")
                    if data is not None:
                        _ = Path(aside, name).write_bytes(data)
                stage._read_model(aside)
        return stage
