"""Strategies whose state is spread out, or held by one worker: dry runs against real ones and against closed forms."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from problem import flat, network, rows
from recipes.methods import CentralLBFGS
from torch import nn

import firesteel
from firesteel import (
    SGD,
    Adagrad,
    Adam,
    Cluster,
    Compute,
    Draw,
    Network,
    Simulated,
    SyncSGD,
    UsageError,
    VectorFreeAdaGrad,
    VectorFreeAdam,
    VectorFreeLBFGS,
)
from firesteel.sim import costs
from firesteel.sim.dry import rehearse
from firesteel.sim.dry_worker import ModelSize
from firesteel.sim.planner import suiting

SLOW = Cluster(4, Compute(1e-4, 1e-3), Network(1e-3, 1e6))
SHARDED = [
    (VectorFreeAdam(), Adam(), {"moments": 2}),
    (VectorFreeAdaGrad(), Adagrad(), {"moments": 1}),
    (VectorFreeAdam("basis", 4), Adam(), {"moments": 2, "tensors": 4, "memory": 4}),
    (VectorFreeAdaGrad("basis"), Adagrad(), {"moments": 1, "tensors": 4, "memory": 1}),
]


def simulated(strategy, cluster, count, optimizer=None, **more):
    settings = {"on": Simulated(cluster), "validation": None, "progress": "none"} | more
    return firesteel.train(network, rows(count), strategy=strategy, optimizer=optimizer, **settings)


def sent(run, rank: int, first: int, last: int) -> int:
    """Bytes of one worker's steps `first` .. `last`."""
    return sum(e["bytes"] for e in run.trace.to_pylist() if e["rank"] == rank and first <= e["step"] <= last)


# ---- dry runs against real ones --------------------------------------------------------------------------------------


def named(value):
    """The same in every process."""
    return getattr(value, "__name__", repr(value))


@pytest.mark.parametrize("strategy", [VectorFreeLBFGS(), CentralLBFGS()], ids=repr)
def test_an_iteration_takes_as_long_dry_as_it_does(strategy):
    run = simulated(strategy, SLOW, 4 * 128, epochs=12)
    looks = [e["step"] for e in run.trace.to_pylist() if e["kind"] == "step" and e["rank"] == 0]
    straight = [step for step in range(4, 12) if looks.count(step) == 1]  # one look along the line, as planned
    assert straight
    seconds, size = run.history["seconds"].to_pylist(), ModelSize.of(network(), SGD())
    said = rehearse(strategy, SLOW, size, 4 * 128, 16)
    for step in straight:
        assert said.epoch_seconds == pytest.approx(seconds[step - 1] - seconds[step - 2], rel=0.03)
        assert said.sent_bytes == pytest.approx(sum(sent(run, rank, step, step) for rank in range(4)) / 4, rel=1e-6)


@pytest.mark.parametrize(
    ("strategy", "optimizer"),
    [(s, o) for s, o, _ in SHARDED] + [(VectorFreeLBFGS(overlap=0.25), None)],
    ids=repr,
)
def test_an_epoch_takes_as_long_dry_as_it_does(strategy, optimizer):
    run = simulated(strategy, SLOW, 4 * 16 * 8, optimizer, epochs=9, batch_size=16)
    seconds = run.history["seconds"].to_pylist()
    said = rehearse(strategy, SLOW, ModelSize.of(network(), optimizer or SGD()), 4 * 16 * 8, 16)
    assert said.epoch_seconds == pytest.approx((seconds[-2] - seconds[0]) / 7, rel=0.03)
    assert said.sent_bytes == pytest.approx(sum(sent(run, rank, 9, 64) for rank in range(4)) / 28, rel=1e-6)


# ---- closed forms ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["ring", "halving_doubling"])
@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize(
    ("strategy", "form"), [(VectorFreeLBFGS(4), costs.vector_free_lbfgs), (CentralLBFGS(4), costs.central_lbfgs)], ids=named
)
def test_bytes_and_rounds_of_an_iteration(strategy, form, workers, algorithm):
    """By the trace of a training with rows and gradients."""
    run = simulated(strategy, Cluster(workers, all_reduce=algorithm), 128, epochs=10)
    events, size = run.trace.to_pylist(), flat(network()).numel()
    meetings = ("all_reduce", "reduce_scatter", "all_gather", "broadcast")
    for step in range(1, 10):  # a trace counts the direction, which comes before the first pass, to the step before
        mine = [e["kind"] for e in events if e["step"] == step and e["rank"] == 0]
        said = form(algorithm, workers, size, 4, 0.0, 1.0, mine.count("step"))
        assert sum(kind in meetings for kind in mine) == said.rounds
        each = [sent(run, rank, step, step) for rank in range(workers)]
        if isinstance(strategy, VectorFreeLBFGS):
            assert each == [said.sent_bytes] * workers
        else:
            # A broadcast is written down once, as its root's; the tree has its root send that to as many as there are rounds.
            trees = (workers - 1).bit_length()
            small = mine.count("step") * costs.all_reduce_bytes(algorithm, workers, 40)
            whole = 4 * size + 16 if workers > 1 else 0
            assert each[0] == small + whole and said.sent_bytes == small + trees * whole
            assert each[1:] == [small + 4 * size] * (workers - 1)


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize(("strategy", "optimizer", "state"), SHARDED, ids=repr)
def test_bytes_and_rounds_of_a_sharded_step(strategy, optimizer, state, workers):
    run = simulated(strategy, Cluster(workers), 96, optimizer, max_steps=6, batch_size=16)
    said = costs.sharded_step("ring", workers, flat(network()).numel(), latency=0.0, bandwidth=1.0, **state)
    for step in range(1, 7):
        mine = [e["kind"] for e in run.trace.to_pylist() if e["step"] == step and e["rank"] == 0]
        assert sum(kind in ("all_reduce", "reduce_scatter", "all_gather") for kind in mine) == said.rounds
        assert [sent(run, rank, step, step) for rank in range(workers)] == [said.sent_bytes] * workers


@pytest.mark.parametrize("workers", [1, 2, 16])
@pytest.mark.parametrize(
    ("strategy", "form"), [(VectorFreeLBFGS(7), costs.vector_free_lbfgs), (CentralLBFGS(7), costs.central_lbfgs)], ids=named
)
def test_seconds_and_memory_of_an_iteration(strategy, form, workers):
    cluster = Cluster(workers, Compute(1e-5, 1e-3), Network(1e-4, 1e8), all_reduce="halving_doubling")
    size = ModelSize.of(nn.Linear(1000, 1600, bias=False), SGD())
    said = form("halving_doubling", workers, size.parameters, 7, 1e-4, 1e8)
    found = rehearse(strategy, cluster, size, 100 * workers, 16)
    shown = 1e-4 + size.nbytes / 1e8 if workers > 1 else 0.0  # the model, to the caller
    assert found.epoch_seconds == pytest.approx(2e-3 + said.seconds + shown, rel=1e-6)
    assert found.memory_bytes == pytest.approx(said.memory_bytes, rel=1e-9)


@pytest.mark.parametrize("workers", [1, 2, 16])
@pytest.mark.parametrize(("strategy", "optimizer", "state"), SHARDED, ids=repr)
def test_seconds_and_memory_of_a_sharded_step(strategy, optimizer, state, workers):
    model = nn.Sequential(nn.Linear(100, 200), nn.Linear(200, 56))  # 31456 parameters, 4 tensors
    cluster = Cluster(workers, Compute(1e-5, 1e-3), Network(1e-4, 1e8))
    size = ModelSize.of(model, optimizer)
    said = costs.sharded_step("ring", workers, size.parameters, latency=1e-4, bandwidth=1e8, **state)
    found = rehearse(strategy, cluster, size, 160 * workers, 16)
    shown = 1e-4 + size.nbytes / 1e8 if workers > 1 else 0.0
    assert found.epoch_seconds == pytest.approx(10 * (1.16e-3 + said.seconds) + shown, rel=1e-6)
    assert found.memory_bytes == pytest.approx(said.memory_bytes, rel=1e-9)


# ---- what a plan makes of them ---------------------------------------------------------------------------------------


def test_the_central_form_finds_what_the_vector_free_one_finds():
    one, all_ = (simulated(s, Cluster(4), 131, epochs=8) for s in (CentralLBFGS(3), VectorFreeLBFGS(3)))
    assert (flat(one.model) - flat(all_.model)).abs().max() < 1e-3
    assert (flat(one.model) - flat(network())).abs().max() > 0.1


def test_a_search_that_looks_more_often_costs_more():
    """A slope that must fall to a tenth is not found at once, not even of a loss that halves."""
    size = ModelSize.of(network(), SGD())
    one, more = (rehearse(VectorFreeLBFGS(c2=c2), SLOW, size, 512, 16) for c2 in (0.9, 0.1))
    assert more.epoch_seconds > 1.5 * one.epoch_seconds


def test_rows_that_two_batches_share_are_computed_twice():
    alone = Cluster(1, Compute(1e-3, 0.0, jitter=Draw("uniform", 2.0, 0.5)))
    found = rehearse(VectorFreeLBFGS(overlap=0.25), alone, ModelSize.of(network(), SGD()), 1600, 16)
    assert found.epoch_seconds == pytest.approx(2.0 * 1.6 * 1.25)


def test_small_sums_stay_small():
    """A sum of three numbers weighs what it weighs, however many numbers a model has."""
    size = ModelSize.of(nn.Linear(10**9, 1, bias=False, device="meta"), SGD())
    found = rehearse(VectorFreeLBFGS(), Cluster(4, Compute(1e-6)), size, 1000, 16)
    assert found.sent_bytes == pytest.approx(costs.vector_free_lbfgs("ring", 4, 10**9, 10, 0.0, 1.0).sent_bytes, rel=1e-9)
    double = ModelSize.of(nn.Linear(10**9, 1, bias=False, device="meta", dtype=torch.float64), SGD())
    assert rehearse(VectorFreeLBFGS(), Cluster(4, Compute(1e-6)), double, 1000, 16).memory_bytes == 2 * found.memory_bytes


def test_a_plan_with_all_of_them():
    settings = {"rows": 10_000, "cluster": SLOW, "workers": [1, 4], "optimizer": Adam()}
    found = firesteel.plan(network(), strategies=[SyncSGD(), VectorFreeAdam(), VectorFreeLBFGS()], **settings)
    one, four = found.predictions[:3], found.predictions[3:]
    assert four[1].memory_bytes < one[1].memory_bytes and four[2].memory_bytes < 0.5 * one[2].memory_bytes
    assert one[2].epoch_seconds < one[0].epoch_seconds  # one step an epoch
    assert found.recommendation()[0] == four[2]
    with pytest.raises(UsageError, match=r"use optimizer=firesteel\.Adagrad"):
        firesteel.plan(network(), strategies=[VectorFreeAdaGrad()], **settings)
    with pytest.raises(UsageError, match="draws anew at every pass"):
        firesteel.plan(nn.Sequential(network(), nn.Dropout()), strategies=[VectorFreeLBFGS()], **settings)
    some = [SyncSGD(), VectorFreeAdam(), VectorFreeAdaGrad()]
    assert suiting(some, network(), Adagrad(), [4]) == [SyncSGD(), VectorFreeAdaGrad()]


def test_what_a_strategy_keeps_in_objects_is_memory_too():
    @dataclasses.dataclass
    class Kept:
        before: list

    class Remembers:
        async def run(self, worker, net):
            kept = Kept([worker.params.clone() for _ in range(3)])
            for _, batch in worker.steps():
                worker.step(worker.gradient(batch))
                kept.before.append(kept.before.pop(0)[:32])  # views of what is counted already
                kept.before.append(kept.before.pop(0))
            return worker.params

    size = ModelSize.of(network(), SGD())
    assert rehearse(Remembers(), Cluster(1, Compute(1e-3)), size, 64, 16).memory_bytes == pytest.approx(3.5 * size.nbytes)
