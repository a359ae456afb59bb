"""Consecutive layers of a network, which one worker runs on one piece of the batch after the other."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from firesteel.data.shard import Batch
from firesteel.errors import UsageError
from firesteel.losses import Loss
from firesteel.models.layers import Last, run_chain
from firesteel.net.protocol import Net
from firesteel.parts.cuts import Cut, Piece, shares
from firesteel.parts.feed import INPUTS, LENGTHS, TARGETS, WEIGHTS, Feed, Outbox
from firesteel.parts.masks import Masks
from firesteel.parts.network import Layer, Network
from firesteel.parts.part import Meter
from firesteel.parts.telling import Rows, Told, tell, whole_norm
from firesteel.worker import FORWARD

Schedule = Literal["gpipe", "1f1b"]


@final
class Stage(nn.Module):
    r"""One worker's part, on the device "meta" until it is made real and filled.

    The rows of a batch are those of all workers, in order of rank; micro-batches are pieces of it. Activations go from stage
    to stage, gradients the other way; both schedules make the gradients of the micro-batches in their order, so that they
    add up to the same bits. They differ in when they are made: "gpipe" runs all micro-batches forward first; with "1f1b" stage
    s of S runs S - 1 - s ahead, then one backward for one forward, so that at most S - s graphs are alive.

    Bytes that stage s sends in a step, of B rows in all and b its own, where a row has x bytes of inputs, y of targets
    and weight, and \(a_s\) of what stage s hands on, lengths of sequences (8 bytes, to every stage that looks at them) aside:
    \( 24 (S-1) + [s>0]\,(b x + B a_{s-1}) + [s<S-1]\,(b y + B a_s) + [s=S-1]\,8 (S-1) \): the numbers of rows, rows to the
    first stage, gradients back, rows to the last stage, activations on, and the loss to all.

    Args:
        nothing: a batch without rows, for a worker that has none.
        cuts: the layers at which stages 1, 2, ... begin.
        index: which stage this is.
        micro_batches: how many pieces a batch has; where it has fewer rows, one for each row.

    Raises:
        UsageError: a layer's result would depend on which rows are together, or it draws random numbers inside.
    """

    def __init__(
        self,
        network: Network,
        nothing: Batch,
        cuts: tuple[int, ...],
        index: int,
        schedule: Schedule,
        micro_batches: int,
        who: str,
    ) -> None:
        super().__init__()
        bounds = (0, *cuts, len(network.layers))
        stages = [network.layers[start:stop] for start, stop in pairwise(bounds)]
        for layer in network.layers:
            _check(layer, who)
        self.layers: nn.ModuleList = nn.ModuleList(copy.deepcopy(layer.module) for layer in stages[index])
        self.pieces: dict[str, Piece] = {
            f"layers.{number}.{name}": Piece(f"{layer.name}.{name}", Cut(tuple(x.shape)))
            for number, layer in enumerate(stages[index])
            for name, x in [*layer.module.named_parameters(), *layer.module.named_buffers()]
        }
        self.net: Any = None  # the net of those who share the network, once it is bound
        self.alone: bool = False
        self.cuts: tuple[int, ...] = cuts
        self._network: Network = network
        self._nothing: Batch = nothing
        self._sequences: bool = len(nothing.inputs) > 1
        self._weighted: bool = nothing.weights is not None
        self._wants: list[tuple[int, ...]] = [self._wanted(number, stage, len(stages)) for number, stage in enumerate(stages)]
        self._masks: Masks = Masks(network, self._sequences, who)
        self._range: range = range(bounds[index], bounds[index + 1])
        self._index: int = index
        self._last: bool = index == len(stages) - 1
        self._ahead: int | None = None if schedule == "gpipe" else len(stages) - 1 - index
        self._micro_batches: int = micro_batches
        self._share: float = sum(layer.flops for layer in stages[index]) / network.flops
        self._writes: bool = _writes(self.layers)  # to what it gets, which as a leaf is not to be written to
        self._told: Told = Told(Rows((0,), 0), 0.0, 0.0, 0)

    def _wanted(self, number: int, layers: tuple[Layer, ...], stages: int) -> tuple[int, ...]:
        """What a stage needs of everyone's rows."""
        wanted = [INPUTS] if number == 0 else []
        if self._sequences and any(isinstance(layer.module, Last) for layer in layers):
            wanted.append(LENGTHS)
        if number == stages - 1:
            wanted += [TARGETS, WEIGHTS] if self._weighted else [TARGETS]
        return tuple(wanted)

    def bind(self, net: Net) -> None:
        """Tell it where the other parts are."""
        self.net = net

    # ---- passes ------------------------------------------------------------------------------------------------------

    async def prepare(self, batch: Batch) -> Batch:
        """Tell each other of the rows to come; returns the batch with the weight of everyone's. Every worker calls it."""
        self._told = await tell(batch, self.net)
        return replace(batch, weight=self._told.weight)

    async def descend(self, batch: Batch, loss: Loss, meter: Meter | None) -> tuple[float, float]:
        """Add the gradient of the mean loss over all workers' rows to the parameters' `grad`.

        Every worker calls it with its own rows, which it has told of. Returns the loss, which every worker gets, and the weight
        of its own rows.
        """
        if not self._told.weight:
            return 0.0, 0.0
        run = self._begin(batch, (INPUTS, LENGTHS, TARGETS, WEIGHTS))
        spend = meter(self._told.rows.total) if meter is not None else None
        count, total = len(run.pieces), 0.0
        ahead = count if self._ahead is None else min(self._ahead, count)
        graphs: dict[int, _Graph] = {}
        for turn in range(count + ahead):
            if turn < count:
                graphs[turn] = graph = self._forward(run, turn, await self._receive(run, turn), loss)
                total += graph.loss
                self._pay(spend, run, turn, FORWARD)
                if not self._last:
                    run.activations.send(graph.root, self._index + 1, bare=True)
            if turn >= ahead:
                graph = graphs.pop(turn - ahead)
                await self._backward(run, graph, under_way=len(graphs))
                self._pay(spend, run, turn - ahead, 1 - FORWARD)
                if self._index:
                    run.gradients.send(_grad(graph.x), self._index - 1, bare=True)
                    await run.gradients.settle(leave=self.net.size - self._index)
        value = await self._agreed(total)
        await run.feed.settle()
        await run.gradients.settle()
        if meter is not None:
            meter(0)(1 - self._share)  # a step's fixed cost is not shared
        return value, self._told.own_weight

    async def outputs(self, batch: Batch) -> Tensor:
        """The network's outputs for this worker's own rows; every worker calls it."""
        _ = await self.prepare(batch)
        run = self._begin(batch, (INPUTS, LENGTHS))
        found: list[Tensor] = []
        for number in range(len(run.pieces)):
            x = await self._receive(run, number)
            with torch.no_grad():
                x = self._run(run, number, x)
            if self._last:
                found.append(x)
            else:
                run.activations.send(x, self._index + 1, bare=True)
                await run.activations.settle(leave=1)
        await run.activations.settle()
        await run.feed.settle()
        return await self._handed_out(found)

    async def norm(self) -> Tensor:
        """Of the whole network's gradient."""
        return await whole_norm(self, self.pieces, self.net)

    # ---- one micro-batch ---------------------------------------------------------------------------------------------

    def _begin(self, batch: Batch, kinds: tuple[int, ...]) -> _Pass:
        rows = self._told.rows
        wants = [[kind for kind in wanted if kind in kinds] for wanted in self._wants]
        return _Pass(
            Feed(self.net, batch, rows.counts, wants, self._told.steps),
            shares(rows.total, min(self._micro_batches, rows.total)) if rows.total else (),
            self._masks.draw(rows.total, self._told.steps, self._range) if self.training else {},
            Outbox(self.net),
            Outbox(self.net),
        )

    async def _receive(self, run: _Pass, number: int) -> Tensor:
        """What the first layer gets."""
        start, stop = run.pieces[number]
        if self._index == 0:
            await run.feed.until(stop)
            return run.feed.rows(INPUTS, start, stop)
        await run.feed.until(self._told.rows.total)  # it was sent before any activations
        given = self._masks.given(stop - start, self._told.steps, self._range.start)
        return await self.net.recv(self._index - 1, given)

    def _run(self, run: _Pass, number: int, x: Tensor) -> Tensor:
        start, stop = run.pieces[number]
        lengths = run.feed.rows(LENGTHS, start, stop) if LENGTHS in self._wants[self._index] else None
        for place, layer in zip(self._range, self.layers, strict=True):
            mask = run.masks.get(place)
            x = run_chain([layer], x, lengths) if mask is None else x * mask[start:stop]
        return x

    def _forward(self, run: _Pass, number: int, x: Tensor, loss: Loss) -> _Graph:
        start, stop = run.pieces[number]
        if self._index:
            x = x.requires_grad_()
        out = self._run(run, number, x.clone() if self._writes else x)
        if not self._last:
            return _Graph(x, out)
        targets = run.feed.rows(TARGETS, start, stop)
        weights = run.feed.rows(WEIGHTS, start, stop) if self._weighted else None
        weight, whole = float(stop - start), float(self._told.rows.total)
        if weights is not None:
            weight, whole = float(weights.sum()), float(run.feed.rows(WEIGHTS, 0, self._told.rows.total).sum())
        if not weight:
            return _Graph(x, out, torch.zeros_like(out))
        value = loss(out, targets, weights)
        share = weight / whole
        return _Graph(x, value, torch.full_like(value, share), 0.0 if value.is_meta else float(value.detach()) * share)

    async def _backward(self, run: _Pass, graph: _Graph, under_way: int) -> None:
        """From the gradient of what came out to those of the parameters, and of what went in."""
        grad = graph.grad
        if grad is None:
            await run.feed.until(self._told.rows.total)  # it was sent before any gradients
            grad = await self.net.recv(self._index + 1, graph.root)
            await run.activations.settle(leave=under_way)  # whose gradient is here has arrived
        torch.autograd.backward([graph.root], [grad])

    def _pay(self, spend: Callable[[float], None] | None, run: _Pass, number: int, share: float) -> None:
        if spend is not None:
            start, stop = run.pieces[number]
            spend(share * self._share * (stop - start) / self._told.rows.total)

    async def _handed_out(self, found: list[Tensor]) -> Tensor:
        """This worker's rows of what came out of the last stage."""
        rows = self._told.rows
        if not self._last:
            count = rows.counts[rows.rank]
            return await self.net.recv(self.net.size - 1) if count else torch.zeros(0, *self._network.layers[-1].outputs)
        whole = torch.cat(found) if found else torch.zeros(0, *self._network.layers[-1].outputs)
        parts, home = whole.split(list(rows.counts)), Outbox(self.net)
        for worker, part in enumerate(parts[:-1]):
            if len(part):
                home.send(part, worker)
        await home.settle()
        return parts[-1]

    async def _agreed(self, total: float) -> float:
        """The batch's loss, from the last stage."""
        last = self.net.size - 1
        if not self._last:
            return float(await self.net.recv(last, torch.empty((), dtype=torch.float64)))
        outbox = Outbox(self.net)
        for worker in range(last):
            outbox.send(torch.tensor(total, dtype=torch.float64), worker, bare=True)
        await outbox.settle()
        return total


@final
@dataclass(frozen=True)
class _Pass:
    """What a pass over one batch has under way."""

    feed: Feed
    pieces: tuple[tuple[int, int], ...]
    """First row and the one after the last, of each micro-batch."""
    masks: dict[int, Tensor]
    """Of the stage's dropout layers, by their number in the network: [B, ...]."""
    activations: Outbox
    gradients: Outbox


@final
@dataclass(frozen=True)
class _Graph:
    """One micro-batch between its forward and its backward pass."""

    x: Tensor
    root: Tensor
    """Where the backward pass begins: what is handed on, or the loss."""
    grad: Tensor | None = None
    """Of the batch's loss with respect to the root, where it need not come from the next stage."""
    loss: float = 0.0
    """Its part of the batch's."""


def _grad(x: Tensor) -> Tensor:
    return torch.zeros_like(x) if x.grad is None else x.grad


def _writes(layers: nn.ModuleList) -> bool:
    """Whether a layer works in place up to the first that has parameters, which is the last that may get what came in."""
    for layer in layers:
        if any(getattr(each, "inplace", False) for each in layer.modules()):
            return True
        if any(True for _ in layer.parameters()):
            return False
    return False


def _check(layer: Layer, who: str) -> None:
    for module in layer.module.modules():
        tracks = isinstance(module, nn.modules.instancenorm._InstanceNorm) and module.track_running_stats
        if tracks or isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise UsageError(
                f"{who} runs a batch in pieces, and layer {layer} would normalise each with statistics of its own. Take a norm "
                'that looks at each row alone (nn.GroupNorm; VGG(norm="group")), or NeuronParallel(), which adds statistics up.'
            )
