"""From the parts of a network on workers to one file, and from the file to a network that takes no memory until used.

A worker hands over a list of its pieces and then their numbers, some leading rows of a piece at a time; the caller writes
each of them to its place in a safetensors file. So neither holds more of the network twice than a chunk.
"""

from __future__ import annotations

import copy
import json
import math
import os
import secrets
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from firesteel.checkpoint import TYPES, header, raw
from firesteel.errors import StrategyError
from firesteel.flat import layout
from firesteel.net.protocol import Vec
from firesteel.parts.cuts import Cut, Piece
from firesteel.results import CHUNK_BYTES, by_part, payloads, row, rows

# ---- who owns what ---------------------------------------------------------------------------------------------------


def pieces_of(module: nn.Module) -> dict[str, Piece] | None:
    """Where a part's parameters and buffers lie in the whole, by their names in the part; None for a whole network."""
    return getattr(module, "pieces", None)


def fingerprint(pieces: dict[str, Piece]) -> int:
    """Tells parts that own different pieces, 0 .. 2**32 - 1."""
    return zlib.crc32(repr(sorted(pieces.items(), key=lambda item: item[0])).encode())


@final
@dataclass(frozen=True)
class Replicas:
    """The workers of a gang by what they own: those with the same pieces are replicas of one part.

    >>> Replicas((7, 9, 7, 9)).ranks(1)
    [1, 3]
    """

    prints: tuple[int, ...]
    """Fingerprints of the workers' pieces, by rank."""

    def ranks(self, rank: int) -> list[int]:
        """Who owns what this worker owns, itself among them."""
        return [other for other, found in enumerate(self.prints) if found == self.prints[rank]]

    def hands_over(self, rank: int) -> bool:
        """Whether nobody before it hands over the same."""
        return self.ranks(rank)[0] == rank


# ---- a worker hands its part over ------------------------------------------------------------------------------------


def hand_over(rank: int, module: nn.Module, params: Vec, statistics: Vec, skip_shared: bool) -> Iterator[pa.RecordBatch]:
    """A worker's pieces as rows of `results.RESULT`; no more than a chunk of them is copied at a time.

    Args:
        module: the part; frozen parameters and buffers of whole numbers are taken as they are in it.
        params: its trainable parameters, [P of the part].
        statistics: its floating-point buffers, [Q of the part].
        skip_shared: leave out what every part has, as another worker hands it over.

    Raises:
        StrategyError: the part is an ensemble, or a tensor is not of the shape or of a type that was to be expected.
    """
    if params.dim() != 1:
        raise StrategyError(f"the strategy's run returned an ensemble, {list(params.shape)}, of a network that lies in parts.")
    found = _tensors(module, params, statistics)
    pieces = {name: piece for name, piece in (pieces_of(module) or {}).items() if name in found}
    own = [(found[name], piece) for name, piece in pieces.items() if not (piece.shared and skip_shared)]
    for x, piece in own:
        if tuple(x.shape) != piece.cut.shape or x.dtype not in TYPES:
            raise StrategyError(
                f"worker {rank} has a part of '{piece.name}' of shape {list(x.shape)} and {x.dtype}; by its cut the shape is "
                f"{list(piece.cut.shape)}, and the types that can be kept are {', '.join(str(t)[6:] for t in TYPES)}."
            )
    table = [[piece.name, piece.cut.whole, piece.cut.dim, piece.cut.ranges, TYPES[x.dtype]] for x, piece in own]
    yield from rows("pieces", rank, json.dumps(table).encode())
    for number, (x, _) in enumerate(own):
        lines = x if x.dim() else x.view(1)
        each = max(1, CHUNK_BYTES // max(1, x.nbytes // max(1, len(lines))))
        for start in range(0, len(lines) if x.numel() else 0, each):
            yield row(f"piece/{number}", rank, raw(lines[start : start + each]))


def _tensors(module: nn.Module, params: Vec, statistics: Vec) -> dict[str, Tensor]:
    """The part's tensors by name, views of what is given wherever they can be; a tied one under its first name."""
    found = {name: p.detach() for name, p in module.named_parameters()}
    found |= {slot.name: slot.view(params) for slot in layout(module)[0]}
    start = 0
    for name, b in module.named_buffers():
        found[name] = b
        if b.is_floating_point():
            found[name] = statistics[start : start + b.numel()].view(b.shape).to(b.dtype)
            start += b.numel()
    return found


# ---- the caller puts the parts together ------------------------------------------------------------------------------


def write(batches: list[pa.RecordBatch], module: nn.Module, path: Path) -> None:
    """Write what the workers have handed over to one safetensors file; written aside and renamed.

    Args:
        batches: rows of `results.RESULT` of all workers, those of a worker in its order.
        module: the whole network, on the meta device; a tied tensor is written once, under its first name.

    Raises:
        StrategyError: a number of the network was handed over by nobody, or by two workers; or what was is not of it.
    """
    sent = {rank: json.loads(data) for (kind, rank), data in by_part(batches).items() if kind == "pieces"}
    whole, alias = _by_first_name(module)
    cuts: dict[str, list[Cut]] = {name: [] for name in whole}
    place: dict[tuple[str, int], tuple[str, Cut]] = {}
    for rank, table in sent.items():
        for number, (name, shape, dim, ranges, kind) in enumerate(table):
            cut = Cut(tuple(shape), dim, tuple((start, stop) for start, stop in ranges))
            x = whole.get(alias.get(name, ""))
            if x is None or tuple(x.shape) != cut.whole or TYPES.get(x.dtype) != kind:
                has = "has none of that name" if x is None else f"has one of {list(x.shape)}, {x.dtype}"
                raise StrategyError(f"worker {rank} handed over a part of '{name}' {shape}, {kind}; the network {has}.")
            cuts[alias[name]].append(cut)
            place[f"piece/{number}", rank] = alias[name], cut
    for name, x in whole.items():
        _check_cover(name, tuple(x.shape), cuts[name])
    aside = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    try:
        begin, offsets = header(whole, {})
        with aside.open("wb") as file:
            _ = file.write(begin)
            _ = file.truncate(len(begin) + sum(x.nbytes for x in whole.values()))
        done = dict.fromkeys(place, 0)
        for kind, rank, data in payloads(batches):
            if kind.startswith("piece/"):
                name, cut = place[kind, rank]
                done[kind, rank] += _put(_map(aside, "r+", offsets[name], whole[name]), cut, done[kind, rank], data)
        for key, (name, cut) in place.items():
            if done[key] != cut.numel:
                raise StrategyError(
                    f"worker {key[1]} handed over {done[key]} of the {cut.numel} numbers of its part of '{name}'."
                )
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def _by_first_name(module: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Every tensor once, and for each of its names the first one."""
    whole = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    first = {id(x): name for name, x in whole.items()}
    every = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    return whole, {name: first[id(x)] for name, x in every}


def _check_cover(name: str, shape: tuple[int, ...], cuts: Sequence[Cut]) -> None:
    dims = {cut.dim for cut in cuts}
    if dims == {None} and len(cuts) == 1:
        return
    if len(dims) == 1 and (dim := dims.pop()) is not None:
        spans = sorted(span for cut in cuts for span in cut.ranges if span[0] < span[1])
        if [0, *(stop for _, stop in spans)] == [*(start for start, _ in spans), shape[dim]]:
            return
    said = "; ".join("all of it" if cut.dim is None else f"{cut.ranges} of dimension {cut.dim}" for cut in cuts) or "nothing"
    raise StrategyError(f"the parts of '{name}', {list(shape)}, do not make it up, each number once: workers own {said}.")


def _map(path: Path, mode: Any, offset: int, like: Tensor) -> Tensor:
    """A tensor that lies in a file, of the shape and type of another; it is mapped alone, so that it can be let go alone."""
    if not like.numel():
        return torch.empty(like.shape, dtype=like.dtype)
    data = np.memmap(path, np.uint8, mode, offset, (like.nbytes,))
    return torch.frombuffer(data, dtype=like.dtype).view(like.shape)


def _put(whole: Tensor, cut: Cut, done: int, data: pa.Buffer) -> int:
    """Write the next leading rows of a part to their place in the whole; returns how many numbers these were."""
    part = torch.frombuffer(bytearray(data), dtype=whole.dtype)
    if not whole.dim():
        _ = whole.copy_(part[0])
        return 1
    lines = part.view(-1, *cut.shape[1:])
    start = done // math.prod(cut.shape[1:])
    stop = start + len(lines)
    if cut.dim == 0:
        at, spans = 0, []
        for first, last in cut.ranges:  # what the rows `start` .. `stop` of the part are in the whole
            low, high = max(start, at), min(stop, at + last - first)
            if low < high:
                spans.append((first + low - at, first + high - at))
            at += last - first
        Cut(cut.whole, 0, tuple(spans)).put(whole, lines)
    else:
        Cut((len(lines), *cut.whole[1:]), cut.dim, cut.ranges).put(whole[start:stop], lines)
    return part.numel()


# ---- and gets a network ----------------------------------------------------------------------------------------------


def joined(module: nn.Module, parts: Iterable[tuple[nn.Module, Vec, Vec]]) -> nn.Module:
    """A network with the numbers of all its parts, where they are in one process.

    Args:
        module: the whole, on the meta device.
        parts: modules with their parameters and their floating-point buffers, as `hand_over` takes them.
    """
    made = copy.deepcopy(module).to_empty(device="cpu")
    whole = {**dict(made.named_parameters()), **dict(made.named_buffers())}
    with torch.no_grad():
        for part, params, statistics in parts:
            pieces = pieces_of(part) or {}
            for name, x in _tensors(part, params, statistics).items():
                if name in pieces:
                    pieces[name].cut.put(whole[pieces[name].name], x)
    return made.eval()


def mapped(module: nn.Module, path: Path) -> nn.Module:
    """The network with its tensors in the file that `write` wrote, in evaluation mode.

    They are read when used, and what is written to them stays in memory, not in the file.
    """
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        places = json.loads(file.read(size))
    whole, _ = _by_first_name(module)
    made: dict[int, Tensor] = {}
    for name, x in whole.items():
        data = _map(path, "c", 8 + size + places[name]["data_offsets"][0], x)
        made[id(x)] = nn.Parameter(data, x.requires_grad) if isinstance(x, nn.Parameter) else data
    for owner in module.modules():
        own = [*owner.named_parameters(recurse=False, remove_duplicate=False)]
        for name, x in [*own, *owner.named_buffers(recurse=False, remove_duplicate=False)]:
            setattr(owner, name, made[id(x)])  # not load_state_dict: it knows no tied parameters, nor buffers that it skips
    return module.eval()
