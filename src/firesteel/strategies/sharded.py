r"""Adam and AdaGrad whose moments no worker ever holds: they are spread over all of them, by coordinate.

At every step each worker gets its share of the mean gradient (reduce-scatter), moves its share of the parameters, and the
shares are gathered: as many bytes as an all-reduce, and 1 / N of the state. Two forms:

- "exact": moments per coordinate, each on the worker that owns it. It equals the plain optimizer, to rounding. (The idea is
  ZeRO's first stage: Rajbhandari et al. 2020, arXiv 1910.02054, section 5.1.)
- "basis": our reading of the vector-free heuristic for first-order methods (after Khamitov & Popova 2018, whose text could
  not be had). The last `memory` gradients are base vectors; the first moment is a combination of them, the second moment
  one number for each parameter tensor, from their inner products. So nothing elementwise is left but the combination
  itself. It is another method than Adam, and how far its step d is from the one that the plain optimizer would take there
  is measured at every step: `Run.history` has step_error, the mean of \( \|d - d^*\| / \|d^*\| \) so far.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from firesteel.errors import UsageError
from firesteel.net.protocol import Net, Vec
from firesteel.strategies.shares import Shares, dots
from firesteel.worker import Worker

Form = Literal["exact", "basis"]


@final
@dataclass(frozen=True)
class VectorFreeAdam:
    r"""SyncSGD with Adam, whose moments are spread over the workers. Rate, betas and schedule are those of the run.

    Form "basis", with \(\hat v_\ell = v_\ell / (1 - \beta_2^t)\):
    \( \hat m = \sum_j \beta_1^{t-j} g_j / \sum_j \beta_1^{t-j} \) over the last `memory` gradients,
    \( v_\ell \leftarrow \beta_2 v_\ell + (1 - \beta_2) \|g_\ell\|^2 / n_\ell \) for tensor \(\ell\) of \(n_\ell\) numbers,
    \( \theta_\ell \leftarrow \theta_\ell - \eta \hat m_\ell / (\sqrt{\hat v_\ell} + \epsilon) \).
    """

    form: Form = "exact"
    """"exact" or "basis"."""
    memory: int = 10
    """Gradients that are remembered, >= 1; only with "basis"."""

    def __post_init__(self) -> None:
        _in_range(self)

    def check(self, workers: int, optimizer: torch.optim.Optimizer, module: nn.Module) -> str | None:
        _suits(self, optimizer, torch.optim.Adam, "firesteel.Adam(...)", torch.optim.AdamW)
        return None

    async def run(self, worker: Worker, net: Net) -> Vec:
        return await _steps(worker, net, None if self.form == "exact" else _Basis(worker, net, self.memory))


@final
@dataclass(frozen=True)
class VectorFreeAdaGrad:
    r"""SyncSGD with AdaGrad, whose sums of squares are spread over the workers. Rate and schedule are those of the run.

    Form "basis": \( v_\ell \leftarrow v_\ell + \|g_\ell\|^2 / n_\ell \) for tensor \(\ell\) of \(n_\ell\) numbers,
    \( \theta_\ell \leftarrow \theta_\ell - \eta g_\ell / (\sqrt{v_\ell} + \epsilon) \).
    """

    form: Form = "exact"
    """"exact" or "basis"."""

    def __post_init__(self) -> None:
        _in_range(self)

    def check(self, workers: int, optimizer: torch.optim.Optimizer, module: nn.Module) -> str | None:
        _suits(self, optimizer, torch.optim.Adagrad, "firesteel.Adagrad(...)")
        return None

    async def run(self, worker: Worker, net: Net) -> Vec:
        return await _steps(worker, net, None if self.form == "exact" else _Basis(worker, net, 1))


def _in_range(strategy: VectorFreeAdam | VectorFreeAdaGrad) -> None:
    name = type(strategy).__name__
    if strategy.form not in ("exact", "basis"):
        raise UsageError(f'{name}(form={strategy.form!r}): form must be "exact" or "basis".')
    if isinstance(strategy, VectorFreeAdam) and strategy.memory < 1:
        raise UsageError(f"{name}(memory={strategy.memory}): memory must be at least 1.")


def _suits(strategy: Any, optimizer: torch.optim.Optimizer, cls: type, give: str, never: type | None = None) -> None:
    name = type(strategy).__name__
    if not isinstance(optimizer, cls) or (never is not None and isinstance(optimizer, never)):
        raise UsageError(f"{name} spreads the state of another optimizer: use optimizer={give}.")
    group = optimizer.param_groups[0]
    if len(optimizer.param_groups) > 1:
        raise UsageError(f"{name} cuts the parameters by coordinate, across groups: give the optimizer no groups.")
    if strategy.form == "basis" and (group["weight_decay"] or group.get("amsgrad")):
        raise UsageError(f'{name}(form="basis") has neither weight decay nor amsgrad.')


async def _steps(worker: Worker, net: Net, basis: _Basis | None) -> Vec:
    shares = Shares(worker.params.numel(), net)
    # The plain optimizer, over this worker's share alone; in the basis form it only says what the exact step were.
    mine = nn.Parameter(shares.mine(worker.params).clone())
    group = {k: v for k, v in worker.optimizer.param_groups[0].items() if k != "params"}
    cls: Any = type(worker.optimizer)
    optimizer: torch.optim.Optimizer = cls([{"params": [mine], **group}])
    mine.grad = torch.zeros_like(mine)
    _resume(net.resume(), mine, optimizer, basis)
    for _, batch in worker.steps():
        grad = worker.gradient(batch).mul_(batch.weight)
        weight = net.all_reduce(torch.tensor([batch.weight], dtype=torch.float64, device=grad.device), "sum")
        share = (await shares.summed(grad)).div_(float(await weight) or 1.0)
        if worker.clip_norm is not None:
            norm = math.sqrt(float(await net.all_reduce(dots(share[None], share[None]), "sum")))
            share.mul_(min(1.0, worker.clip_norm / (norm + 1e-6)))
        mine.grad.copy_(share)
        optimizer.param_groups[0]["lr"] = worker.rate
        before = mine.detach().clone() if basis is not None else None
        _ = optimizer.step()
        if basis is not None and before is not None:
            exact = mine.detach() - before
            move = await basis.move(share, worker.rate)
            worker.figures = {"step_error": await basis.compared(move, exact)}
            mine.data.copy_(before.add_(move))
        worker.params = await shares.gathered(mine.detach())
        worker.advance()
        net.publish(worker.params, *_state(mine, optimizer, basis))
    return worker.params


def _state(mine: Tensor, optimizer: torch.optim.Optimizer, basis: _Basis | None) -> tuple[Tensor, ...]:
    state = optimizer.state[mine]
    return *(torch.as_tensor(state[name]) for name in sorted(state)), *(() if basis is None else basis.state())


def _resume(found: tuple[Tensor, ...], mine: nn.Parameter, optimizer: torch.optim.Optimizer, basis: _Basis | None) -> None:
    if not found:
        return
    assert mine.grad is not None
    before = mine.detach().clone()
    _ = optimizer.step()  # makes the state's entries, which are overwritten
    mine.data.copy_(before)
    state = optimizer.state[mine]
    for name, value in zip(sorted(state), found, strict=False):
        state[name] = value.clone()
    if basis is not None:
        basis.restore(*found[len(state) :])


# ---- the basis form --------------------------------------------------------------------------------------------------


@final
class _Basis:
    """The last gradients, a combination of which is the step; this worker's share of them."""

    def __init__(self, worker: Worker, net: Net, memory: int) -> None:
        self._net: Net = net
        self._settings: dict[str, Any] = worker.optimizer.param_groups[0]
        own = Shares(worker.params.numel(), net).part
        first, last = own.start, own.stop
        ends = [(max(slot.offset, first), min(slot.offset + slot.numel, last)) for slot in worker.slots]
        self._parts: list[slice] = [slice(a - first, max(a, b) - first) for a, b in ends]  # of the share, one a tensor
        self._numels: Tensor = torch.tensor([slot.numel for slot in worker.slots], dtype=torch.float64)
        self._gradients: Tensor = worker.params.new_zeros(memory, last - first)
        self._second: Tensor = torch.zeros(len(worker.slots), dtype=torch.float64)
        self._taken: int = 0
        self._error: float = 0.0  # summed over the steps

    async def move(self, gradient: Vec, rate: float) -> Vec:
        """This worker's share of the step, [P / N]."""
        memory, betas = len(self._gradients), self._settings.get("betas")
        self._gradients[self._taken % memory] = gradient
        self._taken += 1
        local = torch.stack([dots(gradient[part][None], gradient[part][None]).view(()) for part in self._parts])
        squares = (await self._net.all_reduce(local, "sum")).cpu() / self._numels
        if betas is None:  # AdaGrad
            self._second += squares
            second = self._second
            rate /= 1 + (self._taken - 1) * self._settings["lr_decay"]
            weights = torch.ones(1)
        else:
            self._second.mul_(betas[1]).add_(squares, alpha=1 - betas[1])
            second = self._second / (1 - betas[1] ** self._taken)
            ages = (self._taken - 1 - torch.arange(memory)) % memory  # of the gradient in each slot
            weights = torch.where(ages < self._taken, betas[0] ** ages.double(), 0.0)
        step = (weights / weights.sum()).to(self._gradients) @ self._gradients
        for part, scale in zip(self._parts, (rate / (second.sqrt() + self._settings["eps"])).tolist(), strict=True):
            step[part] *= -scale
        return step

    async def compared(self, move: Vec, exact: Vec) -> float:
        """The mean relative error so far, with this step's counted."""
        both = torch.stack([move - exact, exact])
        error, size = (await self._net.all_reduce(dots(both, both).diagonal().clone(), "sum")).sqrt().tolist()
        self._error += error / size if size else 0.0
        return self._error / self._taken

    def state(self) -> tuple[Tensor, ...]:
        return self._gradients, self._second, torch.tensor([self._taken, self._error], dtype=torch.float64)

    def restore(self, gradients: Tensor, second: Tensor, counts: Tensor) -> None:
        self._gradients.copy_(gradients)
        self._second.copy_(second)
        self._taken, self._error = int(counts[0]), float(counts[1])
