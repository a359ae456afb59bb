"""Vector-free L-BFGS: the direction is the two-loop recursion's, and nothing depends on how many workers share it."""

from __future__ import annotations

import math
import os
from collections import deque
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from problem import flat, network, rows
from scipy.optimize import minimize, rosen, rosen_der
from sklearn.datasets import load_breast_cancer
from torch import nn

import firesteel
from firesteel import Cluster, Local, Simulated, UsageError, VectorFreeLBFGS
from firesteel.strategies.curvature import History, two_loop
from firesteel.strategies.line_search import backtracking, strong_wolfe
from firesteel.strategies.shares import Shares, dots


def train(data, model, strategy, workers=1, **more):
    settings = {"on": Simulated(Cluster(workers)), "validation": None, "progress": "none", "seed": 7} | more
    return firesteel.train(model, data, strategy=strategy, **settings)


def column(run, name):
    return run.history[name].to_pylist()


# ---- the direction ---------------------------------------------------------------------------------------------------


def recursion(pairs, g):
    """Nocedal & Wright, algorithm 7.4."""
    q, alphas = g.copy(), []
    for s, y in reversed(pairs):
        alphas.append(s @ q / (s @ y))
        q -= alphas[-1] * y
    if pairs:
        s, y = pairs[-1]
        q *= s @ y / (y @ y)
    for (s, y), alpha in zip(pairs, reversed(alphas), strict=True):
        q += s * (alpha - y @ q / (s @ y))
    return -q


@dataclass(frozen=True)
class Directions:
    """Takes pairs of a quadratic's steps, and publishes every direction: what the shares of it make together."""

    memory: int
    own_steps = True
    full_batch = True

    async def run(self, worker, net):
        shares = Shares(worker.params.numel(), net)
        history = History(self.memory, shares.mine(worker.params))
        for step in worker.iterations():
            s, y, g = (torch.from_numpy(x) for x in pair(step, worker.params.numel()))
            if step == 1:
                await history.begin(net, shares.mine(g))
            else:
                _ = await history.add(net, shares.mine(s), shares.mine(y), shares.mine(g))
            share, slope, length = history.direction()
            worker.params = await shares.gathered(share)
            assert math.isclose(slope, float(worker.params @ g), rel_tol=1e-9)
            assert math.isclose(length, float(worker.params.norm()), rel_tol=1e-9)
            net.publish(worker.params)
        return worker.params


def pair(step, size):
    rng = np.random.default_rng(step)
    s, curvature = rng.standard_normal(size), np.linspace(0.5, 4, size)
    return s, curvature * s, rng.standard_normal(size)


@pytest.mark.parametrize("workers", [1, 2, 3, 4])
def test_the_direction_is_the_two_loop_recursions(workers):
    size, pairs = 88, deque(maxlen=5)
    model = lambda: nn.Linear(22, 4, bias=False).double()  # noqa: E731
    for steps in (1, 2, 4, 9, 13):
        found = flat(train(rows(40, 22), model, Directions(5), workers, epochs=steps).model).numpy()
        pairs.clear()
        for step in range(2, steps + 1):
            pairs.append(pair(step, size)[:2])
        expected = recursion(list(pairs), pair(steps, size)[2])
        assert np.linalg.norm(found - expected) <= 1e-12 * np.linalg.norm(expected)


def test_weights_from_a_gram_matrix_alone():
    rng = np.random.default_rng(0)
    s, g = rng.standard_normal((3, 20)), rng.standard_normal(20)
    y = s * np.linspace(0.1, 9, 20)
    base = np.concatenate([s, y, g[None]])
    weights = two_loop(torch.from_numpy(base @ base.T), 3).numpy()
    np.testing.assert_allclose(weights @ base, recursion(list(zip(s, y, strict=True)), g), rtol=1e-12)


def test_dots_are_in_float64():
    x = torch.full((2, 300_000), 1 / 3, dtype=torch.float32)
    assert dots(x, x).dtype == torch.float64
    assert abs(float(dots(x, x)[0, 1]) / (300_000 * float(x[0, 0]) ** 2) - 1) < 1e-12


# ---- searches --------------------------------------------------------------------------------------------------------


def drive(search, function):
    looked, step = [], next(search)
    while True:
        looked.append(step)
        try:
            step = search.send(function(step))
        except StopIteration as end:
            return end.value, looked


FUNCTIONS = {
    "parabola": lambda t: ((t - 3) ** 2, 2 * (t - 3)),
    "flat": lambda t: (-t / (t * t + 2), (t * t - 2) / (t * t + 2) ** 2),  # More & Thuente 1994, function 1, beta = 2
    "waves": lambda t: (math.sin(3 * t) - t, 3 * math.cos(3 * t) - 4.01),
    "wall": lambda t: (-t, -1.0) if t < 1 else ((t - 1) * 50 - 1, 50.0),
    "nothing beyond 2": lambda t: ((t - 1.5) ** 2, 2 * (t - 1.5)) if t < 2 else (math.inf, math.nan),
}


@pytest.mark.parametrize("first", [1e-3, 0.1, 1.0, 10.0, 1e3])
@pytest.mark.parametrize("name", ["parabola", "flat", "nothing beyond 2"])
def test_both_conditions_hold_where_a_search_ends(name, first):
    function, c1, c2 = FUNCTIONS[name], 1e-4, 0.1
    value, slope = function(0.0)
    step, looked = drive(strong_wolfe(value, slope, first, c1, c2, 30), function)
    found, rise = function(step)
    assert step > 0 and found <= value + c1 * step * slope and abs(rise) <= -c2 * slope
    assert step == looked[-1]  # so that nothing is computed twice


def test_a_search_that_cannot_end_gives_the_best_that_it_saw():
    function = FUNCTIONS["wall"]
    step, looked = drive(strong_wolfe(0.0, -1.0, 0.5, 1e-4, 0.1, 12), function)
    assert len(looked) == 12 and function(step)[0] == min(function(t)[0] for t in looked) < -0.9
    uphill, looked = drive(strong_wolfe(0.0, -1e-9, 1.0, 1e-4, 0.9, 7), lambda t: (t, 1.0))
    assert uphill == 0 and len(looked) == 7
    assert drive(backtracking(0.0, 1.0, 1e-4, 9), lambda t: (t, -t))[0] == 0
    assert drive(backtracking(0.0, 1.0, 1e-4, 9), lambda t: (t * t - t / 2, -t / 2))[0] == 0.25


# ---- whole runs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "strategy", [VectorFreeLBFGS(l2=1e-3), VectorFreeLBFGS(l1=1e-3), VectorFreeLBFGS(overlap=0.25)], ids=repr
)
def test_what_is_learned_does_not_depend_on_the_workers(strategy):
    """Batches of all rows, so that the batches are the same ones, too."""
    more = {"batch_size": 120} if strategy.overlap else {}
    data = (np.tile(rows(30)[0], (4, 1)).astype(np.float64), np.tile(rows(30)[1], 4))
    model = lambda: network().double()  # noqa: E731
    runs = [train(data, model, strategy, n, epochs=12, **({} if not more else {"batch_size": 120 // n})) for n in (1, 2, 3, 4)]
    if strategy.overlap:
        runs = runs[:1]  # which rows two batches have in common depends on who has them
    for run in runs[1:]:
        assert (flat(run.model) - flat(runs[0].model)).abs().max() < 1e-9
    first, last = column(runs[0], "train_loss")[0], column(runs[0], "train_loss")[-1]
    assert last < first / 2


def logistic(x, y, l2):
    def objective(w):
        z = y * (x @ w)
        return np.logaddexp(0, -z).mean() + l2 / 2 * w @ w, -x.T @ (y / (1 + np.exp(z))) / len(x) + l2 * w

    return objective


def evaluations_of_scipy(objective, size, least, gap):
    seen = []

    def noted(w):
        seen.append(objective(w)[0])
        return objective(w)

    options = {"maxcor": 10, "maxiter": 5000, "maxfun": 10_000, "ftol": 0, "gtol": 1e-12}
    best = minimize(noted, np.zeros(size), jac=True, method="L-BFGS-B", options=options).fun
    least = best if least is None else least
    return next(i for i, value in enumerate(seen, 1) if value - least <= gap), least


def zeros(width):
    def make():
        module = nn.Linear(width, 1, bias=False).double()
        nn.init.zeros_(module.weight)
        return module

    return make


def a9a():
    if "FIRESTEEL_DATA" not in os.environ:
        pytest.skip("needs the a9a file: set FIRESTEEL_DATA to the folder of libsvm/")
    x, y = firesteel.datasets.a9a().train
    return x.astype(np.float64), 2.0 * y - 1, 1 / len(x), 0.323379582464847


def cancer():
    x, y = load_breast_cancer(return_X_y=True)
    return (x - x.mean(0)) / x.std(0), 2.0 * y - 1, 1e-3, None


@pytest.mark.parametrize("problem", [cancer, a9a])
def test_as_few_passes_as_scipy_and_the_same_optimum(problem):
    x, y, l2, least = problem()
    width = x.shape[1]
    theirs, least = evaluations_of_scipy(logistic(x, y, l2), width, least, 1e-6)
    strategy = VectorFreeLBFGS(memory=10, l2=l2, tolerance=1e-8)
    data, more = (x, (y[:, None] > 0).astype(np.float64)), {"loss": "bce_with_logits", "epochs": 500}
    run = train(data, zeros(width), strategy, 2, **more)
    gaps = [value - least for value in column(run, "objective")]
    ours = next(n for n, gap in zip(column(run, "evaluations"), gaps, strict=True) if gap <= 1e-6)
    assert ours <= 1.10 * theirs
    assert -1e-12 < gaps[-1] < 1e-9


def test_owl_qn_reaches_the_optimum_with_exact_zeros():
    x, y, _, _ = cancer()
    n, l1 = len(x), 0.02
    smooth = logistic(x, y, 0.0)

    def split(w):  # w = p - q with p, q >= 0: the same problem without a corner
        value, grad = smooth(w[:30] - w[30:])
        return value + l1 * w.sum(), np.concatenate([grad, -grad]) + l1

    bounds, options = [(0, None)] * 60, {"maxiter": 20_000, "maxfun": 40_000, "ftol": 0, "gtol": 1e-12}
    best = minimize(split, np.zeros(60), jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    data = (x, (y[:, None] > 0).astype(np.float64))
    run = train(data, zeros(30), VectorFreeLBFGS(l1=l1, tolerance=1e-9), 3, loss="bce_with_logits", epochs=400)
    assert n == 569 and abs(column(run, "objective")[-1] - best.fun) < 1e-8
    found = flat(run.model).numpy()
    assert np.array_equal(found == 0, np.abs(best.x[:30] - best.x[30:]) < 1e-7) and 5 < (found == 0).sum() < 25


def test_the_banana_valley():
    """A search that takes many forms, as a network would give it: Rosenbrock's function as the loss of a bare vector."""

    class Vector(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.tensor([-1.2, 1.0] * 3, dtype=torch.float64))

        def forward(self, x):
            return self.w.expand(len(x), 6)

    def valley(outputs, targets):
        w = outputs[0]
        return (100 * (w[1:] - w[:-1] ** 2) ** 2 + (1 - w[:-1]) ** 2).sum()

    x = np.zeros((4, 1))
    run = train((x, np.zeros(4, np.int64)), Vector, VectorFreeLBFGS(), 1, loss=valley, metrics=(), epochs=200)
    assert run.status == "converged" and column(run, "objective")[-1] < 1e-12
    seen = []
    minimize(lambda w: (seen.append(rosen(w)), rosen(w))[1], [-1.2, 1.0] * 3, jac=rosen_der, method="L-BFGS-B")
    assert column(run, "evaluations")[-1] <= 1.5 * len(seen)


def test_two_processes_do_what_two_imagined_workers_do():
    strategy = VectorFreeLBFGS(l2=1e-3)
    real, imagined = (
        train(rows(131), network, strategy, on=on, epochs=10) for on in (Local(2, threads=1), Simulated(Cluster(2)))
    )
    assert torch.equal(flat(real.model), flat(imagined.model))
    names = ["objective", "gradient_norm", "evaluations", "rounds", "bytes_sent"]
    assert real.history.select(names).equals(imagined.history.select(names))


def test_bytes_and_rounds_are_the_closed_form():
    workers, m, size = 3, 4, flat(network()).numel()
    run = train(rows(131), network, VectorFreeLBFGS(memory=m), workers, epochs=12)
    for row in run.history.to_pylist():
        k, looks = row["step"], row["evaluations"]
        assert row["skipped"] == row["failed_searches"] == 0
        # looks: one small sum each; a gradient's share at the start and after each step, and one number then
        assert row["rounds"] == looks + (k + 1) + 1 + 2 * k
        share = -(-size // workers)
        small = lambda n: 2 * (workers - 1) * 8 * (n + 2) // workers  # noqa: E731  # a weight and the request to stop ride along
        scatter = sum(4 * (size - (size // workers + (r < size % workers))) for r in range(workers))
        each = looks * small(3) + small(1) + k * (small(3 * (2 * m + 3)) + 4 * share * (workers - 1))
        assert row["bytes_sent"] == workers * each + (k + 1) * scatter


# ---- traps -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        (nn.Dropout(0.1), r"layer '1' \(Dropout\) draws anew at every pass .*dropout=0"),
        (nn.BatchNorm1d(8), r"layer '1' \(BatchNorm1d\) depends on which rows pass together.* norm=\"group\""),
    ],
)
def test_functions_that_change_under_a_search_are_refused(layer, said):
    model = lambda: nn.Sequential(nn.Linear(12, 8), layer, nn.Linear(8, 4))  # noqa: E731
    with pytest.raises(UsageError, match=said):
        train(rows(40), model, VectorFreeLBFGS())
    assert train(rows(40), lambda: nn.Sequential(nn.Linear(12, 4), nn.Dropout(0.0)), VectorFreeLBFGS(), epochs=2)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"batch_size": 32}, "sees all rows: batch_size=32"),
        ({"optimizer": firesteel.SGD()}, "steps by its own rule: optimizer=SGD"),
        ({"clip_norm": 1.0}, "steps by its own rule: clip_norm=1.0"),
        ({"schedule": firesteel.ByEpochs(lambda e: 1.0)}, "steps by its own rule: schedule="),
    ],
)
def test_settings_without_a_meaning_are_refused(more, said):
    with pytest.raises(UsageError, match=said):
        train(rows(40), network, VectorFreeLBFGS(), **more)


@pytest.mark.parametrize(
    "settings",
    [{"memory": 0}, {"l2": -1.0}, {"l1": -0.1}, {"c1": 0.95}, {"c2": 1.0}, {"trials": 0}, {"overlap": 0.7}, {"rate": 0.0}],
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(UsageError, match=next(iter(settings))):
        VectorFreeLBFGS(**settings)
    with pytest.raises(UsageError, match="needs all rows"):
        VectorFreeLBFGS(l1=0.1, overlap=0.2)


def test_pairs_without_curvature_are_skipped_and_counted():
    """Small batches of a network with little curvature: some pairs bend the wrong way."""
    run = train(rows(90), network, VectorFreeLBFGS(overlap=0.1, rate=1.0), 2, batch_size=4, epochs=8)
    assert column(run, "skipped")[-1] > 0
    assert torch.isfinite(flat(run.model)).all()


def test_a_worker_without_rows_one_class_and_one_row():
    x, y = rows(2)
    run = train((x, y), network, VectorFreeLBFGS(l2=1e-2), 3, epochs=20)
    assert column(run, "objective")[-1] < column(run, "objective")[0]
    one_class = train((rows(30)[0], np.zeros(30, np.int64)), network, VectorFreeLBFGS(l2=1e-2), 2, epochs=60)
    assert one_class.status == "converged" and column(one_class, "objective")[-1] < 0.06


@pytest.mark.parametrize("strategy", [VectorFreeLBFGS(), VectorFreeLBFGS(l1=0.1)], ids=repr)
def test_a_loss_that_is_no_number_is_no_convergence(strategy):
    x = rows(30)[0]
    with pytest.raises(firesteel.Diverged, match=r"the loss over all rows is .* scale the features"):
        train((x * 1e25, x[:, :1]), lambda: nn.Linear(12, 1), strategy, 2, loss="mse")


def test_it_stops_where_there_is_nothing_to_gain():
    data = (rows(30)[0], np.zeros((30, 1), np.float32))
    module = nn.Linear(12, 1, bias=False)
    nn.init.zeros_(module.weight)
    run = train(data, module, VectorFreeLBFGS(), 2, loss="mse")
    assert run.status == "converged" and run.settings["steps"] == 1 and not flat(run.model).any()


def test_weights_are_weights():
    x, y = rows(60)
    w = np.random.default_rng(0).integers(0, 4, 60)
    repeated = (np.repeat(x, w, axis=0).astype(np.float64), np.repeat(y, w))
    model = lambda: network().double()  # noqa: E731
    weighted = train((x.astype(np.float64), y, w.astype(np.float64)), model, VectorFreeLBFGS(), 2, epochs=15)
    assert (flat(weighted.model) - flat(train(repeated, model, VectorFreeLBFGS(), 2, epochs=15).model)).abs().max() < 1e-6
