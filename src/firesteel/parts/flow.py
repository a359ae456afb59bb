"""Activations on their way through a network in parts: who has which of them, and how they change hands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, final

from torch import Tensor

from firesteel.parts.passes import Cut, Tape
from firesteel.parts.telling import Rows


@final
@dataclass(frozen=True)
class Flow:
    """What has come out of a layer.

    Each worker has its own rows with all units ("rows"), all rows with all units ("all"), or all rows with its own units
    ("units"), which lie along `dim`.
    """

    x: Tensor
    rows: Rows
    at: Literal["rows", "all", "units"] = "rows"
    lengths: Tensor | None = None
    """Of sequences: steps of the rows that `x` has."""
    dim: int = 1
    sizes: tuple[int, ...] = ()
    """Units of each worker."""
    begun: Cut | None = None
    """The cut after which everything has been linear in the gradient, at "all"."""

    def on(self, x: Tensor, **changed: object) -> Flow:
        return replace(self, x=x, **changed)


async def to_all(flow: Flow, tape: Tape) -> Flow:
    """All rows with all units, at every worker."""
    if flow.at == "all":
        return flow
    meetings = tape.meetings
    if flow.at == "rows":
        counts = flow.rows.counts
        whole = await meetings.gather(flow.x.detach().contiguous(), counts)
        lengths = None if flow.lengths is None else await meetings.gather(flow.lengths, counts)

        async def rows_back(grads: list[Tensor]) -> list[Tensor]:
            return [await meetings.scatter(grads[0].contiguous(), counts) if made.partial else grads[0][flow.rows.own]]

        made, (leaf,) = tape.cut([flow.x], [whole], rows_back)
        return flow.on(leaf, at="all", lengths=lengths, begun=made)
    start, own = sum(flow.sizes[: meetings.rank]), flow.sizes[meetings.rank]
    units = await meetings.gather(flow.x.detach().movedim(flow.dim, 0).contiguous(), flow.sizes)

    async def units_back(grads: list[Tensor]) -> list[Tensor]:
        if not made.partial:
            return [grads[0].narrow(flow.dim, start, own)]
        return [(await meetings.scatter(grads[0].movedim(flow.dim, 0).contiguous(), flow.sizes)).movedim(0, flow.dim)]

    made, (leaf,) = tape.cut([flow.x], [units.movedim(0, flow.dim)], units_back)
    return flow.on(leaf, at="all", begun=made)


def entering(flow: Flow, tape: Tape) -> Tensor:
    """The x of a flow at "all", for a layer of which every worker has its own units: each makes a part of its gradient."""
    if flow.begun is not None:
        flow.begun.partial = True
        return flow.x

    async def back(grads: list[Tensor]) -> list[Tensor]:
        return [await tape.meetings.add(grads[0].contiguous())]

    _, (leaf,) = tape.cut([flow.x], [flow.x], back)
    return leaf


async def added(flow: Flow, partial: Tensor, tape: Tape) -> Flow:
    """All rows with all units, from every worker's part of a sum."""
    meetings = tape.meetings
    total = await meetings.add(partial.detach())  # no graph keeps what came out of its last product

    async def back(grads: list[Tensor]) -> list[Tensor]:
        return [await meetings.add(grads[0].contiguous()) if made.partial else grads[0]]

    made, (leaf,) = tape.cut([partial], [total], back)
    return flow.on(leaf, at="all", begun=made, sizes=())


def own_part(x: Tensor, dim: int, sizes: Sequence[int], rank: int) -> Tensor:
    """A worker's own units of what has all of them, a view."""
    return x.narrow(dim, sum(sizes[:rank]), sizes[rank])
