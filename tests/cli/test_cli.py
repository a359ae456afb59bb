"""The command line as people use it: real processes, real signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import firesteel
from firesteel.cli.train import model_of
from firesteel.strategies import CATALOGUE

COMMAND = [sys.executable, "-m", "firesteel.cli"]


def firesteel_cli(*args: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *args], capture_output=True, text=True, cwd=cwd, timeout=120)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ([], ["train", "predict", "strategies", "doctor"]),
        (["train"], ["--strategy", "--max-seconds", "--run-dir", "mlp:64,128,10 digits", "Ctrl-C"]),
        (["predict"], ["--out", "firesteel predict model data.parquet"]),
        (["doctor"], ["--master", "--remote", "remedy"]),
        (["strategies"], ["firesteel strategies DiLoCo"]),
    ],
)
def test_help_teaches(command, words):
    said = firesteel_cli(*command, "--help").stdout
    for word in words:
        assert word in said


def test_train_then_predict(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((300, 4)).astype(np.float32)
    table = pa.table({"a": x[:, 0], "b": x[:, 1], "c": list(x[:, 2:]), "y": (x.sum(1) > 0).astype(np.int64)})
    pq.write_table(table, tmp_path / "rows.parquet")
    columns = ["--features", "a", "b", "c", "--label", "y"]
    limits = ["--epochs", "20", "--batch-size", "16", "--lr", "0.02", "--score-training", "0.5"]
    strategy = ["--strategy", "ModelAveraging", "--set", "period=2"]
    done = firesteel_cli(
        "train", "mlp:4,16,2", "rows.parquet", *columns, *limits, *strategy, "--out", "model", "--plot", "curves.png", "--json",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["status"] == "finished" and said["metrics"]["validation_accuracy"] > 0.85
    assert said["metrics"]["training_accuracy"] > 0.85
    assert "period=2" in said["settings"]["strategy"]
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"
    done = firesteel_cli("predict", "model", "rows.parquet", "--out", "out.parquet", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    out = pq.read_table(tmp_path / "out.parquet")
    assert said["rows"] == len(out) == 300
    assert np.mean(out["prediction"].to_numpy() == table["y"].to_numpy()) == said["accuracy"] > 0.9


def test_a_network_of_text_by_name(tmp_path):
    """The data set says that its rows are tokens; predictions and labels are lists, a class for each step."""
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "input.txt").write_bytes(b"abcd" * 700)
    call = ["train", "charlstm:4,16", f"tinyshakespeare:{tmp_path / 'text'}", "--lr", "0.05", "--batch-size", "4"]
    done = firesteel_cli(*call, "--epochs", "6", "--out", "model", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = pa.table({"features": [[0, 1, 2, 3], [2, 3, 0, 1]], "label": [[1, 2, 3, 0], [3, 0, 1, 1]]})
    pq.write_table(rows, tmp_path / "rows.parquet")
    done = firesteel_cli("predict", "model", "rows.parquet", "--out", "out.parquet", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["accuracy"] == 7 / 8
    out = pq.read_table(tmp_path / "out.parquet")
    assert out["prediction"].to_pylist() == [[1, 2, 3, 0], [3, 0, 1, 2]]
    assert np.allclose(np.array(out["probability"].to_pylist()).sum(2), 1)


@pytest.mark.parametrize(
    ("text", "network"),
    [
        ("lenet", firesteel.models.LeNet()),
        ("lenet:3,10", firesteel.models.LeNet(3, 10)),
        ("vgg:16,0.125,group", firesteel.models.VGG(16, 0.125, "group")),
        ("rnn:12,8,9", firesteel.models.RNNClassifier(12, 8, 9)),
        ("lstm:12,8,9,2", firesteel.models.LSTMClassifier(12, 8, 9, layers=2)),
    ],
)
def test_networks_by_name(text, network):
    made = model_of(text)()
    assert made.spec == network.spec and repr(made) == repr(network)


def test_a_module_of_ones_own_may_be_called_like_a_network(tmp_path, monkeypatch):
    (tmp_path / "rnn.py").write_text("def make():\n    return 3\n")
    monkeypatch.chdir(tmp_path)
    assert model_of("rnn:make")() == 3


def test_a_strategy_and_a_model_from_the_current_folder(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\nimport torch\n"
        "def net():\n    return torch.nn.Linear(64, 10)\n"
        "@dataclass(frozen=True)\nclass Alone:\n    scale: float = 1.0\n"
        "    async def run(self, worker, net):\n"
        "        for step, batch in worker.steps():\n            worker.step(worker.gradient(batch) * self.scale)\n"
        "        return await net.all_reduce(worker.params)\n"
    )
    command = ["train", "mine:net", "digits", "--strategy", "mine:Alone", "--set", "scale=0.5", "--json", "--epochs", "1"]
    done = firesteel_cli(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["settings"]["strategy"] == "Alone(scale=0.5)"


def test_strategies_are_all_there():
    said = json.loads(firesteel_cli("strategies", "--json").stdout)
    assert [s["name"] for s in said] == list(CATALOGUE)
    assert "Nesterov" in firesteel_cli("strategies", "DiLoCo").stdout


def test_doctor_finds_this_machine_fit():
    done = firesteel_cli("doctor", "--json")
    assert done.returncode == 0, done.stdout
    assert any("all-reduce" in f["what"] for f in json.loads(done.stdout)["findings"])


@pytest.mark.spark
def test_doctor_looks_at_a_cluster():
    command = ["doctor", "--on", "spark", "--master", "local-cluster[2,1,1024]", "--workers", "2", "--json"]
    done = firesteel_cli(*command)
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["fit"], said
    whole = " ".join(f["what"] for f in said["findings"])
    assert "2 slots for 2 workers" in whole and "executor on" in whole and "all-reduce" in whole


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["train", "mlp:64,10", "digits", "--strategy", "SyncSDG"], "Did you mean 'SyncSGD'"),
        (["train", "mlp:64,10", "digits", "--strategy", "DiLoCo", "--set", "perid=3"], "Did you mean 'period'"),
        (["train", "mlp:64", "digits"], "mlp:IN,HIDDEN,...,OUT"),
        (
            ["train", "lstm:12,0,9", "digits"],
            "write lstm:IN,HIDDEN,CLASSES, for example lstm:28,64,10. LSTMClassifier(hidden=0)",
        ),
        (["train", "vgg:16,wide", "digits"], "write vgg:DEPTH,WIDTH,NORM"),
        (["train", "gru", "digits"], "charlstm:SYMBOLS,HIDDEN, and MODULE:FACTORY of your own"),
        (["train", "mlp:64,10", "nowhere.parquet"], "no file or folder"),
        (["train", "mlp:64,10", "digits", "--momentum", "0.9"], "--momentum does not go with --optimizer adam"),
        (["predict", "nowhere", "nowhere.parquet"], "holds no saved model"),
    ],
)
def test_wrong_calls_end_with_one_message(args, message):
    done = firesteel_cli(*args)
    assert done.returncode == 2
    assert message in done.stderr and "Traceback" not in done.stderr


def children_of(session: int) -> list[int]:
    """Processes that name this run's command line in their environment marker."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if f"FIRESTEEL_TEST={session}".encode() in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def test_an_asynchronous_run_is_replayed(tmp_path):
    train = ["train", "mlp:64,32,10", "digits", "--strategy", "DynSGD", "--workers", "3", "--run-dir", "run", "--epochs", "4"]
    done = firesteel_cli(*train, "--server", "shards=2", "--staleness", "staleness.png", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert (tmp_path / "staleness.png").read_bytes().startswith(b"\x89PNG")
    again = firesteel_cli("replay", "run", "--json", "--out", "model", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "the center is bit-equal" in again.stderr
    assert json.loads(again.stdout.splitlines()[-1])["metrics"] == said["metrics"]
    assert (tmp_path / "model").exists()
    call = tmp_path / "run" / "call.json"
    call.write_text(call.read_text().replace('"lr": null', '"lr": 0.002'))
    other = firesteel_cli("replay", "run", cwd=tmp_path)
    assert other.returncode == 1 and "the center is different" in other.stderr
    assert "is not the run folder" in firesteel_cli("replay", "elsewhere", cwd=tmp_path).stderr


SPARK = ["--on", "spark", "--master", "local-cluster[2,1,1024]"]
DOWNPOUR = ["--strategy", "Downpour"]
EVERYWHERE = [
    [],
    DOWNPOUR,
    pytest.param(SPARK, marks=pytest.mark.spark),
    # On a busy machine a server's last pushes may come after the caller's patience, which keeps no model.
    pytest.param(SPARK + DOWNPOUR, marks=[pytest.mark.spark, pytest.mark.soak]),
]


@pytest.mark.parametrize("where", EVERYWHERE)
def test_ctrl_c_stops_long_before_the_end_and_keeps_the_model(tmp_path, where):
    marker = os.getpid() * 1000 + len(where)
    command = ["train", "mlp:64,64,10", "digits", "--max-seconds", "100", "--out", "model", "--progress", "lines", *where]
    process = subprocess.Popen(
        [*COMMAND, *command],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "FIRESTEEL_TEST": str(marker)},
    )
    assert process.stderr is not None
    said = ""
    for line in process.stderr:
        said += line
        if line.startswith("step "):
            break
    pressed = time.monotonic()
    process.send_signal(signal.SIGINT)
    said += process.stderr.read()
    assert process.wait(30) == 130, said
    seconds = time.monotonic() - pressed
    assert "stopped by Ctrl-C" in said and "Traceback" not in said
    assert firesteel.load(tmp_path / "model") is not None
    assert seconds < 20, said  # of the hundred that were asked for; a busy machine takes some for the shutdown
    deadline = time.monotonic() + 10
    while children_of(marker) and time.monotonic() < deadline:
        pass
    assert children_of(marker) == []
