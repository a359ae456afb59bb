"""All randomness of a run comes from one seed, through named streams.

A stream is named by what it is for and, where workers must differ, by the rank; no stream depends on how many numbers
another one has given out. So adding dropout does not change the shuffling, and a resumed run needs no replay.

    >>> seed_of(0, "shuffle", 3) == seed_of(0, "shuffle", 3)
    True
    >>> seed_of(0, "shuffle", 3) == seed_of(0, "shuffle", 4)
    False
"""

from __future__ import annotations

import hashlib

import torch


def seed_of(seed: int, *name: str | int) -> int:
    """The seed of a named stream, 0 .. 2**63 - 1."""
    digest = hashlib.blake2b(repr((seed, *name)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(seed: int, *name: str | int) -> torch.Generator:
    """A fresh generator at the start of a named stream."""
    return torch.Generator().manual_seed(seed_of(seed, *name))


def initialise(seed: int) -> None:
    """Set the global generator for building the model: the same on every worker, so that all begin alike."""
    _ = torch.manual_seed(seed_of(seed, "initialise"))


def train(seed: int, rank: int, attempt: int = 0) -> None:
    """Set the global generator for training (dropout and whatever the model draws): one stream per worker and attempt."""
    _ = torch.manual_seed(seed_of(seed, "train", rank, *([attempt] if attempt else [])))
