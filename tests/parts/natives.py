"""Networks sharded by PyTorch itself on real processes, beside the whole of each trained by one process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import cloudpickle
import torch
from gangs import CONTEXT, gang
from torch import Tensor, nn

import firesteel
from firesteel.data.batches import Plan
from firesteel.data.columns import Columns
from firesteel.data.shard import Batch, Shard
from firesteel.losses import resolve_loss
from firesteel.parts.cuts import Cut
from firesteel.worker import Worker

STEPS = 20

CONTEXT.set_forkserver_preload(["firesteel.net.meeting", "torch.distributed.fsdp", "torch.distributed.tensor.parallel"])


@final
class Residual(nn.Module):
    """Two branches that meet again, with a layer whose output is one number."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.blocks: nn.ModuleList = nn.ModuleList(
            nn.ModuleDict({"norm": nn.LayerNorm(width), "up": nn.Linear(width, 8), "down": nn.Linear(8, width)})
            for _ in range(2)
        )
        self.gate: nn.Linear = nn.Linear(width, 1)
        self.out: nn.Linear = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block["down"](torch.tanh(block["up"](block["norm"](x))))  # pyright: ignore[reportIndexIssue]
        return self.out(x * torch.sigmoid(self.gate(x)))


@final
class Tied(nn.Module):
    """Tokens, whose embedding is the output's weight too; the layer between is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.embed: nn.Embedding = nn.Embedding(9, 6)
        self.mix: nn.Sequential = nn.Sequential(nn.Linear(6, 6).requires_grad_(False), nn.Tanh(), nn.Linear(6, 6))
        self.out: nn.Linear = nn.Linear(6, 9, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.mix(self.embed(ids).mean(1)))


@final
class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cells: nn.LSTM = nn.LSTM(3, 5, batch_first=True)
        self.out: nn.Linear = nn.Linear(5, 4)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        return self.out(self.cells(x)[0][torch.arange(len(x)), lengths - 1])


@final
class Sequences(nn.Module):
    """Sequences of four tokens, each on its own way until the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.embed: nn.Embedding = nn.Embedding(9, 6)
        self.norm: nn.LayerNorm = nn.LayerNorm(6)
        self.up: nn.Linear = nn.Linear(6, 8)
        self.down: nn.Linear = nn.Linear(8, 4)

    def forward(self, ids: Tensor) -> Tensor:
        return self.down(torch.tanh(self.up(self.norm(self.embed(ids))))).mean(1)


def mlp(activation: Any = "tanh") -> nn.Module:
    return firesteel.models.MLP(12, 16, 8, 4, activation=activation)


@final
@dataclass(frozen=True)
class Case:
    build: Callable[[], nn.Module]
    strategy: Any
    counts: tuple[int, ...] = (40, 40)
    """Rows of each worker."""
    shape: tuple[int, ...] = (12,)
    tokens: int = 0
    sequences: bool = False
    weighted: bool = False
    optimizer: Any = firesteel.SGD(lr=0.1, momentum=0.9)  # noqa: RUF009
    clip_norm: float | None = None
    double: bool = True

    def shard(self, rank: int) -> Shard:
        draw = torch.Generator().manual_seed(rank)
        n = self.counts[rank]
        dtype = torch.float64 if self.double else torch.float32
        columns = Columns(dtype="float64" if self.double else "float32")
        if not n:
            return Shard(0, columns)
        target = torch.randint(4, (n,), generator=draw)
        # Sums of such weights are exact, in whatever order.
        weights = torch.randint(1, 9, (n,), generator=draw) / 8 if self.weighted else None
        if self.sequences:
            lengths = torch.randint(1, 5, (n,), generator=draw)
            values = torch.randn(int(lengths.sum()), *self.shape, generator=draw, dtype=dtype)
            return Shard(n, columns, values, torch.cat([torch.zeros(1).long(), lengths.cumsum(0)]), target, weights)
        x = torch.randn(n, *self.shape, generator=draw, dtype=dtype)
        x = torch.randint(self.tokens, (n, *self.shape), generator=draw) if self.tokens else x
        return Shard(n, columns, x, None, target, weights)

    def plan(self, rank: int) -> Plan:
        return Plan(self.counts[rank], max(self.counts), 8, STEPS, 7, rank)

    def whole(self) -> nn.Module:
        _ = torch.manual_seed(5)
        return self.build().to(torch.float64 if self.double else torch.float32)

    def nothing(self) -> Batch:
        return next(s for s in map(self.shard, range(len(self.counts))) if s.rows).block(0, 0)


@final
@dataclass
class Trained:
    tensors: dict[str, Tensor]
    outputs: list[Tensor]
    """Of each worker's first three rows, in evaluation mode."""
    losses: list[float]
    sent: int = 0


def together(cases: dict[str, Case], size: int) -> dict[str, Trained]:
    """Every case, one after the other in the same processes."""

    async def program(net):
        found = {}
        for name, case in cases.items():
            found[name] = await _part(case, net)
            net.close()
        return cloudpickle.dumps(found)  # a queue would send tensors as files that end with their process

    said = gang(size, program, share=False)
    assert all(kind == "ok" for kind, _, _ in said.values()), said
    by_rank = [cloudpickle.loads(said[rank][1]) for rank in range(size)]
    return {name: _joined(case, [each[name] for each in by_rank]) for name, case in cases.items()}


async def _part(case: Case, net: Any) -> Any:
    whole = case.whole()
    tensors = {**dict(whole.named_parameters()), **dict(whole.named_buffers())}
    part = case.strategy.part(whole, case.nothing(), net.rank, net.size).to_empty(device="cpu")
    own = {**dict(part.named_parameters()), **dict(part.named_buffers())}
    with torch.no_grad():
        for name, piece in part.pieces.items():
            own[name].copy_(piece.cut.take(tensors[piece.name]))
    shard, loss = case.shard(net.rank), resolve_loss("cross_entropy", case.weighted)
    worker = Worker(part.train(), loss, case.optimizer, shard, case.plan(net.rank), clip_norm=case.clip_norm)
    _ = await case.strategy.run(worker, net)
    _ = part.eval()
    with torch.no_grad():
        outputs = await part.outputs(shard.block(0, min(3, shard.rows)))
    table = worker.trace.table().to_pylist()
    losses = {e["step"]: (e["loss"], e["weight"]) for e in table if e["kind"] == "step"}
    return {n: (p, own[n].detach()) for n, p in part.pieces.items()}, outputs, losses, net.trace.bytes_sent


def _joined(case: Case, said: list[Any]) -> Trained:
    tensors: dict[str, Tensor] = {}
    for pieces, *_ in said:
        for piece, own in pieces.values():
            whole = tensors.setdefault(piece.name, torch.full(piece.cut.whole, torch.nan).to(own.dtype))
            if piece.shared and not bool(whole.isnan().any()):
                assert torch.equal(whole, own), piece.name  # bit for bit, or they would drift apart
            Cut.put(piece.cut, whole, own)
    losses = []
    for step in range(1, STEPS + 1):
        found = [losses_[step] for _, _, losses_, _ in said if step in losses_]
        losses.append(sum(value * weight for value, weight in found) / sum(weight for _, weight in found))
    return Trained(tensors, [outputs for _, outputs, _, _ in said], losses, said[0][3])


def alone(case: Case) -> Trained:
    """The whole network and everyone's rows in one process, in plain PyTorch."""
    module, loss = case.whole().train(), resolve_loss("cross_entropy", case.weighted)
    optimizer, losses = case.optimizer.build(module), []
    workers = [(case.shard(rank), case.plan(rank)) for rank in range(len(case.counts))]
    for step in range(1, STEPS + 1):
        batches = [b for b in (shard.take(plan.index(step)) for shard, plan in workers) if b.rows]
        optimizer.zero_grad()
        value = loss(module(*_inputs(batches)), *_labels(batches))
        value.backward()
        if case.clip_norm is not None:
            _ = nn.utils.clip_grad_norm_(module.parameters(), case.clip_norm)
        _ = optimizer.step()
        losses.append(value.item())
    tensors = {name: x.detach() for name, x in [*module.named_parameters(), *module.named_buffers()]}
    firsts = [shard.block(0, 3) for shard, _ in workers if shard.rows]
    with torch.no_grad():
        outputs = [module.eval()(*b.inputs) for b in firsts]
    return Trained(tensors, outputs, losses)


def _inputs(batches: list[Batch]) -> list[Tensor]:
    most = max(b.inputs[0].shape[1] for b in batches) if len(batches[0].inputs) > 1 else 0
    xs = [b.inputs[0] for b in batches]
    if most:
        xs = [torch.cat([x, x.new_zeros(len(x), most - x.shape[1], *x.shape[2:])], 1) for x in xs]
    return [torch.cat(xs), *(torch.cat([b.inputs[i] for b in batches]) for i in range(1, len(batches[0].inputs)))]


def _labels(batches: list[Batch]) -> tuple[Tensor, Tensor | None]:
    weights = None if batches[0].weights is None else torch.cat([b.weights for b in batches])  # pyright: ignore[reportArgumentType, reportCallIssue]
    return torch.cat([b.target for b in batches]), weights  # pyright: ignore[reportArgumentType, reportCallIssue]
