"""What a batch looks like: agreed on by workers of whom some may have no rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from firesteel.data.shard import Batch

_TYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.bool)
_DIMS = 8
_FIELD = 2 + _DIMS  # type + 1, dimensions, extents
WIDTH = 4 * _FIELD


def outline(batch: Batch) -> Tensor:
    """A batch's tensors (inputs, lengths, target, weights) by type and shape, float64 [WIDTH]; zeros if it has none."""
    found = torch.zeros(4, _FIELD, dtype=torch.float64)
    tensors = [*batch.inputs, *[None] * (2 - len(batch.inputs)), batch.target, batch.weights] if batch.inputs else []
    for row, x in zip(found, tensors, strict=False):
        if x is not None:
            row[0], row[1] = _TYPES.index(x.dtype) + 1, x.dim()
            row[2 : 2 + x.dim()] = torch.tensor(x.shape, dtype=torch.float64)
    return found.view(-1)


def revived(descriptions: Sequence[Tensor], rows: int, device: str = "cpu") -> Batch:
    """A batch of zeros as the first description that says anything has it, with so many rows; of none, sequences are empty."""
    first = next(d for d in descriptions if bool(d[0]))
    tensors: list[Tensor | None] = []
    table = first.view(4, _FIELD).long().tolist()
    if table[1][0]:  # sequences, of one step at least
        table[0][3] = max(table[0][3], 1)
    for row in table:
        shape = [rows, *row[3 : 2 + row[1]]]
        tensors.append(torch.zeros(shape, dtype=_TYPES[row[0] - 1], device=device) if row[0] else None)
    x, lengths, target, weights = tensors
    assert x is not None
    if lengths is not None and not rows:
        x = x[:, :0]
    return Batch((x,) if lengths is None else (x, lengths), target, weights, rows, float(rows))
