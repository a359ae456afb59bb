"""How good a model is on rows held out, or on those it has trained on: sums over rows, so that workers can add theirs up."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from firesteel.data.shard import Batch, Shard
from firesteel.errors import UsageError
from firesteel.job import Job
from firesteel.losses import Loss, RowLoss
from firesteel.models.voting import Voting
from firesteel.net.protocol import Vec
from firesteel.parts.shapes import Shapes
from firesteel.worker import Worker


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """The module in evaluation mode, without gradients, its mode and the global generator given back afterwards."""
    was_training = module.training
    _ = module.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            yield
    finally:
        _ = module.train(was_training)


def scored_rows(job: Job, shard: Shard, held: Shard) -> list[Shard]:
    """A worker's rows of each kind in `job.scored`, from those to train on and those held out."""
    return [held if name == "validation" else shard.sample(job.score_training) for name in job.scored]


def sums(module: nn.Module, shards: Sequence[Shard], loss: Loss, metrics: dict[str, RowLoss], device: torch.device) -> Tensor:
    """Of each shard [sum of weights, sum of weight * loss, sums of weight * metric ...], float64 [shards, 2 + len(metrics)]."""
    total = torch.zeros(len(shards), 2 + len(metrics), dtype=torch.float64)
    with evaluating(module):
        for row, shard in zip(total, shards, strict=True):
            for start in range(0, shard.rows, 4096):
                batch = shard.block(start, min(start + 4096, shard.rows)).to(device)
                row += _of(module(*batch.inputs), batch, loss, metrics)
    return total


def published_sums(
    worker: Worker, params: Vec, statistics: Vec, shards: Sequence[Shard], loss: Loss, metrics: dict[str, RowLoss], target: str
) -> Tensor:
    """`sums` of a published model, [P] or [M, P], which a worker takes up for the time being."""
    device = worker.params.device
    saved, saved_statistics = worker.params.clone(), worker.buffers
    if statistics.numel():
        worker.buffers = statistics.to(device)
    if params.dim() == 1:
        worker.params = params.to(device)
        total = sums(worker.module, shards, loss, metrics, device)
    else:
        members = []
        for member in params:
            worker.params = member.to(device)
            members.append(_twin(worker.module))
        total = sums(Voting(members, target == "class"), shards, loss, metrics, device)
    worker.params = saved
    if saved_statistics.numel():
        worker.buffers = saved_statistics
    return total


def part_sums(
    worker: Worker,
    params: Vec,
    statistics: Vec,
    shards: Sequence[Shard],
    loss: Loss,
    metrics: dict[str, RowLoss],
    most_rows: Sequence[int],
) -> Tensor:
    """`sums` over this worker's rows, where the network lies in parts: all workers compute the outputs of everyone's.

    A block has no more of a worker's rows than a batch of its, so that evaluating needs no more memory than training.

    Args:
        params, statistics: of this worker's part, as published.
        most_rows: of each shard, the rows of the worker that has most of them; all take as many blocks.
    """
    part = worker.part
    assert part is not None
    each = max(1, min(1024, worker.plan.batch_size))
    saved, saved_statistics = worker.params.clone(), worker.buffers
    worker.params, worker.buffers = params, statistics
    total = torch.zeros(len(shards), 2 + len(metrics), dtype=torch.float64)
    with evaluating(worker.module):
        for row, shard, most in zip(total, shards, most_rows, strict=True):
            for start in range(0, most, each):
                batch = shard.block(min(start, shard.rows), min(start + each, shard.rows))
                outputs = worker.wait(part.outputs(batch))
                if batch.rows:
                    row += _of(outputs, batch, loss, metrics)
    worker.params, worker.buffers = saved, saved_statistics
    return total


def _twin(module: nn.Module) -> nn.Module:
    """A copy whose parameters have memory of their own."""
    other = copy.deepcopy(module)
    for p, q in zip(other.parameters(), module.parameters(), strict=True):
        p.data = q.data.clone()
    return other


def _of(outputs: Tensor, batch: Batch, loss: Loss, metrics: dict[str, RowLoss]) -> Tensor:
    assert batch.target is not None
    values = [float(loss(outputs, batch.target, batch.weights)) * batch.weight]
    for metric in metrics.values():
        each = metric(outputs, batch.target).double()
        if each.dim() == 0:
            values.append(float(each) * batch.weight)
        else:
            values.append(float(each.sum() if batch.weights is None else torch.dot(each, batch.weights.double())))
    return torch.tensor([batch.weight, *values], dtype=torch.float64)


def named(total: Tensor, metrics: dict[str, RowLoss]) -> dict[str, float]:
    """Means by name from one shard's `sums`."""
    weight = float(total[0])
    return dict(zip(["loss", *metrics], (total[1:] / weight).tolist(), strict=True)) if weight else {}


def by_column(total: Tensor, kinds: Iterable[str], metrics: dict[str, RowLoss]) -> dict[str, float]:
    """Means by column of `Run.history`, validation_loss, say, from `sums` of a shard of each kind."""
    found = {kind: named(row, metrics) for kind, row in zip(kinds, total, strict=True)}
    return {f"{kind}_{name}": value for kind, means in found.items() for name, value in means.items()}


def probe(module: nn.Module, shard: Shard, loss: Loss, metrics: dict[str, RowLoss]) -> None:
    """Try two rows, so that what does not fit is told at once and in words.

    Raises:
        UsageError: the model does not take the features, its outputs do not suit the loss, labels exceed the classes, or it
            remembers the rows it was asked before.
    """
    if not shard.rows:
        return
    batch = shard.block(0, min(2, shard.rows))
    inputs, meta = batch.inputs, any(p.is_meta for p in module.parameters())
    if meta:  # a network without numbers has shapes all the same
        inputs = tuple(x.to("meta") for x in inputs)
    shapes = ", ".join(str(tuple(x.shape)) for x in batch.inputs)
    with evaluating(module), Shapes() if meta else contextlib.nullcontext():
        try:
            drawn = torch.get_rng_state()
            outputs = module(*inputs)
            if meta:
                outputs = torch.zeros(outputs.shape, dtype=outputs.dtype)
            else:
                torch.set_rng_state(drawn)
                _answers_alike(outputs, module(*inputs))
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            raise UsageError(
                f"the model does not take the features: a batch of shape {shapes} "
                f"({batch.inputs[0].dtype}) made it raise {type(error).__name__}: {error}{_ON_META if meta else ''}"
            ) from error
        target = batch.target
        if target is None:
            return
        each_step = isinstance(outputs, Tensor) and outputs.dim() > 1 and outputs.shape[2:] == target.shape[1:]
        if isinstance(outputs, Tensor) and not target.is_floating_point() and (outputs.dim() == 2 or each_step):
            classes, most = outputs.shape[1], shard.classes
            if most is not None and most > classes:
                raise UsageError(
                    f"labels go up to {most - 1}, but the model has {classes} outputs: classes are 0 .. {classes - 1}."
                )
        if isinstance(outputs, Tensor) and target.is_floating_point() and outputs.shape != target.shape:
            raise UsageError(
                f"the model's outputs have the shape {tuple(outputs.shape)}, the labels {tuple(target.shape)}; "
                "this loss compares them entry by entry, so they must be equal."
            )
        try:
            _ = _of(outputs, batch, loss, metrics)
        except UsageError:
            raise
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            got = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
            raise UsageError(
                f"loss or metrics do not fit: outputs {got}, labels {tuple(target.shape)} {target.dtype} "
                f"raised {type(error).__name__}: {error}"
            ) from error


_ON_META = (
    ' (A network that is to lie in parts is tried on the device "meta", where tensors have shapes and no numbers: forward may '
    "not go by numbers, and tensors that it makes may need device=x.device.)"
)


def _answers_alike(once: object, again: object) -> None:
    if isinstance(once, Tensor) and isinstance(again, Tensor) and not torch.equal(once.nan_to_num(), again.nan_to_num()):
        raise UsageError(
            "the model, asked twice about the same rows in evaluation mode, gives two answers: it carries state from batch to "
            "batch, such as the hidden state of a recurrent layer, but batches are shuffled rows that do not follow each "
            "other. Begin each batch anew, and give sequences that belong together as one row (firesteel.Sequence)."
        )
