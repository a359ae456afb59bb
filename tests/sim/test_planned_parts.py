"""Networks in parts: what a plan predicts against simulated trainings, and what it makes of them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

import firesteel
from firesteel import (
    SGD,
    Adam,
    Cluster,
    Compute,
    Draw,
    Grid,
    ModelAveraging,
    Network,
    NeuronParallel,
    Pipeline,
    Simulated,
    SyncSGD,
    UsageError,
)
from firesteel.cli.plan import PlanCommand
from firesteel.models import MLP, VGG, CharLSTM, LeNet, LSTMClassifier
from firesteel.sim.dry import rehearse
from firesteel.sim.dry_worker import ModelSize
from firesteel.sim.planner import grids, suiting

SLOW = Cluster(4, Compute(1e-4, 1e-3), Network(1e-3, 1e6))
OFFICE = Cluster(2, Compute(2e-4, 1e-3), Network(1e-4, 25e6))  # 200 Mbit a second
BATCH, EPOCH_STEPS, EPOCHS = 8, 4, 3


def perceptron() -> nn.Module:
    return MLP(12, 24, 18, 4)


def lstm() -> nn.Module:
    return LSTMClassifier(3, 10, 4, layers=2, dropout=0.5)


def normed() -> nn.Module:
    return nn.Sequential(nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4), nn.ReLU(), nn.Conv1d(4, 6, 3), nn.Flatten(), nn.Linear(12, 4))


def simulated(factory, shape, strategy, cluster):
    """Seconds and each worker's mean bytes of an epoch."""
    rows = BATCH * EPOCH_STEPS * cluster.workers
    draw = np.random.default_rng(0)
    features = draw.random((rows, *shape), np.float32)
    run = firesteel.train(
        factory,
        (features, np.arange(rows) % 4),
        strategy=strategy,
        on=Simulated(cluster),
        optimizer=SGD(lr=0.01),
        batch_size=BATCH,
        epochs=EPOCHS,
        validation=None,
        metrics=(),
        progress="none",
    )
    sent = sum(run.trace["bytes"].to_pylist()) / cluster.workers
    return run.timing["train_seconds"] / EPOCHS, sent / EPOCHS


@pytest.mark.parametrize("strategy", [NeuronParallel(), NeuronParallel(weights="rows"), Grid(2, 2), Pipeline()], ids=str)
@pytest.mark.parametrize(("factory", "shape"), [(perceptron, (12,)), (lstm, (5, 3))])
def test_a_plan_takes_as_long_as_training(factory, shape, strategy):
    if factory is lstm and isinstance(strategy, Pipeline):
        factory = lambda: LSTMClassifier(3, 10, 4)  # noqa: E731  (its dropout lies inside)
    workers = 2 if isinstance(strategy, Pipeline) else 4
    cluster = SLOW.resized(workers)
    seconds, sent = simulated(factory, shape, strategy, cluster)
    said = rehearse(strategy, cluster, ModelSize.of(factory(), SGD()), BATCH * EPOCH_STEPS * workers, BATCH, inputs=shape)
    assert said.epoch_seconds == pytest.approx(seconds, rel=1e-6)
    assert said.sent_bytes == pytest.approx(sent, rel=1e-9)
    assert said.computing + said.wire + said.slowest == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("factory", "shape", "strategy"),
    [
        (LeNet, (784,), NeuronParallel()),
        (LeNet, (784,), NeuronParallel(conv="split")),
        (normed, (2, 6), NeuronParallel()),
        (perceptron, (12,), NeuronParallel(local_steps=3)),
        (perceptron, (12,), Grid(2, 2, across=ModelAveraging(EPOCH_STEPS))),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_so_it_does_in_other_ways(factory, shape, strategy):
    """Gradients of whole layers are added up together, moments of norms for themselves; replicas may meet once a period."""
    cluster = SLOW.resized(4)
    seconds, sent = simulated(factory, shape, strategy, cluster)
    said = rehearse(strategy, cluster, ModelSize.of(factory(), SGD()), BATCH * EPOCH_STEPS * 4, BATCH, inputs=shape)
    assert (said.epoch_seconds, said.sent_bytes) == pytest.approx((seconds, sent), rel=1e-6)


def test_unlike_workers_and_rows():
    """Who has fewer rows, units or a slower machine; a step takes as long as the slowest."""
    cluster = Cluster(3, Compute((1e-4, 4e-4, 1e-4), 1e-3), Network(1e-3, 1e6))
    size = ModelSize.of(MLP(7, 10, 9, 5), SGD())
    even, fewer = (rehearse(NeuronParallel(), cluster, size, rows, 8) for rows in (240, 200))
    assert 0.8 < fewer.epoch_seconds / even.epoch_seconds < 1.0 and even.slowest > 0.05
    quick = rehearse(NeuronParallel(), Cluster(3, Compute(1e-4, 1e-3), Network(1e-3, 1e6)), size, 240, 8)
    assert quick.epoch_seconds < even.epoch_seconds


def test_jitter_counts_with_its_mean():
    found = []
    for jitter in (None, Draw("uniform", 2.0, 0.5)):
        cluster = Cluster(1, Compute(1e-3, 1e-3, jitter=jitter))
        found.append(rehearse(NeuronParallel(), cluster, ModelSize.of(perceptron(), SGD()), 320, 16).epoch_seconds)
    assert found[1] == pytest.approx(2 * found[0])


def test_memory_is_that_of_the_largest_part():
    model = nn.Sequential(nn.Linear(8, 10), nn.BatchNorm1d(10), nn.ReLU(), nn.Linear(10, 4))
    for optimizer, moments in ((SGD(), 0), (Adam(), 2)):
        said = rehearse(NeuronParallel(), SLOW, ModelSize.of(model, optimizer), 1000, 16)
        numbers = 3 * 8 + 3 + 2 * 3 + 4 * 3 + 1  # 3 of 10 units, a bias of 1
        assert said.memory_bytes == (2 + moments) * 4 * numbers + 2 * 3 * 4 + 8
    whole = rehearse(SyncSGD(), SLOW, ModelSize.of(model, Adam()), 1000, 16).memory_bytes
    assert whole == pytest.approx(3.6 * said.memory_bytes, rel=0.15)


def plan(model, cluster=SLOW, **more):
    settings = {"rows": 20_000, "workers": [1, 4], "optimizer": Adam(), "batch_size": 16} | more
    chosen = settings.pop("strategies", [NeuronParallel()])
    return firesteel.plan(model, cluster, settings.pop("rows"), chosen, settings.pop("workers"), **settings)


@pytest.mark.parametrize(("width", "best"), [(4096, NeuronParallel()), (64, SyncSGD())])
def test_wide_layers_are_for_parts_and_narrow_ones_for_replicas(width, best):
    with torch.device("meta"):
        model = MLP(width, width, width, 10)
    chosen = [SyncSGD(), NeuronParallel(), ModelAveraging(1)]
    found = plan(model, OFFICE, workers=[2], batch_size=128, strategies=chosen)
    assert found.recommendation()[0].strategy == best
    assert min(found.predictions, key=lambda p: p.sent_bytes).strategy == best


@pytest.mark.parametrize(
    ("model", "inputs", "said"),
    [
        (lstm, None, r"NeuronParallel is planned with .* give inputs="),
        (lstm, (7, 2), r"inputs=\(7, 2\) do not go through"),
        (lambda: CharLSTM(9, 8), None, "--input-shape"),
        (lambda: nn.Bilinear(3, 3, 2), None, "takes a network layer by layer"),
        (lambda: MLP(8, 2, 2), None, "has 2 units, which cannot be spread over 4 parts"),
    ],
)
def test_networks_that_cannot_be_planned(model, inputs, said):
    with pytest.raises(UsageError, match=said):
        _ = plan(model, inputs=inputs, workers=[4])


def test_what_a_plan_needs_no_shape_for():
    for model in (LeNet, lambda: VGG(11, width=0.125, norm="batch"), perceptron):
        assert plan(model, workers=[2], rows=64).predictions[0].sent_bytes > 0
    assert plan(lambda: CharLSTM(9, 8), workers=[2], rows=64, inputs=(6,)).predictions[0].sent_bytes > 0


def test_a_plan_says_with_which_workers_a_network_cannot_be_cut():
    found = plan(lambda: MLP(8, 12, 3, 3), workers=[1, 2, 3, 4], strategies=[NeuronParallel(), Grid(2, 2), SyncSGD()])
    ran = [(type(p.strategy).__name__, p.workers) for p in found.predictions]
    assert [n for name, n in ran if name == "NeuronParallel"] == [1, 2, 3]
    assert [n for name, n in ran if name == "Grid"] == [4]
    assert len(found.left_out) == 1 and found.left_out[0].startswith("NeuronParallel with 4 workers: ")
    adam = Adam()
    assert suiting([NeuronParallel(parts=8), Grid(2, 2), SyncSGD()], perceptron(), adam, [2, 4]) == [Grid(2, 2), SyncSGD()]
    assert grids([1, 2, 4, 8]) == [Grid(2, 2), Grid(4, 2), Grid(2, 4)]


def test_from_the_command_line(tmp_path, capsys):
    path = str(tmp_path / "cluster.json")
    OFFICE.save(path)
    settings = {"rows": 1000, "cluster": path, "workers": "2,4"}
    assert PlanCommand("lstm:3,16,4", **settings).run() == 0
    said = capsys.readouterr()
    assert "not planned: NeuronParallel; --strategies NeuronParallel says why" in said.err and "Neuron" not in said.out
    assert PlanCommand("lstm:3,16,4", input_shape="7,3", **settings).run() == 0
    assert "NeuronParallel" in capsys.readouterr().out
    assert PlanCommand("mlp:8,12,3", strategies=["NeuronParallel", "Grid"], json=True, **settings).run() == 0
    names = {p["settings"].split("(")[0] for p in json.loads(capsys.readouterr().out)["predictions"]}
    assert names == {"NeuronParallel", "Grid"}
    with pytest.raises(UsageError, match="--input-shape '7,x'"):
        _ = PlanCommand("lstm:3,16,4", input_shape="7,x", **settings).run()
