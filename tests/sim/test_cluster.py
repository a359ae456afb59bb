"""Clusters as data: what cannot be is refused, what is written is read again, draws are what they say."""

from __future__ import annotations

import json
import random
import statistics

import pytest

from firesteel import Cluster, Compute, Draw, Failure, Merging, Network, Server, Simulated, Slow, UsageError
from firesteel.cli.session import world


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Cluster(0), "at least one worker"),
        (lambda: Cluster(True), "workers=True.: it must be a whole number"),
        (lambda: Cluster(2, failures=Failure(0, 1.0)), "a list .each a Failure"),  # pyright: ignore[reportArgumentType]
        (lambda: Compute(jitter=3), "jitter=3.: it must be a Draw .kind, mean, spread. or null"),  # pyright: ignore[reportArgumentType]
        (lambda: Network(workers_per_host=1.5), "whole number"),  # pyright: ignore[reportArgumentType]
        (lambda: Network(oversubscription=float("nan")), "finite"),
        (lambda: Network(bandwidth=0), "bandwidth=0"),
        (lambda: Network(bandwidth=-5.0), "greater than 0"),
        (lambda: Network(bandwidth=float("inf")), "finite"),
        (lambda: Network(latency_seconds=-1e-3), "0 or more"),
        (lambda: Network(workers_per_host=0), "workers_per_host"),
        (lambda: Network(oversubscription=0.5), "oversubscription"),
        (lambda: Merging(bandwidth=0), "bandwidth=0"),
        (lambda: Merging(place="moon"), "'own', 'shared' or 'worker'"),
        (lambda: Compute(row_seconds=-1), "row_seconds=-1"),
        (lambda: Compute(row_seconds=(1e-5, -1e-5)), "row_seconds=-1e-05"),
        (lambda: Compute(row_seconds=float("nan")), "finite"),
        (lambda: Cluster(3, Compute(row_seconds=(1e-5, 1e-5))), "names 2 workers, the cluster has 3"),
        (lambda: Draw("paretto", 1.0, 2.0), "Did you mean 'pareto'"),
        (lambda: Draw("pareto", 1.0, 1.0), "between 1 and inf"),
        (lambda: Draw("uniform", 1.0, 1.5), "between 0 and 1"),
        (lambda: Draw("lognormal", 0.0, 1.0), "mean=0.0"),
        (lambda: Slow(0, -1.0, 2.0), "at_seconds=-1.0"),
        (lambda: Cluster(2, Compute(slow=(Slow(2, 1.0, 2.0),))), "2 workers, 0 .. 1"),
        (lambda: Failure(0, 5.0, 4.0), "cannot come back before"),
        (lambda: Cluster(2, failures=(Failure(5, 1.0),)), "2 workers, 0 .. 1"),
        (lambda: Cluster(2, failures=(Failure(0, 1.0), Failure(0, 2.0), Failure(1, 1.0))), "already away"),
        (lambda: Cluster(2, failures=(Failure(0, 1.0), Failure(1, 2.0))), "none comes back"),
        (lambda: Cluster(2, all_reduce="star"), "'ring', 'tree' or"),
        (lambda: Simulated("cluster.json"), "Cluster.load"),
        (lambda: Simulated(Cluster(2), threads=0), "threads >= 1"),
        (lambda: Simulated(Cluster(2), server=Server(tls=True)), "nothing to encrypt"),
    ],
)
def test_impossible_clusters_are_refused(make, said):
    with pytest.raises(UsageError, match=said):
        make()


FULL = Cluster(
    4,
    Compute(
        row_seconds=(1e-5, 2e-5, 1e-5, 1e-5), step_seconds=1e-4, jitter=Draw("pareto", 1.0, 2.5), slow=(Slow(1, 2.0, 3.0),)
    ),
    Network(workers_per_host=2, hosts_per_rack=1, oversubscription=2.0),
    "halving_doubling",
    Merging(place="shared"),
    (Failure(0, 1.0, 2.0), Failure(3, 4.0)),
)


@pytest.mark.parametrize("cluster", [Cluster(1), FULL, Cluster(3, Compute(row_seconds=Draw("lognormal", 1e-5, 0.5)))])
def test_json_gives_back_what_was_written(cluster, tmp_path):
    path = tmp_path / "cluster.json"
    cluster.save(path)
    assert Cluster.load(path) == cluster


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "cannot be read"),
        ("[]", "a Cluster is an object"),
        ('{"workers": 2, "latncy": 1}', "a Cluster has no 'latncy'"),
        ('{"workers": 2, "network": {"latency": 1}}', "network: a Network has no 'latency'.*latency_seconds"),
        ('{"workers": 2, "network": {"bandwidth": "fast"}}', "bandwidth='fast'"),
        ("{}", "a Cluster needs 'workers'"),
        *(
            (json.dumps({"workers": 3} | wrong), said)
            for wrong, said in [
                ({"workers": "4"}, r"workers='4'\): it must be a whole number"),
                ({"workers": True}, r"workers=True\): it must be a whole number"),
                ({"compute": None}, r"compute=None\): it must be a Compute \(row_seconds, "),
                ({"compute": 5}, r"compute=5\): it must be a Compute"),
                ({"compute": [1]}, r"compute=\(1,\)\): it must be a Compute"),
                ({"compute": {"row_seconds": None}}, "it must be a number or a list .each a number. or a Draw"),
                ({"compute": {"row_seconds": ["a", "b", "c"]}}, r"row_seconds=\('a', 'b', 'c'\)\): it must be"),
                ({"compute": {"jitter": 3}}, r"jitter=3\): it must be a Draw \(kind, mean, spread\) or null"),
                ({"compute": {"jitter": {"kind": "lognormal", "mean": 1}}}, "compute: jitter: a Draw needs 'spread'"),
                ({"compute": {"jitter": {"kind": ["a"], "mean": 1, "spread": 1}}}, "one of uniform, lognormal"),
                ({"compute": {"slow": [[0, 1, 2]]}}, r"it must be a list .each a Slow \(worker, at_seconds, factor\)"),
                ({"compute": {"slow": {"worker": 0, "at_seconds": 1, "factor": 2}}}, "a list .each a Slow"),
                ({"network": "fast"}, r"network='fast'\): it must be a Network"),
                ({"network": {"workers_per_host": 1.5}}, r"workers_per_host=1.5\): it must be a whole number"),
                ({"network": {"hosts_per_rack": 1.5}}, r"hosts_per_rack=1.5\): it must be a whole number or null"),
                ({"network": {"oversubscription": "a"}}, r"oversubscription='a'\): it must be a number"),
                ({"failures": [5]}, r"failures=\(5,\)\): it must be a list .each a Failure"),
                ({"failures": [[0, 1, 2]]}, "it must be a list .each a Failure"),
                ({"failures": {"worker": 0, "at_seconds": 1}}, "it must be a list .each a Failure"),
                ({"failures": [{"worker": 0.5, "at_seconds": 1}]}, r"failures: Failure\(worker=0.5\): it must be a whole"),
                ({"failures": [{"worker": 0, "at_seconds": 1, "back_seconds": "x"}]}, "it must be a number or null"),
                ({"all_reduce": ["ring"]}, "one of ring, tree, halving_doubling"),
                ({"merging": {"place": ["own"]}}, "one of own, shared, worker"),
                ({"merging": {"card_bandwidth": "x"}}, "it must be a number or null"),
            ]
        ),
    ],
)
def test_files_that_are_no_clusters(text, said, tmp_path):
    path = tmp_path / "cluster.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=said):
        Cluster.load(path)
    with pytest.raises(UsageError, match="cannot be read"):
        Cluster.load(tmp_path / "none.json")


def test_another_size_keeps_what_befalls_those_that_are_left():
    smaller, larger = FULL.resized(2), FULL.resized(6)
    assert smaller.compute.slow == FULL.compute.slow and smaller.failures == (Failure(0, 1.0, 2.0),)
    assert larger.events == FULL.events and FULL.resized(1).compute.slow == ()


def test_the_command_line_says_what_it_leaves_out(tmp_path, capsys):
    path = str(tmp_path / "cluster.json")
    FULL.save(path)
    assert world(path, None, None, None) == world(path, 4, None, None) == Simulated(FULL)
    assert capsys.readouterr().err == ""
    assert world(path, 2, None, None) == Simulated(FULL.resized(2))
    assert "leaves out Failure(worker=3, at_seconds=4.0" in capsys.readouterr().err


def test_what_a_file_does_not_name_keeps_its_default(tmp_path):
    path = tmp_path / "cluster.json"
    path.write_text(json.dumps({"workers": 3, "network": {"bandwidth": 1e6}}))
    assert Cluster.load(path) == Cluster(3, network=Network(bandwidth=1e6))


@pytest.mark.parametrize(
    "draw",
    [Draw("uniform", 2.0, 0.5), Draw("lognormal", 2.0, 0.4), Draw("exponential", 2.0, 0.7), Draw("pareto", 2.0, 3.0)],
    ids=lambda d: d.kind,
)
def test_draws_have_their_mean(draw):
    stream = random.Random(1)
    found = [draw(stream) for _ in range(40_000)]
    assert min(found) >= 0
    assert statistics.fmean(found) == pytest.approx(2.0, rel=0.03)
    assert draw(random.Random(5)) == draw(random.Random(5))


def test_drawn_rates_come_from_the_seed():
    cluster = Cluster(3, Compute(row_seconds=Draw("lognormal", 1e-5, 0.5)))
    assert cluster.row_seconds(1) == cluster.row_seconds(1) != cluster.row_seconds(2)
    assert len(set(cluster.row_seconds(1))) == 3
