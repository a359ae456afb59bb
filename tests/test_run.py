"""What a run gives back: history, trace, curves, a saved model; and early stopping."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
import torch
from torch import nn

import firesteel
from firesteel import EarlyStopping, Local, ModelAveraging, SyncSGD
from firesteel.checkpoint import TYPES, pack, unpack
from firesteel.results import Kept, best_of
from firesteel.trace import SCHEMA

DIGITS = firesteel.datasets.digits()


def net():
    return firesteel.models.MLP(64, 32, 10)


@pytest.fixture(scope="module")
def run():
    return firesteel.train(net, DIGITS, strategy=SyncSGD(), on=Local(2), epochs=3, seed=2, progress="none")


def test_history_has_a_row_an_epoch(run):
    assert run.history.column_names == [
        "seconds", "step", "epoch", "samples", "train_loss", "validation_loss", "validation_accuracy", "bytes_sent",
        "waited_seconds", "rounds",
    ]  # fmt: skip
    rows = run.history.to_pylist()
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert [row["samples"] for row in rows] == [k * rows[0]["samples"] for k in (1, 2, 3)]
    assert rows[0]["train_loss"] > rows[1]["train_loss"] > rows[2]["train_loss"] > 0
    assert all(a["seconds"] < b["seconds"] for a, b in itertools.pairwise(rows))
    # one ring all-reduce of the gradient, of two workers, a step, and a few numbers beside it
    parameters = sum(p.numel() for p in run.model.parameters())
    gradients = 2 * 4 * parameters * rows[0]["step"]
    assert gradients <= rows[0]["bytes_sent"] < 1.05 * gradients


def test_the_trace_adds_up_to_the_history(run):
    assert run.trace.schema.equals(SCHEMA)
    trace, last = run.trace.to_pylist(), run.history.to_pylist()[-1]
    steps = [e for e in trace if e["kind"] == "step"]
    assert sum(e["rows"] for e in steps) == last["samples"] == run.timing["samples"]
    assert {e["rank"] for e in steps} == {0, 1}
    assert sum(e["bytes"] for e in trace if e["kind"] == "all_reduce") == last["bytes_sent"]
    for rank in (0, 1):
        seconds = [e["seconds"] for e in trace if e["rank"] == rank]
        assert seconds == sorted(seconds)
    ended = sum(e["loss"] * e["weight"] for e in steps if e["step"] > 2 * last["step"] / 3)
    weight = sum(e["weight"] for e in steps if e["step"] > 2 * last["step"] / 3)
    assert ended / weight == pytest.approx(last["train_loss"])


def test_the_trace_as_json_lines(run, tmp_path):
    run.save_trace(tmp_path / "trace.jsonl")
    lines = (tmp_path / "trace.jsonl").read_text().splitlines()
    assert len(lines) == run.trace.num_rows
    assert json.loads(lines[0])["kind"] == run.trace["kind"][0].as_py()


def test_curves_and_a_notebooks_view(run, tmp_path):
    figure = run.plot(tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    labels = [axes.get_ylabel() for axes in figure.axes]
    assert any("loss" in label for label in labels), labels
    shown = run._repr_html_()
    assert "data:image/png;base64" in shown and "validation_accuracy" in shown
    assert "SyncSGD" in str(run) and "finished" in str(run)


def test_metrics_can_be_computed_again(run):
    found = run.evaluate(DIGITS.test)
    x, y = (torch.as_tensor(np.asarray(a)) for a in DIGITS.test)
    with torch.no_grad():
        out = run.model(x.float())
    assert found["accuracy"] == pytest.approx(float((out.argmax(1) == y).float().mean()))
    assert found["loss"] == pytest.approx(float(nn.functional.cross_entropy(out, y.long())), rel=1e-5)


def shape_only():
    return nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))


@pytest.mark.parametrize("model", [net, shape_only], ids=["by import path", "by export"])
def test_a_saved_model_answers_the_same(model, tmp_path):
    run = firesteel.train(model, DIGITS, on=Local(1), strategy=firesteel.Single(), epochs=1, progress="none")
    _ = run.save(tmp_path / "model")
    loaded = firesteel.load(tmp_path / "model")
    x = torch.rand(5, 64)
    with torch.no_grad():
        assert torch.equal(loaded(x), run.model(x))


def test_early_stopping_hands_back_the_best_model():
    """Labels of pure chance: the model learns its rows by heart, and validation soon gets worse."""
    rng = np.random.default_rng(0)
    data = rng.standard_normal((300, 8)).astype(np.float32), rng.integers(0, 2, 300)
    run = firesteel.train(
        lambda: firesteel.models.MLP(8, 64, 2),
        data,
        on=Local(2),
        strategy=ModelAveraging(4),
        optimizer=firesteel.Adam(lr=1e-2),
        epochs=100,
        validation=0.3,
        early_stopping=EarlyStopping("loss", patience=3),
        progress="none",
    )
    losses = run.history["validation_loss"].to_pylist()
    best = int(np.argmin(losses))
    assert run.status == "stopped early" and len(losses) == best + 1 + 3 < 100
    assert run.metrics["validation_loss"] == losses[best]


def test_a_share_of_an_epoch_and_limits_of_steps():
    # 1294 rows after validation: 47 steps an epoch
    for limits, steps in (({"epochs": 0.5}, 24), ({"max_steps": 7}, 7), ({"epochs": 2, "max_steps": 5}, 5)):
        run = firesteel.train(net, DIGITS, on=Local(1), strategy=firesteel.Single(), batch_size=28, progress="none", **limits)
        assert run.settings["steps"] == steps, (limits, run.settings["steps"], run.history.to_pylist())


def test_a_second_run_in_the_same_process_is_the_same(run):
    again = firesteel.train(net, DIGITS, strategy=SyncSGD(), on=Local(2), epochs=3, seed=2, progress="none")
    for p, q in zip(run.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(p, q)


def test_staleness_of_an_asynchronous_run(tmp_path):
    found = firesteel.train(net, DIGITS, strategy=firesteel.Downpour(3), on=Local(2), batch_size=16, epochs=4, progress="none")
    table = found.staleness()
    assert table.num_rows == sum(kind == "push" for kind in found.arrivals["kind"].to_pylist())
    rows = table.to_pylist()
    assert min(r["staleness"] for r in rows) >= 0 and sum(r["rows"] for r in rows) == found.timing["samples"]
    recorded = [r for r in rows if r["distance"] == r["distance"]]
    assert recorded and all(r["sequence"] % 16 == 0 and r["scaling"] == pytest.approx(1) for r in recorded)
    found.plot_staleness(tmp_path / "staleness.png")
    assert (tmp_path / "staleness.png").read_bytes().startswith(b"\x89PNG")


def test_a_gang_has_no_staleness(run):
    with pytest.raises(firesteel.UsageError, match="waited for each other"):
        run.staleness()


def test_kept_models_may_be_read_by_two_at_once():
    kept = Kept()
    for value in range(6):
        kept.add(torch.full((5,), float(value)), torch.zeros(2), {})
    seen = []
    for number, params, _ in kept.read(torch.float32, 2):
        seen.append((number, float(params[0])))
        _, other, _ = next(kept.read(torch.float32, 2, 5))
        assert float(other[0]) == 5
    assert seen == [(n, float(n)) for n in range(6)]


def test_a_worker_without_parameters_keeps_nothing():
    kept = Kept()
    for _ in range(2):
        kept.add(torch.empty(0), torch.empty(0), {})
    found = list(kept.read(torch.float32, 0))
    assert [number for number, _, _ in found] == [0, 1]
    assert all(params.shape == (0,) and statistics.shape == (0,) for _, params, statistics in found)


def test_what_is_packed_comes_back():
    tensors = {str(dtype): (torch.arange(6).view(2, 3) % 2).to(dtype) for dtype in TYPES}
    tensors |= {"one": torch.tensor(3.5), "none": torch.empty(0, 4), "across": torch.arange(6.0).view(2, 3).T}
    found, plain = unpack(pack(tensors, {"step": 3, "name": "Käthe"}))
    assert plain == {"step": 3, "name": "Käthe"} and found.keys() == tensors.keys()
    for name, x in tensors.items():
        assert found[name].dtype == x.dtype and found[name].tolist() == x.tolist(), name


def test_which_model_scored_best():
    figures = [{"loss": 0.5, "accuracy": 0.8, "mine": 9.0}, {"loss": 0.4, "accuracy": 0.8, "mine": 1.0}, {}]
    scores = [{f"validation_{name}": value for name, value in each.items()} for each in figures]
    scores[0] |= {"training_loss": 0.0, "training_accuracy": 1.0}  # goes for nothing
    assert best_of(scores, ["accuracy"]) == 1  # of equals the later one
    assert best_of(scores, []) == best_of(scores, ["mine"]) == 1  # a name that does not say which way is better
    assert best_of([{"validation_loss": 1.0}, {"validation_loss": math.nan}], []) == 0
    assert best_of([{}, {}], ["accuracy"]) == 1
