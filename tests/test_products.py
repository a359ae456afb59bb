"""The other library's products are the same products, as often as they are differentiated."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from firesteel import products
from firesteel.products import fast_products

pytestmark = pytest.mark.skipif(not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="PyTorch was built without oneDNN")


@pytest.fixture(autouse=True)
def chosen(monkeypatch):
    """As on a processor where it helps; returns how often the other library was taken."""
    calls = []
    real = products._Product.apply
    monkeypatch.setattr(products, "_helps", lambda: True)
    monkeypatch.setattr(products._Product, "apply", lambda *args: calls.append(1) or real(*args))
    return calls


def layer(width=64, height=256, bias=True):
    torch.manual_seed(0)
    return nn.Linear(width, height, bias=bias)


INPUTS = {
    "rows": lambda: torch.randn(128, 64),
    "columns": lambda: torch.randn(64, 128).T,
    "gaps": lambda: torch.randn(128, 100)[:, 7:71],
    "one row for all": lambda: torch.randn(64).expand(128, 64),
    "windows that overlap": lambda: torch.randn(191).unfold(0, 64, 1),
}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", INPUTS)
def test_values_and_gradients_are_those_of_float64(name, bias, chosen):
    module, x = layer(bias=bias), INPUTS[name]()
    found = []
    for dtype in (torch.float32, torch.float64):
        there, at = module.to(dtype), x.to(dtype).requires_grad_()
        with fast_products(there):
            out = there(at)
            # A sum's gradient is one number that stands for all; a gradient of a gradient follows.
            slope = torch.autograd.grad(out.sum() + (out**3).mean(), (at, *there.parameters()), create_graph=True)
            bend = torch.autograd.grad(sum((s**2).sum() for s in slope), list(there.parameters()))
        found.append([out, *slope, *bend])
    assert len(chosen) > 3
    for a, b in zip(*found, strict=True):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()


def test_what_does_not_fit_is_left_alone(chosen):
    module = layer()
    with fast_products(module):
        for x in (torch.randn(2, 64), torch.randn(4, 128, 64), torch.randn(64)):
            assert torch.equal(module(x), F.linear(x, module.weight, module.bias))
        with torch.autocast("cpu", torch.bfloat16):
            assert module(torch.randn(128, 64)).dtype == torch.bfloat16
        x = torch.randn(3, 128, 64)
        mapped = torch.func.vmap(module)(x)
    assert torch.allclose(mapped, module(x), atol=1e-5) and not chosen
    assert "forward" not in vars(module)


def test_what_is_computed_anew_in_the_backward_pass(chosen):
    module, x = nn.Sequential(layer(), nn.Sigmoid()), torch.randn(128, 64, requires_grad=True)
    with fast_products(module):
        out = checkpoint(module, x, use_reentrant=False)
        out.pow(2).sum().backward()
    expected = torch.autograd.grad(module(x).pow(2).sum(), x)[0]
    assert torch.allclose(x.grad, expected, atol=1e-5) and chosen


def test_whether_it_helps_depends_on_the_processor_alone(monkeypatch):
    monkeypatch.undo()
    assert products._helps() is products._helps() in (True, False)
