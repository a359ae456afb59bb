"""A network whose units are spread over workers learns what one process learns: losses, parameters, optimizer's state."""

from __future__ import annotations

import functools
import pickle

import pytest
import torch
from crew import Chained, adam, alone, batches, joined, program, sgd, together
from gangs import gang
from torch import nn

from firesteel import models
from firesteel.errors import UsageError
from firesteel.parts.network import network
from firesteel.parts.split_network import SplitNetwork


def mlp() -> nn.Module:
    return models.MLP(12, 16, 15, 14, 7, dropout=0.3)


def normed() -> nn.Module:
    """Norms of every kind, before units are summed and after, and one that no worker can do alone."""
    head = [nn.Linear(12, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 15), nn.BatchNorm1d(15), nn.Tanh()]
    return nn.Sequential(*head, nn.Linear(15, 12), nn.GroupNorm(3, 12), nn.Linear(12, 7), nn.Softplus(), nn.Linear(7, 7))


def drops() -> nn.Module:
    """Dropout of single numbers, of channels, and of everything, wherever units lie."""
    features = [nn.Conv2d(1, 6, 3), nn.Dropout2d(0.3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.2), nn.Flatten()]
    return nn.Sequential(nn.Unflatten(1, (1, 8, 8)), *features, nn.Linear(54, 8), nn.Dropout(0.4), nn.Linear(8, 5))


def states() -> nn.Module:
    layers = [nn.Linear(5, 6), nn.LSTM(6, 9, 2, batch_first=True, dropout=0.2), nn.Dropout(0.2), nn.Linear(9, 8)]
    return Chained(*layers, nn.RNN(8, 7, batch_first=True, nonlinearity="relu"), nn.Flatten(), nn.Linear(42, 4))


def channels() -> nn.Module:
    """Layers of channels where units lie along another dimension, and back."""
    first = [nn.Embedding(11, 8), nn.AvgPool1d(3, 1, 1), nn.GroupNorm(2, 6), nn.Dropout1d(0.3), nn.Conv1d(6, 4, 3, padding=1)]
    return nn.Sequential(
        *first, nn.ReLU(inplace=True), nn.BatchNorm1d(4), nn.Linear(8, 5), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(8, 6)
    )


def in_place() -> nn.Module:
    layers = [nn.ReLU(inplace=True)]
    for before, after in ((12, 9), (9, 8), (8, 10), (10, 7)):
        layers += [nn.Linear(before, after), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Dropout1d(0.3), nn.Linear(7, 5))


NETWORKS = {
    "channels": (channels, {"rows": 10, "shape": (6,), "classes": 6, "tokens": 11}, 20),
    "in place": (in_place, {"rows": 10, "shape": (12,), "classes": 5}, 20),
    "mlp": (mlp, {"rows": 13, "shape": (12,), "classes": 7}, 20),
    "weighted": (mlp, {"rows": 13, "shape": (3, 4), "classes": 7, "weights": True}, 20),
    "normed": (normed, {"rows": 13, "shape": (12,), "classes": 7}, 20),
    "drops": (drops, {"rows": 9, "shape": (64,), "classes": 5}, 20),
    "lenet": (models.LeNet, {"rows": 6, "shape": (784,), "classes": 10}, 20),
    "rnn": (
        lambda: models.RNNClassifier(5, 9, 4, 2, dropout=0.2),
        {"rows": 10, "shape": (6, 5), "classes": 4, "lengths": True},
        20,
    ),
    "lstm": (
        lambda: models.LSTMClassifier(5, 9, 4, 2, dropout=0.2),
        {"rows": 10, "shape": (6, 5), "classes": 4, "lengths": True},
        20,
    ),
    "states": (states, {"rows": 10, "shape": (6, 5), "classes": 4}, 20),
    "text": (lambda: models.CharLSTM(11, 9), {"rows": 10, "shape": (6,), "classes": 11, "tokens": 11, "target": (6,)}, 20),
}
VGGS = {norm: lambda norm=norm: models.VGG(11, 0.125, norm=norm, dropout=0.3) for norm in (None, "batch", "group")}
PICTURES = {"rows": 5, "shape": (3, 32, 32), "classes": 10}


def split(conv: str = "data", weights: str = "alternate"):
    return lambda chain, nothing, index, parts: SplitNetwork(chain, nothing, index, parts, conv, weights, "this")


def counts(rows: int, workers: int) -> list[int]:
    """Uneven, and the third of three or more has none."""
    found = [rows // workers] * workers
    found[0] += rows - sum(found)
    if workers > 2:
        found[1] += found[2]
        found[2] = 0
    return found


@functools.cache
def expected(name: str, optimizer, clip: float | None):
    build, data, steps = NETWORKS[name]
    return alone(build, batches(steps, **data), optimizer, clip)


@pytest.mark.parametrize("workers", [1, 2, 3, 4])
@pytest.mark.parametrize("name", NETWORKS)
def test_any_number_of_parts_is_one_process(name, workers):
    build, data, steps = NETWORKS[name]
    convs = ("data", "split") if name in ("lenet", "drops", "channels") else ("data",)
    tried = [(conv, "alternate", sgd, 0.5, 1e-10) for conv in convs] + [(convs[-1], "rows", sgd, None, 1e-10)]
    for conv, weights, optimizer, clip, bound in [*tried, (convs[0], "alternate", adam, None, 1e-8)]:
        found = together(build, batches(steps, **data), optimizer, counts(data["rows"], workers), split(conv, weights), clip)
        assert found.apart(expected(name, optimizer, clip)) < bound, (conv, weights, optimizer, clip)


@pytest.mark.parametrize("norm", VGGS, ids=str)
@pytest.mark.parametrize("conv", ["data", "split"])
def test_a_vgg(norm, conv):
    whole = alone(VGGS[norm], batches(20, **PICTURES), sgd, 0.5)
    for workers in (2, 3):
        found = together(VGGS[norm], batches(20, **PICTURES), sgd, counts(5, workers), split(conv), 0.5)
        assert found.apart(whole) < 1e-10, workers


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_a_vgg_with_adam(norm):
    """Convolutions before a norm have no bias: its gradient would be rounding, which Adam turns into whole steps."""
    whole = alone(VGGS[norm], batches(8, **PICTURES), adam)
    for conv in ("data", "split"):
        assert together(VGGS[norm], batches(8, **PICTURES), adam, [2, 2, 0, 1], split(conv)).apart(whole) < 1e-8


@pytest.mark.parametrize("name", ["mlp", "lstm"])
def test_in_single_precision(name):
    build, data, steps = NETWORKS[name]
    rows = batches(steps, **data, dtype=torch.float32)
    whole = alone(build, rows, sgd)
    assert together(build, rows, sgd, counts(data["rows"], 3), split()).apart(whole) < 1e-5


@pytest.mark.parametrize("share", [True, False], ids=["memory", "sockets"])
def test_on_real_processes(share):
    build, data, steps = NETWORKS["mlp"]
    rows = batches(steps, **data)
    run = program(build, rows, sgd, [6, 4, 3], split(), 0.5)

    async def packed(net):
        return pickle.dumps(await run(net))  # not as tensors, whose memory would end with the process

    done = gang(3, packed, share)
    assert all(kind == "ok" for kind, *_ in done.values()), done
    found = joined([pickle.loads(done[rank][1]) for rank in range(3)], dict(build().double().state_dict()))
    assert found.apart(expected("mlp", sgd, 0.5)) < 1e-10


def planned(module: nn.Module, shape: tuple[int, ...], parts: int = 2, conv="data", weights="alternate"):
    with torch.device("meta"):
        inputs = (torch.empty(2, *shape),)
    nothing = batches(1, rows=2, shape=shape, classes=2)[0].cut(0, 0)
    return SplitNetwork(network(module.to("meta"), inputs, "it"), nothing, 0, parts, conv, weights, "it")


def hooked() -> nn.Module:
    module = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2))
    _ = module[0].register_forward_hook(lambda module, inputs, outputs: 2 * outputs)
    return module


REFUSED = [
    (hooked(), (4,), r"'0' \(Linear\): it has hooks"),
    (nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(4, 6)), nn.Linear(6, 2)), (4,), "cannot split layer 0"),
    (nn.Sequential(nn.Linear(4, 6), nn.PReLU(), nn.Linear(6, 2)), (4,), r"layer 1, '1' \(PReLU\)\. It knows Linear, Conv1d"),
    (
        Chained(nn.LSTM(4, 6, batch_first=True, bidirectional=True), models.layers.Last(), nn.Linear(12, 2)),
        (3, 4),
        "one direction",
    ),
    (Chained(nn.LSTM(4, 6), models.layers.Last(), nn.Linear(6, 2)), (3, 4), "batch_first=True"),
    (Chained(nn.GRU(4, 6, batch_first=True), models.layers.Last(), nn.Linear(6, 2)), (3, 4), r"\(GRU\)"),
    (nn.Sequential(nn.Flatten(), nn.Unflatten(1, (4, 3)), nn.Linear(3, 4), nn.Conv1d(4, 4, 1, groups=2)), (12,), "groups"),
]


@pytest.mark.parametrize(("module", "shape", "says"), REFUSED)
def test_layers_that_cannot_be_split_are_named(module, shape, says):
    with pytest.raises(UsageError, match=says):
        planned(module, shape)


def test_more_parts_than_units():
    with pytest.raises(UsageError, match=r"'layers.0' \(Linear\) has 3 units, which cannot be spread over 4 parts"):
        planned(models.MLP(4, 3, 2), (4,), parts=4)
    _ = planned(models.MLP(4, 5, 2), (4,), parts=4)  # the last layer's two outputs are summed, and not spread
    with pytest.raises(UsageError, match=r"'layers.2' \(Linear\) has 2 units"):
        planned(models.MLP(4, 5, 2), (4,), parts=4, weights="rows")


def test_each_worker_owns_its_share():
    """Parameters of an alternating pair, and of an LSTM: a part of N has one Nth of them."""
    for module, shape in ((models.MLP(64, 256, 256, 8), (64,)), (models.LSTMClassifier(16, 64, 8), (5, 16))):
        whole = sum(p.numel() for p in module.parameters())
        for parts in (2, 4, 8):
            own = sum(p.numel() for p in planned(module, shape, parts).parameters())
            assert own == whole / parts
