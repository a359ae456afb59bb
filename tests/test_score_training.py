"""Scores on rows that were trained on: they say what is there, in every world, and change nothing that is learned."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
import torch
from problem import flat, rows
from torch import nn

import firesteel
from firesteel import (
    AGN,
    Cluster,
    Downpour,
    EarlyStopping,
    Ensemble,
    Local,
    NeuronParallel,
    Pipeline,
    Replay,
    Server,
    Simulated,
    SyncSGD,
    UsageError,
)

DATA = rows(203)
LOCAL, SIMULATED = Local(2, threads=1), Simulated(Cluster(2))


def noisy() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Dropout(0.2), nn.Linear(16, 4)).double()


def calm() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 4)).double()


def train(on, strategy=SyncSGD(), data=DATA, model=noisy, **more):
    settings = {"optimizer": firesteel.Adam(lr=3e-3), "batch_size": 16, "epochs": 3, "seed": 7, "progress": "none"} | more
    return firesteel.train(model, data, strategy=strategy, on=on, **settings)


def scores(run) -> pa.Table:
    names = [n for n in run.history.column_names if n.startswith(("validation_", "training_"))]
    return run.history.select(names)


def last(run, kind: str) -> dict[str, float]:
    names = [n for n in run.history.column_names if n.startswith(f"{kind}_")]
    return {name.removeprefix(f"{kind}_"): run.history[name][-1].as_py() for name in names}


def chosen(share: float, size: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Of each worker's rows, dealt out like cards, the share at even distances."""
    found = []
    for rank in range(size):
        own = np.arange(len(DATA[0]))[rank::size]
        count = math.ceil(share * len(own))
        found.append(own[np.arange(count) * len(own) // count])
    index = np.concatenate(found)
    return DATA[0][index], DATA[1][index]


@pytest.mark.parametrize("strategy", [SyncSGD(), NeuronParallel(), Pipeline(), Ensemble(), Downpour(4)], ids=repr)
@pytest.mark.parametrize("on", [LOCAL, SIMULATED], ids=["local", "simulated"])
def test_all_rows_score_as_the_model_does(on, strategy):
    model = calm if isinstance(strategy, Pipeline) else noisy  # which takes no BatchNorm
    run = train(on, strategy, model=model, validation=None, score_training=1.0)
    assert last(run, "training") == pytest.approx(run.evaluate(DATA), rel=1e-9)
    assert not last(run, "validation") and run.history["training_loss"].null_count == 0
    assert run.metrics["training_accuracy"] == run.history["training_accuracy"][-1].as_py()


@pytest.mark.parametrize("strategy", [SyncSGD(), NeuronParallel(), AGN(4)], ids=repr)
def test_a_share_is_the_same_rows_of_every_worker(strategy):
    held = rows(60)
    run = train(LOCAL, strategy, validation=held, score_training=0.3)
    assert last(run, "training") == pytest.approx(run.evaluate(chosen(0.3)), rel=1e-9)
    assert last(run, "validation") == pytest.approx(run.evaluate(held), rel=1e-9)


@pytest.mark.parametrize("strategy", [SyncSGD(), Ensemble()], ids=repr)
@pytest.mark.parametrize("validation", [None, 0.2])
def test_virtual_time_scores_the_same(strategy, validation):
    one, two = (scores(train(on, strategy, validation=validation, score_training=0.4)) for on in (LOCAL, SIMULATED))
    assert one.num_columns == (2 if validation is None else 4) and one.equals(two)


@pytest.mark.parametrize("early", [None, EarlyStopping(patience=3)], ids=["afterwards", "while training"])
def test_a_gang_learns_what_it_learns_without(early):
    settings = {"validation": 0.2, "early_stopping": early}
    plain, scored = (train(LOCAL, **settings, score_training=share) for share in (None, 0.5))
    assert torch.equal(flat(plain.model), flat(scored.model))
    for name, b in plain.model.named_buffers():
        assert torch.equal(b, dict(scored.model.named_buffers())[name])
    for name in ("train_loss", "samples", "step", "bytes_sent", "rounds", "validation_loss", "validation_accuracy"):
        assert plain.history[name].equals(scored.history[name]), name
    assert set(scored.history.column_names) - set(plain.history.column_names) == {"training_loss", "training_accuracy"}


def test_with_a_server_too():
    plain, scored = (train(SIMULATED, AGN(4), score_training=share) for share in (None, 0.5))
    assert torch.equal(flat(plain.model), flat(scored.model))
    assert scores(scored).select(scores(plain).column_names).equals(scores(plain))
    assert scored.history["seconds"].equals(plain.history["seconds"])


def test_a_run_that_is_replayed_scores_the_same(tmp_path):
    on = Local(2, threads=1, server=Server(shards=2))
    first = train(on, Downpour(4), score_training=0.5, run_dir=tmp_path)
    again = train(Replay(tmp_path), Downpour(4), score_training=0.5)
    assert again.settings["replayed"] == "bit-equal" and scores(again).equals(scores(first))


def test_a_resumed_run_may_begin_to_score(tmp_path):
    whole = train(LOCAL, epochs=3, score_training=0.5)
    _ = train(LOCAL, epochs=1, run_dir=tmp_path)
    resumed = train(LOCAL, epochs=3, run_dir=tmp_path, resume=True, score_training=0.5)
    assert torch.equal(flat(resumed.model), flat(whole.model))
    assert scores(resumed).slice(resumed.history.num_rows - 2).equals(scores(whole).slice(1))


def test_weights_count():
    x, y = DATA
    w = np.random.default_rng(1).integers(0, 9, len(y)) / 4  # whose sums are exact
    run = train(LOCAL, data=(x, y, w), validation=None, score_training=1.0)
    assert last(run, "training") == pytest.approx(run.evaluate((x, y, w)), rel=1e-9)


def test_curves_have_a_dashed_line_for_them():
    for validation, lines in ((None, 1), (0.2, 2)):
        figure = train(SIMULATED, validation=validation, score_training=0.5).plot()
        left, right = ({line.get_label().partition(" (")[0]: line.get_linestyle() for line in a.lines} for a in figure.axes)
        assert left["training, evaluated"] == right["training accuracy"] == "--"
        assert left["training"] == "-" and len(left) == 1 + lines and len(right) == lines


@pytest.mark.parametrize("share", [0, 0.0, -0.1, 1.5, "x", True, math.nan, (0.5,)], ids=repr)
def test_what_is_no_share_is_refused(share):
    with pytest.raises(
        UsageError, match=r"score_training=.*: give a share of the training rows, above 0 and at most 1, or None"
    ):
        train(LOCAL, score_training=share)
