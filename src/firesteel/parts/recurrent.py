r"""Recurrent layers whose hidden units are spread over the workers.

Each worker has all gates of its own units. The products with the inputs are made for all steps at once; then, step by step,
the workers' states are gathered and each makes its own next ones. Backward, step by step, the sum over workers of
\( \delta_t W_{hh} \) is scattered to the units' owners; the gradient of \(W_{hh}\) is one product at the end. No graph of
autograd is made inside of the loops: their rules stand here in full.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor
from torch.nn import functional as F

from firesteel.parts.cuts import shares
from firesteel.parts.flow import Flow, entering, to_all
from firesteel.parts.meetings import Meetings
from firesteel.parts.network import Layer
from firesteel.parts.passes import Tape
from firesteel.parts.split import SplitLayer, dropout_mask, sizes_of

_GATES = {"LSTM": 4, "RNN_TANH": 1, "RNN_RELU": 1}


@final
class OwnCells(SplitLayer):
    """All layers of an nn.LSTM or nn.RNN, of which a worker has its own hidden units: [B, T, I] -> its own [B, T, u]."""

    def __init__(self, layer: Layer, rank: int, size: int) -> None:
        super().__init__(layer)
        module: Any = layer.module
        hidden = module.hidden_size
        self.sizes: tuple[int, ...] = sizes_of(hidden, size)
        start, stop = shares(hidden, size)[rank]
        rows = tuple((gate * hidden + start, gate * hidden + stop) for gate in range(_GATES[module.mode]))
        for name, _ in module.named_parameters():
            self.own(name, 0, rows)

    async def run(self, flow: Flow, tape: Tape) -> Flow:
        module: Any = self.layer.module
        flow = await to_all(flow, tape)
        for number in range(module.num_layers):
            last = number == module.num_layers - 1
            flow = await self._layer(flow, tape, number, last)
            if not last and module.dropout and self.training:
                batch, steps, units = flow.x.shape
                mask = dropout_mask([batch, steps, units], module.dropout, flow.x, (1, 0, 2))
                flow = flow.on(flow.x * mask)
        return flow

    async def _layer(self, flow: Flow, tape: Tape, number: int, last: bool) -> Flow:
        w_ih, w_hh = (getattr(self, f"weight_{kind}_l{number}") for kind in ("ih", "hh"))
        biases = [getattr(self, f"bias_{kind}_l{number}", None) for kind in ("ih", "hh")]
        bias = None if biases[0] is None else biases[0] + biases[1]
        projected = F.linear(entering(flow, tape), w_ih, bias).transpose(0, 1)  # [T, B, gates * u]
        loop = _Loop(tape.meetings, self.sizes, w_hh.detach(), self.layer.module.mode, whole=not last)
        states = await loop.forward(projected.detach())  # [T, B, u], or [T, B, H] where the next layer needs them

        async def back(grads: list[Tensor]) -> list[Tensor]:
            grad = grads[0].transpose(0, 1)
            delta, before = await loop.backward(grad, made.partial)  # [T, B, gates * u], [T, B, H]
            if w_hh.grad is None:
                w_hh.grad = torch.zeros_like(w_hh)
            w_hh.grad.addmm_(delta.flatten(0, 1).T, before.flatten(0, 1))
            return [delta]

        made, (leaf,) = tape.cut([projected], [states.transpose(0, 1)], back)
        if last:
            return flow.on(leaf, at="units", dim=2, sizes=self.sizes, begun=None)
        return flow.on(leaf, at="all", begun=made)


@final
@dataclass
class _Loop:
    """One layer over time, forward and backward."""

    meetings: Meetings
    sizes: tuple[int, ...]
    w_hh: Tensor
    """[gates * u, H]"""
    mode: str
    whole: bool
    """Whether all units of all steps are wanted, also of the last one."""

    async def forward(self, projected: Tensor) -> Tensor:
        steps, batch, _ = projected.shape
        hidden, own = sum(self.sizes), self.sizes[self.meetings.rank]
        self.before: Tensor = projected.new_zeros(steps, batch, hidden)  # the state that each step begins with
        self.kept: list[tuple[Tensor, ...]] = []
        states = projected.new_empty(steps, batch, hidden if self.whole else own)
        cell = projected.new_zeros(batch, own)
        for t in range(steps):
            z = torch.addmm(projected[t], self.before[t], self.w_hh.T) if t else projected[t].clone()
            if self.mode == "LSTM":
                i, f, g, o = z.chunk(4, 1)
                i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
                previous, cell = cell, torch.addcmul(f * cell, i, g)
                squashed = cell.tanh()
                h = o * squashed
                self.kept.append((i, f, g, o, previous, squashed))
            else:
                h = z.tanh() if self.mode == "RNN_TANH" else z.relu()
                self.kept.append((h,))
            if t + 1 < steps or self.whole:
                gathered = (await self.meetings.gather(h.T.contiguous(), self.sizes)).T  # [B, H]
                if t + 1 < steps:
                    self.before[t + 1] = gathered
                if self.whole:
                    states[t] = gathered
            if not self.whole:
                states[t] = h
        return states

    async def backward(self, grad: Tensor, partial: bool) -> tuple[Tensor, Tensor]:
        """From the gradient of the states, [T, B, u] or [T, B, H], to that of `projected`; `partial`: it needs adding up."""
        steps, batch = grad.shape[:2]
        start, own = sum(self.sizes[: self.meetings.rank]), self.sizes[self.meetings.rank]
        delta = grad.new_empty(steps, batch, len(self.w_hh))
        carried = grad.new_zeros(batch, own)  # of the cell
        for t in reversed(range(steps)):
            wanted = grad[t]
            if self.whole and not partial:
                wanted = wanted[:, start : start + own]
            if t + 1 < steps or (self.whole and partial):
                later = delta[t + 1] @ self.w_hh if t + 1 < steps else torch.zeros_like(wanted)  # [B, H], of own units only
                if self.whole and partial:
                    wanted = (await self.meetings.scatter((later + wanted).T.contiguous(), self.sizes)).T
                else:
                    wanted = wanted + (await self.meetings.scatter(later.T.contiguous(), self.sizes)).T
            if self.mode == "LSTM":
                i, f, g, o, previous, squashed = self.kept[t]
                dc = torch.addcmul(carried, wanted * o, 1 - squashed.square())
                into = delta[t].view(batch, 4, own)
                into[:, 0] = dc * g * i * (1 - i)
                into[:, 1] = dc * previous * f * (1 - f)
                into[:, 2] = dc * i * (1 - g.square())
                into[:, 3] = wanted * squashed * o * (1 - o)
                carried = dc * f
            else:
                (h,) = self.kept[t]
                delta[t] = wanted * (1 - h.square()) if self.mode == "RNN_TANH" else wanted * (h > 0)
        return delta, self.before
