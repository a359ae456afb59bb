"""Networks of which each worker has consecutive layers."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, final

import torch
from torch import nn

from firesteel.errors import UsageError
from firesteel.net.protocol import Net, Vec
from firesteel.parts.balance import balanced
from firesteel.parts.stage import Schedule, Stage
from firesteel.worker import Worker

_PIECES = 4  # for each stage: then, Huang et al. (2019, section 2.3) found, what stages wait for each other hardly counts


@final
@dataclass(frozen=True)
class Pipeline:
    r"""Each worker has consecutive layers of the network, a stage; micro-batches follow each other through all stages.

    GPipe: Huang et al. 2019, arXiv 1811.06965; 1F1B: Narayanan et al. 2019 (PipeDream), with the weights of one step for the
    whole batch, as PipeDream-Flush in Narayanan et al. 2021, arXiv 2006.09503. The batch of a step is all workers' rows
    together, and the result that of one process with that batch.

    Of S equal stages and m micro-batches, a step takes \( (m + S - 1) / m \) times what it would if no stage ever waited, by
    either schedule. They differ in memory: stage s keeps the activations of m micro-batches with "gpipe", of S - s with "1f1b".
    """

    stages: int | None = None
    """Workers that share the network, >= 1; None: all of them, however many there are."""
    schedule: Schedule = "1f1b"
    """"1f1b": one backward pass after each forward pass, as soon as there is one to do; "gpipe": all forward passes first."""
    micro_batches: int | None = None
    """Pieces of a step's batch, >= 1; None: four for each stage."""
    cuts: tuple[int, ...] | None = None
    """The layers, counted from 0, at which stages 1, 2, ... begin; None: where the slowest stage is as fast as can be, by the
    seconds that each layer takes on worker 0 (in virtual time, by its products)."""

    def __post_init__(self) -> None:
        if self.stages is not None and self.stages < 1:
            raise UsageError(f"Pipeline(stages={self.stages}): a network has at least one stage.")
        if self.schedule not in ("gpipe", "1f1b"):
            raise UsageError(f"Pipeline(schedule={self.schedule!r}): give 'gpipe' or '1f1b'.")
        if self.micro_batches is not None and self.micro_batches < 1:
            raise UsageError(f"Pipeline(micro_batches={self.micro_batches}): a batch has at least one piece, itself.")
        if self.cuts is not None and any(later <= cut for cut, later in pairwise((0, *self.cuts))):
            raise UsageError(
                f"Pipeline(cuts={self.cuts}): give the layers at which stages 1, 2, ... begin, each greater than the one "
                "before and than 0, where stage 0 begins."
            )
        if self.cuts is not None and self.stages is not None and len(self.cuts) + 1 != self.stages:
            raise UsageError(
                f"Pipeline(stages={self.stages}, cuts={self.cuts}): {self.stages} stages have {self.stages - 1} cuts."
            )

    @property
    def measures_layers(self) -> bool:
        """Whether it wants to know how long each layer takes."""
        return self.cuts is None

    def check(self, workers: int, optimizer: torch.optim.Optimizer, module: nn.Module) -> None:
        stages = self.stages if self.cuts is None else len(self.cuts) + 1
        if stages is not None and stages != workers:
            raise UsageError(
                f"{self} has {stages} stages, but there are {workers} workers: each has one stage. Set workers={stages}, or "
                f"let several groups share the rows: Grid(data=..., model={stages}, within=Pipeline())."
            )

    def parts_of(self, workers: int) -> int:
        """Into how many parts the network is cut."""
        return workers

    def part(self, network: Any, nothing: Any, index: int, parts: int) -> nn.Module:
        """The stage numbered `index`."""
        pieces = _PIECES * parts if self.micro_batches is None else self.micro_batches
        return Stage(network, nothing, self._cuts(network, parts), index, self.schedule, pieces, "Pipeline")

    def _cuts(self, network: Any, stages: int) -> tuple[int, ...]:
        layers = network.layers
        trained = [any(True for _ in layer.module.parameters()) for layer in layers]
        if sum(trained) < stages:
            raise UsageError(
                f"Pipeline of {stages} stages: each needs a layer with parameters, and this network has {sum(trained)} of "
                f"those. Take {sum(trained)} workers at most."
            )
        if self.cuts is None:
            return balanced(network.costs or [layer.flops for layer in layers], trained, stages)
        if self.cuts and self.cuts[-1] >= len(layers):
            raise UsageError(f"Pipeline(cuts={self.cuts}): the network's layers are numbered 0 .. {len(layers) - 1}.")
        for stage, (start, stop) in enumerate(pairwise((0, *self.cuts, len(layers)))):
            if not any(trained[start:stop]):
                having = ", ".join(str(number) for number, own in enumerate(trained) if own)
                raise UsageError(
                    f"Pipeline(cuts={self.cuts}): stage {stage} would have layers {start} .. {stop - 1}, {layers[start]} first,"
                    f" and no parameters. Those with parameters are {having}."
                )
        return self.cuts

    async def run(self, worker: Worker, net: Net) -> Vec:
        part: Any = worker.module
        part.bind(net)
        for _, batch in worker.steps():
            worker.step(worker.gradient(batch))
            net.publish(worker.params)
        return worker.params
