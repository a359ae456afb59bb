"""What belongs together, and what it is called."""

from __future__ import annotations

import pytest
from made_runs import external, run, seeds

from firesteel.bench.configurations import by_seconds, configurations, families
from firesteel.errors import UsageError


def labels(*results):
    return [one.label for one in configurations(results)]


def test_seeds_are_one_configuration_in_order_of_appearance():
    found = configurations([*seeds("B", [1.0, 2.0]), run("A"), run("B", seed=7)])
    assert [(one.label, [r.seed for r in one.results]) for one in found] == [("B", [0, 1, 7]), ("A", [0])]
    assert configurations([]) == []


def test_what_stands_in_the_header_stands_in_the_configuration():
    (one,) = configurations([run("AGN(window=12)", settings={"window": 12}, on="Local(workers=2)")])
    assert (one.workload, one.metric, one.target, one.method, one.strategy) == (
        *("digits", "validation_accuracy", 0.9, "AGN(window=12)", "AGN"),
    )
    assert (one.settings, one.optimizer, one.heuristic, one.world, one.virtual) == (
        {"window": 12},
        "SGD(lr=0.1)",
        None,
        "Local",
        False,
    )
    assert (one.on, one.workers, one.batch_size, one.external, one.source) == ("Local(workers=2)", 2, 32, False, None)
    assert one.seconds == "wall seconds"


def test_a_label_is_the_method_where_that_tells_all():
    assert labels(run("A", workers=1), run("B", workers=4)) == ["A", "B"]


def test_a_label_has_what_differs_and_no_more():
    assert labels(run("A", workers=1), run("A", workers=4), run("B")) == ["A, 1 worker", "A, 4 workers", "B"]
    assert labels(run("A", optimizer="Adam(lr=0.01)"), run("A")) == ["A, Adam(lr=0.01)", "A, SGD(lr=0.1)"]
    on, off = ({"name": "vector-free", "on": value} for value in (True, False))
    assert labels(run("A", heuristic=on), run("A", heuristic=off), run("A")) == ["A, vector-free on", "A, vector-free off", "A"]
    assert labels(run("A", world="Spark"), run("A", workers=4)) == ["A, 2 workers", "A, 4 workers"]
    assert labels(run("A", heuristic=None), run("A", limits={"epochs": 3})) == ["A", "A, limits={'epochs': 3}"]


def test_long_worlds_are_told_apart_by_the_parts_that_differ():
    world = "Simulated(cluster=Cluster(workers=2, network=Network(latency_seconds={}, bandwidth=125000000.0)))"
    assert labels(run("A", on=world.format(0.1)), run("A", on=world.format(0.2))) == [
        "A, latency_seconds=0.1",
        "A, latency_seconds=0.2",
    ]


def test_external_results_say_so_last():
    assert labels(run("A"), external("A", 0.9), external("A", 0.9, source="a blog")) == [
        *("A", "A, a paper (external)", "A, a blog (external)"),
    ]


def test_labels_need_be_unique_within_a_workload_only():
    other = {"name": "letters"}
    assert labels(run("A", workers=1), run("A", workers=2, workload=other)) == ["A", "A"]


def test_wall_seconds_of_two_machines_have_no_common_median_and_virtual_ones_have():
    machines = [{"environment": {"cpu": cpu, "git": git}} for cpu, git in (("Xeon", "aa"), ("Epyc", "bb"))]
    assert labels(*(run("A", seed=n, **each) for n, each in enumerate(machines))) == ["A, cpu Xeon", "A, cpu Epyc"]
    assert labels(*(run("A", seed=n, virtual=True, **each) for n, each in enumerate(machines))) == ["A"]


@pytest.mark.parametrize(("name", "other"), [("metric", "validation_loss"), ("target", 0.8)])
def test_a_workload_has_one_metric_and_one_target(name, other):
    with pytest.raises(UsageError, match=f"digits.*has the {name} .*A-0 and .*B-0"):
        configurations([run("A"), run("B", workload={name: other})])


def test_who_tells_no_target_has_that_of_the_workload():
    found = configurations([external("B", 0.95, workload={"target": None}), run("A")])
    assert [(one.target, one.results[0].target) for one in found] == [(0.9, 0.9), (0.9, 0.9)]
    assert configurations([run("A", workload={"target": None})])[0].target is None


def test_seconds_are_parted_by_kind_and_the_timeless_stand_with_both():
    found = configurations([run("A"), run("A", virtual=True), external("B", 0.9), external("C", 0.9, 20.0)])
    assert {kind: [one.label for one in part] for kind, part in by_seconds(found).items()} == {
        "wall seconds": ["A, wall seconds", "B (external)", "C (external)"],
        "virtual seconds": ["A, virtual seconds", "B (external)"],
    }
    assert list(by_seconds(found[2:3])) == ["wall seconds"]
    assert by_seconds([]) == {}


def test_a_family_differs_in_workers_alone():
    found = [run("A", workers=n, on=f"Local(workers={n}, threads=1)") for n in (4, 1)]
    found += [run("A", workers=n, on=f"Local(workers={n}, threads=2)") for n in (2, 1)]
    found += [run("B", workers=1), external("C", 0.9)]
    told = {label: [one.workers for one in family] for label, family in families(configurations(found)).items()}
    assert told == {"A, Local(workers=N, threads=1)": [1, 4], "A, Local(workers=N, threads=2)": [1, 2], "B": [1]}
