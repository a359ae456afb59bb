"""`Simulated` beside the real worlds: the same numbers, the same guards, another clock."""

from __future__ import annotations

import dataclasses
import sys
import textwrap

import numpy as np
import pytest
import torch
from problem import flat, network, rows
from torch import nn

import firesteel
from firesteel import (
    ADAG,
    AEASGD,
    AGN,
    EAMSGD,
    EASGD,
    SGD,
    ByEpochs,
    Cluster,
    Compute,
    DiLoCo,
    Downpour,
    Draw,
    DynSGD,
    Ensemble,
    Failure,
    Local,
    ModelAveraging,
    Network,
    PostLocalSGD,
    Replay,
    Server,
    Simulated,
    Single,
    SlowMo,
    SyncSGD,
    UsageError,
    VectorFreeAdam,
    WorkerFailed,
    WorkerLost,
)
from firesteel.trace import json_lines

GANGS = [
    SyncSGD(),
    SyncSGD(bucket_bytes=64, wire="bfloat16"),
    ModelAveraging(3),
    ModelAveraging(3, state="average"),
    ModelAveraging(3, state="reset"),
    PostLocalSGD(5, 3),
    SlowMo(3),
    DiLoCo(4),
    EASGD(3),
    Ensemble(),
    VectorFreeAdam(),
    VectorFreeAdam("basis", memory=3),
]
SERVED = [Downpour(3), Downpour(3, prefetch=True), DynSGD(3), AGN(3), ADAG(3), ADAG(3, normalise=True), AEASGD(4), EAMSGD(4)]
UNEVEN = Cluster(2, Compute(row_seconds=(1e-5, 7e-5), jitter=Draw("pareto", 1.0, 1.5)), Network(bandwidth=1e6))


def norms() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 4))


def train(on, strategy, model=norms, data=None, **more):
    settings = {"optimizer": firesteel.Adam(lr=3e-3), "batch_size": 16, "epochs": 3, "seed": 7, "progress": "none"} | more
    return firesteel.train(model, rows(131) if data is None else data, strategy=strategy, on=on, **settings)


def same(one, two) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.model.state_dict().values(), two.model.state_dict().values(), strict=True))


@pytest.mark.parametrize("strategy", GANGS, ids=str)
def test_a_gang_learns_here_what_it_learns_in_two_processes_bit_for_bit(strategy):
    more = {"schedule": ByEpochs(lambda epoch: 0.8**epoch), "clip_norm": 1.0, "validation": 0.2}
    if isinstance(strategy, EASGD):
        more |= {"optimizer": SGD(lr=0.05)}
    if strategy == SyncSGD(bucket_bytes=64, wire="bfloat16"):
        more |= {"model": network}
    real, imagined = train(Local(2, threads=1), strategy, **more), train(Simulated(UNEVEN), strategy, **more)
    assert same(real, imagined)
    assert real.metrics == imagined.metrics
    names = ["step", "epoch", "samples", "train_loss", "validation_loss", "validation_accuracy"]
    assert real.history.select(names).equals(imagined.history.select(names))


def test_single_and_weights():
    x, y = rows(90)
    data = (x, y, np.random.default_rng(0).uniform(0, 2, 90).astype(np.float32))
    more = {"data": data, "model": network}
    assert same(train(Local(1, threads=1), Single(), **more), train(Simulated(Cluster(1)), Single(), **more))
    assert same(train(Local(2, threads=1), SyncSGD(), **more), train(Simulated(Cluster(2)), SyncSGD(), **more))


@pytest.mark.parametrize("workers", [2, 5])
@pytest.mark.parametrize("strategy", [*GANGS, *SERVED], ids=str)
def test_a_run_is_the_same_twice_byte_for_byte(strategy, workers):
    cluster = dataclasses.replace(UNEVEN, workers=workers, compute=Compute(jitter=Draw("lognormal", 1.0, 0.5)))
    more = {"optimizer": SGD(lr=0.05)} if isinstance(strategy, EASGD | EAMSGD | AEASGD) else {}
    one, two = (train(Simulated(cluster, Server(shards=2)), strategy, **more) for _ in range(2))
    assert same(one, two)
    assert json_lines(one.trace) == json_lines(two.trace)
    assert one.history.equals(two.history)
    if one.arrivals is not None:
        assert repr(one.arrivals.to_pydict()) == repr(two.arrivals.to_pydict())  # NaN is not equal to itself


@pytest.mark.parametrize("strategy", GANGS, ids=str)
def test_what_a_gang_learns_does_not_depend_on_the_clock(strategy):
    more = {"optimizer": SGD(lr=0.05)} if isinstance(strategy, EASGD) else {}
    quick = train(Simulated(Cluster(3)), strategy, **more)
    slow = train(
        Simulated(
            Cluster(
                3,
                Compute(row_seconds=(1e-3, 1e-5, 3e-4), jitter=Draw("pareto", 1.0, 1.3)),
                Network(latency_seconds=0.1, bandwidth=1e4),
                "halving_doubling",
            )
        ),
        strategy,
        **more,
    )
    assert same(quick, slow)
    assert slow.timing["train_seconds"] > 10 * quick.timing["train_seconds"]


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("strategy", SERVED, ids=str)
def test_simulated_arrivals_replay_bit_for_bit(strategy, shards):
    more = {"optimizer": SGD(lr=0.05)} if isinstance(strategy, EAMSGD | AEASGD) else {}
    run = train(Simulated(dataclasses.replace(UNEVEN, workers=2), Server(shards=shards)), strategy, **more)
    again = train(Replay(run), strategy, **more)
    assert again.settings["replayed"] == "bit-equal" and same(run, again)


def test_seconds_are_those_of_the_cost_model():
    """One worker, 100 rows a step of 16 and a last one of 4: nothing but computing."""
    run = train(Simulated(Cluster(1, Compute(1e-3, 5e-3))), Single(), data=rows(100), validation=None, epochs=2, model=network)
    assert run.timing["train_seconds"] == pytest.approx(2 * (100 * 1e-3 + 7 * 5e-3))
    assert run.history["seconds"].to_pylist() == pytest.approx([0.135, 0.270])


def test_max_seconds_are_virtual():
    for strategy in (SyncSGD(), AGN(3), Ensemble()):
        run = train(Simulated(Cluster(3, Compute(1e-2))), strategy, max_seconds=5.0, epochs=None)
        assert run.status == "stopped"
        assert 5.0 <= run.timing["train_seconds"] < 6.5


# ---- failures --------------------------------------------------------------------------------------------------------

PACE = Compute(row_seconds=1e-3)


@pytest.mark.parametrize("strategy", [SyncSGD(), SlowMo(3), ModelAveraging(3), Ensemble()], ids=str)
def test_a_gang_that_loses_a_worker_goes_on_from_its_last_point_and_learns_the_same(strategy):
    calm = train(Simulated(Cluster(3, PACE)), strategy)
    hit = Cluster(3, PACE, failures=(Failure(1, 0.07, 0.5), Failure(2, 0.55, 0.6), Failure(1, 0.6, 1.0), Failure(0, 9.0, 9.5)))
    run = train(Simulated(hit), strategy)
    assert same(calm, run)
    names = [n for n in calm.history.column_names if n not in ("seconds", "waited_seconds", "bytes_sent")]
    assert calm.history.select(names).equals(run.history.select(names))
    assert run.timing["train_seconds"] > 1.0 + 0.03  # the rest of an epoch, after the last return
    steps = [e for e in run.trace.to_pylist() if e["kind"] == "step"]
    assert len(steps) > sum(e["kind"] == "step" for e in calm.trace.to_pylist())  # work was done again
    assert not [e for e in steps if 0.08 < e["seconds"] < 0.5]


def test_a_gang_whose_worker_does_not_come_back_is_lost():
    with pytest.raises(WorkerLost, match=r"worker 1 was lost at virtual second 0\.07 and does not come back"):
        train(Simulated(Cluster(2, PACE, failures=(Failure(1, 0.07),))), SyncSGD())
    late = train(Simulated(Cluster(2, PACE, failures=(Failure(1, 70.0),))), SyncSGD())  # after the end: nothing happens
    assert late.status == "finished"


@pytest.mark.parametrize("shards", [1, 2])
def test_with_a_server_the_others_go_on_and_each_push_counts_once(shards):
    hit = Cluster(3, PACE, failures=(Failure(1, 0.05, 0.2), Failure(1, 0.23, 0.3), Failure(2, 0.1)))
    run = train(Simulated(hit, Server(shards=shards)), DynSGD(2))
    log = run.arrivals.to_pylist()
    for shard in range(shards):
        pushes = [e for e in log if e["kind"] in ("push", "lost") and e["shard"] == shard]
        for worker in (0, 1, 2):
            numbers = [e["sequence"] for e in pushes if e["worker"] == worker]
            assert numbers == list(range(1, len(numbers) + 1))
        assert len([e for e in pushes if e["worker"] == 0]) == len([e for e in pushes if e["worker"] == 1])
        assert 0 < len([e for e in pushes if e["worker"] == 2]) < len([e for e in pushes if e["worker"] == 0])
        mine = [e["seconds"] for e in pushes if e["worker"] == 1]
        assert not [s for s in mine if 0.06 < s < 0.2] and max(mine) > 0.3
        assert [e["seconds"] for e in pushes if e["worker"] == 0 and 0.06 < e["seconds"] < 0.2]
    assert {e["attempt"] for e in log if e["worker"] == 1} == {0, 1, 2}
    again = train(Replay(run), DynSGD(2))
    assert again.settings["replayed"] == "bit-equal"


def test_a_worker_that_returns_goes_on_with_its_running_statistics():
    """A BatchNorm over features whose mean is 50; worker 1 returns for its last steps."""
    x, y = rows(131)
    data, model = (x + 50, y), lambda: nn.Sequential(nn.BatchNorm1d(12), nn.Linear(12, 4))
    more = {"data": data, "model": model, "epochs": 10}
    calm = train(Simulated(Cluster(2, PACE)), DynSGD(2), **more)
    run = train(Simulated(Cluster(2, PACE, failures=(Failure(1, 0.55, 0.6),))), DynSGD(2), **more)
    steps = [e["attempt"] for e in run.arrivals.to_pylist() if e["kind"] == "push" and e["worker"] == 1]
    assert 0 < steps.count(1) < 4
    assert (calm.model[0].running_mean > 45).all() and (run.model[0].running_mean > 45).all()
    again = train(Replay(run), DynSGD(2), **more)
    assert again.settings["replayed"] == "bit-equal" and same(run, again)


# ---- what users write and get wrong ----------------------------------------------------------------------------------


def test_a_strategy_from_a_file_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "rings.py").write_text(
        textwrap.dedent("""
            class Gossip:
                def __repr__(self):
                    return "Gossip()"

                async def run(self, worker, net):
                    for step, batch in worker.steps():
                        worker.step(worker.gradient(batch))
                        sent = net.send(worker.params, (net.rank + 1) % net.size)
                        worker.params = (worker.params + await net.recv((net.rank - 1) % net.size)) / 2
                        await sent
                        net.publish(worker.params)
                    return await net.all_reduce(worker.params.clone())
        """)
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    import rings  # pyright: ignore[reportMissingImports]

    run = train(Simulated(Cluster(50, Compute(1e-4))), rings.Gossip(), data=rows(1000), model=network, epochs=20, batch_size=4)
    assert run.metrics["validation_accuracy"] > 0.6
    assert run.timing["train_seconds"] > 0
    del sys.modules["rings"]


def test_errors_of_users_code_come_once_with_the_worker_named():
    class Breaks:
        async def run(self, worker, net):
            for step, _ in worker.steps():
                if step == 3 and net.rank == 1:
                    raise ZeroDivisionError("no luck")
                await net.all_reduce(worker.params.clone())

    with pytest.raises(WorkerFailed, match=r"worker 1 on .* raised ZeroDivisionError: no luck(.|\n)*in run"):
        train(Simulated(Cluster(2)), Breaks())


def test_divergence_stops_with_the_last_good_model():
    with pytest.raises(firesteel.Diverged, match="training loss became"):
        train(Simulated(Cluster(2)), SyncSGD(), optimizer=SGD(lr=1e38), model=network)
    with pytest.raises(firesteel.Diverged, match=r"Downpour diverged at push .* staleness"):
        train(Simulated(Cluster(4), Server(max_growth=20.0)), Downpour(5), optimizer=SGD(lr=30.0), model=network)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"early_stopping": firesteel.EarlyStopping()}, "early stopping evaluates while all workers wait"),
        ({"device": "cuda"}, "computes on this process's CPU"),
        ({"on": Simulated(Cluster(200))}, "no row was left|no rows"),
    ],
)
def test_what_a_simulation_cannot_do(more, said):
    settings = {"on": Simulated(Cluster(2)), "data": (rows(1) if "on" in more else None)} | more
    with pytest.raises(UsageError, match=said):
        train(settings.pop("on"), SyncSGD(), **settings)


@pytest.mark.parametrize("strategy", [SyncSGD(), DynSGD()], ids=str)
def test_resuming_is_refused_before_anything_is_touched(strategy, tmp_path):
    on = Simulated(Cluster(2))
    run = train(on, strategy, run_dir=tmp_path)
    files = lambda: {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}  # noqa: E731
    before = files()
    for world in (on, Replay(run) if run.arrivals is not None else on):
        for more in ({"run_dir": tmp_path, "resume": True}, {"resume": tmp_path}, {"resume": True}):
            with pytest.raises(UsageError, match="so there is nothing to resume; start it again"):
                train(world, strategy, **more)
    assert files() == before


def test_the_callers_own_generator_and_threads_are_given_back():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    torch.set_num_threads(2)
    train(Simulated(Cluster(2)), SyncSGD())
    assert torch.equal(torch.rand(4), expected) and torch.get_num_threads() == 2
    smallest = sys.float_info.min
    assert smallest / 4 > 0  # denormal numbers are numbers again
    torch.set_flush_denormal(True)
    train(Simulated(Cluster(2)), SyncSGD())
    assert smallest / 4 == 0
    torch.set_flush_denormal(False)


def test_a_module_given_as_it_is_is_not_shared_between_workers():
    module = network()
    before = flat(module).clone()
    run = train(Simulated(Cluster(3)), Ensemble(), model=module)
    assert torch.equal(flat(module), before)
    members = [flat(m) for m in run.model.members]
    assert len(members) == 3 and not torch.equal(members[0], members[1])
