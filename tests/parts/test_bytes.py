"""Closed forms of what networks in parts send and take, against virtual time and real processes: to the byte."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from gangs import gang

import firesteel
from firesteel import SGD, Cluster, Compute, Grid, Network, NeuronParallel, Simulated
from firesteel.data.batches import Plan
from firesteel.data.columns import Columns
from firesteel.data.shard import Batch, Shard
from firesteel.losses import resolve_loss
from firesteel.models import MLP, LeNet, LSTMClassifier, RNNClassifier
from firesteel.parts.network import network
from firesteel.sim import costs
from firesteel.sim import parallel_costs as forms
from firesteel.worker import Worker

BATCH, STEPS = 8, 2
EVEN, UNEVEN = (12, 24, 36, 12), (7, 10, 9, 5)
CONVOLUTIONS = 6 * 26 + 16 * 151  # numbers of LeNet's


def trained(factory, numbers: int, strategy, cluster: Cluster, rows: int | None = None, batch: int = BATCH):
    rows = STEPS * BATCH * cluster.workers if rows is None else rows
    data = np.random.default_rng(0).random((rows, numbers), np.float32), np.arange(rows) % 4
    settings = {"optimizer": SGD(lr=0.01), "validation": None, "metrics": (), "progress": "none"}
    return firesteel.train(factory, data, strategy=strategy, on=Simulated(cluster), batch_size=batch, epochs=1, **settings)


def sent(run) -> list[int]:
    """Bytes of each worker in all steps."""
    found: dict[int, int] = {}
    for event in run.trace.to_pylist():
        found[event["rank"]] = found.get(event["rank"], 0) + event["bytes"]
    return [found[rank] for rank in sorted(found)]


def said(meetings, algorithm="ring") -> int:
    return sum(each.sent_bytes(algorithm) for each in meetings)


def even(workers: int) -> list[int]:
    return [BATCH] * workers


def recurrent(hidden: int, classes: int, steps: int, inputs: int, workers: int, layers: int = 1, weights="alternate"):
    rows = even(workers)
    batch = sum(rows)
    return [
        *forms.begun(rows, steps * inputs * 4),
        *forms.recurrent(hidden, steps, workers, batch, layers),
        *forms.split_layers([hidden, classes], workers, batch, weights),
        *forms.ended(rows, split=weights == "rows"),
    ]


# ---- bytes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [2, 3, 4])
@pytest.mark.parametrize("weights", ["alternate", "rows"])
@pytest.mark.parametrize("widths", [EVEN, UNEVEN, (7, 5), (7, 10, 5), (7, 9, 10, 8, 5)], ids=str)
def test_fully_connected_layers(widths, weights, workers):
    run = trained(lambda: MLP(*widths), widths[0], NeuronParallel(weights=weights), Cluster(workers))
    assert sent(run) == [STEPS * said(forms.fully_connected(widths, even(workers), weights))] * workers


def test_workers_with_fewer_rows_send_as_much():
    run = trained(lambda: MLP(*UNEVEN), 7, NeuronParallel(), Cluster(3), rows=50, batch=20)
    assert sent(run) == [said(forms.fully_connected(UNEVEN, (17, 17, 16)))] * 3


@pytest.mark.parametrize("workers", [2, 3, 4])
def test_convolutions(workers):
    rows = even(workers)
    for strategy, form in (
        (NeuronParallel(), forms.fully_connected((400, 120, 84, 10), rows, below=CONVOLUTIONS)),
        (
            NeuronParallel(conv="split"),
            [
                *forms.begun(rows, 784 * 4),
                *forms.split_layers([(6, 28 * 28, 14 * 14), (16, 10 * 10, 5 * 5), 120, 84, 10], workers, sum(rows)),
                *forms.ended(rows, split=False),
            ],
        ),
    ):
        assert sent(trained(LeNet, 784, strategy, Cluster(workers))) == [STEPS * said(form)] * workers


@pytest.mark.parametrize("workers", [2, 3, 4])
def test_recurrent_layers(workers):
    for factory, weights, layers in (
        (lambda: LSTMClassifier(5, 12, 4), "alternate", 1),
        (lambda: LSTMClassifier(5, 10, 4, layers=2), "alternate", 2),
        (lambda: RNNClassifier(5, 10, 4), "rows", 1),
    ):
        run = trained(factory, 6 * 5, NeuronParallel(weights=weights), Cluster(workers))
        hidden = factory().cells.hidden_size
        assert sent(run) == [STEPS * said(recurrent(hidden, 4, 6, 5, workers, layers, weights))] * workers


@pytest.mark.parametrize("algorithm", ["ring", "halving_doubling"])
def test_a_grid(algorithm):
    """Two workers share each replica, and each adds up its part's gradient with the one that has the same."""
    run = trained(lambda: MLP(*EVEN), 12, Grid(2, 2), Cluster(4, all_reduce=algorithm))
    numbers = sum((a + 1) * b for a, b in itertools.pairwise(EVEN)) // 2
    step = [*forms.fully_connected(EVEN, even(2)), forms.added(2, numbers)]
    assert sent(run) == [STEPS * said(step, algorithm)] * 4


def program(strategy, workers: int):
    async def run(net):
        chain = network(MLP(*UNEVEN).to("meta"), (torch.empty(2, 7, device="meta"),), "this")
        nothing = Batch((torch.zeros(0, 7),), torch.zeros(0, dtype=torch.int64), None, 0, 0.0)
        part = strategy.part(chain, nothing, net.rank % strategy.parts_of(workers), strategy.parts_of(workers))
        for p in part.to_empty(device="cpu").parameters():
            torch.nn.init.normal_(p)
        rows = STEPS * BATCH
        shard = Shard(rows, Columns(), values=torch.randn(rows, 7), target=torch.arange(rows) % 4)
        plan = Plan(rows, rows, BATCH, STEPS, 0, net.rank)
        worker = Worker(part.train(), resolve_loss("cross_entropy", False), SGD(lr=0.01), shard, plan)
        return int((await strategy.run(worker, net)).numel())

    return run


def test_real_processes_send_as_much():
    for strategy, workers in ((NeuronParallel(), 2), (NeuronParallel(weights="rows"), 3), (Grid(2, 2), 4)):
        found = gang(workers, program(strategy, workers), share=False)
        assert [found[rank][0] for rank in range(workers)] == ["ok"] * workers, found
        for rank in range(workers):
            _, numbers, nbytes = found[rank]
            rows = even(2 if isinstance(strategy, Grid) else workers)
            step = forms.fully_connected(UNEVEN, rows, getattr(strategy, "weights", "alternate"))
            across = [forms.added(2, numbers)] if isinstance(strategy, Grid) else []
            assert nbytes == STEPS * said([*step, *across])


# ---- seconds ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["ring", "tree"])
@pytest.mark.parametrize("weights", ["alternate", "rows"])
@pytest.mark.parametrize("workers", [2, 3, 4])
def test_seconds_of_a_step(workers, weights, algorithm):
    cluster = Cluster(workers, Compute(1e-4, 1e-3), Network(1e-3, 1e6), all_reduce=algorithm)
    run = trained(lambda: MLP(*EVEN).layers, 12, NeuronParallel(weights=weights), cluster)
    computing = 1e-3 + BATCH * workers * 1e-4 / workers
    meeting = sum(m.seconds(1e-3, 1e6, algorithm) for m in forms.fully_connected(EVEN, even(workers), weights))
    assert run.timing["train_seconds"] == pytest.approx(STEPS * (computing + meeting), rel=1e-9)


# ---- the rule --------------------------------------------------------------------------------------------------------


def test_fewer_bytes_than_data_parallelism_where_the_batch_is_smaller_than_the_width():
    """What one more layer of equal width adds, on eight workers: of which nothing is rounded."""
    workers, width = 8, 96

    def layer(weights, batch: int) -> int:
        one, more = (forms.split_layers([width] * count, workers, batch, weights) for count in (3, 5))
        return (said(more) - said(one)) // 2

    for batch in range(1, 3 * width):
        data = costs.all_reduce_bytes("ring", workers, 4 * width * width)
        scattered = layer("rows", batch)
        found = forms.handed_on(workers, width, batch)
        added = said([m if m.verb == "all_gather" else dataclasses.replace(m, verb="all_reduce") for m in found])
        assert scattered == said(found)
        assert (scattered < data) == (batch < width)
        assert (added < data) == (3 * batch < 2 * width)
        assert layer("alternate", batch) - scattered in range(32)  # as many in pairs, but for what goes with a sum


def test_the_cost_analysis_has_the_same_numbers_between_layers():
    """Its all-gather of the outputs aside: without latency, and without computing."""
    widths, workers, rows = (48, 96, 96, 24), 4, 32
    analysed = costs.model_parallel(widths, rows, workers, float("inf"), 0.0, 4.0)
    outputs = rows * widths[-1] * 4 * (workers - 1) / workers
    assert said(forms.split_layers(widths[1:], workers, rows, "rows")) == pytest.approx(analysed - outputs, rel=1e-12)
