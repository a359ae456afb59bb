"""The caller's own process, lent to workers for a while and given back as it was."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def lent(threads: int) -> Iterator[None]:
    """Threads, generator and floating-point mode as a worker has them; the caller's again afterwards."""
    before, state, flushed = torch.get_num_threads(), torch.get_rng_state(), _flushes()
    torch.set_num_threads(threads)
    _ = torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        torch.set_rng_state(state)
        _ = torch.set_flush_denormal(flushed)


def _flushes() -> bool:
    """Whether this thread takes denormal numbers for zero; there is no other way to ask."""
    smallest = sys.float_info.min
    return smallest / 4 == 0.0
