"""A job of its own for every worker: what pickling gives where workers are processes.

Here all workers are in one process. If they shared a model, a strategy or a loss, what one of them keeps there would reach the
others without a verb of the net.
"""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any, final

import cloudpickle
import torch
from torch import nn

from firesteel import randomness
from firesteel.job import Job


def shipping(job: Job) -> Callable[[], Job]:
    """Returns what gives the next worker its job, as good as new; `work` is left out."""
    file, classes = io.BytesIO(), list[type]()
    _Pickler(file, classes).dump(replace(job, work=None))
    parcel, sharing = file.getvalue(), _shares(job)

    def own() -> Job:
        mine = _Unpickler(io.BytesIO(parcel), classes).load()
        made = mine.model
        return replace(mine, model=lambda: copy.deepcopy(made())) if sharing else mine

    return own


@final
class _Pickler(cloudpickle.Pickler):
    """Classes go by reference, also those of a script: loading one by value again would write to the caller's."""

    def __init__(self, file: io.BytesIO, classes: list[type]) -> None:
        super().__init__(file)
        self._classes: list[type] = classes

    def persistent_id(self, obj: Any) -> int | None:
        if not isinstance(obj, type):
            return None
        self._classes.append(obj)
        return len(self._classes) - 1


@final
class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, classes: list[type]) -> None:
        super().__init__(file)
        self._classes: list[type] = classes

    def persistent_load(self, pid: int) -> type:
        return self._classes[pid]


def _shares(job: Job) -> bool:
    """Whether a factory gives something out twice that pickling does not copy: what its Python module holds, say."""
    if isinstance(job.model, nn.Module):
        return False
    with torch.random.fork_rng(devices=[]):
        randomness.initialise(job.seed)
        one, other = job.build(), job.build()
    return not _held(one).isdisjoint(_held(other))


def _held(module: nn.Module) -> set[int]:
    tensors = [x for x in (*module.parameters(), *module.buffers()) if x.numel()]
    return {x.data_ptr() for x in tensors} | {id(part) for part in module.modules()}
