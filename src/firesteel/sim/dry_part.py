"""What a strategy holds in its hands in a dry run of a network in parts: the real part and a real worker, without numbers.

The part, its optimizer and its batches are on the device "meta", so nothing is computed, but every meeting takes place, and
every tensor that is sent has its true size.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from firesteel.data.batches import Plan
from firesteel.data.shard import Batch
from firesteel.errors import UsageError
from firesteel.losses import Loss, resolve_loss
from firesteel.models.layers import Fold
from firesteel.net.protocol import Net
from firesteel.optim import OptimizerSettings
from firesteel.parts.cuts import Piece
from firesteel.parts.network import Network, chain_of, network
from firesteel.parts.part import Meter
from firesteel.sim.simulation import Member, Pace
from firesteel.worker import Worker

_BESIDE = (nn.Flatten, nn.Identity, nn.Dropout)  # a row keeps its numbers in them


@final
@dataclass(frozen=True)
class Rows:
    """What a data set's rows look like to a network. Labels are classes, if the outputs have any, else values."""

    inputs: tuple[int, ...]
    kind: torch.dtype
    """int64 where inputs are looked up in a table of embeddings."""
    dtype: torch.dtype
    outputs: tuple[int, ...]

    @property
    def loss(self) -> str:
        return "cross_entropy" if self.outputs else "mse"

    def batch(self, rows: int) -> Batch:
        """So many of them, on the device "meta"."""
        x = torch.empty(rows, *self.inputs, dtype=self.kind, device="meta")
        target = torch.empty(rows, *self.outputs[1:], dtype=torch.int64 if self.outputs else self.dtype, device="meta")
        return Batch((x,), target, None, rows, float(rows))


@final
class Parts:
    """A network in parts, as the workers of a strategy have it.

    Args:
        module: on the device "meta".
        inputs: shape of a row; None: what the first layer says of it. Sequences are all as long.

    Raises:
        UsageError: the first layer does not say it, or rows of that shape do not fit.
    """

    def __init__(self, strategy: Any, module: nn.Module, workers: int, inputs: tuple[int, ...] | None) -> None:
        who = type(strategy).__name__
        first = next((each for each in chain_of(module, who) if not isinstance(each, _BESIDE)), None)
        shape = _told(first) if inputs is None else inputs
        if shape is None:
            raise UsageError(
                f"{who} is planned with the true sizes of what layers exchange, but the first layer does not tell how large a "
                "row is: give inputs=(shape of a row), --input-shape on the command line; (steps, numbers) for sequences."
            )
        dtype = next(p.dtype for p in module.parameters())
        kind = torch.int64 if isinstance(first, nn.Embedding) else dtype
        try:
            self._chain: Network = network(module, (torch.empty(2, *shape, dtype=kind, device="meta"),), who)
        except UsageError:
            raise
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            raise UsageError(f"rows of the shape inputs={shape} do not go through this network: {error}") from None
        self.rows: Rows = Rows(shape, kind, dtype, self._chain.layers[-1].outputs)
        self._strategy: Any = strategy
        self._count: int = strategy.parts_of(workers)
        self._scripts: dict[int, dict[Any, list[_Event]]] = {}

    def part(self, rank: int) -> nn.Module:
        """Worker `rank`'s.

        Raises:
            UsageError: the strategy cannot cut this network into so many.
        """
        return self._strategy.part(self._chain, self.rows.batch(0), rank % self._count, self._count)

    def scripts(self, rank: int) -> dict[Any, list[_Event]]:
        """Of the passes of worker `rank`, and of others who have the same part."""
        return self._scripts.setdefault(rank % self._count, {})


def _told(first: nn.Module | None) -> tuple[int, ...] | None:
    if isinstance(first, nn.Linear):
        return (first.in_features,)
    if isinstance(first, Fold) and min(first.shape) > 0:
        return first.shape
    return None


def bare(module: nn.Module) -> nn.Module:
    """Moves it to the device "meta" and takes its dropout away: masks are drawn where they are needed, and not sent."""
    for each in module.to("meta").modules():
        if isinstance(each, nn.modules.dropout._DropoutNd):
            each.p = 0.0
        elif isinstance(each, nn.RNNBase):
            each.dropout = 0.0
    return module


@final
class DryPart:
    """One worker with its part.

    Operations on "meta" take long for what they do, nothing. So of each kind of pass only the first is run; of it there is a
    script of what was computed, sent and awaited, which stands for all later ones.

    Args:
        settings, moments: the optimizer, and how many tensors of a parameter's shape it keeps.
    """

    def __init__(
        self, parts: Parts, settings: OptimizerSettings, moments: int, plan: Plan, member: Member, steady: Pace
    ) -> None:
        part, shard = parts.part(plan.rank).train(), _Shard(plan.rows, parts.rows)
        loss, still = resolve_loss(parts.rows.loss, False), _Still(settings, moments)
        self.worker: Worker = Worker(part, loss, still, shard, plan, trace=member.trace)  # pyright: ignore[reportArgumentType]
        played: Any = _Played(part, parts.scripts(plan.rank))
        self.worker.part = played
        self.worker.wait, self.worker.meter = member.wait, self._meter
        self.held_bytes: int = (2 + moments) * self.worker.params.nbytes + sum(b.nbytes for b in part.buffers())
        self.steady_seconds: float = 0.0  # in which it computes, without jitter
        self._member: Member = member
        self._steady: Pace = steady

    def _meter(self, rows: int) -> Callable[[float], None]:
        seconds, spend = self._steady.step(rows, 0.0), self._member.meter(rows)

        def both(share: float) -> None:
            self.steady_seconds += seconds * share
            spend(share)

        return both


@final
@dataclass(frozen=True)
class _Still:
    """An optimizer that keeps what it would keep, and does not step."""

    settings: OptimizerSettings
    moments: int

    def build(self, module: nn.Module) -> torch.optim.Optimizer:
        made: Any = self.settings.build(module)
        made.step = lambda: None
        for p in module.parameters():
            made.state[p] = {f"moment{number}": torch.empty_like(p) for number in range(self.moments)}
        return made


_Event = Callable[["_Play"], Any]  # returns what is to be awaited, or None


@final
class _Play:
    """A pass under way: on which net, what was posted, and what spends seconds."""

    def __init__(self, net: Net, meter: Any) -> None:
        self.net: Net = net
        self.meter: Any = meter
        self.posted: list[Any] = []
        self.spends: list[Callable[[float], None]] = []


@final
class _Played:
    """`Part`: does what the part did the first time."""

    def __init__(self, part: Any, scripts: dict[Any, list[_Event]]) -> None:
        self.pieces: dict[str, Piece] = part.pieces
        self._part: Any = part
        self._scripts: dict[Any, list[_Event]] = scripts
        self._kind: tuple[float, ...] = ()

    @property
    def alone(self) -> bool:
        return self._part.alone

    def bind(self, net: Net) -> None:
        self._part.bind(net)

    async def prepare(self, batch: Batch) -> Batch:
        net = self._part.net
        watched = _Watched(net, [])
        self._part.bind(watched)
        made = await self._part.prepare(batch)
        self._part.bind(net)
        self._kind = tuple(watched.heard)  # everyone's rows
        return made

    async def descend(self, batch: Batch, loss: Loss, meter: Meter | None) -> tuple[float, float]:
        part, key = self._part, (*self._kind, self.alone)
        script = self._scripts.get(key)
        if script is None:
            net, script = part.net, list[_Event]()
            part.bind(_Watched(net, script))
            _ = await part.descend(batch, loss, None if meter is None else _watched(meter, script))
            part.bind(net)
            self._scripts[key] = script
        else:
            play = _Play(part.net, meter)
            for event in script:
                awaited = event(play)
                if awaited is not None:
                    _ = await awaited
        return 0.0, batch.weight

    async def norm(self) -> Tensor:
        return await self._part.norm()

    async def outputs(self, batch: Batch) -> Tensor:
        return await self._part.outputs(batch)


@final
class _Watched:
    """A net of whose verbs a script is kept."""

    def __init__(self, net: Net, script: list[_Event]) -> None:
        self.rank: int = net.rank
        self.size: int = net.size
        self._net: Net = net
        self._script: list[_Event] = script
        self._posts: int = 0
        self.heard: list[float] = []  # numbers, where there are some

    def __getattr__(self, verb: str) -> Callable[..., Awaitable[Any]]:
        def post(*args: Any) -> Awaitable[Any]:
            number, self._posts = self._posts, self._posts + 1
            again = [x.detach() if isinstance(x, Tensor) else x for x in args]  # without its graph
            self._script.append(lambda play: play.posted.append(getattr(play.net, verb)(*again)))
            return self._awaited(number, getattr(self._net, verb)(*args))

        return post

    async def _awaited(self, number: int, posted: Awaitable[Any]) -> Any:
        self._script.append(lambda play: play.posted[number])
        result = await posted
        if isinstance(result, Tensor) and not result.is_meta:
            self.heard += result.flatten().tolist()
        return result


def _watched(meter: Meter, script: list[_Event]) -> Meter:
    """A meter of which a script is kept."""
    count = itertools.count()

    def begin(rows: int) -> Callable[[float], None]:
        number, spend = next(count), meter(rows)
        script.append(lambda play: play.spends.append(play.meter(rows)))

        def both(share: float) -> None:
            script.append(lambda play: play.spends[number](share))
            spend(share)

        return both

    return begin


@final
@dataclass(frozen=True)
class _Shard:
    """Rows of which only the number is known."""

    rows: int
    looks: Rows

    def take(self, index: Tensor) -> Batch:
        return self.looks.batch(len(index))
