"""Layers whose units are spread over the workers, and those that every worker has whole."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from firesteel.models.layers import ClassesFirst, Last
from firesteel.parts.cuts import Cut, Piece, shares
from firesteel.parts.flow import Flow, added, entering, own_part, to_all
from firesteel.parts.network import Layer
from firesteel.parts.passes import Tape

CONVOLVE: dict[type[nn.Module], Callable[..., Tensor]] = {nn.Conv1d: F.conv1d, nn.Conv2d: F.conv2d, nn.Conv3d: F.conv3d}


class SplitLayer(nn.Module):
    """A layer as one worker has it. `pieces` says where its parameters and buffers lie in the whole network."""

    weight: Any
    bias: Any

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.layer: Layer = layer
        self.pieces: dict[str, Piece] = {}
        self.share: float = 1.0  # of the layer's cost, where all workers have what comes out
        self.sums_rows: bool = False  # its gradient is that of this worker's rows only

    def own(self, name: str, dim: int | None, ranges: tuple[tuple[int, int], ...] = (), shared: bool = False) -> None:
        """Make room for this worker's piece of the layer's parameter, of the same name."""
        whole = getattr(self.layer.module, name)
        if whole is None:
            self.register_parameter(name, None)
            return
        cut = Cut(tuple(whole.shape), dim, ranges)
        setattr(self, name, nn.Parameter(torch.empty(cut.shape, dtype=whole.dtype, device="meta")))
        self.pieces[name] = Piece(f"{self.layer.name}.{name}", cut, shared)

    async def pass_on(self, flow: Flow, tape: Tape, all_flops: float) -> Flow:
        """Run the layer."""
        out = await self.run(flow, tape)
        share, have = self.share, {"rows": out.rows.counts, "units": out.sizes}.get(out.at)
        if have is not None:
            share = have[out.rows.rank] / sum(have)
        tape.computed(share * self.layer.flops / all_flops)
        return out

    async def run(self, flow: Flow, tape: Tape) -> Flow:
        raise NotImplementedError


def _ranges(units: int, rank: int, size: int) -> tuple[tuple[int, int], ...]:
    return (shares(units, size)[rank],)


def sizes_of(units: int, size: int) -> tuple[int, ...]:
    """How many of so many units each worker has."""
    return tuple(stop - start for start, stop in shares(units, size))


@final
class OwnOutputs(SplitLayer):
    """A Linear layer or a convolution of which a worker computes its own outputs, from all inputs."""

    def __init__(self, layer: Layer, rank: int, size: int) -> None:
        super().__init__(layer)
        units = layer.module.weight.shape[0]
        self.sizes: tuple[int, ...] = sizes_of(units, size)
        self.own("weight", 0, _ranges(units, rank, size))
        self.own("bias", 0, _ranges(units, rank, size))

    async def run(self, flow: Flow, tape: Tape) -> Flow:
        flow = await to_all(flow, tape)
        x = entering(flow, tape)
        out = _apply(self.layer.module, x, self.weight, self.bias)
        dim = out.dim() - 1 if isinstance(self.layer.module, nn.Linear) else 1
        return flow.on(out, at="units", dim=dim, sizes=self.sizes, begun=None)


@final
class OwnInputs(SplitLayer):
    """A Linear layer or a convolution of which a worker has the weights of its own inputs: outputs are sums over workers."""

    def __init__(self, layer: Layer, rank: int, size: int, sizes: tuple[int, ...]) -> None:
        super().__init__(layer)
        start = sum(sizes[:rank])
        self.own("weight", 1, ((start, start + sizes[rank]),))
        outputs = layer.module.weight.shape[0]
        self.own("bias", 0, _ranges(outputs, rank, size))
        self.place: tuple[int, int] = (shares(outputs, size)[rank][0], outputs - shares(outputs, size)[rank][1])
        self.share = sizes[rank] / sum(sizes)

    async def run(self, flow: Flow, tape: Tape) -> Flow:
        bias = None if self.bias is None else F.pad(self.bias, self.place)  # who owns an output adds its bias
        return await added(flow, _apply(self.layer.module, flow.x, self.weight, bias), tape)


def _apply(module: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if isinstance(module, nn.Linear):
        return F.linear(x, weight, bias)
    return CONVOLVE[type(module)](x, weight, bias, module.stride, module.padding, module.dilation)


@final
class OwnColumns(SplitLayer):
    """A table of embeddings of which a worker has its own numbers of every entry."""

    def __init__(self, layer: Layer, rank: int, size: int) -> None:
        super().__init__(layer)
        units = layer.module.weight.shape[1]
        self.sizes: tuple[int, ...] = sizes_of(units, size)
        self.own("weight", 1, _ranges(units, rank, size))

    async def run(self, flow: Flow, tape: Tape) -> Flow:
        flow = await to_all(flow, tape)
        out = F.embedding(flow.x, self.weight, self.layer.module.padding_idx)
        return flow.on(out, at="units", dim=out.dim() - 1, sizes=self.sizes, begun=None)


@final
class OwnNorm(SplitLayer):
    """A normalisation of each unit, or of groups of units that each belong to one worker."""

    def __init__(self, layer: Layer, rank: int, sizes: tuple[int, ...]) -> None:
        super().__init__(layer)
        self.module: Any = copy.deepcopy(layer.module)
        start, own = sum(sizes[:rank]), sizes[rank]
        for name, whole in [*layer.module.named_parameters(), *layer.module.named_buffers()]:
            dim = 0 if whole.dim() else None
            cut = Cut(tuple(whole.shape), dim, ((start, start + own),) if whole.dim() else ())
            empty = torch.empty(cut.shape, dtype=whole.dtype, device="meta")
            if isinstance(whole, nn.Parameter):
                setattr(self.module, name, nn.Parameter(empty))
            else:
                setattr(self.module, name, empty)
            self.pieces[f"module.{name}"] = Piece(f"{layer.name}.{name}", cut, shared=not whole.dim())
        if isinstance(self.module, nn.GroupNorm):
            self.module.num_groups = own * self.module.num_groups // sum(sizes)
            self.module.num_channels = own
        else:
            self.module.num_features = own

    async def run(self, flow: Flow, tape: Tape) -> Flow:
        return flow.on(self.module(flow.x))


@final
class Whole(SplitLayer):
    """A layer that every worker has whole: for all rows, or for its own rows."""

    def __init__(self, layer: Layer, own_rows: bool) -> None:
        super().__init__(layer)
        self.module: Any = copy.deepcopy(layer.module)
        self.sums_rows = own_rows
        for name, whole in [*layer.module.named_parameters(), *layer.module.named_buffers()]:
            self.pieces[f"module.{name}"] = Piece(f"{layer.name}.{name}", Cut(tuple(whole.shape)), shared=True)

    async def run(self, flow: Flow, tape: Tape) -> Flow:
        if not self.sums_rows:
            flow = await to_all(flow, tape)
        if self.pieces and flow.at == "all":
            # Its parameters' gradients are whole at every worker: so must be what reaches it.
            return flow.on(self.module(unshared(flow.x, self.module)), begun=None)
        return flow.on(self.module(unshared(flow.x.contiguous(), self.module)))


@final
class Each(SplitLayer):
    """A layer without parameters that treats each unit, or each channel, by itself."""

    def __init__(self, layer: Layer) -> None:
        super().__init__(layer)
        self.module: nn.Module = layer.module

    async def run(self, flow: Flow, tape: Tape) -> Flow:
        return flow.on(self.module(unshared(flow.x, self.module)))


@final
class Reshape(SplitLayer):
    """`Flatten`, `Unflatten`, `Fold`, `Last` and `ClassesFirst`, which move units about."""

    async def run(self, flow: Flow, tape: Tape) -> Flow:
        module = self.layer.module
        if isinstance(module, Last):
            out = module(flow.x, flow.lengths)
            return flow.on(out, dim=1)
        if isinstance(module, ClassesFirst):
            return flow.on(module(flow.x), dim=3 - flow.dim)
        if flow.at == "units":  # Flatten, of channels: each becomes as many units as it has places
            each = math.prod(flow.x.shape[2:])
            return flow.on(module(flow.x), sizes=tuple(n * each for n in flow.sizes))
        return flow.on(module(flow.x))


@final
class Drop(SplitLayer):
    """Dropout, with the mask that one worker alone would draw: for all rows and units; each takes what it needs of it."""

    async def run(self, flow: Flow, tape: Tape) -> Flow:
        p = self.layer.module.p
        if not self.training or p == 0:
            return flow
        rows, x = flow.rows, flow.x
        shape, order = list(x.shape), self.layer.order
        if flow.at == "units":
            shape[flow.dim] = sum(flow.sizes)
        elif flow.at == "rows":
            shape[0] = rows.total
        if isinstance(self.layer.module, nn.Dropout1d | nn.Dropout2d | nn.Dropout3d):  # whole channels
            shape[2:] = [1] * len(shape[2:])
            order = range(len(shape))
        mask = dropout_mask(shape, p, x, order)
        if flow.at == "units":
            mask = own_part(mask, flow.dim, flow.sizes, rows.rank)
        elif flow.at == "rows":
            mask = mask[rows.own]
        return flow.on(x * mask)


def unshared(x: Tensor, module: nn.Module) -> Tensor:
    """x, or a copy where a layer that works in place would write to what is not its own: inputs, and what a meeting gave."""
    return x.clone() if x.is_leaf and any(getattr(each, "inplace", False) for each in module.modules()) else x


def dropout_mask(shape: Sequence[int], p: float, like: Tensor, order: Sequence[int]) -> Tensor:
    """What `torch.nn.functional.dropout` multiplies a dense tensor of this shape with, whose dimensions lie in this order."""
    mask = torch.empty([shape[dim] for dim in order], dtype=like.dtype, device=like.device)
    mask = mask.zero_() if p == 1 else mask.bernoulli_(1 - p).div_(1 - p)
    return mask.permute([list(order).index(dim) for dim in range(len(shape))])
