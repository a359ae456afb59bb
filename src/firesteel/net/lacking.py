"""Verbs that a net does not have, and what to do instead."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence

from torch import Tensor

from firesteel.errors import StrategyError
from firesteel.net.protocol import Net, Op, Vec, WireType


class NoServer:
    """For the net of a gang."""

    def pull(self) -> Awaitable[Vec]:
        raise _no_server("pull")

    def push(self, delta: Vec) -> Awaitable[None]:
        raise _no_server("push")

    def exchange(self, delta: Vec) -> Awaitable[Vec]:
        raise _no_server("exchange")


class NoGang:
    """For the net of a worker and its server, which keeps the model that the world sees."""

    def all_reduce(
        self, x: Tensor, op: Op = "mean", weight: float | None = None, wire: WireType | None = None
    ) -> Awaitable[Tensor]:
        raise _no_gang("all_reduce")

    def all_gather(self, x: Tensor) -> Awaitable[Tensor]:
        raise _no_gang("all_gather")

    def reduce_scatter(self, x: Tensor, op: Op = "mean") -> Awaitable[Tensor]:
        raise _no_gang("reduce_scatter")

    def broadcast(self, x: Tensor, root: int = 0) -> Awaitable[Tensor]:
        raise _no_gang("broadcast")

    def send(self, x: Tensor, to: int, bare: bool = False) -> Awaitable[None]:
        raise _no_gang("send")

    def recv(self, source: int, like: Tensor | None = None) -> Awaitable[Tensor]:
        raise _no_gang("recv")

    def group(self, ranks: Sequence[int]) -> Net:
        raise _no_gang("group")

    def publish(self, params: Vec, *rest: Tensor) -> None:
        """The center is the model that the world sees, and the servers keep it: nothing to do here."""

    def resume(self, *default: Tensor) -> tuple[Tensor, ...]:
        return default


def _no_server(verb: str) -> StrategyError:
    return StrategyError(f"net.{verb} needs a server: give the strategy a method `merge(self, center, push)`.")


def _no_gang(verb: str) -> StrategyError:
    return StrategyError(
        f"net.{verb} needs workers that meet, but a strategy with `merge` runs workers that come and go: use pull and push."
    )
