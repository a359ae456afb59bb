"""Runs to TensorBoard and MLflow, and back: the same numbers."""

from __future__ import annotations

import importlib.util
import itertools
import os
import sqlite3

import pytest

from firesteel.bench import tracking
from firesteel.bench.external import import_file
from firesteel.bench.results import Result
from firesteel.errors import UsageError

POINTS = (
    {
        "seconds": 0.1,
        "epoch": 0.5,
        "step": 10,
        "samples": 640,
        "train_loss": 1 / 3,
        "validation_accuracy": 0.9818,
        "bytes_sent": 2**53,
    },
    {"seconds": 0.7, "epoch": 1.0, "step": 20, "samples": 1280, "train_loss": None, "validation_accuracy": 0.99},
)
HEADER = {
    "kind": "trial", "format": 1, "id": "agn-0", "method": "AGN(window=12)", "strategy": "AGN",
    "workload": {"name": "digits-mlp", "metric": "validation_accuracy", "target": 0.98, "model": "MLP", "data": "digits"},
    "settings": {"window": 12, "batch_size": "own"}, "optimizer": "Adam(lr=0.001)", "world": "Simulated", "virtual": True,
    "workers": 4, "batch_size": 64, "seed": 0,
}  # fmt: skip
RESULT = Result("agn-0", HEADER, POINTS, "diverged", {"type": "Diverged", "message": "the loss is NaN"})


def installed(package):
    return pytest.mark.skipif(
        importlib.util.find_spec(package) is None,
        reason=f"the package {package} is not installed: pip install 'firesteel[track]'",
    )


tensorboard, mlflow = installed("tensorboard"), installed("mlflow")


def back(path, tmp_path, name="back", **rest):
    told = []
    return import_file(path, name, tmp_path / "out", tell=told.append, **rest), told


def same(result):
    assert [{k: v for k, v in p.items() if v is not None} for p in result.points] == [
        {k: v for k, v in p.items() if v is not None} for p in POINTS
    ]
    for name in ("method", "strategy", "optimizer", "world", "virtual", "workers", "batch_size", "seed", "settings"):
        assert result.header[name] == HEADER[name], name
    assert (result.workload, result.metric, result.target) == ("digits-mlp", "validation_accuracy", 0.98)
    assert (result.status, result.error["message"]) == ("diverged", "the loss is NaN")


@tensorboard
def test_to_tensorboard_and_back(tmp_path):
    tracking.to_tensorboard(RESULT, tmp_path / "logs" / "agn-0")
    (result,), told = back(tmp_path / "logs", tmp_path)
    same(result)
    assert not told
    with pytest.raises(UsageError, match="holds a run of TensorBoard already"):
        tracking.to_tensorboard(RESULT, tmp_path / "logs" / "agn-0")


@tensorboard
def test_points_without_steps_get_none(tmp_path):
    bare = Result("a", HEADER, ({"seconds": 1.5, "validation_accuracy": 0.5}, {"validation_accuracy": 0.6}), "finished")
    tracking.to_tensorboard(bare, tmp_path / "logs")
    (result,), _ = back(tmp_path / "logs", tmp_path)
    assert result.points == ({"seconds": 1.5, "validation_accuracy": 0.5}, {"validation_accuracy": 0.6})


def theirs(folder):
    """What somebody else's PyTorch script writes: float32, wall seconds of each event, texts."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder)) as writer:
        begin = 2**33
        for step in range(1, 6):
            writer.add_scalar("Loss/train", 1 / step, step, walltime=begin + step)
            writer.add_scalar("Accuracy/val", 1 - 2.0**-step, step, walltime=begin + step + 0.5)
        writer.add_text("note", "hello")
    (file,) = folder.glob("*tfevents*")
    return file


@tensorboard
def test_somebody_elses_events(tmp_path):
    file = theirs(tmp_path / "logs" / "run-1")
    _ = theirs(tmp_path / "logs" / "run-2")
    results, told = back(tmp_path / "logs", tmp_path, workload="w")
    assert [r.method for r in results] == ["run-1", "run-2"]
    assert results[0].column("validation_accuracy") == [1 - 2.0**-step for step in range(1, 6)]
    assert results[0].column("train_loss") == pytest.approx([1 / step for step in range(1, 6)], rel=1e-7)
    assert results[0].column("step") == [1, 2, 3, 4, 5]
    seconds = results[0].column("seconds")
    assert [b - a for a, b in itertools.pairwise(seconds)] == pytest.approx([1] * 4)
    assert any("note" in line and "left out" in line for line in told)
    (alone,), _ = back(file, tmp_path, "alone", workload="w")
    assert alone.points == results[0].points


@tensorboard
def test_events_that_are_cut_off_or_changed(tmp_path):
    file = theirs(tmp_path / "logs")
    whole = file.read_bytes()
    ends, at = {0}, 0
    while at < len(whole):  # a record: length, checksum, data, checksum
        at += 16 + int.from_bytes(whole[at : at + 8], "little")
        ends.add(at)
    for cut in range(1, len(whole), 7):
        _ = file.write_bytes(whole[:cut])
        if cut not in ends:
            with pytest.raises(
                UsageError, match=r"tfevents.*, record \d+: no event of TensorBoard, or the file is cut off there"
            ):
                _ = back(tmp_path / "logs", tmp_path, workload="w")
    changed = bytearray(whole)
    changed[len(whole) // 2] ^= 1
    _ = file.write_bytes(changed)
    with pytest.raises(UsageError, match="record"):
        _ = back(tmp_path / "logs", tmp_path, workload="w")
    (result,), told = back(tmp_path / "logs", tmp_path, workload="w", skip_bad=True)
    assert 0 < len(result.points) < 5 and told[0].startswith("skipped: ")


@tensorboard
def test_no_events_at_all(tmp_path):
    _ = (tmp_path / "x.tfevents").write_bytes(b"\x89PNG\r\n\x1a\n and what follows")
    with pytest.raises(UsageError, match=r"x.tfevents, record 1"):
        _ = back(tmp_path / "x.tfevents", tmp_path, workload="w")


@tensorboard
def test_a_second_value_at_a_step(tmp_path):
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path / "logs")) as writer:
        for value in (0.5, 0.75):
            writer.add_scalar("val_acc", value, 3)
    with pytest.raises(UsageError, match="val_acc has a second value at step 3"):
        _ = back(tmp_path / "logs", tmp_path, workload="w")


@tensorboard
def test_a_run_of_train(tmp_path):
    import firesteel

    run = firesteel.train(
        lambda: firesteel.models.MLP(64, 8, 10),
        firesteel.datasets.digits(),
        on=firesteel.Local(workers=1),
        epochs=1,
        metrics=("accuracy",),
    )
    tracking.to_tensorboard(run, tmp_path / "logs")
    (result,), _ = back(tmp_path / "logs", tmp_path, workload="digits")
    assert result.column("validation_accuracy") == run.history["validation_accuracy"].to_pylist()
    assert result.column("seconds") == run.history["seconds"].to_pylist()


@mlflow
@pytest.mark.filterwarnings("ignore")
def test_to_mlflow_and_back(tmp_path):
    base = tmp_path / "mlflow.db"
    _ = tracking.to_mlflow(RESULT, "digits", f"sqlite:///{base}")
    _ = tracking.to_mlflow(RESULT, "digits", f"sqlite:///{base}")
    for number, path in enumerate((base, tmp_path, f"sqlite:///{base}")):
        results, told = back(path, tmp_path, f"back{number}")
        assert len(results) == 2 and not told
        for result in results:
            same(result)


@mlflow
@pytest.mark.filterwarnings("ignore")
def test_somebody_elses_mlflow_folder(tmp_path, monkeypatch):
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    client = MlflowClient((tmp_path / "mlruns").as_uri())
    home = client.create_experiment("theirs")
    first = client.create_run(home, run_name="one", start_time=10_000).info.run_id
    client.log_param(first, "num_workers", 4)
    for step in (1, 2):
        client.log_metric(first, "acc", 40.0 + step, timestamp=10_000 + 500 * step, step=step)
    _ = client.create_run(home, run_name="empty", start_time=20_000)
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE")
    mapping, units = {"accuracy": "acc", "workers": "num_workers"}, {"accuracy": "percent"}
    (result,), told = back(tmp_path / "mlruns", tmp_path, mapping=mapping, units=units, workload="w")
    assert result.points == (
        {"step": 1, "seconds": 0.5, "validation_accuracy": 0.41},
        {"step": 2, "seconds": 1.0, "validation_accuracy": 0.42},
    )
    assert result.workers == 4 and result.method.startswith("one ")
    assert len(told) == 1 and "empty" in told[0] and "no metrics" in told[0]
    assert "MLFLOW_ALLOW_FILE_STORE" not in os.environ


def test_a_database_that_is_none_of_mlflows_stays_as_it_is(tmp_path):
    base = sqlite3.connect(tmp_path / "other.db")
    _ = base.execute("CREATE TABLE mine (x)")
    base.commit()
    base.close()
    before = (tmp_path / "other.db").read_bytes()
    with pytest.raises(UsageError, match=r"none of MLflow's"):
        _ = back(tmp_path / "other.db", tmp_path, workload="w")
    assert (tmp_path / "other.db").read_bytes() == before


def test_a_package_that_is_not_there_is_named():
    with pytest.raises(UsageError, match=r"needs the package nowhere .*pip install 'firesteel\[track\]'"):
        _ = tracking._needs("nowhere.at.all")
