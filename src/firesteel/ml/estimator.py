"""The estimators: a DataFrame and a network in, a Spark ML model out."""

from __future__ import annotations

from typing import Any, final

from pyspark.ml.base import Estimator
from pyspark.ml.util import MLReadable, MLWritable

from firesteel.errors import UsageError
from firesteel.ml.model import TorchClassificationModel, TorchRegressionModel
from firesteel.ml.params import CLASSIFIER_COLUMNS, COLUMNS, TRAINING, initialise, params_of
from firesteel.ml.stages import StageReader, StageWriter
from firesteel.spark.world import Spark
from firesteel.train import train


class _Stage(MLWritable, MLReadable[Any]):
    """What both estimators do: fit through `firesteel.train`, save and load."""

    @classmethod
    def _empty(cls) -> Any:
        return cls()

    def write(self) -> StageWriter:
        return StageWriter(self)

    @classmethod
    def read(cls) -> StageReader:
        return StageReader(cls)

    def _run(self, dataset: Any, loss: str) -> Any:
        stage: Any = self
        value = {s.name: stage.getOrDefault(s.name) for s in stage.settings}
        if value["model"] is None:
            raise UsageError(f"{type(self).__name__} needs model=, an nn.Module or a call that makes one.")
        indicator = value["validationIndicatorCol"]
        if indicator is not None and value["validation"]:
            raise UsageError("validationIndicatorCol and validation both say which rows are held out; set one of them.")
        handed_on = {s.argument: value[s.name] for s in stage.settings if s.argument and value[s.name] is not None}
        return train(
            value["model"],
            dataset,
            features=stage_features(stage),
            label=value["labelCol"],
            weight=value["weightCol"],
            validation=indicator or value["validation"],
            on=Spark(workers=value["workers"], threads=value["threads"], shuffle=value["shuffle"]),
            **{"loss": loss, **handed_on},
        )


def stage_features(stage: Any) -> Any:
    """The features of a stage as `firesteel.train` takes them."""
    from firesteel.data.columns import Image

    shape = stage.getOrDefault("featuresShape")
    name = stage.getOrDefault("featuresCol")
    return name if shape is None else Image(name, tuple(shape))


def _model(estimator: Any, run: Any, cls: Any) -> Any:
    shared = {s.name for s in cls.settings}
    given = {p.name: v for p, v in estimator.extractParamMap().items() if p.name in shared}
    model = cls._from_run(run, given)
    return model._resetUid(estimator.uid)


@final
@params_of(COLUMNS, CLASSIFIER_COLUMNS, TRAINING)
class TorchClassifier(Estimator[Any], _Stage):
    """Fits a PyTorch classifier on a DataFrame.

    The network's outputs are logits, [B, classes]; labels are 0 .. classes - 1, whole numbers or Spark ML's doubles.

    Example:
        >>> from firesteel.ml import TorchClassifier
        >>> import firesteel
        >>> classifier = TorchClassifier(model=firesteel.models.MLP(64, 32, 10), workers=2, epochs=3)
        >>> classifier.getLabelCol()
        'label'
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        initialise(self, settings)

    def _fit(self, dataset: Any) -> TorchClassificationModel:
        return _model(self, self._run(dataset, "cross_entropy"), TorchClassificationModel)


@final
@params_of(COLUMNS, TRAINING)
class TorchRegressor(Estimator[Any], _Stage):
    """Fits a PyTorch regression network on a DataFrame; its outputs are [B, 1] for a label column of numbers.

    Example:
        >>> from firesteel.ml import TorchRegressor
        >>> import firesteel
        >>> TorchRegressor(model=firesteel.models.MLP(3, 16, 1), epochs=10).getEpochs()
        10.0
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        initialise(self, settings)

    def _fit(self, dataset: Any) -> TorchRegressionModel:
        return _model(self, self._run(dataset, "mse"), TorchRegressionModel)
