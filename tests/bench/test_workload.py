"""Workloads: each trains as it is described; what makes no sense is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from firesteel import Cluster, Local, ModelAveraging, Simulated, SyncSGD, datasets
from firesteel.bench.trial import Heuristic, Trial, perform
from firesteel.bench.workload import WORKLOADS, Budget, Workload, workload
from firesteel.datasets import Dataset
from firesteel.errors import UsageError


@pytest.mark.parametrize("name", WORKLOADS)
def test_every_workload_trains(name):
    whole = workload(name)
    try:
        data = whole.rows_of(0)
    except UsageError as error:
        pytest.skip(f"{name} needs its data: {error}")
    some = Dataset(data.name, data.train, tuple(part[:32] for part in data.test), data.classes)
    short = replace(whole, name="short", rows=32, batch_size=8, budget=Budget(1), points_per_epoch=2)
    result = perform(Trial(short, SyncSGD(), Simulated(Cluster(2))), lambda: some)
    assert result.status == "finished", result.error
    assert [point["step"] for point in result.points] == [1, 2]
    assert all(isinstance(point[result.metric], float) for point in result.points)
    assert result.points[-1]["samples"] == 32 and result.virtual


def test_a_seed_may_have_rows_of_its_own():
    def rows(seed: int = -1) -> Dataset:
        data = datasets.digits()
        return replace(data, name=f"of seed {seed}")

    whole = replace(workload("digits-mlp"), data=rows, splits=True)
    assert whole.rows_of(3).name == "of seed 3"
    assert replace(whole, splits=False).rows_of(3).name == "of seed -1"


def test_what_a_trial_is_decides_its_name_and_nothing_else():
    base = Trial(workload("digits-mlp"), ModelAveraging(period=4), Local(2))
    others = [
        replace(base, seed=1),
        replace(base, strategy=ModelAveraging(period=8)),
        replace(base, on=Local(4)),
        replace(base, heuristic=Heuristic("bf16", True)),
        replace(base, heuristic=Heuristic("bf16", False)),
        replace(base, batch_size=8),
        replace(base, epochs=3),
        replace(base, note="again"),
        replace(base, workload=replace(base.workload, target=0.5)),
        replace(base, workload=replace(base.workload, rows=10)),
    ]
    assert len({trial.id for trial in [base, *others]}) == 11
    assert Trial(workload("digits-mlp"), ModelAveraging(period=4), Local(2)).id == base.id
    assert base.method == "ModelAveraging(period=4)" and others[7].method == "ModelAveraging(period=4), again"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"metric": "auc"}, "metric 'auc' is not one of loss, accuracy"),
        ({"batch_size": 0}, "batch_size and rows are at least 1"),
        ({"rows": 0}, "batch_size and rows are at least 1"),
        ({"points_per_epoch": 0.0}, "points_per_epoch above 0"),
    ],
)
def test_workloads_that_make_no_sense(change, told):
    with pytest.raises(UsageError, match=told):
        _ = replace(workload("digits-mlp"), **change)


@pytest.mark.parametrize("budget", [(0, None), (1, 0), (-1, 2)])
def test_budgets_that_make_no_sense(budget):
    with pytest.raises(UsageError, match="a budget needs"):
        _ = Budget(*budget)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"strategy": SyncSGD}, "an instance such as SyncSGD"),
        ({"on": "local"}, "a trial's world is Local"),
        ({"workload": "digits-mlp"}, "a trial's workload is a Workload"),
    ],
)
def test_trials_that_make_no_sense(settings, told):
    given = {"workload": workload("digits-mlp"), "strategy": SyncSGD(), "on": Local(2), **settings}
    with pytest.raises(UsageError, match=told):
        _ = Trial(**given)


def test_smaller_may_be_better():
    assert workload("charlstm").smaller_is_better and not workload("digits-mlp").smaller_is_better
    assert isinstance(workload("charlstm"), Workload)
