"""Vector-free Adam and AdaGrad: the exact form is the plain optimizer, the basis form what its docstring says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from problem import flat, network, rows

import firesteel
from firesteel import (
    SGD,
    Adagrad,
    Adam,
    AdamW,
    ByEpochs,
    Cluster,
    Local,
    Simulated,
    SyncSGD,
    UsageError,
    VectorFreeAdaGrad,
    VectorFreeAdam,
)

PAIRS = [
    (VectorFreeAdam, Adam(lr=3e-3)),
    (VectorFreeAdam, Adam(lr=3e-3, weight_decay=0.1, betas=(0.8, 0.95))),
    (VectorFreeAdaGrad, Adagrad(lr=0.05)),
    (VectorFreeAdaGrad, Adagrad(lr=0.05, lr_decay=0.01, weight_decay=0.01)),
]


def train(strategy, optimizer, workers=1, **more):
    settings = {"on": Simulated(Cluster(workers)), "epochs": 6, "batch_size": 16, "validation": None, "seed": 7} | more
    return firesteel.train(network, rows(131), strategy=strategy, optimizer=optimizer, progress="none", **settings)


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize(("cls", "optimizer"), PAIRS, ids=repr)
def test_the_exact_form_is_the_plain_optimizer(cls, optimizer, workers):
    more = {"clip_norm": 1.0, "schedule": ByEpochs(lambda epoch: 0.9**epoch)}
    plain, ours = (train(strategy, optimizer, workers, **more) for strategy in (SyncSGD(), cls()))
    assert (flat(plain.model) - flat(ours.model)).abs().max() < 1e-6


def test_the_exact_form_in_two_processes():
    plain, ours = (train(strategy, Adam(), on=Local(2, threads=1)) for strategy in (SyncSGD(), VectorFreeAdam()))
    assert (flat(plain.model) - flat(ours.model)).abs().max() < 1e-6


class Reference:
    """The basis form in NumPy, for one worker, with a gradient for each parameter tensor."""

    def __init__(self, sizes, rate, betas=None, memory=1, eps=1e-8):
        self.sizes, self.rate, self.betas, self.memory, self.eps = sizes, rate, betas, memory, eps
        self.gradients, self.second, self.t = [], np.zeros(len(sizes)), 0

    def step(self, gradient):
        self.t += 1
        self.gradients = [*self.gradients, gradient][-self.memory :]
        cuts = np.cumsum(self.sizes)[:-1]
        squares = np.array([(g**2).mean() for g in np.split(gradient, cuts)])
        if self.betas is None:
            first, second = gradient, self.second + squares
            self.second = second
        else:
            weights = np.array([self.betas[0] ** (len(self.gradients) - 1 - j) for j in range(len(self.gradients))])
            first = weights @ np.array(self.gradients) / weights.sum()
            self.second = self.betas[1] * self.second + (1 - self.betas[1]) * squares
            second = self.second / (1 - self.betas[1] ** self.t)
        return -self.rate * first / np.repeat(np.sqrt(second) + self.eps, self.sizes)


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("adam", [True, False])
def test_the_basis_form_is_its_rule(adam, workers):
    """One batch of all rows at every step, so that the gradient is a function of the parameters alone."""
    x, y = rows(120)
    module = network().double()
    strategy, optimizer = (
        (VectorFreeAdam("basis", 4), Adam(lr=0.01)) if adam else (VectorFreeAdaGrad("basis"), Adagrad(lr=0.05))
    )
    run = firesteel.train(
        module,
        (x.astype(np.float64), y),
        strategy=strategy,
        optimizer=optimizer,
        on=Simulated(Cluster(workers)),
        epochs=9,
        batch_size=120 // workers,
        validation=None,
        progress="none",
    )
    sizes = [p.numel() for p in module.parameters()]
    reference = Reference(sizes, 0.01, (0.9, 0.999), 4) if adam else Reference(sizes, 0.05, eps=1e-10)
    inputs, targets = torch.from_numpy(x).double(), torch.from_numpy(y)
    for _ in range(9):
        module.zero_grad()
        torch.nn.functional.cross_entropy(module(inputs), targets).backward()
        move = reference.step(torch.cat([p.grad.reshape(-1) for p in module.parameters()]).numpy())
        with torch.no_grad():
            for p, part in zip(module.parameters(), np.split(move, np.cumsum(sizes)[:-1]), strict=True):
                p += torch.from_numpy(part).view_as(p)
    assert (flat(run.model) - flat(module)).abs().max() < 1e-9


def test_the_basis_form_records_how_far_it_is_from_the_exact_step():
    run = train(VectorFreeAdam("basis"), Adam(), 2, epochs=3)
    errors = run.history["step_error"].to_pylist()
    assert all(0.05 < error < 2 for error in errors)
    # One number a tensor is exact where all its numbers have the same square: nothing is lost, then.
    ones = (np.ones((8, 1), np.float32), np.zeros((8, 1), np.float32))
    equal = firesteel.train(
        torch.nn.Linear(1, 1, bias=False),
        ones,
        loss="mse",
        strategy=VectorFreeAdam("basis", memory=50),
        optimizer=Adam(lr=0.01),
        on=Simulated(Cluster(2)),
        batch_size=4,
        epochs=9,
        validation=None,
        progress="none",
    )
    assert equal.history["step_error"].to_pylist()[-1] < 1e-4


@pytest.mark.parametrize(
    ("strategy", "optimizer", "said"),
    [
        (VectorFreeAdam(), SGD(), r"use optimizer=firesteel.Adam\(...\)"),
        (VectorFreeAdam(), AdamW(), r"use optimizer=firesteel.Adam\(...\)"),
        (VectorFreeAdaGrad(), None, r"use optimizer=firesteel.Adagrad\(...\)"),
        (VectorFreeAdam("basis"), Adam(weight_decay=0.1), "neither weight decay nor amsgrad"),
        (VectorFreeAdam(), Adam(groups=lambda m: [{"params": [p]} for p in m.parameters()]), "across groups"),
    ],
)
def test_what_cannot_be_spread_is_refused(strategy, optimizer, said):
    with pytest.raises(UsageError, match=said):
        train(strategy, optimizer)


def test_settings_out_of_range_are_refused():
    with pytest.raises(UsageError, match="memory must be at least 1"):
        VectorFreeAdam(memory=0)
    with pytest.raises(UsageError, match="form must be"):
        VectorFreeAdaGrad(form="other")
