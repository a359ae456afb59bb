"""Kinds of networks and of columns, from rows to a model that has learnt, on two processes."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn

import firesteel
from firesteel import Local, ModelAveraging, SyncSGD


def fit(model, data, **settings):
    settings = {"on": Local(workers=2), "batch_size": 16, "seed": 1, "progress": "none", **settings}
    return firesteel.train(model, data, **settings)


@pytest.mark.parametrize("strategy", [SyncSGD(), ModelAveraging(4)], ids=["sync", "averaging"])
def test_lenet_on_bytes(strategy):
    """Digits, 8x8, in the middle of 28x28 pictures of bytes."""
    x, y = firesteel.datasets.digits().train
    pictures = np.zeros((len(x), 1, 28, 28), np.uint8)
    pictures[:, 0, 2:26, 2:26] = np.kron(np.asarray(x).reshape(-1, 8, 8), np.ones((3, 3))) * 15
    run = fit(firesteel.models.LeNet, (pictures, y), strategy=strategy, optimizer=firesteel.Adam(lr=3e-3), epochs=6)
    assert run.metrics["validation_accuracy"] > 0.9, run.metrics


class Recurrent(nn.Module):
    """Whether a sequence, padded to any length, adds up to more than nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.LSTM(2, 12, batch_first=True)
        self.out = nn.Linear(12, 2)

    def forward(self, x, lengths):
        states, _ = self.cells(x)
        return self.out(states[torch.arange(len(x)), lengths - 1])


def test_an_lstm_on_sequences_of_unequal_length():
    rng = np.random.default_rng(0)
    steps = [rng.standard_normal((int(n), 2)).astype(np.float32) for n in rng.integers(1, 9, 800)]
    table = pa.table({"steps": [s.tolist() for s in steps], "label": [int(s[:, 0].sum() > 0) for s in steps]})
    run = fit(Recurrent, table, features=firesteel.Sequence("steps"), optimizer=firesteel.Adam(lr=1e-2), epochs=8)
    assert run.metrics["validation_accuracy"] > 0.85, run.metrics


def test_embeddings_of_tokens():
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 50, (800, 6))
    model = lambda: nn.Sequential(nn.Embedding(50, 8), nn.Flatten(), nn.Linear(48, 2))  # noqa: E731
    run = fit(model, (ids, (ids[:, 0] >= 25).astype(int)), optimizer=firesteel.Adam(lr=2e-2), epochs=6)
    assert run.metrics["validation_accuracy"] > 0.9, run.metrics


def test_two_targets_a_row():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((600, 5)).astype(np.float32)
    y = x @ rng.standard_normal((5, 2)).astype(np.float32)
    run = fit(lambda: nn.Linear(5, 2), (x, y), loss="mse", metrics=("mse",), optimizer=firesteel.SGD(lr=0.1), epochs=10)
    assert run.metrics["validation_mse"] < 1e-3, run.metrics
    with torch.no_grad():
        torch.testing.assert_close(run.model(torch.from_numpy(x)), torch.from_numpy(y), atol=0.1, rtol=0.1)


def test_two_classes_with_one_output():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((600, 5)).astype(np.float32)
    y = (x[:, 0] + x[:, 1] > 0).astype(np.float32)
    run = fit(lambda: nn.Linear(5, 1), (x, y), loss="bce_with_logits", optimizer=firesteel.SGD(lr=0.5), epochs=5)
    assert run.metrics["validation_accuracy"] > 0.93, run.metrics


def normalised():
    return nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))


def test_batch_norm_ends_with_the_mean_of_all_workers_statistics():
    run = fit(normalised, firesteel.datasets.digits(), epochs=6, strategy=ModelAveraging(8))
    assert run.metrics["validation_accuracy"] > 0.9, run.metrics
    norm = run.model[1]
    assert int(norm.num_batches_tracked) > 0 and not torch.equal(norm.running_mean, torch.zeros(32))
    x, y = (torch.as_tensor(np.asarray(a)) for a in firesteel.datasets.digits().test)
    assert float((run.model(x.float()).argmax(1) == y).float().mean()) > 0.9


def test_a_module_that_was_trained_before_goes_on_from_there():
    """Fine-tuning: a module, not a factory, keeps its parameters and its frozen layers."""
    first = fit(normalised, firesteel.datasets.digits(), epochs=3)
    module = first.model
    module[0].requires_grad_(False)
    frozen = module[0].weight.clone()
    second = fit(module, firesteel.datasets.digits(), epochs=1)
    assert torch.equal(second.model[0].weight, frozen)
    assert second.metrics["train_loss"] < first.history["train_loss"][0].as_py()
    assert not torch.equal(second.model[3].weight, first.model[3].weight)


def test_float64():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((100, 5))
    run = fit(lambda: nn.Linear(5, 1).double(), (x, x.sum(1)), loss="mse", metrics=())
    assert run.model.weight.dtype == torch.float64
