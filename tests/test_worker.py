"""A worker's flat buffers: every kind of parameter has its place, and gradients are those of a plain backward pass."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import firesteel
from firesteel.data.batches import Plan
from firesteel.data.shard import Batch
from firesteel.flat import flatten, layout
from firesteel.losses import resolve_loss
from firesteel.worker import Worker


class Tied(nn.Module):
    """An embedding whose weight is also the output layer's, with a frozen and an unused parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 5)
        self.frozen = nn.Linear(5, 5).requires_grad_(False)
        self.mix = nn.Linear(5, 5)
        self.unused = nn.Linear(3, 2)
        self.out = nn.Linear(5, 7, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, ids):
        return self.out(torch.tanh(self.mix(self.frozen(self.embed(ids).mean(1)))))


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.out = nn.Linear(4, 7)
        self.to(memory_format=torch.channels_last)

    def forward(self, x):
        return self.out(F.relu(self.norm(self.conv(x))).mean((2, 3)))


def ids() -> torch.Tensor:
    return torch.randint(7, (9, 4), generator=torch.Generator().manual_seed(0))


def pictures() -> torch.Tensor:
    return torch.randn(9, 3, 6, 6, generator=torch.Generator().manual_seed(0))


MODELS = pytest.mark.parametrize(("make", "inputs"), [(Tied, ids), (Convolutions, pictures)], ids=["tied", "channels_last"])


def worker(module: nn.Module, **settings) -> Worker:
    plan = Plan(9, 9, 9, 5, 0, 0)
    loss = resolve_loss("cross_entropy", False)
    return Worker(module, loss, firesteel.SGD(lr=0.1), None, plan, **settings)  # pyright: ignore[reportArgumentType]


def batch(x: torch.Tensor) -> Batch:
    return Batch((x,), torch.arange(len(x)) % 7, None, len(x), float(len(x)))


@MODELS
def test_the_buffers_hold_what_the_module_held(make, inputs):
    torch.manual_seed(1)
    module = make()
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    strides = {name: p.stride() for name, p in module.named_parameters()}
    expected = copy.deepcopy(module)(inputs())
    params, grads, slots = flatten(module)
    assert params.numel() == grads.numel() == sum(p.numel() for p in module.parameters() if p.requires_grad)
    for name, p in module.named_parameters():
        assert torch.equal(p, before[name]) and p.stride() == strides[name], name
    assert torch.equal(module(inputs()), expected)
    # every element of the buffer belongs to exactly one parameter
    _ = params.copy_(torch.arange(float(params.numel())))
    seen = torch.cat([slot.view(params).reshape(-1) for slot in slots]).sort().values
    assert torch.equal(seen, torch.arange(float(params.numel())))


def test_tied_parameters_have_one_place_and_frozen_ones_none():
    slots, _, _ = layout(Tied())
    names = [slot.name for slot in slots]
    assert "embed.weight" in names and "out.weight" not in names
    assert not any(name.startswith("frozen") for name in names)


@MODELS
@pytest.mark.parametrize("bucket_bytes", [None, 1, 100, 10**6])
def test_gradients_are_those_of_plain_pytorch(make, inputs, bucket_bytes):
    torch.manual_seed(1)
    module = make()
    plain = copy.deepcopy(module)
    x = inputs()
    F.cross_entropy(plain(x), torch.arange(9) % 7).backward()
    mine = worker(module)
    for _ in range(2):  # the second pass must not add to the first
        told: list[slice] = []
        grads = mine.gradient(batch(x), told.append, bucket_bytes) if bucket_bytes else mine.gradient(batch(x))
        for slot in mine.slots:
            expected = dict(plain.named_parameters())[slot.name].grad
            expected = torch.zeros(slot.shape) if expected is None else expected
            torch.testing.assert_close(slot.view(grads), expected, rtol=1e-6, atol=1e-7)
        if bucket_bytes:  # from the last parameters to the first, each once, without gaps
            assert told[0].stop == grads.numel() and told[-1].start == 0
            assert all(a.start == b.stop for a, b in itertools.pairwise(told))


def test_a_bucket_is_told_only_when_it_is_complete():
    torch.manual_seed(1)
    mine = worker(Tied())
    whole = mine.gradient(batch(ids())).clone()
    early: list[tuple[slice, torch.Tensor]] = []
    mine.gradient(batch(ids()), lambda part: early.append((part, mine.grads[part].clone())), 1)
    for part, values in early:
        assert torch.equal(values, whole[part])


def test_an_empty_batch_has_no_gradient():
    mine = worker(Tied())
    _ = mine.gradient(batch(ids()))
    told: list[slice] = []
    assert not mine.gradient(batch(ids()[:0]), told.append).any()
    assert told


def test_clipping_is_that_of_pytorch():
    torch.manual_seed(1)
    module = Tied()
    plain = copy.deepcopy(module)
    mine = worker(module, clip_norm=0.05)
    mine.step(mine.gradient(batch(ids())))
    F.cross_entropy(plain(ids()), torch.arange(9) % 7).backward()
    nn.utils.clip_grad_norm_(plain.parameters(), 0.05)
    torch.optim.SGD([p for p in plain.parameters() if p.grad is not None], lr=0.1).step()
    for (name, p), q in zip(module.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7, msg=name)


def test_a_foreign_vector_moves_the_parameters():
    mine = worker(Tied())
    before, direction = mine.params.clone(), torch.ones_like(mine.params)
    mine.step(direction)
    torch.testing.assert_close(mine.params, before - 0.1)
    mine.params = before
    assert torch.equal(mine.params, before) and mine.params.data_ptr() != before.data_ptr()


def test_running_statistics_are_read_and_set():
    mine = worker(Convolutions())
    _ = mine.gradient(batch(pictures()))
    statistics = mine.buffers
    assert statistics.shape == (8,) and statistics.any()
    mine.buffers = torch.arange(8.0)
    assert torch.equal(mine.buffers, torch.arange(8.0))


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (nn.Flatten(), "no trainable parameters"),
        (nn.LazyLinear(3), "'weight' is lazy"),
        (nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double()), "one type and device"),
    ],
)
def test_modules_that_cannot_be_trained(module, said):
    with pytest.raises(firesteel.UsageError, match=said):
        layout(module)
