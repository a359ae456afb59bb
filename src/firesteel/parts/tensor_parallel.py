"""A network cut by `torch.distributed.tensor.parallel.parallelize_module`, as one worker has it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatch
from typing import Any, final

import torch
from torch import Tensor, nn

from firesteel.data.shard import Batch
from firesteel.errors import UsageError, did_you_mean
from firesteel.losses import Loss
from firesteel.net.mesh import Mesh
from firesteel.net.peers import peers_named
from firesteel.net.protocol import Net
from firesteel.parts.cuts import Cut, Piece
from firesteel.parts.meetings import Meetings
from firesteel.parts.native import (
    adopt,
    hollow,
    must_be_plain,
    passing,
    pieces_of,
    shard_range,
    shards,
)
from firesteel.parts.part import Meter
from firesteel.parts.telling import Told, padded, tell, whole_norm

STYLES = ("colwise", "rowwise", "colwise_rep", "rowwise_rep", "sequence")
_APART = 1e-3  # gradients of one parameter that differ by more than this share are not the same


@final
class TensorParallelled(nn.Module):
    """One worker's shards of the parameters that the plan cuts, and the others whole; all rows pass through at every worker.

    PyTorch has the parameters in the same memory as this module.

    Args:
        module: the whole network.
        nothing: a batch without rows.
        index, parts: which shard, of how many.
        plan: names of modules to styles.

    Raises:
        UsageError: the plan does not suit the module or the number of parts.
    """

    def __init__(self, module: nn.Module, nothing: Batch, index: int, parts: int, plan: Mapping[str, Any]) -> None:
        super().__init__()
        _check_names(module, plan)
        cut = _rehearsed(module, index, parts, plan)
        by_name = pieces_of(module, lambda name, p: cut[name])
        self.shards: nn.Module = shards(module, by_name)
        self.pieces: dict[str, Piece] = {f"shards.{name}": piece for name, piece in by_name.items()}
        self.alone: bool = False
        self.net: Any = None  # the net of those who share the network, once it is bound
        self._by_name: dict[str, Piece] = by_name
        self._hidden: tuple[nn.Module] = (hollow(module),)  # in a tuple, it is no part of this module
        self._mesh: Mesh | None = None
        self._nothing: Batch = nothing
        self._plan: Mapping[str, Any] = plan
        self._told: Told | None = None
        self._compared: bool = False

    # ---- making it run -----------------------------------------------------------------------------------------------

    def bind(self, net: Net) -> None:
        """Cut the network among the workers of a net."""
        from torch.distributed.tensor import DTensor

        self.net = net
        running = self._running
        found: dict[str, Any] = {}
        if net.size > 1:
            self._mesh = mesh = self.net.mesh()
            _parallelize(running, mesh.devices, self._plan)
            found = {name: p for name, p in running.named_parameters() if isinstance(p.data, DTensor)}

        def wrap(name: str, own: Tensor) -> Tensor:
            if name not in found:
                return own
            p = found[name]
            return DTensor.from_local(own, p.device_mesh, p.placements, run_check=False, shape=p.shape, stride=p.stride())

        adopt(running, self.shards, wrap)
        _ = running.train(self.training)

    @property
    def _running(self) -> Any:
        return self._hidden[0]

    def train(self, mode: bool = True) -> TensorParallelled:
        _ = super().train(mode)
        if self.net is not None:
            _ = self._running.train(mode)
        return self

    # ---- passes ------------------------------------------------------------------------------------------------------

    async def prepare(self, batch: Batch) -> Batch:
        """Tell each other of the rows to come; returns them with the weight of everyone's."""
        self._told = await tell(batch, self.net)
        return replace(batch, weight=self._told.weight)

    async def descend(self, batch: Batch, loss: Loss, meter: Meter | None) -> tuple[float, float]:
        """Add this worker's shards of the gradient of the mean loss over all workers' rows to the parameters' `grad`."""
        told = self._told
        assert told is not None
        if not told.weight:
            return 0.0, 0.0
        every = await self._of_all(batch, told)
        with passing(self._mesh, ("gradient", told.rows.total, told.steps)):
            outputs = self._forward(every)
            value = loss(outputs, every.target, every.weights)  # pyright: ignore[reportArgumentType]
            _ = value.backward()
            for name, own in self.shards.named_parameters():
                p = self._running.get_parameter(name)
                if p.grad is not None and own.grad is not None:
                    _ = own.grad.add_(_like(p.grad, p))
                p.grad = None
        if not self._compared:
            await self._compare()
        return float(value.detach()), told.own_weight

    async def outputs(self, batch: Batch) -> Tensor:
        """The network's outputs for this worker's own rows; every worker calls it."""
        told = self._told = await tell(batch, self.net)
        every = await self._of_all(batch, told)
        with torch.no_grad(), passing(self._mesh, ("outputs", told.rows.total, told.steps)):
            return self._forward(every)[told.rows.own]

    async def norm(self) -> Tensor:
        """Of the whole network's gradient."""
        return await whole_norm(self.shards, self._by_name, self.net)

    async def _of_all(self, batch: Batch, told: Told) -> Batch:
        """All workers' rows, in order of rank."""
        meetings, counts = Meetings(self.net), told.rows.counts
        mine = batch if batch.inputs else self._nothing
        inputs = tuple([await meetings.gather(x.contiguous(), counts) for x in padded(mine.inputs, told.steps)])
        target, weights = mine.target, mine.weights
        target = None if target is None else await meetings.gather(target.contiguous(), counts)
        weights = None if weights is None else await meetings.gather(weights.contiguous(), counts)
        return Batch(inputs, target, weights, told.rows.total, told.weight)

    def _forward(self, batch: Batch) -> Tensor:
        try:
            with peers_named():
                outputs: Any = self._running(*batch.inputs)
        except (RuntimeError, ValueError, NotImplementedError, AssertionError) as error:
            if self._compared:
                raise
            raise UsageError(
                f'TensorParallel: cut by this plan, the model raised {type(error).__name__}: {error}. A "colwise" layer leaves '
                'each worker its own units; what follows, up to a "rowwise" layer, must take them as they are.'
            ) from error
        return must_be_plain(outputs.full_tensor() if hasattr(outputs, "full_tensor") else outputs, "TensorParallel")

    async def _compare(self) -> None:
        """After the first pass: see that what all workers have, all have computed from everything.

        Raises:
            UsageError: a whole parameter lies where each worker has only its own units, so that its gradient is a part.
        """
        for name, own in self.shards.named_parameters():
            if self._by_name[name].shared and own.grad is not None and self.net.size > 1:
                most = await self.net.all_reduce(own.grad.clone(), "max")
                least = -(await self.net.all_reduce(-own.grad, "max"))
                if float((most - least).abs().max()) > _APART * float(torch.maximum(most.abs(), least.abs()).max()):
                    raise UsageError(
                        f"TensorParallel: the plan leaves '{name}' whole at every worker, but what reaches it is only each "
                        "worker's own units, so that the gradients differ. Let the plan cut it, or end the cut before it with "
                        '"colwise_rep".'
                    )
        self._compared = True


def _like(grad: Any, p: Any) -> Tensor:
    """A gradient, laid out as its parameter is; partial ones are added up."""
    if not hasattr(grad, "placements"):
        return grad
    return grad.redistribute(placements=p.placements).to_local()


# ---- the plan --------------------------------------------------------------------------------------------------------


def check_plan(plan: Any) -> None:
    """Raises UsageError unless it maps names to styles, or is None."""
    if plan is None:
        return
    if not isinstance(plan, Mapping):
        raise UsageError(f'TensorParallel(plan={plan!r}): give {{"name of a module": style}}.')
    for name, style in plan.items():
        if not isinstance(name, str) or (isinstance(style, str) and style not in STYLES):
            hint = did_you_mean(style, STYLES) if isinstance(style, str) else ""
            raise UsageError(f"TensorParallel: {style!r} for {name!r} is no style.{hint} There are {', '.join(STYLES)}.")
        if not isinstance(style, str) and not callable(getattr(style, "_apply", None)):
            raise UsageError(
                f"TensorParallel: {style!r} for {name!r} is no style: give one of {', '.join(STYLES)}, or a "
                "torch.distributed.tensor.parallel.ParallelStyle."
            )


def _check_names(module: nn.Module, plan: Mapping[str, Any]) -> None:
    names = [name for name, _ in module.named_modules()]
    for pattern in plan:
        if not any(_fits(name, pattern) for name in names):
            known = [name for name, each in module.named_modules() if name and any(True for _ in each.parameters())]
            raise UsageError(
                f"TensorParallel: the plan names {pattern!r}, but the model has no such module.{did_you_mean(pattern, known)} "
                f"Modules with parameters: {', '.join(known) or 'only the model itself, named by an empty text'}."
            )
    owners: dict[int, str] = {}
    for name, p in module.named_parameters(remove_duplicate=False):
        if owners.setdefault(id(p), name) != name:
            raise UsageError(f"TensorParallel cannot cut '{owners[id(p)]}' and '{name}', which are one; use FullyShard().")


def _fits(name: str, pattern: str) -> bool:
    """As `parallelize_module` takes patterns: between dots."""
    parts, patterns = name.split("."), pattern.split(".")
    return len(parts) == len(patterns) and all(map(fnmatch, parts, patterns))


def _styles(plan: Mapping[str, Any]) -> dict[str, Any]:
    from torch.distributed.tensor import Replicate
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, SequenceParallel

    make = {
        "colwise": ColwiseParallel,
        "rowwise": RowwiseParallel,
        "colwise_rep": lambda: ColwiseParallel(output_layouts=Replicate()),
        "rowwise_rep": lambda: RowwiseParallel(input_layouts=Replicate()),
        "sequence": SequenceParallel,
    }
    return {name: make[style]() if isinstance(style, str) else style for name, style in plan.items()}


def _parallelize(module: nn.Module, devices: Any, plan: Mapping[str, Any]) -> None:
    """Of a module without numbers: nothing is sent."""
    from torch.distributed.tensor.parallel import parallelize_module

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what it would like to hear about random numbers on CPUs
        _ = parallelize_module(module, devices, _styles(plan), src_data_rank=None)


def _rehearsed(module: nn.Module, index: int, parts: int, plan: Mapping[str, Any]) -> dict[str, Piece]:
    """What PyTorch cuts how, found on a mesh that has no other workers."""
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor, Replicate, Shard

    made = hollow(module)
    mesh = DeviceMesh("cpu", list(range(parts)), mesh_dim_names=("rehearsal",), _init_backend=False, _rank=index)
    try:
        _parallelize(made, mesh, plan)
    except NotImplementedError as error:
        raise UsageError(f"TensorParallel: the plan does not suit the model: {error}") from error
    pieces: dict[str, Piece] = {}
    for name, p in made.named_parameters():
        shape, data = tuple(p.shape), p.data
        placement = data.placements[0] if isinstance(data, DTensor) else Replicate()
        if isinstance(placement, Shard):
            dim = placement.dim % len(shape)
            pieces[name] = Piece(name, Cut(shape, dim, (shard_range(shape[dim], parts, index),)))
        else:
            pieces[name] = Piece(name, Cut(shape), shared=True)
    for name, each in module.named_modules():
        style = next((style for pattern, style in plan.items() if _fits(name, pattern)), None)
        if style in ("colwise", "rowwise"):
            _check_pair(name, each, style, parts)
    return pieces


def _check_pair(name: str, module: Any, style: str, parts: int) -> None:
    """PyTorch takes the shards that one layer leaves to the next for equally large."""
    if style == "rowwise" and isinstance(module, nn.Embedding):
        raise UsageError(f"TensorParallel: '{name}' is an embedding, whose inputs are always whole: give it \"rowwise_rep\".")
    units = getattr(module, "embedding_dim", None) or (module.out_features if style == "colwise" else module.in_features)
    if units % parts:
        raise UsageError(
            f"TensorParallel: '{name}' has {units} {'outputs' if style == 'colwise' else 'inputs'}, of which {parts} workers "
            f'cannot have equally many; with "{style}" they must. Take a number of workers that divides it, or "{style}_rep".'
        )
