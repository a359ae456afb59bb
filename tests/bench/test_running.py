"""Running a recipe: what is done is kept, whatever ends the bench; what fails is a result; folders can be shared."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import pytest

from firesteel.bench import recipe, results, running
from firesteel.bench.child import file_of, locked
from firesteel.cli import main
from firesteel.errors import UsageError

ODD = "from tiny import *\ndef matrix(): return {}"
TINY = str(Path(__file__).with_name("tiny.py"))


def command(folder: Path, *flags: str) -> list[str]:
    return [sys.executable, "-m", "firesteel.cli", "bench", "run", TINY, "--out", str(folder), *flags]


@final
@dataclass(frozen=True)
class Said:
    returncode: Any
    stdout: str
    stderr: str


def bench(folder: Path, *flags: str) -> Said:
    """The command in this process, which has all imported; its trials are in processes of their own anyway."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
        main(command(folder, *flags)[3:])
    return Said(ended.value.code, out.getvalue(), err.getvalue())


def learnt(folder: Path) -> dict[str, object]:
    """What every trial's file says but for the clocks of this machine."""
    found = {}
    for result in results.read(folder):
        header = {name: value for name, value in result.header.items() if name != "environment"}
        found[result.id] = (header, result.points, result.status)
    return found


def test_a_bench_runs_all_trials_and_a_second_call_runs_none(tmp_path):
    first = bench(tmp_path)
    assert first.returncode == 0, first.stderr
    assert "[6/6]" in first.stderr and "s left" in first.stderr
    assert "shown: trials end (published all of them; here 6 results)" in first.stdout
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "trials").glob("*.jsonl")}
    assert len(times) == 6
    second = bench(tmp_path)
    assert second.returncode == 0 and "6 of them done before" in second.stderr
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "trials").glob("*.jsonl")} == times
    told = json.loads((tmp_path / "bench.json").read_text())
    assert told["title"] == "Very short trials: some digits, a small network, two simulated workers"
    assert told["claims"][0]["verdict"] == "shown"


def test_a_result_says_what_was_run_on_what(tmp_path):
    _ = bench(tmp_path, "--set", "trials=1")
    (result,) = results.read(tmp_path)
    header = result.header
    assert header["strategy"] == "SyncSGD" and header["workers"] == 2 and header["virtual"] and header["seed"] == 0
    assert header["workload"]["target"] == 0.1 and header["workload"]["model"] == "MLP(64, 8, 10)"
    assert header["environment"]["torch"] and header["environment"]["cores"] and header["environment"]["started"]
    assert result.status == "finished" and [point["step"] for point in result.points] == [2, 4, 6]
    assert result.points[-1]["samples"] == 192 and 0 <= result.points[-1]["training_accuracy"] <= 1
    assert result.strips[0]["rank"] == 0 and result.strips[0]["computing"]


def test_a_trial_that_raises_or_dies_is_a_result_and_the_others_go_on(tmp_path):
    done = bench(tmp_path, "--set", "broken=raises,dies")
    assert done.returncode == 1
    assert "2 of 8 trials failed" in done.stderr
    failed = {r.header["settings"]["how"]: r.error for r in results.read(tmp_path) if r.status == "failed"}
    assert "on purpose" in failed["raises"]["message"]
    assert failed["dies"]["type"] == "ProcessDied" and "SIGKILL" in failed["dies"]["message"]
    assert sum(r.status == "finished" for r in results.read(tmp_path)) == 6
    again = bench(tmp_path, "--set", "broken=raises,dies")
    assert "8 of them done before" in again.stderr
    once_more = bench(tmp_path, "--set", "broken=raises,dies", "--retry-failed")
    assert "6 of them done before" in once_more.stderr and once_more.returncode == 1


def killed(folder: Path, trials: int, kills: int, flags: tuple[str, ...] = ()) -> int:
    """Run a bench, killing it and nobody else `kills` times at random moments; returns how often that met it at work."""
    chance, met = random.Random(0), 0
    flags = ("--set", f"trials={trials}", "--progress", "none", *flags)
    for _ in range(kills):
        process = subprocess.Popen(command(folder, *flags), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        before = len(list((folder / "trials").glob("*.jsonl")))
        more = chance.randint(1, max(1, 2 * (trials - before) // (kills + 1)))
        while process.poll() is None and len(list((folder / "trials").glob("*.jsonl"))) < before + more:
            time.sleep(0.005 * chance.random())
        met += process.poll() is None
        process.kill()
        _ = process.wait()
    last = bench(folder, *flags)
    assert last.returncode == 0, last.stderr
    return met


def test_a_bench_that_is_killed_goes_on_and_ends_with_the_same_results(tmp_path):
    assert killed(tmp_path / "killed", 24, 2) == 2
    assert bench(tmp_path / "whole", "--set", "trials=24").returncode == 0
    assert learnt(tmp_path / "killed") == learnt(tmp_path / "whole")
    assert not list((tmp_path / "killed" / "trials").glob(".*.jsonl.*"))


@pytest.mark.soak
def test_two_hundred_trials_killed_ten_times(tmp_path):
    assert killed(tmp_path / "killed", 200, 10, ("--jobs", "2")) == 10
    assert bench(tmp_path / "whole", "--set", "trials=200", "--jobs", "2").returncode == 0
    assert len(learnt(tmp_path / "whole")) == 200
    assert learnt(tmp_path / "killed") == learnt(tmp_path / "whole")


def test_two_benches_share_a_folder(tmp_path):
    flags = ("--set", "trials=24", "--progress", "lines")
    both = [
        subprocess.Popen(command(tmp_path, *flags), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) for _ in "ab"
    ]
    said = [process.communicate(timeout=240)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert len(learnt(tmp_path)) == 24
    assert all("[24/24]" in text for text in said)
    written = [text.count("accuracy") for text in said]
    assert sum(written) == 24, written  # nothing was done twice


def test_ctrl_c_keeps_what_was_done_and_says_so(tmp_path):
    process = subprocess.Popen(
        command(tmp_path, "--set", "trials=400"), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    while len(list((tmp_path / "trials").glob("*.jsonl"))) < 3:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert "of 400 trials are done and kept" in said and "Traceback" not in said
    assert 3 <= len(results.read(tmp_path)) < 400


def test_no_process_outlives_a_bench_that_is_killed(tmp_path):
    process = subprocess.Popen(command(tmp_path, "--set", "trials=400"), stderr=subprocess.DEVNULL)
    while not list((tmp_path / "trials").glob("*.jsonl")):
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    _ = process.wait()
    for _ in range(1000):
        if not _children_of(str(tmp_path)):
            break
        time.sleep(0.01)
    assert not _children_of(str(tmp_path))


def _children_of(folder: str) -> list[str]:
    lines = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout.splitlines()
    return [line for line in lines if "firesteel.bench.child" in line and folder in line]


def test_a_lock_that_another_holds_is_left_alone(tmp_path):
    path = file_of(tmp_path, "x")
    with locked(path, wait=False) as first, locked(path, wait=False) as second:
        assert first and not second


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "there is no recipe"),
        ("x = 1", "has no function matrix"),
        ("def matrix(): return []", "returned an empty list"),
        ("def matrix(): return [3]", "a list with 3"),
        ("def matrix(): return 4", "returned a int"),
        ("import nothing_of_that_name", "cannot be run: ModuleNotFoundError"),
        ("def matrix(:", "cannot be run: SyntaxError"),
        (ODD.format("[Trial(tiny(), SyncSGD(), Simulated(Cluster(2)))] * 2"), "is there twice"),
        (
            ODD.format("[Trial(replace(tiny(), model=lambda: 1), SyncSGD(), Simulated(Cluster(2)))]"),
            "<lambda>",
        ),
        (
            ODD.format("[Trial(replace(tiny(), target=t), SyncSGD(), Simulated(Cluster(2))) for t in (0, 1)]"),
            "two workloads are called 'tiny' and differ",
        ),
        ("from firesteel.bench.workload import workload\nworkload('mnist-mpl')", "Did you mean 'mnist-mlp'?"),
        ("from firesteel.bench.trial import Trial\nTrial('mnist-mlp', None, None)", "a trial's workload is a Workload"),
    ],
)
def test_recipes_that_cannot_be_run(tmp_path, text, told):
    path = tmp_path / "odd.py"
    if text is not None:
        path.write_text(text)
        shutil.copy(TINY, tmp_path / "tiny.py")
    with pytest.raises(UsageError, match=told):
        _ = recipe.load(path)
    for name in ("tiny", "odd"):
        sys.modules.pop(name, None)
    sys.path[:] = [place for place in sys.path if place != str(tmp_path)]


def test_a_recipe_that_is_another_one_in_another_process(tmp_path):
    path = tmp_path / "odd.py"
    path.write_text(
        "import os\nfrom tiny import *\ndef matrix(): return [Trial(tiny(), SyncSGD(), Simulated(Cluster(2)), os.getpid())]"
    )
    shutil.copy(TINY, tmp_path / "tiny.py")
    done = subprocess.run(
        [*command(tmp_path / "out")[:5], str(path), "--out", str(tmp_path / "out")], capture_output=True, text=True
    )
    assert done.returncode == 2 and "gives other trials when another process reads it" in done.stderr
    assert not list((tmp_path / "out" / "trials").glob("*.jsonl"))


def test_data_that_cannot_be_had_is_a_result(tmp_path):
    path = tmp_path / "absent.py"
    path.write_text(
        "from firesteel import Local, Single\n"
        "from firesteel.bench.trial import Trial\nfrom firesteel.bench.workload import workload\n"
        "def matrix(): return [Trial(workload('a9a-logistic'), Single(), Local(1))]\n"
    )
    environment = {**os.environ, "FIRESTEEL_DATA": str(tmp_path / "nothing")}
    line = [*command(tmp_path / "out")[:5], str(path), "--out", str(tmp_path / "out")]
    done = subprocess.run(line, capture_output=True, text=True, env=environment)
    (result,) = results.read(tmp_path / "out")
    assert done.returncode == 1 and result.error is not None
    assert result.error["type"] == "UsageError" and "a9a" in result.error["message"]


def test_an_argument_that_a_matrix_does_not_have(tmp_path):
    done = bench(tmp_path, "--set", "seed=3")
    assert done.returncode == 2 and "matrix() has no argument 'seed'; it has trials, broken" in done.stderr


def test_a_list_of_trials_says_what_is_done_and_results_of_others_are_told(tmp_path):
    _ = bench(tmp_path, "--set", "trials=2")
    assert "1 results in" in bench(tmp_path, "--set", "trials=1").stderr
    said = bench(tmp_path, "--set", "trials=3", "--list").stdout.splitlines()
    assert [line.split()[0] for line in said] == ["finished", "finished", "to"]


def test_pending_is_what_has_no_file(tmp_path):
    found = recipe.load(TINY, ["trials=3"])
    assert running.pending(found, tmp_path) == list(found.trials)
    path = file_of(tmp_path, running.pending(found, tmp_path)[1])
    path.parent.mkdir(parents=True)
    path.touch()
    assert len(running.pending(found, tmp_path)) == 2
    assert os.path.basename(path).startswith("tiny.ModelAveraging.Simulated-2.0.")
