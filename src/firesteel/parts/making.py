"""A worker's part of a network, from the job to real numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from firesteel import randomness
from firesteel.data.shard import Shard
from firesteel.evaluate import probe
from firesteel.job import Job
from firesteel.losses import Loss, RowLoss
from firesteel.net.protocol import native
from firesteel.optim import OptimizerSettings
from firesteel.parts.blueprint import Blueprint
from firesteel.parts.example import revived
from firesteel.parts.network import Network, network


def part_of(
    job: Job,
    rank: int,
    workers: int,
    descriptions: Sequence[Tensor],
    shard: Shard,
    loss: Loss,
    metrics: dict[str, RowLoss],
    blueprint: Blueprint | None = None,
    costs: Callable[[Network], tuple[float, ...]] | None = None,
) -> tuple[nn.Module, OptimizerSettings]:
    """Worker `rank`'s part of the job's network, filled with what the whole would have begun with, and its optimizer.

    It also sets the global generator, alike for all workers who share a replica: masks are drawn for whole layers. Parts with
    `own_draws` draw for their own rows alone.

    Args:
        descriptions: of everyone's batches; see `parts.example`.
        shard: this worker's rows, to try two of them on the network's shapes.
        costs: seconds of each layer, the same for all workers, for strategies that want to know; None: they do not get to.
    """
    strategy: Any = job.strategy
    blueprint = blueprint or Blueprint.of(job.build, job.seed)
    probe(blueprint.module, shard, loss, metrics)
    parts = strategy.parts_of(workers)
    whole = taken(strategy, blueprint.module, revived(descriptions, 2).inputs)
    if costs is not None and getattr(strategy, "measures_layers", False):
        whole = replace(whole, costs=costs(whole))
    part = strategy.part(whole, revived(descriptions, 0), rank % parts, parts).to_empty(device="cpu")
    tensors = {**dict(part.named_parameters()), **dict(part.named_buffers())}
    blueprint.fill((tensors[name], piece) for name, piece in part.pieces.items())
    randomness.train(job.seed, rank if getattr(part, "own_draws", False) else rank // parts)
    return part, _grouped(job.optimizer, blueprint.module, part)


def _grouped(optimizer: Any, whole: nn.Module, part: Any) -> OptimizerSettings:
    """An optimizer whose groups, if it has any, are those of the whole network: each with what the part has of it."""
    choose = getattr(optimizer, "groups", None)
    if choose is None:
        return optimizer
    names = {id(p): name for name, p in whole.named_parameters()}
    found: dict[str, list[nn.Parameter]] = {}
    for name, p in part.named_parameters():
        found.setdefault(part.pieces[name].name, []).append(p)

    def groups(_: nn.Module) -> list[dict[str, Any]]:
        # Also those of which it has nothing: a schedule may have a rule for each.
        made: list[dict[str, Any]] = []
        for group in choose(whole):
            given = [group["params"]] if isinstance(group["params"], Tensor) else group["params"]
            made.append({**group, "params": [own for p in given for own in found.get(names[id(p)], [])]})
        return made

    return replace(optimizer, groups=groups)


def taken(strategy: object, module: nn.Module, inputs: Sequence[Tensor]) -> Any:
    """A network on the device "meta" as the strategy's `part` takes it: layer by layer, or as it is; `inputs` are two rows."""
    return module if native(strategy) else network(module, inputs, type(strategy).__name__)
