"""Bad input: each is refused with a sentence that says what is wrong and what to do, before any process starts.

The list is the table of docs/errors.md; a test below compares the two.
"""

from __future__ import annotations

import re
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch

import firesteel
from firesteel import Local, UsageError

X = np.random.default_rng(0).standard_normal((40, 6)).astype(np.float32)
Y = np.arange(40) % 3


def net(width: int = 6, classes: int = 3):
    return lambda: firesteel.models.MLP(width, 8, classes)


def table(**columns):
    return pa.table({"features": [row.tolist() for row in X], "label": Y, **columns})


class Carrying(torch.nn.Module):
    """A recurrent network that goes on where the batch before ended."""

    def __init__(self) -> None:
        super().__init__()
        self.cells, self.out, self.state = torch.nn.RNN(6, 4), torch.nn.Linear(4, 3), None

    def forward(self, x):
        states, self.state = self.cells(x, None if self.state is None else self.state.detach())
        return self.out(states)


SPLIT = firesteel.NeuronParallel()


def holed():
    rows = [row.tolist() for row in X]
    rows[7] = None
    return pa.table({"features": rows, "label": Y})


def not_a_number():
    x = X.copy()
    x[11, 2] = np.nan
    return x, Y


REFUSED_AT_ONCE = {
    "column missing": (lambda: dict(data=table(), features="featurs"), r"no column 'featurs'. Did you mean 'features'"),
    "column of the wrong type": (
        lambda: dict(data=table(name=[str(i) for i in range(40)]), features="name"),
        r"column 'name' has the type string.*StringIndexer",
    ),
    "bytes without a shape": (
        lambda: dict(data=table(pixels=[b"abcdef"] * 40), features="pixels"),
        r"firesteel.Image\('pixels', shape",
    ),
    "feature width that does not fit the model": (
        lambda: dict(model=net(5), data=(X, Y)),
        r"does not take the features: a batch of shape \(2, 6\)",
    ),
    "empty data": (lambda: dict(data=table().slice(0, 0)), "the data has no rows"),
    "arrays of unequal length": (lambda: dict(data=(X, Y[:-1])), "X has 40 rows, but y has 39"),
    "data of an unknown kind": (lambda: dict(data=[1, 2]), "data is a list; give a Spark DataFrame"),
    "no such file": (lambda: dict(data="nowhere.parquet"), "no file or folder 'nowhere.parquet'"),
    "a model that cannot be pickled": (
        lambda: dict(data=(X, Y), model=lambda lock=threading.Lock(): lock and firesteel.models.MLP(6, 3)),
        "model cannot be sent to the workers",
    ),
    "a model without parameters": (lambda: dict(data=(X, Y), model=torch.nn.Flatten()), "no trainable parameters"),
    "parameters of two types": (
        lambda: dict(data=(X, Y), model=lambda: torch.nn.Sequential(torch.nn.Linear(6, 3), torch.nn.Linear(3, 3).double())),
        "one type and device",
    ),
    "a loss that returns a vector": (
        lambda: dict(data=(X, Y), loss=lambda o, t: torch.nn.functional.cross_entropy(o, t, reduction="none")),
        r"must return a scalar tensor, but it returned a tensor of shape \(2,\)",
    ),
    "recurrent state across shuffled batches": (lambda: dict(data=(X, Y), model=Carrying), "carries state from batch to batch"),
    "a layer that cannot be split": (
        lambda: dict(data=(X, Y), model=lambda: torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.PReLU()), strategy=SPLIT),
        r"NeuronParallel cannot split layer 1, '1' \(PReLU\)\. It knows Linear.*FullyShard\(\) and TensorParallel\(plan\)",
    ),
    "a network that is no chain of layers": (
        lambda: dict(data=(X, Y), model=Carrying, strategy=SPLIT),
        r"does not know the layers of Carrying.*chain\(\)",
    ),
    "more parts than units": (
        lambda: dict(data=(X, Y), model=lambda: firesteel.models.MLP(6, 3, 3), strategy=SPLIT, on=Local(4)),
        r"'layers.0' \(Linear\) has 3 units, which cannot be spread over 4 parts",
    ),
    "a stage without a layer": (
        lambda: dict(data=(X, Y), model=lambda: firesteel.models.MLP(6, 3), strategy=firesteel.Pipeline()),
        "stage",
    ),
    "workers that are not those of a grid": (
        lambda: dict(data=(X, Y), strategy=firesteel.Grid(2, 2)),
        "is for 4 workers, but there are 2",
    ),
    "an unknown loss": (lambda: dict(data=(X, Y), loss="crossentropy"), "Did you mean 'cross_entropy'"),
    "an unknown metric": (lambda: dict(data=(X, Y), metrics=("acuracy",)), "Did you mean 'accuracy'"),
    "an unknown setting of an optimizer": (
        lambda: dict(data=(X, Y), optimizer=firesteel.Optimizer(torch.optim.RMSprop, alfa=0.9)),
        "RMSprop has no setting 'alfa'. Did you mean 'alpha'",
    ),
    "an optimizer that needs a closure": (
        lambda: dict(data=(X, Y), optimizer=firesteel.Optimizer(torch.optim.LBFGS)),
        "a closure",
    ),
    "a strategy's class instead of an instance": (lambda: dict(data=(X, Y), strategy=firesteel.SyncSGD), r"SyncSGD\(\)"),
    "a strategy's setting out of range": (
        lambda: dict(data=(X, Y), strategy=firesteel.ModelAveraging(period=0)),
        r"ModelAveraging\(period=0\)",
    ),
    "a size that is not positive": (lambda: dict(data=(X, Y), batch_size=0), "batch_size=0: it must be greater than 0"),
    "a checkpoint_steps that is not positive": (
        lambda: dict(data=(X, Y), checkpoint_steps=0, strategy=firesteel.Downpour()),
        "checkpoint_steps=0: it must be greater than 0",
    ),
    "more shards than parameters": (
        lambda: dict(data=(X, Y), strategy=firesteel.Downpour(), on=Local(2, server=firesteel.Server(shards=1000))),
        "shards=1000, but the model has 83 parameters; take fewer",
    ),
    "a share out of range": (lambda: dict(data=(X, Y), validation=1.5), "at least 0 and below 1"),
    "early stopping without validation": (
        lambda: dict(data=(X, Y), validation=None, early_stopping=firesteel.EarlyStopping()),
        "needs validation",
    ),
    "Single on several workers": (
        lambda: dict(data=(X, Y), strategy=firesteel.Single(), on=Local(2)),
        "Single trains on one worker",
    ),
}

REFUSED_BY_A_WORKER = {
    "nulls": (lambda: dict(data=holed()), r"column 'features' holds nulls.*first is row 7"),
    "NaN or infinity": (lambda: dict(data=not_a_number()), r"NaN or infinity.*\(1 row, the first is row 11\)"),
    "labels outside the classes": (lambda: dict(data=(X, Y + 1)), "labels go up to 3, but the model has 3 outputs"),
    "negative labels": (lambda: dict(data=(X, Y - 1)), "negative ones"),
    "labels with fractions": (lambda: dict(data=(X, Y + 0.5)), "has fractions; for values use loss='mse'"),
    "negative weights": (lambda: dict(data=(X, Y, -np.ones(40))), "negative weights"),
    "lists of unequal length": (
        lambda: dict(data=pa.table({"features": [[1.0] * 6] * 39 + [[1.0]], "label": Y})),
        "unequal length.*firesteel.Sequence",
    ),
    "exploding loss": (
        lambda: dict(data=(X * 1e18, Y), optimizer=firesteel.SGD(lr=1e30), epochs=20),
        r"(loss became|no longer finite).*Lower the learning rate",
    ),
}


def attempt(make):
    settings = {"model": net(), "on": Local(workers=2), "progress": "none", "batch_size": 8, "epochs": 1, **make()}
    model, data = settings.pop("model"), settings.pop("data")
    return firesteel.train(model, data, **settings)


@pytest.mark.parametrize("case", REFUSED_AT_ONCE)
def test_refused_before_anything_starts(case, monkeypatch):
    monkeypatch.setattr("firesteel.local.world.Nursery", SimpleNamespace(get=lambda: pytest.fail("a process was started")))
    make, message = REFUSED_AT_ONCE[case]
    with pytest.raises(UsageError, match=message):
        attempt(make)


@pytest.mark.parametrize("case", REFUSED_BY_A_WORKER)
def test_refused_in_one_readable_error(case):
    make, message = REFUSED_BY_A_WORKER[case]
    with pytest.raises(firesteel.FiresteelError, match=re.compile(message, re.DOTALL)) as caught:
        attempt(make)
    assert "Traceback" not in str(caught.value)


def test_the_table_in_the_docs_lists_all_of_them():
    said = Path(__file__).parents[1].joinpath("docs/errors.md").read_text()
    for case in [*REFUSED_AT_ONCE, *REFUSED_BY_A_WORKER]:
        assert f"| {case} |" in said, case


def test_the_last_good_model_is_kept_when_the_loss_explodes():
    def explode(step: int) -> float:
        return 1.0 if step < 30 else 1e30

    with pytest.raises(firesteel.Diverged) as caught:
        firesteel.train(
            net(),
            (X, Y),
            optimizer=firesteel.SGD(lr=0.1),
            schedule=firesteel.BySteps(explode),
            batch_size=8,
            epochs=50,
            progress="none",
        )
    (note,) = caught.value.__notes__
    path = re.search(r"firesteel.load\('(.*)'\)", note)
    assert path is not None
    assert torch.isfinite(firesteel.load(path.group(1))(torch.from_numpy(X))).all()
