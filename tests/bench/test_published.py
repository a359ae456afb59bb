"""The numbers of papers that come with Firesteel."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from firesteel.bench.external import import_file
from firesteel.bench.published import SOURCE, published
from firesteel.bench.results import read
from firesteel.errors import UsageError

FOLDER = Path(__file__).parents[2] / "src/firesteel/bench/published"


def taken(name, tmp_path, **rest):
    return import_file(f"published:{name}", name, tmp_path, tell=lambda _: None, **rest)


@pytest.mark.parametrize("name", published())
def test_each_says_where_it_is_from(name, tmp_path):
    whole = json.loads((FOLDER / f"{name}.json").read_text())
    assert set(whole) == {*SOURCE, "runs"} and whole["title"] and whole["where"] and whole["checked"]
    results = taken(name, tmp_path)
    assert len(results) == len(whole["runs"]) and read(tmp_path) == results
    for result in results:
        assert result.external and whole["title"] in result.header["source"] and whole["checked"] in result.header["source"]


def test_the_thesis(tmp_path):
    results = taken("hermans-2017", tmp_path, workload="mnist")
    found = {(r.method, r.workers): r for r in results}
    assert found["AGN(window=40)", 40].points == ({"seconds": 257.6, "validation_accuracy": 0.9818},)
    assert found["AGN(window=15)", 20].points == ({"validation_accuracy": 0.9849},)
    assert found["Downpour(window=1)", 10].status == "converged" and found["Downpour(window=1)", 10].points == ({},)
    assert found["Downpour(window=1)", 20].status == "diverged"
    assert found["AGN(window=40)", 40].header["settings"] == {"window": 40}
    assert [r.points[0]["temporal_efficiency"] for r in results if r.metric == "temporal_efficiency"] == [0.881, 1.045]
    assert {r.workload for r in results} == {"mnist"}


def test_speed_ups(tmp_path):
    assert [(r.workers, r.points) for r in taken("su-chen-2015", tmp_path)] == [
        (16, ({"speed_up": 9.3},)),
        (32, ({"speed_up": 17},)),
    ]


def test_an_unknown_name(tmp_path):
    with pytest.raises(UsageError, match=r"'hermans'.*Names: chen-2014, dist-keras, hermans-2017"):
        _ = taken("hermans", tmp_path)


def test_they_are_in_the_wheel(tmp_path):
    root = FOLDER.parents[3]
    _ = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path], cwd=root, check=True, capture_output=True
    )
    (wheel,) = tmp_path.glob("*.whl")
    assert {f"firesteel/bench/published/{name}.json" for name in published()} <= set(zipfile.ZipFile(wheel).namelist())
