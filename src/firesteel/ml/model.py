"""The fitted models: `transform` adds predictions to a DataFrame, columnar and in batches."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator
from typing import Any, final

import cloudpickle
import numpy as np
import pyarrow as pa
import torch
from pyspark.ml.base import Model
from pyspark.ml.functions import array_to_vector
from pyspark.ml.util import MLReadable, MLWritable
from pyspark.sql import functions as F
from pyspark.sql.types import UserDefinedType
from torch import nn

from firesteel import persistence
from firesteel.data.columns import ROW, Columns, Image
from firesteel.data.frame import arrow_schema
from firesteel.data.shard import build_shard
from firesteel.evaluate import evaluating
from firesteel.ml.params import CLASSIFIER_COLUMNS, COLUMNS, initialise, params_of
from firesteel.ml.stages import StageReader, StageWriter

_loaded: dict[str, nn.Module] = {}  # in a Python worker of an executor: models by uid and checksum


def _forward(key: str, module: bytes, columns: Columns, classes: bool) -> Callable[[Iterator[pa.Array]], Iterator[pa.Array]]:
    """The function that Spark calls with batches of features, [n], and that gives [n] structs of outputs."""

    def run(batches: Iterator[pa.Array]) -> Iterator[pa.Array]:
        if key not in _loaded:
            _loaded.clear()  # one model at a time is enough for a worker that serves many
            _loaded[key] = cloudpickle.loads(module)
            torch.set_num_threads(1)
        model = _loaded[key]
        for batch in batches:
            rows = pa.array(np.arange(len(batch)))
            record = pa.RecordBatch.from_arrays([batch, rows], [columns.feature_names()[0], ROW])
            shard = build_shard([record], columns, 2**40)
            with evaluating(model):
                outputs = model(*shard.block(0, shard.rows).inputs).double() if shard.rows else torch.zeros(0, 1)
            yield _classes(outputs) if classes else _values(outputs)

    return run


def _classes(outputs: torch.Tensor) -> pa.Array:
    prediction = pa.array(outputs.argmax(1).double().numpy())
    lists = [_lists(x) for x in (outputs, torch.softmax(outputs, 1))]
    return pa.StructArray.from_arrays([*lists, prediction], ["raw", "probability", "prediction"])


def _values(outputs: torch.Tensor) -> pa.Array:
    flat = outputs.reshape(len(outputs), -1)
    value = pa.array(flat[:, 0].contiguous().numpy())
    return pa.StructArray.from_arrays([_lists(flat), value], ["raw", "prediction"])


def _lists(x: torch.Tensor) -> pa.Array:
    offsets = pa.array(np.arange(len(x) + 1, dtype=np.int32) * (x.shape[1] if x.dim() > 1 else 0))
    return pa.ListArray.from_arrays(offsets, pa.array(x.contiguous().numpy().reshape(-1)))


class _Fitted(MLWritable, MLReadable[Any]):
    """What both models do: hold a network, transform, save and load."""

    module: nn.Module
    """The plain network, in evaluation mode."""
    run: Any = None
    """The training that made it; not saved."""
    _saving: dict[str, Any]

    @classmethod
    def _empty(cls) -> Any:
        return cls()

    @classmethod
    def _from_run(cls, run: Any, given: dict[str, Any]) -> Any:
        model = cls._empty()
        model._set(**given)
        model.module, model.run, model._saving = run.model, run, run.saving
        return model

    def copy(self, extra: Any = None) -> Any:
        stage: Any = super()
        twin = stage.copy(extra)
        twin.module = copy.deepcopy(self.module)
        return twin

    def write(self) -> StageWriter:
        return StageWriter(self)

    def save_as(self, path: str, format: persistence.Format) -> None:
        """Save with the network in a format of your choice, "pickle" for example."""
        StageWriter(self, format).save(path)

    @classmethod
    def read(cls) -> StageReader:
        return StageReader(cls)

    def _write_model(self, folder: str, format: persistence.Format) -> None:
        example = self._saving.get("example")
        if example is None and (width := self.numFeatures):
            example = (torch.zeros(2, width),)
        _ = persistence.save(folder, self.module, self._saving.get("spec"), example, {}, format)

    def _read_model(self, folder: str) -> None:
        found = persistence.describe(folder)
        self.module = persistence.load(folder)
        self._saving = {"spec": found["spec"]}

    @property
    def numFeatures(self) -> int | None:
        """The width of the first linear layer, where there is one."""
        return next((m.in_features for m in self.module.modules() if isinstance(m, nn.Linear)), None)

    def _columns(self) -> Columns:
        stage: Any = self
        shape, name = stage.getOrDefault("featuresShape"), stage.getOrDefault("featuresCol")
        kind = next((p.dtype for p in self.module.parameters()), torch.float32)
        dtype = "float64" if kind == torch.float64 else "float32"
        return Columns(name if shape is None else Image(name, tuple(shape)), None, None, None, "class", dtype)

    def _outputs(self, dataset: Any, classes: bool) -> Any:
        """A column of structs with the network's outputs."""
        stage: Any = self
        columns = self._columns()
        name = columns.feature_names()[0]
        columns.check(arrow_schema(dataset))
        sink = io.BytesIO()
        cloudpickle.dump(self.module, sink)
        fields = (
            "raw array<double>, probability array<double>, prediction double"
            if classes
            else "raw array<double>, prediction double"
        )
        key = f"{stage.uid}-{hash(sink.getvalue())}"
        forward = _forward(key, sink.getvalue(), columns, classes)
        forward.__annotations__ = {"batches": Iterator[pa.Array], "return": Iterator[pa.Array]}
        udf: Any = F.arrow_udf
        predict = udf(forward, f"struct<{', '.join(f.replace(' ', ':', 1) for f in fields.split(', '))}>")
        feature = dataset[name]
        if isinstance(dataset.schema[name].dataType, UserDefinedType):
            feature = F.unwrap_udt(feature)
        return predict(feature)


@final
@params_of(COLUMNS, CLASSIFIER_COLUMNS)
class TorchClassificationModel(Model, _Fitted):
    """A fitted classifier: adds the columns rawPrediction (vector), probability (vector) and prediction (double)."""

    def __init__(self) -> None:
        super().__init__()
        self.run = None
        self._saving = {}
        initialise(self, {})

    @property
    def numClasses(self) -> int | None:
        """The width of the last linear layer, where there is one."""
        widths = [m.out_features for m in self.module.modules() if isinstance(m, nn.Linear)]
        return widths[-1] if widths else None

    def _transform(self, dataset: Any) -> Any:
        stage: Any = self
        names = {"raw": "rawPredictionCol", "probability": "probabilityCol", "prediction": "predictionCol"}
        wanted = {field: stage.getOrDefault(name) for field, name in names.items()}
        out = dataset.withColumn("__firesteel", self._outputs(dataset, True))
        for field, name in wanted.items():
            if name:
                value = F.col(f"__firesteel.{field}")
                out = out.withColumn(name, value if field == "prediction" else array_to_vector(value))
        return out.drop("__firesteel")


@final
@params_of(COLUMNS)
class TorchRegressionModel(Model, _Fitted):
    """A fitted regression network: adds the column prediction (double)."""

    def __init__(self) -> None:
        super().__init__()
        self.run = None
        self._saving = {}
        initialise(self, {})

    def _transform(self, dataset: Any) -> Any:
        stage: Any = self
        out = dataset.withColumn("__firesteel", self._outputs(dataset, False))
        return out.withColumn(stage.getOrDefault("predictionCol"), F.col("__firesteel.prediction")).drop("__firesteel")
