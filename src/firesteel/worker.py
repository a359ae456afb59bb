"""One worker of a run: its rows, its model, its optimizer.

Parameters live in ONE flat buffer and gradients in another; the module's tensors are views of them. So a collective
takes the buffer as it is, `worker.params = vec` is one copy, and any optimizer works on the module's own parameters.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, cast, final

import torch
from torch import Tensor, nn

from firesteel.data.batches import Plan
from firesteel.data.shard import Batch, Shard
from firesteel.errors import Diverged
from firesteel.flat import Buckets, buckets, flatten, statistics, statistics_of
from firesteel.losses import Loss
from firesteel.net.protocol import Vec, drive
from firesteel.optim import ByEpochs, OptimizerSettings, Schedule
from firesteel.parts.part import Meter, Part
from firesteel.products import fast_products
from firesteel.trace import Trace

FORWARD = 1 / 3  # of a gradient's cost; the backward pass costs twice as much
_BLOCK_BYTES = 4 * 2**20  # of inputs in a block of rows: forward and backward pass both read them, so they stay in the cache


@final
class Worker:
    """What a strategy holds in its hands: steps over this worker's rows, gradients, the local optimizer."""

    def __init__(
        self,
        module: nn.Module,
        loss: Loss,
        optimizer: OptimizerSettings,
        shard: Shard,
        plan: Plan,
        *,
        schedule: Schedule | None = None,
        clip_norm: float | None = None,
        trace: Trace | None = None,
    ) -> None:
        self.module: nn.Module = module
        self.shard: Shard = shard
        self.plan: Plan = plan
        self.trace: Trace = trace if trace is not None else Trace(plan.rank)
        self._loss: Loss = loss
        self._params, self.grads, self.slots = flatten(module)
        self.optimizer: torch.optim.Optimizer = optimizer.build(module)
        self.schedule: Any = schedule.build(self.optimizer) if schedule else None
        self._by_epochs: bool = isinstance(schedule, ByEpochs)
        self.clip_norm: float | None = clip_norm
        self._device: torch.device = self._params.device
        self._buckets: Buckets | None = None
        self.steps_done: int = 0
        self.stopping: bool = False
        self.converged: bool = False  # set with `stopping` by a strategy that has nothing left to gain
        self.figures: dict[str, float] = {}  # what the strategy wants to see in the run's history, beside the loss
        self.on_step: Callable[[int], None] = lambda step: None
        self.wait: Callable[[Coroutine[Any, Any, Any]], Any] = drive  # for what the network's other parts send
        self.part: Part | None = cast(Part, module) if hasattr(module, "pieces") else None
        # In virtual time: what the gradient of so many rows costs, spent share by share as the passes go on.
        self.meter: Meter | None = None

    @property
    def params(self) -> Vec:
        """The parameters, [P]: a view of the flat buffer, so it changes with every step; clone it to keep it."""
        return self._params

    @params.setter
    def params(self, value: Vec) -> None:
        if value.data_ptr() != self._params.data_ptr():
            self._params.copy_(value)

    @property
    def rate(self) -> float:
        """The learning rate of the next step (of the first parameter group)."""
        return float(self.optimizer.param_groups[0]["lr"])

    @property
    def rows(self) -> Iterator[Batch]:
        """All local rows in a fixed order, in blocks of 256 to 8192: on a CPU about as many as its cache holds."""
        size = 8192
        if self._device.type == "cpu" and self.shard.rows:
            of_one = sum(x.nbytes for x in self.shard.block(0, 1).inputs)
            size = min(max(_BLOCK_BYTES // of_one, 256), size)
        for start in range(0, self.shard.rows, size):
            yield self.shard.block(start, min(start + size, self.shard.rows)).to(self._device)

    def steps(self) -> Iterator[tuple[int, Batch]]:
        """The batches of the run, numbered from 1; after a resume it goes on where the point was made."""
        plan, epoch, order = self.plan, -1, torch.empty(0, dtype=torch.long)
        for step in self.iterations():
            if plan.epoch(step) != epoch:
                epoch = plan.epoch(step)
                order = plan.order(epoch)
            start, stop = plan.bounds(step)
            batch = self.shard.take(order[start:stop]).to(self._device)
            yield step, batch if self.part is None else self.wait(self.part.prepare(batch))

    def iterations(self) -> Iterator[int]:
        """The numbers of the steps to come, for strategies that see all `rows` in each of them."""
        while self.steps_done < self.plan.total_steps and not self.stopping:
            self.steps_done += 1
            yield self.steps_done
            self.on_step(self.steps_done)

    def fast_forward(self, steps: int) -> None:
        """Go on after so many steps that an earlier attempt has done; the optimizer starts anew, its schedule does not."""
        for self.steps_done in range(1, steps + 1):
            self.advance()

    def last(self, step: int) -> bool:
        """Whether no step comes after this one."""
        return step >= self.plan.total_steps

    def gradient(self, batch: Batch, ready: Callable[[slice], None] | None = None, bucket_bytes: int = 25 * 2**20) -> Vec:
        """The gradient of the batch's mean loss at `params`, [P]: the flat buffer itself, zero for an empty batch.

        `ready(part)` is called during the backward pass, when the gradient's slice `part` of about `bucket_bytes` is
        complete; in the same order on every worker, from the last parameters to the first.

        Raises:
            Diverged: the loss is not a finite number.
        """
        _ = self.grads.zero_()
        if self.part is not None:
            return self._gradient_of_part(self.part, batch, ready, bucket_bytes)
        spend = self.meter(batch.rows) if self.meter is not None else None
        if ready is not None:
            if self._buckets is None:
                self._buckets = Buckets(self.module, self.slots, bucket_bytes, self.grads.element_size())
            self._buckets.begin(ready if spend is None else self._paced(ready, spend))
        if spend is not None:
            spend(FORWARD if ready is not None else 1.0)
        if batch.rows:
            assert batch.target is not None
            loss = self._loss(self.module(*batch.inputs), batch.target, batch.weights)
            _ = loss.backward()
            self._record(batch.rows, batch.weight, loss.item())
        if ready is not None and self._buckets is not None:
            self._buckets.finish()
        return self.grads

    def _gradient_of_part(self, part: Part, batch: Batch, ready: Callable[[slice], None] | None, bucket_bytes: int) -> Vec:
        value, weight = self.wait(part.descend(batch, self._loss, self.meter))
        if not part.alone:
            self._record(batch.rows, weight, value)
        if ready is not None:
            for group in buckets(self.slots, bucket_bytes, self.grads.element_size()):
                ready(slice(group[-1].offset, group[0].offset + group[0].numel))
        return self.grads

    def _record(self, rows: int, weight: float, loss: float) -> None:
        if not math.isfinite(loss):
            raise Diverged(
                f"the training loss became {loss} at step {self.steps_done} on worker {self.plan.rank}. "
                "Lower the learning rate, or set clip_norm; the last good model is kept."
            )
        if rows:
            self.trace.step(self.steps_done, rows, weight, loss)

    def sum_gradient(self) -> tuple[float, float]:
        """One pass over all `rows`: leaves the sum of weight * gradient in `grads`, [P].

        Returns the sums of weight * loss and of weights. A loss that is no number is returned, not refused: a line search
        steps back from it.
        """
        _ = self.grads.zero_()
        spend = self.meter(self.shard.rows) if self.meter is not None else None
        total = weight = 0.0
        with fast_products(self.module):
            for batch in self.rows:
                assert batch.target is not None
                loss = self._loss(self.module(*batch.inputs), batch.target, batch.weights) * batch.weight
                _ = loss.backward()
                total, weight = total + loss.item(), weight + batch.weight
        if spend is not None:
            spend(1.0)
        self.trace.step(self.steps_done, self.shard.rows, weight, total / weight if weight else 0.0)
        return total, weight

    def measure(self) -> None:
        """Record the loss over all `rows` of the model as it is, for strategies that need no gradient to get there."""
        total = weight = 0.0
        with torch.no_grad():
            for batch in self.rows:
                assert batch.target is not None
                total += self._loss(self.module(*batch.inputs), batch.target, batch.weights).item() * batch.weight
                weight += batch.weight
        self.spend(FORWARD)
        self.trace.step(self.steps_done, self.shard.rows, weight, total / weight if weight else 0.0)

    def spend(self, gradients: float) -> None:
        """In virtual time: this worker has just computed for as long as so many gradients of all its rows take."""
        if self.meter is not None:
            self.meter(self.shard.rows)(gradients)

    def _paced(self, ready: Callable[[slice], None], spend: Callable[[float], None]) -> Callable[[slice], None]:
        def after(part: slice) -> None:
            spend((1 - FORWARD) * (part.stop - part.start) / self._params.numel())
            ready(part)

        return after

    def step(self, grad: Vec) -> None:
        """The local optimizer moves `params` along `grad`, [P]; clipped and scheduled as the run was told."""
        if grad.data_ptr() != self.grads.data_ptr():
            self.grads.copy_(grad)
        _ = self.clip()
        _ = self.optimizer.step()
        self.advance()

    def clip(self) -> Tensor | float:
        """Scale the gradient in `grads` down to the run's `clip_norm`; returns the factor, at most 1."""
        if self.clip_norm is None:
            return 1.0
        norm = torch.linalg.vector_norm(self.grads) if self.part is None else self.wait(self.part.norm())
        factor = torch.clamp(self.clip_norm / (norm + 1e-6), max=1.0)
        self.grads.mul_(factor)
        return factor

    def advance(self) -> None:
        """A step has been taken, as far as the schedule is concerned."""
        if self.schedule is not None and (not self._by_epochs or self.steps_done % self.plan.epoch_steps == 0):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # PyTorch: a schedule that moves where another optimizer does the steps
                self.schedule.step()

    @property
    def buffers(self) -> Vec:
        """A copy of the floating-point buffers that are not parameters (running statistics), flat, [Q]."""
        return statistics_of(self.module).to(self._params.dtype)

    @buffers.setter
    def buffers(self, value: Vec) -> None:
        start = 0
        for b in statistics(self.module):
            b.copy_(value[start : start + b.numel()].view_as(b))
            start += b.numel()

    def reset_optimizer(self) -> None:
        """Forget the optimizer's state (moments, counts) but not its settings."""
        self.optimizer.state.clear()

    def moments(self) -> list[Tensor]:
        """The optimizer's state tensors of a parameter's shape (momentum, moments), to be averaged in place."""
        return [
            value
            for p in self.module.parameters()
            for value in self.optimizer.state.get(p, {}).values()
            if isinstance(value, Tensor) and value.shape == p.shape
        ]

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that a resume needs, as tensors and as plain JSON values."""
        tensors = {"params": self._params, "generator": torch.get_rng_state()}
        if self._device.type == "cuda":
            tensors["generator.cuda"] = torch.cuda.get_rng_state(self._device)
        for name, b in self.module.named_buffers():
            tensors[f"buffer.{name}"] = b
        optimizer = self.optimizer.state_dict()
        plain: dict[str, Any] = {"groups": optimizer["param_groups"], "state": {}, "steps_done": self.steps_done}
        for index, entries in optimizer["state"].items():
            plain["state"][str(index)] = {k: v for k, v in entries.items() if not isinstance(v, Tensor)}
            tensors |= {f"optimizer.{index}.{k}": v for k, v in entries.items() if isinstance(v, Tensor)}
        if self.schedule is not None:
            plain["schedule"] = {
                k: v for k, v in self.schedule.state_dict().items() if isinstance(v, int | float | list | str | bool)
            }
        return tensors, plain

    def restore(self, tensors: dict[str, Tensor], plain: dict[str, Any]) -> None:
        """Take up the state that `state` gave, of the same model and optimizer."""
        self.params = tensors["params"]
        for name, b in self.module.named_buffers():
            b.copy_(tensors[f"buffer.{name}"])
        state: dict[int, dict[str, Any]] = {int(i): dict(entries) for i, entries in plain["state"].items()}
        for key, value in tensors.items():
            if key.startswith("optimizer."):
                _, index, name = key.split(".", 2)
                state.setdefault(int(index), {})[name] = value
        self.optimizer.load_state_dict({"state": state, "param_groups": plain["groups"]})
        if self.schedule is not None:
            self.schedule.load_state_dict(plain["schedule"])
        self.steps_done = plain["steps_done"]
        torch.set_rng_state(tensors["generator"])
        if "generator.cuda" in tensors:
            torch.cuda.set_rng_state(tensors["generator.cuda"].cpu(), self._device)
