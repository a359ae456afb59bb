"""A pipeline learns what one process learns, by either schedule, in any number of stages and micro-batches."""

from __future__ import annotations

import functools

import pytest
import torch
from crew import Chained, adam, alone, batches, joined, program, sgd, together
from gangs import gang
from torch import nn

from firesteel import Pipeline, models
from firesteel.errors import UsageError
from firesteel.parts.balance import balanced
from firesteel.parts.network import network
from firesteel.sim.cluster import Cluster, Compute, Network

def mlp() -> nn.Module:
    return models.MLP(12, 16, 15, 14, 7, dropout=0.3)


def recurrent() -> nn.Module:
    """Dropout of states, which lie in memory by steps and not by rows, and of whole channels."""
    layers = [nn.Linear(5, 6), nn.LSTM(6, 9, batch_first=True), nn.Dropout(0.2), nn.Linear(9, 8), nn.Dropout1d(0.4)]
    return Chained(*layers, nn.Flatten(), nn.Linear(48, 4))


NETWORKS = {
    "mlp": (mlp, {"rows": 13, "shape": (12,), "classes": 7}, 20),
    "weighted": (mlp, {"rows": 13, "shape": (3, 4), "classes": 7, "weights": True}, 20),
    "lenet": (models.LeNet, {"rows": 9, "shape": (784,), "classes": 10}, 3),
    "vgg": (lambda: models.VGG(11, 0.125, norm="group", dropout=0.3), {"rows": 6, "shape": (3, 32, 32), "classes": 10}, 2),
    "rnn": (lambda: models.RNNClassifier(5, 9, 4, 2), {"rows": 10, "shape": (6, 5), "classes": 4, "lengths": True}, 20),
    "lstm": (lambda: models.LSTMClassifier(5, 9, 4, 2), {"rows": 10, "shape": (6, 5), "classes": 4, "lengths": True}, 20),
    "dropout of states": (recurrent, {"rows": 10, "shape": (6, 5), "classes": 4}, 20),
    "text": (lambda: models.CharLSTM(11, 9), {"rows": 10, "shape": (6,), "classes": 11, "tokens": 11, "target": (6,)}, 20),
}


@functools.cache
def expected(name: str, optimizer, clip: float | None):
    build, data, steps = NETWORKS[name]
    return alone(build, batches(steps, **data), optimizer, clip)


def counts(rows: int, workers: int) -> list[int]:
    """Uneven, and the third of three or more has none."""
    found = [rows // workers] * workers
    found[0] += rows - sum(found)
    if workers > 2:
        found[1], found[2] = found[1] + found[2], 0
    return found


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("stages", [1, 2, 3, 4])
def test_learns_what_one_process_learns(name, stages):
    build, data, steps = NETWORKS[name]
    with_parameters = sum(any(True for _ in layer.parameters(recurse=False)) for layer in build().modules())
    if stages > with_parameters:
        with pytest.raises(UsageError, match=f"each needs a layer with parameters, and this network has {with_parameters} of"):
            _ = together(build, batches(1, **data), sgd, [2] * stages, Pipeline().part)
        return
    given, rows = batches(steps, **data), counts(data["rows"], stages)

    def trained(schedule, micro, optimizer, clip=None):
        return together(build, given, optimizer, rows, Pipeline(schedule=schedule, micro_batches=micro).part, clip)

    clipped = trained("1f1b", 3, sgd, 0.5)
    assert clipped.apart(expected(name, sgd, 0.5)) < 1e-10
    assert clipped.apart(trained("gpipe", 3, sgd, 0.5)) == 0.0
    assert trained("gpipe", 1, sgd).apart(expected(name, sgd, None)) < 1e-10
    assert trained("1f1b", 8, adam).apart(expected(name, adam, None)) < 1e-8
