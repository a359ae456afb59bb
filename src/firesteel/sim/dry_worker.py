"""What a strategy holds in its hands in a dry run: a worker without a model, rows or gradients.

Its tensors are stand-ins: a few numbers each, which weigh as much as a model. Sums of them in float64 are sums of what they
are, so that a strategy which decides by such sums goes on as it would with a model.
"""

from __future__ import annotations

import copy
import math
import sys
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FunctionType, ModuleType
from typing import Any, final

import torch
from torch import Tensor, nn

from firesteel.data.batches import Plan
from firesteel.errors import UsageError
from firesteel.flat import Slot, buckets, layout
from firesteel.net.protocol import Vec
from firesteel.optim import OptimizerSettings
from firesteel.sim.dry_part import bare
from firesteel.sim.fabric import stands_in
from firesteel.sim.simulation import Member, Pace
from firesteel.worker import FORWARD

_HEIGHT = 1e12  # of the loss over all rows; it halves with each quasi-Newton step


@final
@dataclass(frozen=True)
class ModelSize:
    """What the cost of communicating and keeping a model depends on."""

    parameters: int
    element_bytes: int
    slots: tuple[Slot, ...]
    moments: int
    """Tensors of the model's size that the optimizer keeps."""
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer]
    """Makes one like the run's."""
    module: nn.Module
    """On the device "meta", without dropout."""
    settings: OptimizerSettings
    fixed_bytes: int = 0
    """Of frozen parameters and buffers, which every worker keeps and none sends."""

    @property
    def nbytes(self) -> int:
        return self.parameters * self.element_bytes

    @staticmethod
    def of(model: nn.Module, optimizer: OptimizerSettings) -> ModelSize:
        """Of a model as it is trained: one step on zero gradients shows what the optimizer keeps.

        A model on the device "meta" will do, which has sizes and no numbers.
        """
        model = copy.deepcopy(model)
        slots, dtype, _ = layout(model)
        built = optimizer.build(model)
        settings = {name: value for name, value in built.param_groups[0].items() if name != "params"}
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        for group in built.param_groups:
            group["fused"] = False  # which keeps the same, and needs no numbers
        _ = built.step()
        first = next(p for p in model.parameters() if p.requires_grad)
        kept = [v for v in built.state[first].values() if isinstance(v, Tensor) and v.shape == first.shape]
        size = slots[-1].offset + slots[-1].numel
        fixed = [p for p in model.parameters() if not p.requires_grad] + list(model.buffers())
        fixed_bytes = sum(x.nbytes for x in fixed)
        make: Any = type(built)
        model.zero_grad()
        return ModelSize(
            size,
            dtype.itemsize,
            tuple(slots),
            len(kept),
            lambda parameters: make([{"params": parameters, **settings}]),
            bare(model),
            optimizer,
            fixed_bytes,
        )


@final
@dataclass(frozen=True)
class _Rows:
    """A batch without rows in it."""

    rows: int

    @property
    def weight(self) -> float:
        return float(self.rows)

    def cut(self, start: int, stop: int) -> _Rows:
        return _Rows(stop - start)


@final
class DryWorker:
    """What a strategy holds in its hands, as far as it can be had without a model."""

    def __init__(self, size: ModelSize, numbers: int, plan: Plan, member: Member, steady: Pace) -> None:
        self.plan: Plan = plan
        self.slots: list[Slot] = list(size.slots)
        self.rate: float = 1e-3
        self.clip_norm: float | None = None
        self.stopping: bool = False
        self.steps_done: int = 0
        self.meetings: list[int] = []  # steps after which the worker sent something
        self.grads: Vec = torch.zeros(numbers, dtype=torch.float32)
        self.held: float = 0.0  # memory in use, in models
        self.steady_seconds: float = 0.0  # in which it computes, without jitter
        self._params: Vec = torch.zeros_like(self.grads)
        self._moments: list[Tensor] = []
        self._size: ModelSize = size
        self._member: Member = member
        self._steady: Pace = steady

    @property
    def params(self) -> Vec:
        return self._params

    @params.setter
    def params(self, value: Vec) -> None:
        if value.data_ptr() != self._params.data_ptr():
            self._look()
            _ = self._params.copy_(value)

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """To read its settings."""
        return self._size.optimizer([nn.Parameter(self._params)])

    def __getattr__(self, name: str) -> Any:
        raise UsageError(f"a dry run has no worker.{name}: this strategy's cost cannot be planned, only simulated with data.")

    def steps(self) -> Iterator[tuple[int, _Rows]]:
        """All of them alike, so that it does not matter where an epoch ends: the rows that it gives a step on average."""
        plan = self.plan
        for step in self.iterations():
            yield step, _Rows(step * plan.rows // plan.epoch_steps - (step - 1) * plan.rows // plan.epoch_steps)

    def iterations(self) -> Iterator[int]:
        """To the last of them: no strategy stops because it likes what the stand-ins have come to."""
        trace = self._member.trace
        sent = trace.bytes_sent
        while self.steps_done < self.plan.total_steps:
            self.steps_done += 1
            yield self.steps_done
            if trace.bytes_sent > sent:
                self.meetings.append(self.steps_done)
                sent = trace.bytes_sent

    def last(self, step: int) -> bool:
        return step >= self.plan.total_steps

    def gradient(self, batch: _Rows, ready: Callable[[slice], None] | None = None, bucket_bytes: int = 25 * 2**20) -> Vec:
        spend = self._meter(batch.rows)
        if ready is None:
            spend(1.0)
        else:
            spend(FORWARD)
            size, numbers = self._size, self.grads.numel()
            for group in buckets(size.slots, bucket_bytes, size.element_bytes):
                start, stop = group[-1].offset, group[0].offset + group[0].numel
                spend((1 - FORWARD) * (stop - start) / size.parameters)
                ready(slice(start * numbers // size.parameters, stop * numbers // size.parameters))
        self._member.trace.step(self.steps_done, batch.rows, batch.weight, 0.0)
        self._look()
        return self.grads

    def sum_gradient(self) -> tuple[float, float]:
        r"""A pass over all rows of a loss \( h e^{-u} \), u the parameters' sum over the root of their number.

        A quasi-Newton step goes log 2 further and finds half the loss, half the slope, and curvature: so each search along a
        line ends where it looks first, each pair is remembered, and no step is the last. It is no property of any real loss.
        """
        root = math.sqrt(self._params.numel())
        loss = _HEIGHT * math.exp(min(-float(self._params.sum(dtype=torch.float64)) / root, 40.0))
        self._meter(self.plan.rows)(1.0)
        _ = self.grads.fill_(-loss / root * self.plan.rows)
        self._member.trace.step(self.steps_done, self.plan.rows, self.plan.rows, 0.0)
        self._look()
        return loss * self.plan.rows, float(self.plan.rows)

    def step(self, grad: Vec) -> None:
        """Its cost is in the cluster's `step_seconds`."""
        if len(self._moments) < self._size.moments:
            self._moments = [torch.zeros_like(self.grads) for _ in range(self._size.moments)]
        self._look()

    def advance(self) -> None:
        """There is no schedule."""

    def moments(self) -> list[Tensor]:
        return self._moments

    def reset_optimizer(self) -> None:
        """There is nothing to forget."""

    def _meter(self, rows: int) -> Callable[[float], None]:
        self.steady_seconds += self._steady.step(rows, 0.0)
        return self._member.meter(rows)

    def _look(self) -> None:
        """At the last step: what of memory the program that is running has in use, each number once."""
        if self.steps_done < self.plan.total_steps:
            return
        held: list[Any] = [self._params, self.grads, *self._moments]
        seen: set[int] = set()
        frame = sys._getframe(1)
        while frame is not None and frame.f_code is not Member._resume.__code__:
            held += frame.f_locals.values()
            frame = frame.f_back
        found = sorted(extent for x in held for extent in _extents(x, seen))
        used = end = 0
        for start, stop in found:
            used += max(0, stop - max(start, end))
            end = max(end, stop)
        self.held = max(self.held, used / self.grads.nbytes)


def _extents(x: Any, seen: set[int]) -> Iterator[tuple[int, int]]:
    """Where in memory the stand-ins lie that can be reached from `x`, but not through the imagined world itself."""
    inner: Any = ()
    if isinstance(x, Tensor):
        if stands_in(x):
            yield x.data_ptr(), x.data_ptr() + x.nbytes
        inner = (x.grad,) if x.is_leaf else ()
    elif id(x) in seen:
        return
    elif isinstance(x, dict):
        inner = x.values()
    elif isinstance(x, list | tuple | deque):
        inner = x
    elif not isinstance(x, type | ModuleType | FunctionType) and not type(x).__module__.startswith("firesteel.sim."):
        inner = getattr(x, "__dict__", {}).values()
    seen.add(id(x))
    for each in inner:
        yield from _extents(each, seen)
