"""Dry runs against real ones, and what the planner makes of them."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import pytest
import torch
from problem import network, rows
from torch import nn

import firesteel
from firesteel import (
    AEASGD,
    AGN,
    EASGD,
    SGD,
    Adam,
    AdamW,
    Cluster,
    Compute,
    DiLoCo,
    Downpour,
    Draw,
    DynSGD,
    Ensemble,
    Failure,
    Merging,
    ModelAveraging,
    Network,
    PostLocalSGD,
    Simulated,
    Single,
    Slow,
    SlowMo,
    SyncSGD,
    UsageError,
)
from firesteel.cli.plan import PlanCommand
from firesteel.sim.dry import rehearse
from firesteel.sim.dry_worker import ModelSize
from firesteel.strategies import CATALOGUE

SLOW = Cluster(4, Compute(1e-4, 1e-3), Network(1e-3, 1e6), merging=Merging(1e8, 1e-3, 1e9))


def size(optimizer=Adam()) -> ModelSize:
    return ModelSize.of(network(), optimizer)


@pytest.mark.parametrize(
    "strategy",
    [SyncSGD(), SyncSGD(bucket_bytes=200), ModelAveraging(4), EASGD(4), SlowMo(4), Downpour(4), AGN(4), AEASGD(4)],
    ids=str,
)
def test_a_dry_run_takes_as_long_as_the_run_itself(strategy):
    """The pace of a simulated training with gradients, from one epoch's end to another's, and its bytes."""
    run = firesteel.train(
        network,
        rows(4 * 16 * 8),
        strategy=strategy,
        on=Simulated(SLOW),
        optimizer=SGD(lr=0.01),
        batch_size=16,
        epochs=9,
        validation=None,
        progress="none",
    )
    seconds, sent = run.history["seconds"].to_pylist(), run.history["bytes_sent"].to_pylist()
    said = rehearse(strategy, SLOW, size(SGD()), 4 * 16 * 8, 16)
    assert said.epoch_seconds == pytest.approx((seconds[-2] - seconds[0]) / 7, rel=0.03)
    if run.arrivals is None:
        assert said.sent_bytes == pytest.approx((sent[-2] - sent[0]) / 7 / 4, rel=0.03)
    assert said.computing + said.wire + said.slowest + said.server == pytest.approx(1.0, abs=0.05)


ODD = {"period": 70, "window": 70}  # no divisor of the steps that a dry run begins with


def odd(strategy):
    named = {f.name: ODD[f.name] for f in dataclasses.fields(strategy) if f.name in ODD}
    return dataclasses.replace(strategy, **named) if named else None


@pytest.mark.parametrize(
    ("strategy", "round_"),
    [(each, 70) for each in map(odd, (cls() for name, cls in CATALOGUE.items() if name != "Grid")) if each is not None]
    + [(DiLoCo(500), 500), (AGN(), 2), (PostLocalSGD(switch=500, period=33), 33), (Ensemble(), 25)],
    ids=str,
)
def test_a_plan_counts_the_meetings_of_any_period(strategy, round_):
    """Bytes of whole rounds of a simulated training, of which none is the last."""
    first = getattr(strategy, "switch", 0) + round_
    chosen = {"optimizer": SGD(lr=0.001), "validation": None, "progress": "none", "strategy": strategy, "batch_size": 4}
    run = firesteel.train(network, rows(200), on=Simulated(Cluster(2)), max_steps=first + 2 * round_ + 1, **chosen)
    trace = run.trace.to_pylist()
    sent = sum(e["bytes"] for e in trace if first < e["step"] <= first + 2 * round_) / 2
    said = rehearse(strategy, Cluster(2), size(SGD()), 200, 4)
    assert sent > 0 and said.sent_bytes == pytest.approx(sent * 25 / (2 * round_), rel=1e-6)


def test_a_plan_finds_a_period_by_any_name():
    @dataclasses.dataclass(frozen=True)
    class Seldom:
        every: int

        async def run(self, worker, net):
            for step, batch in worker.steps():
                worker.step(worker.gradient(batch))
                if step % self.every == 0 or worker.last(step):
                    worker.params = await net.all_reduce(worker.params)
            return worker.params

    said, known = (rehearse(s, SLOW, size(), 10_000, 16) for s in (Seldom(333), ModelAveraging(333)))
    assert (said.sent_bytes, said.epoch_seconds) == pytest.approx((known.sent_bytes, known.epoch_seconds))


def test_memory_counts_what_a_strategy_holds():
    nbytes = size().nbytes
    assert rehearse(SyncSGD(), SLOW, size(SGD()), 1000, 16).memory_bytes == 2 * nbytes  # parameters and gradients
    assert rehearse(SyncSGD(), SLOW, size(), 1000, 16).memory_bytes == 4 * nbytes  # and Adam's moments
    assert rehearse(SlowMo(), SLOW, size(SGD()), 1000, 16).memory_bytes >= 4 * nbytes  # and where it began, and its momentum
    assert size().parameters == sum(p.numel() for p in network().parameters())


def test_what_dominates_is_what_was_made_slow():
    def mostly(strategy, cluster) -> str:
        return rehearse(strategy, cluster, size(), 4096, 16).dominated_by

    fast = Network(1e-6, 1e10)
    assert mostly(SyncSGD(), Cluster(4, Compute(1e-4), fast)) == "computing"
    assert mostly(SyncSGD(), Cluster(4, Compute(1e-7), Network(1e-3, 1e6))) == "the wire"
    assert mostly(SyncSGD(), Cluster(4, Compute((1e-3, 1e-6, 1e-6, 1e-6)), fast)) == "the slowest worker"
    assert mostly(DynSGD(), Cluster(4, Compute(1e-6), fast, merging=Merging(message_seconds=0.1))) == "the server"


def planned(**more):
    settings = {"workers": [1, 2, 4, 8, 16], "optimizer": Adam(), "batch_size": 16} | more
    chosen = settings.pop("strategies", [SyncSGD(), ModelAveraging(16), DynSGD()])
    return firesteel.plan(
        settings.pop("model", network), settings.pop("cluster", SLOW), settings.pop("rows", 20_000), chosen, **settings
    )


def test_a_plan_recommends_with_a_reason():
    found = planned()
    assert found.alone_seconds == pytest.approx(20_000 * 1e-4 + 1250 * 1e-3, rel=1e-3)
    chosen, why = found.recommendation()
    assert isinstance(chosen.strategy, ModelAveraging) and chosen.workers > 4 and "ideal speed-up" in why
    easy = planned(cluster=dataclasses.replace(SLOW, network=Network(1e-6, 1e10))).recommendation()[0]
    assert isinstance(easy.strategy, SyncSGD) and easy.workers == 16  # as fast as any, and easiest to trust
    target = planned(target_seconds=1.0)
    chosen, why = target.recommendation()
    assert chosen.epoch_seconds <= 1.0 and "are the fewest that reach 1 s an epoch" in why
    assert all(p.epoch_seconds > 1.0 for p in target.predictions if p.workers < chosen.workers)
    assert "no strategy reaches 1e-05 s" in planned(target_seconds=1e-5).recommendation()[1]
    hopeless = planned(cluster=Cluster(2, Compute(1e-7), Network(1.0, 1e3)), workers=[4, 8]).recommendation()
    assert "nothing computes for even half of the time" in hopeless[1]


def test_a_plan_leaves_failures_out_and_slows_down_from_the_beginning():
    events = {
        "compute": Compute(1e-4, 1e-3, slow=(Slow(1, 1e6, 4.0),)),
        "failures": (Failure(0, 0.001), Failure(1, 0.001, 0.1)),
    }
    late = planned(cluster=dataclasses.replace(SLOW, **events), workers=[1, 2]).predictions
    early = planned(cluster=dataclasses.replace(SLOW, compute=Compute((1e-4, 4e-4), 1e-3), workers=2), workers=[1]).predictions
    assert late[:3] == early  # the first worker is as it was
    assert all(p.epoch_seconds > 1.5 * q.epoch_seconds for p, q in zip(late[3:], planned(workers=[2]).predictions, strict=True))


def test_jitter_favours_no_strategy():
    jittered = dataclasses.replace(SLOW, compute=Compute(1e-4, 1e-3, jitter=Draw("pareto", 1.5, 1.3)))
    found = planned(cluster=jittered, strategies=[SyncSGD(), DiLoCo(), ModelAveraging(7)], workers=[1])
    assert found.alone_seconds == pytest.approx(1.5 * (20_000 * 1e-4 + 1250 * 1e-3))
    assert [found.efficiency(p) for p in found.predictions] == pytest.approx([1.0, 1.0, 1.0])


def test_single_is_planned_for_one_worker_only():
    assert [p.workers for p in planned(strategies=[Single(), SyncSGD()], workers=[1, 2]).predictions] == [1, 1, 2]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"rows": 0}, "rows=0: a plan needs a whole number, 1 or more"),
        ({"batch_size": 2.5}, "batch_size=2.5: a plan needs a whole number"),
        ({"shards": 0}, "shards=0: a plan needs a whole number"),
        ({"workers": []}, "needs a number of workers"),
        ({"workers": [2, True]}, "workers=True: a plan needs a whole number"),
        ({"target_seconds": -1.0}, "target_seconds=-1.0: it must be greater than 0"),
        ({"strategies": []}, "nothing to recommend"),
        ({"strategies": [Single()], "workers": [4]}, "nothing to recommend. Single is planned for 1 worker"),
        ({"strategies": [Ensemble()]}, "nothing to recommend"),
        ({"strategies": [SyncSGD]}, "give an instance: SyncSGD"),
        ({"strategies": ["SyncSGD"]}, "'SyncSGD' has no `async def run"),
        ({"optimizer": "adam"}, "optimizer='adam': give firesteel.Adam"),
        ({"cluster": "cluster.json"}, "Cluster.load"),
        ({"cluster": Cluster(2, Compute(0.0))}, "computes in no time"),
        ({"cluster": Cluster(2, Compute((0.0, 1e-5)))}, "computes in no time"),
        ({"model": "mlp:4,2"}, "model='mlp:4,2': give an nn.Module"),
        ({"model": lambda: "mlp"}, "or a call that makes one"),
        ({"workers": [64], "rows": 10}, "64 workers for 10 rows"),
    ],
)
def test_plans_that_cannot_be(more, said):
    with pytest.raises(UsageError, match=said):
        planned(**more)


def test_a_strategy_that_reads_rows_cannot_be_rehearsed():
    class Reads:
        async def run(self, worker, net):
            return sum(batch.rows for batch in worker.rows)

    with pytest.raises(UsageError, match="only simulated with data"):
        rehearse(Reads(), SLOW, size(), 1000, 16)


def test_a_frozen_layer_is_not_sent():
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    model[0].weight.requires_grad_(False)
    assert ModelSize.of(model, Adam()).parameters == 8 + 16 + 2


def test_what_is_kept_and_not_sent_is_memory_too():
    model = nn.Sequential(nn.Linear(400, 800), nn.BatchNorm1d(800), nn.Linear(800, 2))
    for p in model[0].parameters():
        p.requires_grad_(False)
    model_size = ModelSize.of(model, SGD())
    assert model_size.fixed_bytes == 4 * (401 * 800) + 4 * 2 * 800 + 8  # frozen; running mean and variance; how many batches
    assert rehearse(SyncSGD(), SLOW, model_size, 1000, 16).memory_bytes == 2 * model_size.nbytes + model_size.fixed_bytes


def test_a_plan_leaves_the_model_as_it_was():
    model = network()
    before = [p.detach().clone() for p in model.parameters()]
    _ = firesteel.plan(model, SLOW, 1000, [SyncSGD()], [2], optimizer=AdamW(lr=0.1))
    assert all(torch.equal(p, was) and p.grad is None for p, was in zip(model.parameters(), before, strict=True))


# ---- calibration -----------------------------------------------------------------------------------------------------


def test_calibrating_this_machine():
    factory = lambda: firesteel.models.MLP(64, 32, 10)  # noqa: E731
    found = firesteel.calibrate(factory, firesteel.datasets.digits(), batch_size=32)
    assert found.workers == found.network.workers_per_host == 2
    assert 1e-9 < max(found.row_seconds(0)) < 1e-3 and 0 <= found.compute.step_seconds < 0.1
    assert 1e-7 < found.network.local_latency_seconds < 0.1 and 1e6 < found.network.local_bandwidth < 1e12
    assert found.merging.place == "worker" and found.merging.bandwidth > 1e8
    assert "batches of 32, on Local(workers=2)" in found.about
    with pytest.raises(UsageError, match="no network to measure"):
        firesteel.calibrate(factory, firesteel.datasets.digits(), on=firesteel.Local(1))


def test_an_imagined_cluster_is_found_again_by_calibrating_it():
    """Calibration reads only traces, so it can be tried where the truth is known."""
    truth = Cluster(3, Compute((2e-4, 3e-4, 2e-4), 4e-3), Network(2e-3, 5e7), merging=Merging(place="shared"))
    from firesteel.sim import calibrate as module

    strategy = module._Meets(16, 2**16)
    run = firesteel.train(
        network, rows(300), strategy=strategy, on=Simulated(truth), max_steps=1, batch_size=16, validation=None, progress="none"
    )
    steps = module._times(run, "step", "rows")
    assert sorted(steps) == [4, 16]
    for rank, each in enumerate((2e-4, 3e-4, 2e-4)):
        assert steps[16][rank][0] - steps[4][rank][0] == pytest.approx(12 * each, rel=1e-6)
    tiny, large = module._reduced(run)
    assert tiny / 4 == pytest.approx(2e-3, rel=0.01)
    assert 4 / 3 * 4 * 2**16 / (large - tiny) == pytest.approx(5e7, rel=0.01)


# ---- the command line ------------------------------------------------------------------------------------------------


def command(*args: str, cwd, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([sys.executable, "-m", "firesteel.cli", *args], capture_output=True, text=True, cwd=cwd)
    assert done.returncode == code, done.stderr
    return done


def test_calibrate_plan_and_train_from_the_command_line(tmp_path):
    said = command("calibrate", "mlp:64,32,10", "digits", "--out", "here.json", cwd=tmp_path)
    assert "us a row" in said.stdout and "within this host" in said.stdout
    plan = ["plan", "mlp:64,32,10", "--rows", "50000", "--cluster", "here.json", "--workers", "1,4"]
    table = command(*plan, "--plot", "speed.png", cwd=tmp_path)
    assert "ModelAveraging" in table.stdout and "take " in table.stdout and (tmp_path / "speed.png").stat().st_size > 5000
    told = json.loads(command(*plan, "--json", "--strategies", "SyncSGD", "AGN", cwd=tmp_path).stdout)
    assert len(told["predictions"]) == 4 and told["recommended"]["why"]
    other = command("plan", "lenet", "--rows", "5000", "--cluster", "here.json", "--workers", "2", cwd=tmp_path)
    assert "was measured with mlp:64,32,10" in other.stderr
    train = ["train", "mlp:64,32,10", "digits", "--on", "here.json", "--workers", "10", "--strategy", "DynSGD", "--epochs", "2"]
    run = command(*train, "--gantt", "gantt.png", "--json", cwd=tmp_path)
    assert json.loads(run.stdout)["status"] == "finished" and "virtual s" in run.stderr
    assert (tmp_path / "gantt.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["plan", "mlp:4,2", "--rows", "10", "--cluster", "none.json"], "cannot be read as a cluster"),
        (["plan", "mlp:4,2", "--rows", "10", "--cluster", "none.json", "--workers", "1,x"], "--workers '1,x'"),
        (["train", "mlp:64,10", "digits", "--on", "moon"], "local, spark, or the JSON file"),
        (["train", "mlp:64,10", "digits", "--on", "none.json"], "cannot be read as a cluster"),
        (["train", "mlp:64,10", "digits", "--on", "none.json", "--master", "local[2]"], "go with --on spark"),
        (["calibrate", "mlp:64,10", "digits", "--workers", "1"], "no network to measure"),
    ],
)
def test_commands_that_cannot_work(args, said, tmp_path):
    assert said in command(*args, cwd=tmp_path, code=2).stderr


def test_a_plan_says_what_it_leaves_out_and_fits_a_screen(tmp_path, capsys):
    path = str(tmp_path / "cluster.json")
    compute = Compute((1e-3, 1e-6, 1e-6, 1e-6), slow=(Slow(1, 1.0, 2.0),))
    Cluster(4, compute, Network(1e-6, 1e10), failures=(Failure(2, 1.0, 2.0),)).save(path)
    assert PlanCommand("mlp:4,2", rows=100, cluster=path, workers="1,4", strategies=["all"], batch_size=4).run() == 0
    said = capsys.readouterr()
    assert "leaves the failures" in said.err and "slow from the beginning" in said.err
    table, _, rest = said.out.partition("\n\n")
    assert max(map(len, table.splitlines())) <= 100 and "slowest worker (" in table and "…" not in table
    assert "virtual seconds" in rest and "1 workers" not in rest


def test_the_pictures(tmp_path):
    run = firesteel.train(network, rows(200), strategy=DiLoCo(4), on=Simulated(SLOW), batch_size=16, epochs=3, progress="none")
    run.plot_gantt(tmp_path / "gantt.png")
    run.plot_loss(tmp_path / "loss.png")
    figure = run.plot_gantt()
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["worker 0", "worker 1", "worker 2", "worker 3"]
    assert "virtual seconds" in {a.get_xlabel() for a in run.plot().axes[0].child_axes}
    assert all((tmp_path / name).stat().st_size > 5000 for name in ("gantt.png", "loss.png"))
    assert torch.get_num_threads() == 1
