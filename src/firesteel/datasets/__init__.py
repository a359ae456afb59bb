"""Named data sets, to begin with and to measure on."""

from __future__ import annotations

from collections.abc import Callable

from firesteel.datasets.dataset import Dataset
from firesteel.datasets.images import cifar10, digits, mnist
from firesteel.datasets.sequences import japanese_vowels, tinyshakespeare
from firesteel.datasets.tables import a9a, higgs
from firesteel.errors import UsageError

__all__ = ["NAMES", "Dataset", "a9a", "cifar10", "digits", "higgs", "japanese_vowels", "load", "mnist", "tinyshakespeare"]

_OF_FILES: dict[str, Callable[[str | None], Dataset]] = {
    "mnist": mnist,
    "cifar10": cifar10,
    "japanese_vowels": japanese_vowels,
    "tinyshakespeare": tinyshakespeare,
    "a9a": a9a,
    "higgs": higgs,
}
NAMES = ("digits", *_OF_FILES)


def load(name: str) -> Dataset:
    """A data set by one of `NAMES`, or by "NAME:FOLDER" for the folder of its files.

    >>> load("digits").classes
    10
    """
    kind, _, folder = name.partition(":")
    if kind == "digits" and not folder:
        return digits()
    if kind in _OF_FILES:
        return _OF_FILES[kind](folder or None)
    raise UsageError(f"there is no data set {name!r}; there are {', '.join(NAMES)}, and NAME:FOLDER of all but digits.")
