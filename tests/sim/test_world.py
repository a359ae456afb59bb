"""`Simulated` beside the real worlds: the same numbers, the same guards, another clock."""

from __future__ import annotations

import copy
import dataclasses
import gc
import sys
import textwrap
import warnings

import numpy as np
import pytest
import torch
from problem import network, rows
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
    StrategyError,
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


@pytest.mark.parametrize("max_seconds", [0.07, 0.1, 0.16])
def test_workers_that_only_publish_stop_at_the_same_place(max_seconds):
    """Nothing but the publish points themselves says when: one worker is past the limit there, the other is not."""
    run = train(Simulated(Cluster(2, Compute((1e-3, 1.5e-3)))), Ensemble(), max_seconds=max_seconds, epochs=9)
    assert run.status == "stopped"
    steps = [max(e["step"] for e in run.trace.to_pylist() if e["rank"] == rank) for rank in (0, 1)]
    assert steps[0] == steps[1] == run.settings["steps"]


@dataclasses.dataclass(frozen=True)
class InPairs:
    """Pairs of workers average at each step; every other publish point is the pair's."""

    async def run(self, worker, net):
        pair = net.group([net.rank // 2 * 2, net.rank // 2 * 2 + 1])
        for step, batch in worker.steps():
            worker.step(await pair.all_reduce(worker.gradient(batch)))
            (pair if step % 2 else net).publish(worker.params)
        return await net.all_reduce(worker.params.clone())


@pytest.mark.parametrize("max_seconds", [0.07, 0.1, 0.16])
def test_workers_in_groups_stop_at_the_same_place(max_seconds):
    """The pairs never wait for each other: when the first has come to the limit, the second is far behind."""
    cluster = Cluster(4, Compute((1e-3, 1e-3, 2e-3, 2e-3)))
    run = train(Simulated(cluster), InPairs(), max_seconds=max_seconds, epochs=9)
    assert run.status == "stopped"
    steps = [max(e["step"] for e in run.trace.to_pylist() if e["rank"] == rank) for rank in range(4)]
    assert set(steps) == {run.settings["steps"]}


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


def test_failures_that_overlap_keep_the_gang_away_until_all_are_back():
    calm = train(Simulated(Cluster(2, PACE)), SyncSGD())
    for failures in (
        (Failure(0, 0.01, 1.0), Failure(1, 0.02, 0.03)),
        (Failure(0, 0.01, 0.02), Failure(1, 0.01, 1.0)),
        (Failure(0, 0.01, 0.5), Failure(1, 0.3, 1.0)),
        (Failure(0, 0.0, 1.0),),
    ):
        run = train(Simulated(Cluster(2, PACE, failures=failures)), SyncSGD())
        assert same(calm, run)
        assert run.timing["train_seconds"] == pytest.approx(1.0 + calm.timing["train_seconds"])
    with pytest.raises(WorkerLost, match=r"worker 1 was lost at virtual second 0\.02 and does not come back"):
        train(Simulated(Cluster(2, PACE, failures=(Failure(0, 0.01, 1.0), Failure(1, 0.02)))), SyncSGD())


def test_a_program_that_has_run_ahead_of_its_death_has_not_come_so_far():
    calm = train(Simulated(Cluster(1, PACE)), Single())
    marks = calm.history["seconds"].to_pylist()
    hit = Cluster(1, PACE, failures=(Failure(0, marks[0] + 0.01, 1.0), Failure(0, 1.05, 2.0)))
    run = train(Simulated(hit), Single())
    assert same(calm, run)
    assert run.history["seconds"].to_pylist() == pytest.approx([marks[0], *(2.0 + s - marks[0] for s in marks[1:])])


def test_what_a_lost_worker_had_computed_ahead_is_not_rescued():
    class Alone:
        async def run(self, worker, net):
            for _, batch in worker.steps():
                worker.step(worker.gradient(batch))
                net.publish(worker.params)
            return worker.params

    with pytest.raises(WorkerLost) as caught:
        train(Simulated(Cluster(2, PACE, failures=(Failure(1, 0.1),))), Alone(), checkpoint_steps=1, model=network)
    assert "of step 6" in caught.value.__notes__[0]  # of 16 rows, 16 milliseconds each


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


class Pushes:
    """Never asks for anything after its first pull, so that its program is through before the first push is merged."""

    needs_seen = False

    async def run(self, worker, net):
        worker.params = await net.pull()
        for _, batch in worker.steps():
            before = worker.params.clone()
            worker.step(worker.gradient(batch))
            await net.push(worker.params - before)
        return worker.params

    def merge(self, center, push):
        center.add_(push.delta)


def test_a_worker_that_dies_pushes_no_more():
    calm = train(Simulated(Cluster(2, PACE)), Pushes())
    hit = train(Simulated(Cluster(2, PACE, failures=(Failure(1, 0.05),))), Pushes())
    mine = [e for e in hit.arrivals.to_pylist() if e["worker"] == 1]
    assert [e["kind"] for e in mine] == ["join", "pull", "push", "push", "push", "leave"]  # 16 milliseconds each
    assert mine[-1]["seconds"] == 0.05
    kinds = [[e["kind"] for e in run.arrivals.to_pylist() if e["worker"] == 0] for run in (calm, hit)]
    assert kinds[0] == kinds[1]
    back = train(Simulated(Cluster(2, PACE, failures=(Failure(1, 0.05, 3.0),))), Pushes())
    pushes = [e["sequence"] for e in back.arrivals.to_pylist() if e["worker"] == 1 and e["kind"] == "push"]
    assert pushes == list(range(1, len(pushes) + 1)) and len(pushes) == kinds[0].count("push")
    assert back.timing["train_seconds"] > 3.0 > hit.timing["train_seconds"]


def test_a_worker_can_be_away_from_the_very_beginning():
    run = train(Simulated(Cluster(2, PACE, failures=(Failure(1, 0.0, 1.0),))), DynSGD(2))
    mine = [e for e in run.arrivals.to_pylist() if e["worker"] == 1]
    assert [e["kind"] for e in mine][:3] == ["join", "leave", "join"] and mine[2]["seconds"] == 1.0
    never = train(Simulated(Cluster(2, PACE, failures=(Failure(1, 0.0),))), DynSGD(2))
    assert not [e for e in never.trace.to_pylist() if e["rank"] == 1]


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


def test_a_failing_run_leaves_no_program_behind():
    class Breaks:
        async def run(self, worker, net):
            raise ZeroDivisionError("no luck")

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(WorkerFailed, match=r"worker 0 .* no luck"):
            train(Simulated(Cluster(3)), Breaks())
        gc.collect()
    assert not [w for w in caught if "never awaited" in str(w.message)]


@pytest.mark.parametrize("on", [Simulated(Cluster(2)), Local(1)], ids=["simulated", "local"])
def test_a_strategy_returns_parameters(on):
    class Nothing:
        async def run(self, worker, net):
            pass

    with pytest.raises(StrategyError, match=r"run returned NoneType on worker 0\. End it with the final parameters, \["):
        train(on, Nothing())


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


# ---- what a worker keeps is its own ------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", [Ensemble(), SyncSGD(), DynSGD(2)], ids=str)
def test_a_module_given_as_it_is_is_not_shared_between_workers(strategy):
    module = norms()
    before, held = copy.deepcopy(module.state_dict()), copy.deepcopy(module)

    def factory() -> nn.Module:
        made = norms()
        made.load_state_dict(before)
        return made

    expected, as_it_is, by_closure = (train(Simulated(Cluster(3)), strategy, model=m) for m in (factory, module, lambda: held))
    assert same(expected, as_it_is) and same(expected, by_closure)
    assert all(torch.equal(x, before[name]) for name, x in module.state_dict().items())


def test_a_module_given_as_it_is_can_be_replayed():
    module = network()
    run = train(Simulated(Cluster(2)), DynSGD(2), model=lambda: copy.deepcopy(module))
    assert train(Replay(run), DynSGD(2), model=module).settings["replayed"] == "bit-equal"


@pytest.mark.parametrize("strategy", [Ensemble(), DynSGD(2)], ids=str)
def test_a_backbone_that_a_python_module_holds_is_not_shared(strategy, tmp_path, monkeypatch):
    (tmp_path / "holding.py").write_text(
        textwrap.dedent("""
            import copy

            from torch import nn

            BACKBONE = nn.Sequential(nn.Linear(12, 8), nn.BatchNorm1d(8))
            PRISTINE = copy.deepcopy(BACKBONE)

            def shared():
                return nn.Sequential(BACKBONE, nn.Linear(8, 4))

            def fresh():
                return nn.Sequential(copy.deepcopy(PRISTINE), nn.Linear(8, 4))
        """)
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    import holding  # pyright: ignore[reportMissingImports]

    found = [train(Simulated(Cluster(3)), strategy, model=m) for m in (holding.fresh, holding.shared)]
    assert same(*found)
    del sys.modules["holding"]


class Remembers:
    """A strategy that keeps its momentum, and the number of its runs, where a beginner would."""

    def __init__(self):
        self.runs = 0
        self.momentum = None

    def __repr__(self):
        return "Remembers()"

    async def run(self, worker, net):
        self.runs += 1
        self.momentum = torch.zeros_like(worker.params) if self.momentum is None else self.momentum
        for step, batch in worker.steps():
            worker.step(self.momentum.mul_(0.5).add_(worker.gradient(batch), alpha=self.runs))
            if step % 3 == 0:
                worker.params = await net.all_reduce(worker.params)
        return await net.all_reduce(worker.params)


class Tiring(nn.Module):
    """A loss that counts how often it is called."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, outputs, targets):
        self.calls += 1
        return nn.functional.cross_entropy(outputs, targets) / (1 + 0.01 * self.calls)


def test_what_a_strategy_or_a_loss_keeps_is_each_workers_own():
    found = [train(on, Remembers(), loss=Tiring()) for on in (Local(2, threads=1), Simulated(Cluster(2)))]
    assert same(*found) and found[0].metrics == found[1].metrics
    strategy = Remembers()
    hit = Cluster(2, PACE, failures=(Failure(1, 0.01, 0.5),))  # back at the beginning, in new processes
    assert same(found[0], train(Simulated(hit), strategy, loss=Tiring()))
    assert strategy.runs == 0


def test_the_merging_strategy_is_the_servers_own():
    class Counts(Pushes):
        def __init__(self):
            self.merged = 0

        async def run(self, worker, net):
            await super().run(worker, net)
            center = await net.pull()
            assert self.merged == 0
            return center

        def merge(self, center, push):
            self.merged += 1
            assert push.delta.numel() == center.numel() and push.staleness < self.merged
            super().merge(center, push)

    strategy = Counts()
    assert train(Simulated(Cluster(2), Server(shards=2)), strategy).status == "finished"
    assert strategy.merged == 0
