"""What a worker of a gang does besides where its network lies in parts: its part is made, compared and handed over."""

from __future__ import annotations

from collections.abc import Iterator
from typing import final

import pyarrow as pa
import torch
from torch import nn

from firesteel.checkpoint import Folder, Points
from firesteel.data.shard import Shard
from firesteel.job import Job
from firesteel.losses import Loss, RowLoss
from firesteel.memory import give_back
from firesteel.net.gang import GangNet
from firesteel.net.protocol import Vec
from firesteel.optim import OptimizerSettings
from firesteel.parts.assembly import Replicas, fingerprint, hand_over, pieces_of
from firesteel.parts.example import WIDTH, outline
from firesteel.parts.making import part_of
from firesteel.parts.measuring import measured
from firesteel.parts.network import Network
from firesteel.worker import Worker


@final
class GangPart:
    def __init__(self, job: Job, net: GangNet) -> None:
        self.job: Job = job
        self.net: GangNet = net
        self.costs: tuple[float, ...] = ()
        """Seconds of each layer, where the strategy asks for them: what a resumed run must not measure anew."""

    def made(self, whole: Shard, loss: Loss, metrics: dict[str, RowLoss]) -> tuple[nn.Module, OptimizerSettings]:
        """This worker's part of the network, and its optimizer; the rest of it is never made real."""
        give_back()  # such networks are large; whole tensors come and go while a part is taken of each
        table = torch.zeros(self.net.size, WIDTH, dtype=torch.float64)
        if whole.rows:
            table[self.net.rank] = outline(whole.block(0, 1))
        rows = list(self.net.totals(table))
        return part_of(self.job, self.net.rank, self.net.size, rows, whole, loss, metrics, costs=self._layer_costs)

    def _layer_costs(self, network: Network) -> tuple[float, ...]:
        """Seconds of each layer on worker 0; in a resumed run those of before, as it depends on them who has which layers."""
        found = Points(Folder(self.job.resume_from)).newest() if self.job.resume_from else None
        self.costs = tuple(found[1]["costs"]) if found else ()
        if len(self.costs) != len(network.layers):
            mine = [0.0] * len(network.layers) if self.net.rank else measured(network)
            self.costs = tuple(self.net.totals(torch.tensor(mine, dtype=torch.float64)).tolist())
        return self.costs

    def compare(self, worker: Worker) -> None:
        """See which workers own the same of the network."""
        # [rank, (pieces, numbers in running statistics)]
        table = torch.zeros(self.net.size, 2, dtype=torch.float64)
        prints = fingerprint(pieces_of(worker.module) or {})
        table[self.net.rank] = torch.tensor([prints, worker.buffers.numel()], dtype=torch.float64)
        found = self.net.totals(table).long()
        self._replicas: Replicas = Replicas(tuple(found[:, 0].tolist()))
        self._most_statistics: int = int(found[:, 1].max())

    def mean_statistics(self, own: Vec) -> Vec:
        """The mean of the running statistics over the workers that have the same ones."""
        ranks = self._replicas.ranks(self.net.rank)
        if not self._most_statistics or len(set(self._replicas.prints)) == self.net.size:
            return own
        table = torch.zeros(self.net.size, self._most_statistics, dtype=own.dtype, device=own.device)
        table[ranks[0], : own.numel()] = own
        return self.net.totals(table)[ranks[0], : own.numel()].div_(len(ranks))

    def finish(self, worker: Worker) -> None:
        """Training is over: leave room for handing over."""
        worker.reset_optimizer()
        give_back(32 * 2**20)  # as much as glibc would come to keep by itself, for whatever this process does next

    def handed_over(self, module: nn.Module, params: Vec, statistics: Vec) -> Iterator[pa.RecordBatch]:
        """This worker's pieces, if nobody before it has the same."""
        if self._replicas.hands_over(self.net.rank):
            yield from hand_over(self.net.rank, module, params, statistics, skip_shared=self.net.rank > 0)
