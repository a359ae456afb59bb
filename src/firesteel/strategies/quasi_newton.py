r"""L-BFGS whose history no worker ever holds: it is spread over all of them, by coordinate.

The direction of L-BFGS is a combination \( \sum_l \delta_l b_l \) of the base vectors \( s_1..s_k, y_1..y_k, g \), and its
weights depend on nothing but their inner products. So every worker keeps its share of the base vectors, [2k + 1, P / N];
shares of inner products are summed (a few numbers), and shares of the direction are gathered. Chen, Wang & Zhou 2014,
"Large-scale L-BFGS using MapReduce" (NIPS), section 3; the two-loop recursion is Nocedal & Wright 2006, algorithm 7.4.

An iteration of the full-batch form sends, per worker, one number for each coordinate of the other workers' shares of the
gradient (reduce-scatter), its share of the direction (all-gather), and three small sums, for each point of the line search
another small one. It needs no optimizer, no learning rate and no batch size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import nn

from firesteel.errors import Diverged, UsageError
from firesteel.net.protocol import Net, Vec
from firesteel.strategies.curvature import History
from firesteel.strategies.line_search import Search, backtracking, strong_wolfe
from firesteel.strategies.shares import Shares, dots
from firesteel.worker import Worker


@final
@dataclass(frozen=True)
class VectorFreeLBFGS:
    r"""Limited-memory BFGS over all rows, with a strong Wolfe search; with `l1` it is OWL-QN (Andrew & Gao 2007).

    Minimises \( \frac{\sum_i w_i \ell_i}{\sum_i w_i} + \frac{l_2}{2} \|\theta\|^2 + l_1 \|\theta\|_1 \). A step is an
    iteration and an epoch: about one pass over all rows. The run is "converged" when the gradient's norm is small or no
    further decrease can be found: a failed search is tried once more without a history. `Run.history` has objective,
    gradient_norm, step_length, evaluations (passes), skipped (pairs without curvature) and failed_searches, all so far.

    With `overlap` it takes batches instead (Berahas, Nocedal & Takac 2016, "A multi-batch L-BFGS method"): consecutive
    batches share rows, the difference of gradients is taken on those alone, and the step is constant.
    """

    memory: int = 10
    """Pairs (s, y) that are remembered, >= 1: (2 memory + 1) P / N numbers per worker."""
    l2: float = 0.0
    """Weight of half the squared 2-norm of all trainable parameters, >= 0."""
    l1: float = 0.0
    """Weight of their 1-norm, >= 0; many parameters then end at exactly 0."""
    tolerance: float = 1e-6
    """Converged when |gradient| <= tolerance * max(1, |parameters|), >= 0."""
    c1: float = 1e-4
    """Sufficient decrease, 0 < c1 < c2."""
    c2: float = 0.9
    """Curvature condition, c1 < c2 < 1."""
    trials: int = 20
    """Points of one line search, at most, >= 1."""
    overlap: float | None = None
    """Share of a batch that the next one has in common with it, 0 < overlap <= 0.5; None takes all rows at every step."""
    rate: float = 0.1
    """Length of a step as a share of the quasi-Newton step, > 0; only with `overlap`."""

    own_steps = True

    def __post_init__(self) -> None:
        wrong = {
            "memory": (self.memory >= 1, "at least 1"),
            "l2": (self.l2 >= 0, "at least 0"),
            "l1": (self.l1 >= 0, "at least 0"),
            "tolerance": (self.tolerance >= 0, "at least 0"),
            "c1": (0 < self.c1 < self.c2, "greater than 0 and less than c2"),
            "c2": (self.c1 < self.c2 < 1, "greater than c1 and less than 1"),
            "trials": (self.trials >= 1, "at least 1"),
            "overlap": (self.overlap is None or 0 < self.overlap <= 0.5, "greater than 0 and at most 0.5, or None"),
            "rate": (self.rate > 0, "greater than 0"),
        }
        for name, (fits, said) in wrong.items():
            if not fits:
                raise UsageError(f"VectorFreeLBFGS({name}={getattr(self, name)}): {name} must be {said}.")
        if self.overlap is not None and self.l1:
            raise UsageError("VectorFreeLBFGS(l1=..., overlap=...): OWL-QN searches along a line, which needs all rows.")

    @property
    def full_batch(self) -> bool:
        return self.overlap is None

    def check(self, workers: int, optimizer: torch.optim.Optimizer, module: nn.Module) -> str | None:
        for name, layer in module.named_modules():
            random = isinstance(layer, nn.modules.dropout._DropoutNd) and layer.p > 0  # pyright: ignore[reportPrivateUsage]
            if isinstance(layer, nn.RNNBase) and layer.dropout > 0:
                random = True
            of_batch = isinstance(layer, nn.modules.batchnorm._BatchNorm)  # pyright: ignore[reportPrivateUsage]
            if random or of_batch:
                what = "draws anew at every pass (dropout)" if random else "depends on which rows pass together"
                way = "set its probability to 0 (dropout=0)" if random else 'use norm="group", whose rows are independent'
                raise UsageError(
                    f"layer '{name}' ({type(layer).__name__}) {what}, so that VectorFreeLBFGS would compare values of two "
                    f"different functions: {way}."
                )
        return None

    async def run(self, worker: Worker, net: Net) -> Vec:
        return await (_full(self, worker, net) if self.overlap is None else _batches(self, worker, net))


# ---- all rows --------------------------------------------------------------------------------------------------------


@final
class _Objective:
    """The objective along a line, and this worker's share of its gradient."""

    def __init__(self, settings: VectorFreeLBFGS, worker: Worker, net: Net) -> None:
        self.settings: VectorFreeLBFGS = settings
        self.worker: Worker = worker
        self.net: Net = net
        self.shares: Shares = Shares(worker.params.numel(), net)
        self.evaluations: int = 0
        self.weight: float = 0.0

    async def here(self, local: float = 0.0, along: Vec | None = None) -> tuple[float, float]:
        """One pass: the smooth objective at `worker.params`, and a sum of products.

        With `along`, [P], that is its slope along it; else the workers' `local` numbers summed up.
        """
        params, l2 = self.worker.params, self.settings.l2
        loss, weight = self.worker.sum_gradient()
        if along is not None:
            local = float(dots(self.worker.grads[None], along[None]))
        numbers = torch.tensor([loss, weight, local], dtype=torch.float64, device=params.device)
        loss, self.weight, summed = (await self.net.all_reduce(numbers, "sum")).tolist()
        self.evaluations += 1
        value = loss / self.weight
        if l2:
            value += l2 / 2 * float(dots(params[None], params[None]))
        if along is None:
            return value, summed
        return value, summed / self.weight + (l2 * float(dots(params[None], along[None])) if l2 else 0.0)

    async def gradient(self) -> Vec:
        """This worker's share of the smooth part's gradient, where the last pass was, [P / N]."""
        share = (await self.shares.summed(self.worker.grads)).div_(self.weight)
        return share.add_(self.shares.mine(self.worker.params), alpha=self.settings.l2) if self.settings.l2 else share


async def _full(settings: VectorFreeLBFGS, worker: Worker, net: Net) -> Vec:
    objective = _Objective(settings, worker, net)
    shares, l1 = objective.shares, settings.l1
    history = History(settings.memory, shares.mine(worker.params))
    smooth = torch.zeros_like(history.gradient)  # the smooth part's gradient; with l1 the history has the pseudo-gradient
    value, failed = 0.0, 0
    resumed = net.resume()
    if resumed:
        history.restore(*resumed[:3])
        smooth, (value, objective.weight, evaluations) = resumed[3], resumed[4].tolist()
        objective.evaluations = int(evaluations)
    elif worker.plan.total_steps:
        value, _ = await objective.here()
        smooth = await objective.gradient()
        await history.begin(net, _pseudo(smooth, shares.mine(worker.params), l1))
        _ = _finite(worker, value, history)
    for _ in worker.iterations():
        start = worker.params.clone()
        share, slope, length = history.direction()
        if l1:
            share.masked_fill_(share * history.gradient >= 0, 0.0)
        direction = await shares.gathered(share)  # [P]
        full = value + l1 * float(start.abs().sum(dtype=torch.float64))
        first = 1.0 if history.taken else 1.0 / max(length, 1e-30)
        if l1:
            search = backtracking(full, first, settings.c1, settings.trials)
        else:
            search = strong_wolfe(value, slope, first, settings.c1, settings.c2, settings.trials)
        step, value_there = await _searched(search, objective, start, direction, history)
        moved = 0.0
        if step:
            value, before = value_there, smooth
            smooth = await objective.gradient()
            move = shares.mine(worker.params) - shares.mine(start)
            moved = await history.add(net, move, smooth - before, _pseudo(smooth, shares.mine(worker.params), l1))
        else:
            worker.params = start
        if not moved:  # nothing better was found, or it is too near to be told apart from where we are
            failed += 1
            if history.taken:
                await history.begin(net, _pseudo(smooth, shares.mine(worker.params), l1))
            else:
                worker.converged = worker.stopping = True  # downhill itself leads nowhere: precision is used up
        norm = _finite(worker, value, history)
        if norm <= settings.tolerance * max(1.0, float(torch.linalg.vector_norm(worker.params))):
            worker.converged = worker.stopping = True
        worker.figures = {
            "objective": value + l1 * float(worker.params.abs().sum(dtype=torch.float64)),
            "gradient_norm": norm,
            "step_length": step,
            "evaluations": float(objective.evaluations),
            "skipped": float(history.skipped),
            "failed_searches": float(failed),
        }
        numbers = torch.tensor([value, objective.weight, objective.evaluations], dtype=torch.float64)
        net.publish(worker.params, *history.state(), smooth, numbers)
    return worker.params


def _finite(worker: Worker, value: float, history: History) -> float:
    """The gradient's norm, or Diverged: where the loss is no number there is nothing to descend."""
    square = float(history.gram[-1, -1])
    if not (math.isfinite(value) and math.isfinite(square)):
        raise Diverged(
            f"the loss over all rows is {value} and its gradient's squared norm {square}, at step {worker.steps_done}: "
            "scale the features, or begin with smaller weights."
        )
    return math.sqrt(square)


async def _searched(search: Search, objective: _Objective, start: Vec, direction: Vec, history: History) -> tuple[float, float]:
    """Drive a search; returns the step taken (0: none) and the smooth objective there, which was the last pass."""
    worker, l1 = objective.worker, objective.settings.l1
    step = next(search)
    while True:
        value, told = await _look(objective, start, direction, step, history)
        seen = value + l1 * float(worker.params.abs().sum(dtype=torch.float64)) if l1 else value
        try:
            following = search.send((seen, told))
        except StopIteration as end:
            if end.value and end.value != step:
                value, _ = await _look(objective, start, direction, end.value, history)
            return end.value, value
        step = following


async def _look(objective: _Objective, start: Vec, direction: Vec, step: float, history: History) -> tuple[float, float]:
    """Move to a point of the line and look: the smooth objective, and its slope (with l1: what it was to fall by)."""
    worker, shares, l1 = objective.worker, objective.shares, objective.settings.l1
    point = torch.add(start, direction, alpha=step, out=worker.params)
    if not l1:
        return await objective.here(along=direction)
    mine, moved = shares.mine(start), shares.mine(point)
    orthant = torch.where(mine == 0, -history.gradient, mine).sign()
    kept = await shares.gathered(torch.where(moved * orthant > 0, moved, torch.zeros_like(moved)))
    worker.params = kept
    return await objective.here(local=float(dots(history.gradient[None], (shares.mine(kept) - mine)[None])))


def _pseudo(gradient: Vec, params: Vec, l1: float) -> Vec:
    """The steepest descent's negative with the 1-norm: its one-sided derivative nearest to 0 (Andrew & Gao, equation 4)."""
    if not l1:
        return gradient
    at_zero = torch.where(gradient + l1 < 0, gradient + l1, torch.where(gradient - l1 > 0, gradient - l1, 0.0))
    return torch.where(params == 0, at_zero, gradient + l1 * params.sign())


# ---- batches that overlap --------------------------------------------------------------------------------------------


async def _batches(settings: VectorFreeLBFGS, worker: Worker, net: Net) -> Vec:
    assert settings.overlap is not None
    shares, l2 = Shares(worker.params.numel(), net), settings.l2
    history = History(settings.memory, shares.mine(worker.params))
    # What the rows in common, and their gradient at the last point, were: [P], of this worker's rows alone.
    common, then, move = None, torch.zeros_like(worker.params), torch.zeros_like(history.gradient)
    resumed = net.resume()
    if resumed:
        history.restore(*resumed[:3])
        then, move = resumed[3], resumed[4]
        last = worker.shard.take(worker.plan.index(worker.steps_done)).to(worker.params.device)
        common = last.cut(_first_common(last.rows, settings.overlap), last.rows)
    for _, batch in worker.steps():
        # At one point: the rows in common with the last batch, those in common with the next one, and the others.
        first = _first_common(batch.rows, settings.overlap)
        total, change, weight, common_weight = torch.zeros_like(worker.params), -then, 0.0, 0.0
        if common is not None:
            grad = worker.gradient(common)
            total.add_(grad, alpha=common.weight)
            change.add_(grad, alpha=common.weight)
            weight = common_weight = common.weight
        for part in (batch.cut(0, first), batch.cut(first, batch.rows)):
            then = worker.gradient(part) * part.weight
            total.add_(then)
            weight += part.weight
        common = batch.cut(first, batch.rows)
        numbers = torch.tensor([weight, common_weight], dtype=torch.float64, device=total.device)
        weight, common_weight = (await net.all_reduce(numbers, "sum")).tolist()
        mine = shares.mine(worker.params)
        gradient = (await shares.summed(total)).div_(weight).add_(mine, alpha=l2)
        if common_weight:
            y = (await shares.summed(change)).div_(common_weight).add_(move, alpha=l2)
            _ = await history.add(net, move, y, gradient)
        else:
            await history.begin(net, gradient)
        share, _, length = history.direction()
        step = settings.rate * (1.0 if history.taken else 1.0 / max(length, 1.0))
        move = share.mul_(step)
        worker.params = worker.params + await shares.gathered(move)
        worker.figures = {
            "gradient_norm": math.sqrt(float(history.gram[-1, -1])),
            "step_length": step,
            "skipped": float(history.skipped),
        }
        net.publish(worker.params, *history.state(), then, move)
    return worker.params


def _first_common(rows: int, overlap: float) -> int:
    """The first row of a batch that the next one has too."""
    return rows - math.ceil(overlap * rows)
