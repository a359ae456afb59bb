"""Workloads: a model, its data, what is measured, how good is good enough, and how long it may take.

A comparison is of methods on the same workload; whoever changes one has another workload, under another name.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np
from torch import nn

from firesteel import datasets
from firesteel.datasets import Dataset
from firesteel.errors import UsageError, did_you_mean
from firesteel.losses import METRICS, SMALLER_IS_BETTER
from firesteel.models import MLP, VGG, CharLSTM, LeNet, LSTMClassifier
from firesteel.optim import SGD, Adam, OptimizerSettings


@final
@dataclass(frozen=True)
class Budget:
    """Where a trial ends at the latest. Time to target is censored there."""

    epochs: float
    """Passes over the training rows, of all workers together, > 0."""
    max_seconds: float | None = None
    """Wall seconds of training, virtual ones on a simulated cluster; evaluation is left out."""

    def __post_init__(self) -> None:
        if not self.epochs > 0 or (self.max_seconds is not None and not self.max_seconds > 0):
            raise UsageError(f"a budget needs epochs > 0 and max_seconds > 0 or None; got {self}.")


@final
@dataclass(frozen=True)
class Workload:
    """What is trained, on what, and when it is good.

    >>> WORKLOADS["digits-mlp"].target
    0.95
    """

    name: str
    """What tables call it; one name, one workload."""
    model: Callable[[], nn.Module]
    """Makes the network: a class, a function or a `functools.partial`, importable by its name."""
    data: Callable[..., Dataset]
    """Gives training rows and the rows that the metric is of."""
    target: float
    """Value of the metric from which on a model is good."""
    budget: Budget
    metric: str = "accuracy"
    """"accuracy", "mse", "mae" or "loss", on rows that are not trained on."""
    loss: str = "cross_entropy"
    optimizer: OptimizerSettings = field(default_factory=Adam)
    """The trials' own where they name none."""
    batch_size: int = 64
    """Rows of a step, of each worker, >= 1."""
    rows: int | None = None
    """Only the first so many training rows; None: all."""
    splits: bool = False
    """Every seed has rows of its own: `data` is called with the trial's seed."""
    points_per_epoch: float = 1.0
    """Models that are kept and evaluated, per pass over the rows, > 0; evaluation is outside the clock."""

    def __post_init__(self) -> None:
        known = ["loss", *METRICS]
        if self.metric not in known:
            raise UsageError(f"workload {self.name!r}: metric {self.metric!r} is not one of {', '.join(known)}.")
        if self.batch_size < 1 or not self.points_per_epoch > 0 or (self.rows is not None and self.rows < 1):
            raise UsageError(f"workload {self.name!r}: batch_size and rows are at least 1, points_per_epoch above 0.")

    @property
    def smaller_is_better(self) -> bool:
        return self.metric == "loss" or self.metric in SMALLER_IS_BETTER

    def rows_of(self, seed: int) -> Dataset:
        """The data of a trial with that seed."""
        return self.data(seed) if self.splits else self.data()

    def described(self) -> dict[str, Any]:
        """As a result's file has it."""
        return {
            "name": self.name,
            "metric": f"validation_{self.metric}",
            "target": self.target,
            "model": named(self.model),
            "data": named(self.data),
            "rows": self.rows,
            "splits": self.splits,
            "loss": self.loss,
            "points_per_epoch": self.points_per_epoch,
        }


def named(factory: Callable[..., Any]) -> str:
    """A factory by its name and what was given to it: `MLP(64, 128, 10)`.

    >>> named(functools.partial(MLP, 64, 10))
    'MLP(64, 10)'
    """
    if not isinstance(factory, functools.partial):
        return getattr(factory, "__qualname__", repr(factory))
    given = [repr(each) for each in factory.args] + [f"{name}={value!r}" for name, value in factory.keywords.items()]
    return f"{named(factory.func)}({', '.join(given)})"


def workload(name: str) -> Workload:
    """The workload of that name.

    Raises:
        UsageError: there is none.
    """
    if name not in WORKLOADS:
        raise UsageError(f"there is no workload {name!r}.{did_you_mean(name, WORKLOADS)} There are {', '.join(WORKLOADS)}.")
    return WORKLOADS[name]


def flat_mnist() -> Dataset:
    """MNIST's images as rows of 784 grey values."""
    return _flat(datasets.mnist())


def scaled_higgs() -> Dataset:
    """The HIGGS sample, each feature with mean 0 and deviation 1 on the training rows."""
    data = datasets.higgs()
    x, xt = data.train[0].astype(np.float64), data.test[0].astype(np.float64)
    mean, deviation = x.mean(0), x.std(0)
    scale = lambda rows: ((rows - mean) / deviation).astype(np.float32)  # noqa: E731
    return Dataset("higgs, scaled", (scale(x), data.train[1]), (scale(xt), data.test[1]), data.classes)


def _flat(data: Dataset) -> Dataset:
    (x, y), (xt, yt) = data.train, data.test
    return Dataset(data.name, (x.reshape(len(x), -1), y), (xt.reshape(len(xt), -1), yt), data.classes)


_CATALOGUE = (
    Workload(
        "digits-mlp",
        functools.partial(MLP, 64, 128, 64, 10),
        datasets.digits,
        0.95,
        Budget(20),
        optimizer=Adam(lr=2e-3),
        batch_size=32,
        points_per_epoch=2,
    ),
    Workload("mnist-mlp", functools.partial(MLP, 784, 256, 128, 10), flat_mnist, 0.97, Budget(5), points_per_epoch=4),
    Workload("mnist-lenet", LeNet, datasets.mnist, 0.985, Budget(4), optimizer=Adam(lr=2e-3), points_per_epoch=4),
    Workload(
        "mnist-lstm", functools.partial(LSTMClassifier, 28, 96, 10), datasets.mnist, 0.97, Budget(4), optimizer=Adam(lr=3e-3)
    ),
    Workload("higgs-mlp", functools.partial(MLP, 28, 64, 64, 2), scaled_higgs, 0.67, Budget(10), optimizer=Adam(lr=1e-3)),
    Workload("a9a-logistic", functools.partial(MLP, 123, 2), datasets.a9a, 0.848, Budget(10), optimizer=SGD(lr=0.1)),
    Workload(
        "charlstm",
        functools.partial(CharLSTM, 65, 128),
        datasets.tinyshakespeare,
        2.0,
        Budget(1),
        metric="loss",
        optimizer=Adam(lr=1e-2),
        batch_size=16,
        points_per_epoch=8,
    ),
    Workload(
        "cifar10-vgg16",
        functools.partial(VGG, 16, 0.25, norm="group"),
        datasets.cifar10,
        0.45,
        Budget(4),
        optimizer=Adam(lr=5e-4),
        batch_size=32,
        points_per_epoch=2,
    ),
)
WORKLOADS: dict[str, Workload] = {each.name: each for each in _CATALOGUE}
"""The workloads that come with Firesteel; all but the first need data (`firesteel.datasets`)."""
