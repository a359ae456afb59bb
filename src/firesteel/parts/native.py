"""What PyTorch's own ways of sharding have in common: a worker holds its shards as plain tensors, and a copy of the whole
module, which PyTorch has sharded, runs on them."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from firesteel.errors import UsageError
from firesteel.net.mesh import Mesh
from firesteel.parts.cuts import Cut, Piece


def hollow(module: nn.Module) -> nn.Module:
    """A copy without numbers, on the device "meta", row-major; tied tensors stay tied."""
    memo: dict[int, Any] = {}
    for p in module.parameters():
        memo[id(p)] = nn.Parameter(torch.empty(p.shape, dtype=p.dtype, device="meta"), p.requires_grad)
    for b in module.buffers():
        memo[id(b)] = torch.empty(b.shape, dtype=b.dtype, device="meta")
    return copy.deepcopy(module, memo)


def shards(module: nn.Module, pieces: Mapping[str, Piece]) -> nn.Module:
    """A hollow copy whose tensors have the shapes of the pieces, by their first names; it cannot run, and has each but once."""
    made = hollow(module)
    for name, x in _named(made):
        owner, leaf = _place(made, name)
        own = owner._buffers if leaf in owner._buffers else owner._parameters
        if name not in pieces:
            own[leaf] = None
        elif pieces[name].cut.shape != tuple(x.shape):
            shape = pieces[name].cut.shape
            own[leaf] = nn.Parameter(torch.empty(shape, dtype=x.dtype, device="meta"), x.requires_grad)  # pyright: ignore[reportArgumentType]
    return made


def pieces_of(module: nn.Module, cut: Callable[[str, nn.Parameter], Piece]) -> dict[str, Piece]:
    """Every parameter by `cut`, and every buffer whole at all workers, by their first names."""
    found = {name: cut(name, p) for name, p in module.named_parameters()}
    return found | {name: Piece(name, Cut(tuple(b.shape)), shared=True) for name, b in module.named_buffers()}


def adopt(running: nn.Module, held: nn.Module, wrap: Callable[[str, Tensor], Tensor]) -> None:
    """Give a hollow module the tensors that `held` has by the same first names, in the same memory.

    Args:
        wrap: what a parameter is to be, from its name and the held tensor, detached.
    """
    first = {id(x): name for name, x in reversed(_named(running))}
    parameters, buffers = dict(held.named_parameters()), dict(held.named_buffers())
    made = {name: nn.Parameter(wrap(name, p.detach()), p.requires_grad) for name, p in parameters.items()}
    for name, x in _named(running):
        owner, leaf = _place(running, name)
        setattr(owner, leaf, made[first[id(x)]] if isinstance(x, nn.Parameter) else buffers[first[id(x)]])


def shard_range(length: int, parts: int, index: int) -> tuple[int, int]:
    """What part `index` has of a dimension that PyTorch shards: chunks of equal size, but for the last ones.

    >>> [shard_range(7, 3, k) for k in range(3)], [shard_range(1, 2, k) for k in range(2)]
    ([(0, 3), (3, 6), (6, 7)], [(0, 1), (1, 1)])
    """
    size = -(-length // parts)
    return min(index * size, length), min((index + 1) * size, length)


def passing(mesh: Mesh | None, what: Hashable) -> contextlib.AbstractContextManager[None]:
    """Around a pass; a worker that is alone has no mesh."""
    return contextlib.nullcontext() if mesh is None else mesh.passing(what)


def must_be_plain(outputs: Any, who: str) -> Tensor:
    """Raises UsageError unless outputs are a tensor."""
    if not isinstance(outputs, Tensor):
        raise UsageError(f"{who} trains models that return a tensor, but this one returned {type(outputs).__name__}.")
    return outputs


def _named(module: nn.Module) -> list[tuple[str, Tensor]]:
    return list(_every(module))


def _every(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def _place(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, leaf = name.rpartition(".")
    return module.get_submodule(path), leaf
