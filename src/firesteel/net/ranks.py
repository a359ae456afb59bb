"""Ranks that strategies name: checked when a verb is posted, or the others would wait for a worker that does not exist."""

from __future__ import annotations

from firesteel.errors import StrategyError


def check_rank(verb: str, name: str, named: int, rank: int, size: int) -> None:
    """Raise StrategyError unless the net has the worker that worker `rank` has named."""
    if not 0 <= named < size:
        raise StrategyError(f"worker {rank} called net.{verb}({name}={named}), but this net has the workers 0 .. {size - 1}.")


def check_group(members: tuple[int, ...], rank: int, size: int) -> None:
    """Raise StrategyError unless the members are workers of the net, each once, and `rank` is one of them."""
    if rank not in members:
        raise StrategyError(f"worker {rank} asked for the group {members}, of which it is no member.")
    if len(set(members)) < len(members):
        raise StrategyError(f"worker {rank} asked for the group {members}, which names a worker twice.")
    if not all(0 <= member < size for member in members):
        raise StrategyError(f"worker {rank} asked for the group {members}, but this net has the workers 0 .. {size - 1}.")
