"""A network trained in parts by imagined workers, beside the whole of it trained by one process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from firesteel.data.shard import Batch
from firesteel.flat import flatten
from firesteel.losses import resolve_loss
from firesteel.models.layers import run_chain
from firesteel.net.control import Control
from firesteel.parts.network import network
from firesteel.sim.cluster import Cluster
from firesteel.sim.fabric import Fabric
from firesteel.sim.gang import Circle, SimulatedGang
from firesteel.sim.simulation import Member, Simulation, paces

Build = Callable[[], nn.Module]
Factory = Callable[..., nn.Module]  # (network, a batch without rows, index, parts), as a strategy's `part`
Optimizer = Callable[[Any], torch.optim.Optimizer]


@final
class Chained(nn.Module):
    """Layers one after the other, of which some are recurrent."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers: nn.ModuleList = nn.ModuleList(layers)

    def chain(self) -> list[nn.Module]:
        return list(self.layers)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        return run_chain(self.chain(), x, lengths)


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=1e-3)


def batches(
    steps: int,
    rows: int,
    shape: tuple[int, ...],
    classes: int,
    *,
    dtype: torch.dtype = torch.float64,
    tokens: int = 0,
    target: tuple[int, ...] = (),
    lengths: bool = False,
    weights: bool = False,
) -> list[Batch]:
    """Random rows; with `tokens`, inputs are symbols 0 .. tokens - 1; with `lengths`, rows are sequences of 1 .. T steps."""
    made, draw = [], torch.Generator().manual_seed(3)
    for _ in range(steps):
        x = torch.randn(rows, *shape, generator=draw, dtype=dtype)
        if tokens:
            x = torch.randint(0, tokens, (rows, *shape), generator=draw)
        inputs = (x, torch.randint(1, shape[0] + 1, (rows,), generator=draw)) if lengths else (x,)
        y = torch.randint(0, classes, (rows, *target), generator=draw)
        w = torch.rand(rows, generator=draw) if weights else None
        made.append(Batch(inputs, y, w, rows, float(rows) if w is None else float(w.sum())))
    return made


@final
@dataclass
class Trained:
    """What came of it, by name in the whole network."""

    losses: list[float]
    tensors: dict[str, Tensor]
    """Parameters and buffers."""
    state: dict[str, dict[str, Tensor]]
    """The optimizer's, of each parameter."""
    sent: list[int] | None = None
    """Bytes of each worker."""
    seconds: float = 0.0
    """Virtual, of the last worker to end."""

    def apart(self, other: Trained) -> float:
        """The largest difference between two of these."""
        pairs = [(torch.tensor(x.losses, dtype=torch.float64) for x in (self, other))]
        pairs += [(self.tensors[name], other.tensors[name]) for name in self.tensors.keys() | other.tensors.keys()]
        for name in self.state.keys() | other.state.keys():
            mine, theirs = self.state[name], other.state[name]
            pairs += [(mine[key], theirs[key]) for key in mine.keys() | theirs.keys()]
        return float(torch.stack([(a.double() - b.double()).abs().max() for a, b in pairs]).max())  # of a NaN, NaN


def alone(build: Build, batches: Sequence[Batch], optimizer: Optimizer, clip: float | None = None) -> Trained:
    """The whole network, trained by one process."""
    module, loss = _built(build, batches[0])
    _ = module.train()
    optim, losses = optimizer(module.parameters()), []
    for batch in batches:
        optim.zero_grad()
        value = loss(module(*batch.inputs), batch.target, batch.weights)
        value.backward()
        if clip is not None:
            _ = nn.utils.clip_grad_norm_(module.parameters(), clip)
        _ = optim.step()
        losses.append(value.item())
    names: dict[Any, str] = {p: name for name, p in module.named_parameters()}
    state = {names[p]: {k: v for k, v in s.items() if v.shape == p.shape} for p, s in optim.state.items()}
    return Trained(losses, dict(module.state_dict()), state)


def together(
    build: Build,
    batches: Sequence[Batch],
    optimizer: Optimizer,
    counts: Sequence[int],
    factory: Factory,
    clip: float | None = None,
    cluster: Cluster | None = None,
) -> Trained:
    """The same network in parts on so many imagined workers, of whom each has `counts` rows of every batch.

    Virtual time is spent if there is a cluster.
    """
    simulation = Simulation(Fabric(cluster or Cluster(workers=len(counts))))
    circle, pace = Circle(tuple(range(len(counts)))), paces(simulation.fabric.cluster, 0)
    whole, _ = _built(build, batches[0])
    generator = torch.get_rng_state()
    for rank in range(len(counts)):
        member = Member(simulation, rank, pace[rank])
        meter = member.meter if cluster is not None else None
        net = SimulatedGang(member, circle, rank, Control())
        member.start(program(build, batches, optimizer, counts, factory, clip, meter)(net), generator)
    simulation.run()
    seconds, sent = max(m.now for m in simulation.members), [m.trace.bytes_sent for m in simulation.members]
    return joined([m.result for m in simulation.members], dict(whole.state_dict()), sent, seconds)


def program(
    build: Build,
    batches: Sequence[Batch],
    optimizer: Optimizer,
    counts: Sequence[int],
    factory: Factory,
    clip: float | None = None,
    meter: Any = None,
) -> Any:
    """What one worker does: `await program(...)(net)` returns what `joined` takes of it."""

    async def run(net: Any) -> tuple[Any, ...]:
        own = [batch.cut(sum(counts[: net.rank]), sum(counts[: net.rank + 1])) for batch in batches]
        module, loss = _built(build, batches[0])
        chain = network(build().to(next(module.parameters()).dtype).to("meta"), batches[0].cut(0, 2).inputs, "this")
        part: Any = factory(chain, batches[0].cut(0, 0), net.rank, net.size).to_empty(device="cpu")
        tensors, numbers = {**dict(part.named_parameters()), **dict(part.named_buffers())}, module.state_dict()
        assert tensors.keys() == part.pieces.keys()
        with torch.no_grad():
            for name, piece in part.pieces.items():
                _ = tensors[name].copy_(piece.cut.take(numbers[piece.name]))
        _ = torch.manual_seed(5)
        _, grads, _ = flatten(part.train())
        part.bind(net)
        optim, losses = optimizer(part.parameters()), []
        for batch in own:
            _ = grads.zero_()
            batch = await part.prepare(batch)
            losses.append(await part.descend(batch, loss, meter))
            if clip is not None:
                grads.mul_(torch.clamp(clip / (await part.norm() + 1e-6), max=1.0))
            _ = optim.step()
        state = {name: {k: v for k, v in optim.state[p].items() if v.shape == p.shape} for name, p in part.named_parameters()}
        return losses, part.pieces, {name: x.detach() for name, x in tensors.items()}, state

    return run


def joined(results: Sequence[Any], like: dict[str, Tensor], sent: list[int] | None = None, seconds: float = 0.0) -> Trained:
    """The whole from all workers' parts; every number of it must be in one."""
    weights = [sum(losses[step][1] for losses, *_ in results) for step in range(len(results[0][0]))]
    sums = [sum(losses[step][0] * losses[step][1] for losses, *_ in results) for step in range(len(weights))]
    tensors = {name: torch.full_like(x, -1234) for name, x in like.items()}
    state: dict[str, dict[str, Tensor]] = {}
    for _, pieces, own, moments in results:
        for name, piece in pieces.items():
            piece.cut.put(tensors[piece.name], own[name])
            for key, value in moments.get(name, {}).items():
                place = state.setdefault(piece.name, {}).setdefault(key, torch.full_like(like[piece.name], -1234))
                piece.cut.put(place, value)
    return Trained([s / w for s, w in zip(sums, weights, strict=True)], tensors, state, sent, seconds)


def _built(build: Build, batch: Batch) -> tuple[nn.Module, Any]:
    """The network with its first numbers, its loss, and the generator at the start of training."""
    _ = torch.manual_seed(1)
    module = build()
    module = module.to(batch.inputs[0].dtype) if batch.inputs[0].is_floating_point() else module.double()
    _ = torch.manual_seed(5)
    return module, resolve_loss("cross_entropy", batch.weights is not None)
