"""Spark ML: `TorchClassifier` and `TorchRegressor`, stages like any other, and the models they fit."""

from __future__ import annotations

from firesteel.ml.estimator import TorchClassifier, TorchRegressor
from firesteel.ml.model import TorchClassificationModel, TorchRegressionModel

__all__ = ["TorchClassificationModel", "TorchClassifier", "TorchRegressionModel", "TorchRegressor"]
