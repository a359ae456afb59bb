"""Arrays and tensors that were given as data, as Arrow columns."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import torch

from firesteel.data.columns import Features, Image, Sequence, Tokens
from firesteel.errors import UsageError

Array = np.ndarray[Any, Any]


def array(name: str, given: Any) -> Array:
    """Numbers in this machine's byte order with at least one dimension."""
    if isinstance(given, torch.Tensor):
        given = given.detach().cpu()
        given = given.float() if given.dtype == torch.bfloat16 else given  # NumPy has no bfloat16
    try:
        found = np.asarray(given)
    except (ValueError, TypeError) as error:
        raise UsageError(f"{name} cannot be read as an array: {str(error).splitlines()[0]}") from error
    if found.dtype.kind not in "fiub":
        raise UsageError(f"{name} has the type {found.dtype}; it must hold numbers.")
    if not found.ndim:
        raise UsageError(f"{name} is a single number; it must be an array with one entry a row.")
    return found.astype(found.dtype.newbyteorder("="), copy=False)


def rows(given: Any, features: Features) -> Array | list[Array]:
    """X as an array [n, ...]; as a list of arrays, [T] or [T, d], where their lengths differ or a `Sequence` is asked for."""
    if isinstance(given, list | tuple) and given and all(isinstance(row, np.ndarray | torch.Tensor) for row in given):
        found = [array("X", row) for row in given]
        if len({row.shape for row in found}) > 1:
            kinds = {(row.dtype, row.shape[1:]) for row in found}
            if len(kinds) > 1 or found[0].ndim > 2:
                told = " and ".join(sorted(f"{dtype} [T{''.join(f', {n}' for n in inner)}]" for dtype, inner in kinds))
                raise UsageError(f"X holds rows of {told}; sequences must be [T] or [T, d], of one type and one d for all.")
            return found
    whole = array("X", given)
    return list(whole) if isinstance(features, Sequence) and whole.ndim in (2, 3) else whole


def features_of(x: Array | list[Array]) -> Features:
    """What X is read as where nothing was said.

    >>> features_of(np.zeros((5, 28, 28), np.uint8)).shape
    (28, 28)
    """
    if isinstance(x, list):
        return Sequence("features")
    if x.dtype == np.uint8 or x.ndim > 2:
        return Image("features", x.shape[1:])
    return Tokens("features") if x.dtype.kind == "i" and x.ndim == 2 else "features"


def column(x: Array | list[Array]) -> pa.Array:
    """Numbers for [n], lists of one length for more dimensions, lists of their own lengths for a list of rows.

    >>> column([np.zeros((2, 3)), np.zeros((1, 3))]).type
    ListType(list<item: fixed_size_list<item: double>[3]>)
    """
    if isinstance(x, list):
        starts = np.cumsum([0, *map(len, x)])
        return pa.ListArray.from_arrays(pa.array(starts, pa.int32()), column(np.concatenate(x)))
    if x.ndim == 1:
        return pa.array(x)
    width = int(np.prod(x.shape[1:]))
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(x).reshape(-1)), width)
