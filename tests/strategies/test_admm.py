"""Training without gradients: whole runs are their references', whoever has the rows; and what could go wrong."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import ClassVar

import admm_references as reference
import numpy as np
import pytest
import torch
from problem import flat, initial, network, parts, rows
from torch import nn

import firesteel
from firesteel import SGD, Cluster, ConsensusADMM, DlADMM, Local, Simulated, TaylorADMM, UsageError


def wide(*sizes):
    return lambda: firesteel.models.MLP(*sizes).double()


def train(strategy, data, workers=1, model=None, **more):
    settings = {"on": Simulated(Cluster(workers)), "epochs": 6, "validation": None, "metrics": (), "seed": 7} | more
    return firesteel.train(model or wide(12, 9, 4), data, strategy=strategy, progress="none", **settings)


def data64(n=90):
    x, y = rows(n)
    return x.astype(np.float64), y


def layers_of(module):
    found = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    return [(layer.weight.detach().numpy(), layer.bias.detach().numpy()) for layer in found]


def largest_difference(model, found):
    pairs = zip(layers_of(model), zip(*found, strict=True), strict=True)
    return max(float(np.abs(mine - theirs).max()) for ours, both in pairs for mine, theirs in zip(ours, both, strict=True))


TAYLOR = [
    {},
    {"gamma": 2.0, "warm": 2},
    {"output": "squared", "warm": 1, "multiplier": "exact"},
    {"output": "cross_entropy", "warm": 0, "ridge": 1e-3},
    {"output": "hinge", "multiplier": "none", "bias": True},
    {"gamma": (3.0, 1.5), "beta": (1.0, 0.5, 2.0), "warm": 3},
]
DL = [
    {},
    {"accelerate": False, "nu": 0.5, "rho": 0.5},
    {"output": "squared"},
    {"output": "hinge", "nu": 0.1, "ridge": 0.2},
    {"update": "majorised", "nu": 1e-2, "rho": 1e-2},
    {"update": "majorised", "nu": 1.0, "rho": 0.3, "output": "squared"},
]


@pytest.mark.parametrize("workers", [1, 2, 3, 4])
@pytest.mark.parametrize("given", TAYLOR, ids=repr)
def test_taylor_is_its_reference(given, workers):
    sizes = (12, 9, 7, 4) if isinstance(given.get("gamma"), tuple) else (12, 9, 4)
    strategy, (x, y) = TaylorADMM(**given), data64()
    hidden = len(sizes) - 2
    found, figures = reference.taylor(
        x,
        np.eye(4)[y],
        layers_of(initial(wide(*sizes))),
        6,
        gamma=given.get("gamma", (10.0,)) if isinstance(given.get("gamma"), tuple) else (strategy.gamma,) * hidden,
        beta=given.get("beta", (1.0,) * (hidden + 1)),
        **{name: getattr(strategy, name) for name in ("output", "multiplier", "ridge", "bias")},
        warm=given.get("warm", 10),
        weights=np.ones((len(x), 1)),
    )
    run = train(strategy, (x, y), workers, wide(*sizes))
    assert largest_difference(run.model, found) < 1e-8
    assert run.history.to_pylist()[-1] == pytest.approx(run.history.to_pylist()[-1] | figures, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("workers", [1, 2, 3, 4])
@pytest.mark.parametrize("sizes", [(12, 9, 4), (12, 9, 7, 4)], ids=repr)
@pytest.mark.parametrize("given", DL, ids=repr)
def test_dladmm_is_its_reference(given, sizes, workers):
    strategy, (x, y) = DlADMM(**given), data64()
    names = ("nu", "rho", "output", "update")
    found, figures = reference.dladmm(
        x,
        np.eye(4)[y],
        layers_of(initial(wide(*sizes))),
        6,
        **{name: getattr(strategy, name) for name in names},
        ridge=given.get("ridge", 0.03),
        accelerate=strategy.update == "exact" and strategy.accelerate is not False,
        weights=np.ones((len(x), 1)),
    )
    run = train(strategy, (x, y), workers, wide(*sizes))
    assert largest_difference(run.model, found) < 1e-8
    assert run.history.to_pylist()[-1] == pytest.approx(run.history.to_pylist()[-1] | figures, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("strategy", [TaylorADMM(warm=2), DlADMM(), DlADMM(update="majorised", nu=0.1)], ids=repr)
def test_a_rows_weight_is_as_if_it_came_so_often(strategy):
    for first in (0, 20, 40):
        (x, y), times = (part[first : first + 40] for part in data64(80)), np.arange(40) % 3
        weighted = train(strategy, (x, y, times.astype(np.float64)), 2, epochs=12)
        repeated = train(strategy, (np.repeat(x, times, 0), np.repeat(y, times)), 2, epochs=12)
        assert (flat(weighted.model) - flat(repeated.model)).abs().max() < 1e-8


@pytest.mark.parametrize("strategy", [TaylorADMM(start="random"), TaylorADMM(warm=1), DlADMM(), ConsensusADMM()], ids=repr)
def test_two_processes_are_two_simulated_workers(strategy):
    simulated, real = (
        train(strategy, rows(120), model=network_relu, epochs=4, on=on) for on in (Simulated(Cluster(2)), Local(2, threads=1))
    )
    assert torch.equal(flat(simulated.model), flat(real.model))
    assert simulated.history["objective" if strategy.__class__ is not ConsensusADMM else "primal"].equals(
        real.history["objective" if strategy.__class__ is not ConsensusADMM else "primal"]
    )


def network_relu():
    return firesteel.models.MLP(12, 9, 4)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    "strategy", [TaylorADMM(warm=2), DlADMM(), DlADMM(update="majorised"), ConsensusADMM(period=3)], ids=repr
)
def test_what_is_resumed_goes_on_bit_for_bit(strategy, workers, tmp_path):
    on, data = Local(workers, threads=1), rows(120)
    again = {"on": on, "model": network_relu, "run_dir": tmp_path, "checkpoint_steps": 1}
    _ = train(strategy, data, epochs=3, **again)
    resumed = train(strategy, data, epochs=6, resume=True, **again)
    assert torch.equal(flat(resumed.model), flat(train(strategy, data, on=on, model=network_relu, epochs=6).model))


# ---- what it converges to --------------------------------------------------------------------------------------------


def linear_problem():
    rng = np.random.default_rng(5)
    x = rng.standard_normal((200, 6))
    return x, (x @ rng.standard_normal((6, 2)) + 0.5 * rng.standard_normal((200, 2)))


def solved(**given):
    x, y = linear_problem()
    model = lambda: nn.Sequential(nn.Linear(6, 2, bias=False)).double()  # noqa: E731
    strategy = TaylorADMM(output="squared", start="random", **given)
    run = train(strategy, (x, y), 2, model, loss="mse", epochs=400)
    return x, y, run.model[0].weight.detach().numpy()


def relative(found, wanted):
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


@pytest.mark.parametrize("beta", [1.0, 3.0])
def test_a_linear_network_without_a_multiplier_ends_at_ridge_regression(beta):
    """Its fixed point is ridge regression with r (1 + beta): z = (y + beta W a)/(1 + beta), W (G + r) = z a^T."""
    x, y, found = solved(multiplier="none", beta=beta, ridge=0.1)
    r = 0.1 * np.diag(x.T @ x).mean() * (1 + beta)
    assert relative(found, np.linalg.solve(x.T @ x + r * np.eye(6), x.T @ y).T) < 1e-6


@pytest.mark.parametrize("beta", [1.0, 3.0])
def test_with_the_exact_multiplier_it_ends_at_least_squares(beta):
    x, y, found = solved(multiplier="exact", beta=beta, ridge=1e-12, warm=0)
    assert relative(found, np.linalg.lstsq(x, y, rcond=None)[0].T) < 1e-6


def test_with_bregmans_it_ends_elsewhere():
    """The multiplier is not in the weights' update: the known bias of the paper's form."""
    x, y, found = solved(multiplier="bregman", ridge=1e-12, warm=0)
    assert 0.1 < relative(found, np.linalg.lstsq(x, y, rcond=None)[0].T) < 0.9


# ---- consensus -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_consensus_is_its_reference(workers):
    rho, period = 0.7, 4
    x, y = rows(100)
    gang = parts(x, y, workers, epochs=2)
    modules = [initial() for _ in gang]
    z, v, seen = flat(modules[0]).clone(), [torch.zeros_like(flat(modules[0])) for _ in gang], [0.0] * workers
    for step in range(1, gang[0].plan.total_steps + 1):
        for k, part in enumerate(gang):
            a, b, w = part.batch(step)
            modules[k].zero_grad()
            nn.functional.cross_entropy(modules[k](a), b).backward()
            grad = torch.cat([p.grad.reshape(-1) for p in modules[k].parameters()])
            theta = flat(modules[k])
            moved = theta - 0.1 * (grad + rho * (theta - z + v[k]))
            torch.nn.utils.vector_to_parameters(moved, modules[k].parameters())
            seen[k] += float(w.sum())
        if step % period == 0 or step == gang[0].plan.total_steps:
            z = sum((flat(m) + u) * s for m, u, s in zip(modules, v, seen, strict=True)) / sum(seen)
            v = [u + flat(m) - z for m, u in zip(modules, v, strict=True)]
            seen = [0.0] * workers
    run = train(
        *(ConsensusADMM(rho=rho, period=period), (x, y), workers, network), optimizer=SGD(lr=0.1), batch_size=16, epochs=2
    )
    assert (flat(run.model) - z).abs().max() < 1e-6


def test_consensus_on_a_convex_problem_ends_at_the_optimum():
    x, y = linear_problem()
    model = lambda: nn.Sequential(nn.Linear(6, 2, bias=False)).double()  # noqa: E731
    run = firesteel.train(
        *(model, (x, y)),
        **{"strategy": ConsensusADMM(period=20), "on": Simulated(Cluster(4)), "loss": "mse", "optimizer": SGD(lr=0.1)},
        **{"batch_size": 64, "epochs": 1500, "validation": None, "progress": "none", "checkpoint_steps": 10**6},
    )
    assert relative(run.model[0].weight.detach().numpy(), np.linalg.lstsq(x, y, rcond=None)[0].T) < 1e-6
    assert run.history["primal"][-1].as_py() < 1e-6


# ---- what crosses the network ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [60, 600])
def test_bytes_and_rounds_are_the_closed_form_whatever_the_number_of_rows(n):
    """Float64: of each layer the sum z [a, 1]^T, and [a, 1] [a, 1]^T where its inputs are new; and ten numbers at last."""
    workers, first, hidden, last = 3, 13, 10, 4
    small = lambda n: 2 * (workers - 1) * 8 * (n + 2) // workers  # noqa: E731  # a weight and the request to stop ride along
    first_layer, fresh, old = 9 * first, (last + hidden) * hidden, last * hidden
    taylor = train(TaylorADMM(), data64(n), workers).history.to_pylist()
    sweep = small(first_layer) + small(fresh) + small(10)
    begun = small(fresh) + small(first_layer + first * first) - small(first_layer)
    assert [row["bytes_sent"] for row in taylor] == [workers * (begun + k * sweep) for k in range(1, 7)]
    assert [row["rounds"] for row in taylor] == [1 + 3 * k for k in range(1, 7)]
    deep = train(DlADMM(), data64(n), workers).history.to_pylist()
    sweep = small(first_layer) + small(old) + small(fresh) + small(10)
    begun = small(first_layer + first * first) - small(first_layer) + small(fresh) - small(old)
    assert [row["bytes_sent"] for row in deep] == [workers * (begun + k * sweep) for k in range(1, 7)]
    assert [row["rounds"] for row in deep] == [4 * k for k in range(1, 7)]


# ---- traps -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", [TaylorADMM(warm=1), DlADMM(), DlADMM(update="majorised")], ids=repr)
def test_dead_units_labels_of_one_class_and_a_worker_without_rows(strategy):
    def dead():
        module = firesteel.models.MLP(12, 9, 4)
        with torch.no_grad():
            module.layers[0].weight.fill_(0)
            module.layers[0].bias.fill_(-1)
        return module

    x, y = rows(60)
    assert all(bool(torch.isfinite(flat(train(strategy, (x, y), 2, model).model)).all()) for model in (dead, network_relu))
    ones = train(strategy, (x, np.full_like(y, 2)), 2, network_relu)
    assert bool((ones.model(torch.from_numpy(x)).argmax(1) == 2).all())
    few = [train(strategy, (x[:3].astype(np.float64), y[:3]), n) for n in (1, 5)]
    assert (flat(few[0].model) - flat(few[1].model)).abs().max() < 1e-6


def test_a_residual_that_stays_while_the_multiplier_grows_is_told():
    data, more = firesteel.datasets.digits(), {"epochs": 30, "validation": None, "seed": 0}
    model = lambda: firesteel.models.MLP(64, 20, 10)  # noqa: E731
    stiff = TaylorADMM(gamma=1000.0, beta=(1000.0, 0.01), output="squared", warm=0)
    with pytest.warns(UserWarning, match=r"the multiplier went from 0\.00\d+ to 0\.0.*Raise the last layer's beta"):
        _ = train(stiff, data, 1, model, **more)
    with pytest.warns(UserWarning, match="Raise rho, or lower nu"):
        _ = train(DlADMM(nu=10.0, rho=1e-5), data, 1, model, **more)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _ = train(DlADMM(), data, 1, model, **more)
        _ = train(TaylorADMM(gamma=0.1, beta=10.0, warm=0), data, 1, model, **more)  # a residual of 1e-4 is nothing


def test_the_best_model_in_validation_is_kept():
    data, model = firesteel.datasets.digits(), lambda: firesteel.models.MLP(64, 100, 10)
    sinking = TaylorADMM(start="random", gamma=1.0, warm=0)
    for on in (Simulated(Cluster(2)), Local(2, threads=1)):
        run = train(sinking, data, model=model, on=on, epochs=30, validation=0.2, metrics=("accuracy",))
        scores = run.history["validation_accuracy"].to_pylist()
        best = run.settings["best"]
        assert scores[best] == max(scores) > scores[-1] + 0.01
        assert run.metrics["validation_accuracy"] == scores[best]
        shorter = train(sinking, data, model=model, on=on, epochs=best + 1, validation=0.2, metrics=("accuracy",))
        assert torch.equal(flat(run.model), flat(shorter.model))
    unseen = train(sinking, data, model=model, epochs=3)
    assert unseen.settings["best"] == 2


@dataclass(frozen=True)
class Spoils:
    """Downpour that begins to push noise after a while."""

    needs_seen: ClassVar[bool] = False
    keeps_best: ClassVar[bool] = True

    async def run(self, worker, net):
        center = await net.pull()
        for step, batch in worker.steps():
            worker.params = center
            worker.step(worker.gradient(batch))
            delta = worker.params - center
            center = await net.exchange(delta if step < 30 else torch.randn_like(delta))
        return center

    def merge(self, center, push):
        center.add_(push.delta)


def test_a_server_keeps_the_best_model_too():
    steps = {"batch_size": 16, "optimizer": SGD(lr=0.3)}
    run = train(Spoils(), rows(200), 2, network_relu, epochs=8, validation=0.2, metrics=("accuracy",), **steps)
    scores, best = run.history["validation_accuracy"].to_pylist(), run.settings["best"]
    assert scores[best] == max(scores) > scores[-1]
    assert run.evaluate(rows(200))["accuracy"] > 0.6


# ---- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("strategy", "given", "match"),
    [
        (TaylorADMM, {"gamma": 0.0}, "gamma must be a number greater than 0"),
        (TaylorADMM, {"gamma": "10"}, "gamma must be a number greater than 0"),
        (TaylorADMM, {"beta": (1.0, -1.0)}, "beta must be a number greater than 0"),
        (TaylorADMM, {"beta": float("inf")}, "beta must be a number greater than 0"),
        (TaylorADMM, {"ridge": 0.0}, "ridge must be a number greater than 0"),
        (TaylorADMM, {"warm": 2.5}, "warm must be a whole number, at least 0"),
        (TaylorADMM, {"warm": 5, "multiplier": "none"}, "leave warm out"),
        (TaylorADMM, {"bias": "no"}, "bias must be one of True, False"),
        (TaylorADMM, {"output": "l1"}, "output must be one of hinge, squared, cross_entropy"),
        (TaylorADMM, {"multiplier": "half"}, "multiplier must be one of"),
        (TaylorADMM, {"start": "zero"}, "start must be one of"),
        (DlADMM, {"nu": -1.0}, "nu must be a number greater than 0"),
        (DlADMM, {"rho": True}, "rho must be a number greater than 0"),
        (DlADMM, {"update": "majorised", "ridge": 0.1}, r"ridge=0.1\): only update=\"exact\" has it"),
        (DlADMM, {"update": "majorised", "accelerate": True}, r"accelerate=True\): only update=\"exact\" has it"),
        (DlADMM, {"accelerate": "no"}, "accelerate must be one of None, True, False"),
        (DlADMM, {"update": "fast"}, "update must be one of exact, majorised"),
        (ConsensusADMM, {"rho": 0.0}, "rho must be a number greater than 0"),
        (ConsensusADMM, {"period": 0}, "period must be a whole number, at least 1"),
    ],
)
def test_settings_out_of_range_are_refused(strategy, given, match):
    with pytest.raises(UsageError, match=match):
        strategy(**given)


def test_what_cannot_work_is_refused_before_anything_starts():
    for strategy in (TaylorADMM(), DlADMM()):
        with pytest.raises(UsageError, match=r"layer 1 \(Tanh\)"):
            _ = train(strategy, rows(40), model=network)
        with pytest.raises(UsageError, match="would mean nothing"):
            _ = train(strategy, rows(40), model=network_relu, optimizer=SGD(lr=0.1))
        with pytest.raises(UsageError, match="would mean nothing"):
            _ = train(strategy, rows(40), model=network_relu, batch_size=8)
    with pytest.raises(UsageError, match=r"this model needs 1 of them"):
        _ = train(TaylorADMM(gamma=(1.0, 2.0)), rows(40), model=network_relu)
    with pytest.raises(UsageError, match="needs an output for each class"):
        single = lambda: firesteel.models.MLP(12, 5, 1)  # noqa: E731
        _ = train(DlADMM(), (rows(40)[0], rows(40)[1] % 2), model=single, loss="bce_with_logits")


def test_settings_may_come_as_lists():
    assert TaylorADMM(gamma=[1.0, 2.0]) == TaylorADMM(gamma=(1.0, 2.0))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("strategy", [TaylorADMM(gamma=1.0, bias=True), DlADMM(output="hinge")], ids=repr)
def test_one_output_tells_two_classes_apart_by_its_sign(strategy):
    x, _ = rows(300)
    y = (x[:, 0] + x[:, 1] > 0.5).astype(np.float32)
    run = train(strategy, (x, y), 2, lambda: firesteel.models.MLP(12, 20, 1), loss="bce_with_logits", epochs=40, metrics=None)
    assert run.evaluate((x, y))["accuracy"] > 0.88


@pytest.mark.parametrize("labels", [[[1, 1, 0]], [[0, 0, 0]]])
def test_the_cross_entropy_needs_one_class_a_row(labels):
    x, y = rows(40)[0], np.repeat(np.array(labels, np.float32), 40, 0)
    with pytest.raises(UsageError, match="exactly one 1 in each row"):
        _ = train(DlADMM(), (x, y), 2, lambda: firesteel.models.MLP(12, 5, 3), loss="bce_with_logits")


def test_features_that_are_nothing_or_too_much():
    x, y = rows(40)
    run = train(DlADMM(update="majorised"), (np.zeros_like(x), y), 1, network_relu, epochs=1300, checkpoint_steps=1300)
    assert bool(torch.isfinite(flat(run.model)).all())
    for strategy in (TaylorADMM(), DlADMM(), DlADMM(update="majorised")):
        with pytest.raises(firesteel.Diverged, match="no longer finite"):
            _ = train(strategy, (x * np.float32(1e30), y), 1, network_relu)


def test_virtual_seconds_grow_with_rows_and_with_what_a_sweep_computes():
    took = {}
    for n in (100, 200):
        for strategy in (TaylorADMM(), DlADMM()):
            on = Simulated(Cluster(1, firesteel.Compute(row_seconds=1e-3)))
            seconds = train(strategy, rows(n), 1, network_relu, on=on).history["seconds"].to_pylist()
            took[n, type(strategy)] = seconds[5] - seconds[4]
    assert took[200, TaylorADMM] == pytest.approx(2 * took[100, TaylorADMM])
    forward = 100 * 1e-3 / 3
    assert took[100, DlADMM] - forward == pytest.approx(2 * (took[100, TaylorADMM] - forward))


def test_values_need_the_squared_error():
    x, y = linear_problem()
    with pytest.raises(UsageError, match="needs labels that are 0 or 1"):
        _ = train(TaylorADMM(), (x, y), 2, wide(6, 5, 2), loss="mse")
    run = train(DlADMM(output="squared"), (x, y), 2, wide(6, 5, 2), loss="mse", epochs=40)
    assert run.history["train_loss"][-1].as_py() < 0.1 * y.var()
