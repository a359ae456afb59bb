"""A run that was stopped or killed and resumed equals the run left alone, bit for bit."""

from __future__ import annotations

import pytest
import torch
from problem import flat, network, rows, train

import firesteel
from firesteel import DiLoCo, ModelAveraging, SlowMo, SyncSGD, VectorFreeAdam, VectorFreeLBFGS

COSINE = firesteel.BySteps(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=4000)


def noisy():
    return torch.nn.Sequential(
        torch.nn.Linear(12, 16), torch.nn.BatchNorm1d(16), torch.nn.Tanh(), torch.nn.Dropout(0.2), torch.nn.Linear(16, 4)
    )


MEET = [SyncSGD(), ModelAveraging(16), SlowMo(16), DiLoCo(16), VectorFreeAdam(), VectorFreeAdam("basis")]


@pytest.mark.parametrize("strategy", MEET, ids=repr)
def test_stopped_at_some_step_and_resumed(tmp_path, strategy):
    x, y = rows(210)
    settings = {
        "strategy": strategy,
        "optimizer": firesteel.Adam(lr=1e-3),
        "schedule": COSINE,
        "on": firesteel.Local(2, threads=1),
        "batch_size": 16,
        "epochs": 200,
        "validation": 0.1,
        "seed": 5,
        "progress": "none",
    }
    whole = firesteel.train(noisy, (x, y), **settings)
    first = firesteel.train(noisy, (x, y), **settings, run_dir=tmp_path / "run", max_seconds=0.15)
    assert first.status == "stopped" and 0 < first.settings["steps"] < whole.settings["steps"]
    second = firesteel.train(noisy, (x, y), **settings, run_dir=tmp_path / "run", resume=True)
    assert second.status == "finished"
    assert torch.equal(flat(second.model), flat(whole.model))
    for name, b in whole.model.named_buffers():
        assert torch.equal(b, dict(second.model.named_buffers())[name]), name
    assert first.timing["samples"] + second.timing["samples"] == whole.timing["samples"]
    ours, theirs = second.history.to_pylist()[-1], whole.history.to_pylist()[-1]
    for name in ("samples", "bytes_sent", "validation_loss", "validation_accuracy", "step"):
        assert ours[name] == theirs[name], name


@pytest.mark.parametrize(
    "strategy", [VectorFreeLBFGS(memory=4, l2=1e-3), VectorFreeLBFGS(l1=1e-3), VectorFreeLBFGS(overlap=0.2)]
)
def test_a_history_of_base_vectors_is_resumed(tmp_path, strategy):
    settings = {"on": firesteel.Local(2, threads=1), "strategy": strategy, "validation": None, "seed": 5, "progress": "none"}
    settings |= {"batch_size": 16} if strategy.overlap else {}
    whole = firesteel.train(network, rows(210), **settings, epochs=9)
    first = firesteel.train(network, rows(210), **settings, epochs=6, run_dir=tmp_path)
    second = firesteel.train(network, rows(210), **settings, epochs=9, run_dir=tmp_path, resume=True)
    assert first.settings["steps"] < second.settings["steps"] == whole.settings["steps"]
    assert torch.equal(flat(second.model), flat(whole.model))
    assert (
        second.history.drop(["seconds", "waited_seconds"]).to_pylist()[-1]
        == whole.history.drop(["seconds", "waited_seconds"]).to_pylist()[-1]
    )


def test_a_schedule_by_epochs_is_resumed(tmp_path):
    data = rows(64)
    schedule = firesteel.ByEpochs(lambda epoch: 0.9**epoch)
    whole = train(data, SyncSGD(), 2, schedule=schedule, epochs=6)
    _ = train(data, SyncSGD(), 2, schedule=schedule, epochs=3, run_dir=tmp_path)
    second = train(data, SyncSGD(), 2, schedule=schedule, epochs=6, run_dir=tmp_path, resume=True)
    assert torch.equal(flat(second.model), flat(whole.model))
    assert not torch.equal(flat(whole.model), flat(train(data, SyncSGD(), 2, epochs=6).model))


def test_a_run_that_starts_anew_in_a_folder_leaves_nothing_of_the_one_before(tmp_path):
    data = rows(64)
    _ = train(data, SyncSGD(), 2, epochs=6, optimizer=firesteel.SGD(lr=0.5), run_dir=tmp_path)
    _ = train(data, SyncSGD(), 2, epochs=2, optimizer=firesteel.SGD(lr=0.05), run_dir=tmp_path)
    second = train(data, SyncSGD(), 2, epochs=3, optimizer=firesteel.SGD(lr=0.05), run_dir=tmp_path, resume=True)
    whole = train(data, SyncSGD(), 2, epochs=3, optimizer=firesteel.SGD(lr=0.05))
    assert torch.equal(flat(second.model), flat(whole.model))


def test_other_rows_or_settings_are_refused(tmp_path):
    x, y = rows(64)
    _ = train((x, y), SyncSGD(), 2, run_dir=tmp_path)
    with pytest.raises(firesteel.UsageError, match="rows are not those"):
        train((x + 1, y), SyncSGD(), 2, run_dir=tmp_path, resume=True, epochs=5)
    with pytest.raises(firesteel.UsageError, match=r"batch_size=16, this call has batch_size=8"):
        train((x, y), SyncSGD(), 2, run_dir=tmp_path, resume=True, batch_size=8)
    with pytest.raises(firesteel.UsageError, match=r"strategy=SyncSGD"):
        train((x, y), ModelAveraging(), 2, run_dir=tmp_path, resume=True)
    with pytest.raises(firesteel.UsageError, match="holds no point"):
        train((x, y), SyncSGD(), 2, run_dir=tmp_path / "elsewhere", resume=True)
    with pytest.raises(firesteel.UsageError, match="needs run_dir"):
        firesteel.train(network, (x, y), resume=True, progress="none")
