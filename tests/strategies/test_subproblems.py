"""Every closed form of training without gradients is the minimum that brute force finds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch import nn
from torch.nn import functional as F

from firesteel import UsageError
from firesteel.errors import Diverged
from firesteel.strategies import outputs
from firesteel.strategies.chain import chain
from firesteel.strategies.layerwise import least_squares, towards

ACTIVATIONS = [nn.ReLU(), nn.LeakyReLU(0.1), nn.Hardsigmoid(), nn.Hardtanh(), nn.Hardtanh(0.0, 1.0), nn.Identity()]
number = st.floats(-4, 4, width=32)
penalty = st.sampled_from([0.01, 0.1, 1.0, 3.0, 10.0])
LINE = torch.linspace(-12, 12, 48001, dtype=torch.float64)


def of(activation):
    return chain(nn.Sequential(nn.Linear(2, 2), activation, nn.Linear(2, 2)), "it").between[0]


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda a: repr(a))
def test_an_activation_is_pytorchs(activation):
    z = torch.linspace(-5, 5, 1001, dtype=torch.float64)
    torch.testing.assert_close(of(activation)(z), activation(z))


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda a: repr(a))
@settings(deadline=None, max_examples=60)
@given(a=number, m=number, gamma=penalty, beta=penalty)
def test_the_hidden_output_is_the_global_minimum(activation, a, m, gamma, beta):
    def cost(z):
        return gamma * (a - activation(z)) ** 2 + beta * (z - m) ** 2

    wide = lambda x: torch.tensor([x], dtype=torch.float64)  # noqa: E731
    ours = of(activation).nearest(wide(a), wide(m), gamma, beta)
    assert float(cost(ours)) <= float(cost(LINE).min()) + 1e-9


@pytest.mark.parametrize("output", ["hinge", "squared"])
@settings(deadline=None, max_examples=60)
@given(y=st.sampled_from([0.0, 1.0]), m=number, u=number, beta=penalty)
def test_the_output_is_the_global_minimum(output, y, m, u, beta):
    def cost(z):
        loss = F.relu(1 - z if y else z) if output == "hinge" else (z - y) ** 2
        return loss + u * z + beta * (z - m) ** 2

    wide = lambda x: torch.tensor([[x]], dtype=torch.float64)  # noqa: E731
    ours = outputs.nearest(output, wide(y), wide(m - u / (2 * beta)), beta, wide(m))
    line = LINE * 50  # a small beta and a large u lead far away
    assert float(cost(ours)) <= float(cost(line).min()) + 1e-9


def test_the_hinge_of_values_has_its_edges_at_plus_and_minus_one():
    for value in (0.0, 1.0):
        y = outputs.targets("hinge", torch.tensor([value]), 1, torch.float64)
        for b in torch.linspace(-3, 3, 61, dtype=torch.float64):
            ours = outputs.nearest("hinge", y, b.view(1, 1), 0.7, y)
            cost = lambda z: outputs.loss("hinge", z.view(-1, 1), y) + 0.7 * (z - b).view(-1) ** 2  # noqa: B023, E731
            assert float(cost(ours)) <= float(cost(LINE).min()) + 1e-9
    assert float(outputs.loss("hinge", torch.tensor([[0.0]]), torch.tensor([[-1.0]]))) == 1


@settings(deadline=None, max_examples=30)
@given(label=st.integers(0, 3), b=st.lists(number, min_size=4, max_size=4), beta=penalty)
def test_the_cross_entropys_output_is_near_the_minimum(label, b, beta):
    """Ten steps of FISTA, and the next sweeps go on from there: what they are off by is 1 % of what they gain, at most."""
    y, center = np.eye(4)[label], np.array(b)

    def cost(z):
        return float(np.logaddexp.reduce(z) - y @ z + beta * ((z - center) ** 2).sum())

    begun, best = cost(center), minimize(cost, center, tol=1e-12).fun
    z = start = torch.tensor(center)[None]
    for _ in range(3):
        z = outputs.nearest("cross_entropy", torch.tensor(y)[None], start, beta, z)
    assert cost(z[0].numpy()) <= best + 0.01 * (begun - best) + 1e-6


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 1000), beta=penalty, gamma=penalty)
def test_activations_are_the_minimum(seed, beta, gamma):
    rng = np.random.default_rng(seed)
    w, h, t = rng.standard_normal((3, 5)), rng.standard_normal(5), rng.standard_normal(3)
    stacked = np.concatenate([np.sqrt(beta) * w, np.sqrt(gamma) * np.eye(5)])
    wanted = np.linalg.lstsq(stacked, np.concatenate([np.sqrt(beta) * t, np.sqrt(gamma) * h]), rcond=None)[0]
    ours = h + towards(torch.tensor(w), beta, gamma).numpy() @ (t - w @ h)
    np.testing.assert_allclose(ours, wanted, atol=1e-9)


@pytest.mark.parametrize("near", [False, True])
def test_weights_are_least_squares(near):
    rng = np.random.default_rng(0)
    a, z, old = rng.standard_normal((200, 6)), rng.standard_normal((200, 3)), rng.standard_normal((3, 6))
    r = 0.03 * np.diag(a.T @ a).mean()
    stacked, wanted = np.concatenate([a, np.sqrt(r) * np.eye(6)]), np.concatenate([z, np.sqrt(r) * old.T * near])
    ours = least_squares(torch.tensor(z.T @ a), torch.tensor(a.T @ a), 0.03, near=torch.tensor(old) if near else None)
    np.testing.assert_allclose(ours, np.linalg.lstsq(stacked, wanted, rcond=None)[0].T, atol=1e-10)


def test_units_that_are_dead_on_all_rows_keep_their_weights():
    gram = torch.diag(torch.tensor([4.0, 0.0, 1.0], dtype=torch.float64))
    old = torch.ones(1, 3, dtype=torch.float64)
    assert least_squares(torch.zeros(1, 3, dtype=torch.float64), gram, 1e-6)[0, 1] == 0
    assert least_squares(torch.zeros(1, 3, dtype=torch.float64), gram, 1e-6, near=old)[0, 1] == pytest.approx(1)
    dead = torch.zeros(3, 3, dtype=torch.float64)
    assert torch.equal(least_squares(dead[:1], dead, 1e-6), torch.zeros(1, 3, dtype=torch.float64))


def test_numbers_that_are_none_stay_none():
    assert bool(torch.isnan(of(nn.ReLU())(torch.tensor([torch.nan]))))
    assert bool(torch.isnan(of(nn.ReLU()).nearest(torch.tensor([torch.nan]), torch.tensor([torch.nan]), 1.0, 1.0)))


def test_a_matrix_without_an_inverse_is_told():
    with pytest.raises(Diverged, match="a larger ridge"):
        least_squares(torch.ones(1, 2, dtype=torch.float64), torch.ones(2, 2, dtype=torch.float64), 1e-18)


def test_sums_that_are_no_numbers_are_divergence():
    with pytest.raises(Diverged, match="no longer finite"):
        least_squares(torch.full((1, 2), torch.nan), torch.eye(2), 1e-6)


def refused(module, match):
    with pytest.raises(UsageError, match=match):
        chain(module, "TaylorADMM")


def test_what_is_no_chain_is_refused_by_name():
    refused(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Linear(2, 2)), r"cannot take layer 0 \(Conv2d\)")
    refused(nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2)), r"layer 1 \(Tanh\)")
    refused(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Dropout(0.5), nn.Linear(2, 2)), r"layer 2 \(Dropout\)")
    refused(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), r"layer 1 \(Linear\)")
    refused(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), r"this model ends with ReLU\(\)")
    refused(nn.Sequential(), "ends with nothing")
    refused(nn.Linear(2, 2), "got Linear")

    class Skips(nn.Sequential):
        def forward(self, x):
            return x + super().forward(x)

    class Doubles(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    refused(Skips(nn.Linear(2, 2)), "got Skips")
    refused(nn.Sequential(Doubles(2, 2)), r"layer 0 \(Doubles\)")
    refused(nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))), r"layer 0 \(ParametrizedLinear\)")
    shared = nn.Linear(2, 2)
    refused(nn.Sequential(shared, nn.ReLU(), shared), "share")
    tied = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    tied[2].weight = tied[0].weight
    refused(tied, "share")
    frozen = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    frozen[0].bias.requires_grad_(False)
    refused(frozen, "'0.bias' is frozen")
