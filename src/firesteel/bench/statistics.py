"""What several seeds say together: medians, intervals, and a sentence on whether two configurations differ.

A run that did not reach its target has taken infinitely long: so it counts in a median and never counts as fast. NaN is
what nobody knows, and is left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final

import numpy as np

from firesteel.bench.score import ratio
from firesteel.bench.texts import digits

RESAMPLES, LEVEL, FEW = 2000, 0.95, 3


def known(values: Sequence[float]) -> list[float]:
    """Without NaN; infinities stay.

    >>> known([1.0, float("nan"), float("inf")])
    [1.0, inf]
    """
    return [x for x in values if not math.isnan(x)]


def quantile(values: Sequence[float], share: float) -> float:
    """Between two order statistics by a straight line; infinite if one of the two is. NaN of no values.

    >>> quantile([3.0, 1.0, 2.0, float("inf")], 0.5)
    2.5
    """
    x = sorted(known(values))
    if not x:
        return math.nan
    at = share * (len(x) - 1)
    low, part = math.floor(at), at - math.floor(at)
    if part == 0 or x[low] == x[low + 1]:
        return x[low]
    return x[low] + part * (x[low + 1] - x[low])


def median(values: Sequence[float]) -> float:
    """
    >>> median([1.0, 2.0, float("inf")])
    2.0
    """
    return quantile(values, 0.5)


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """
    >>> quartiles([1.0, 2.0, 3.0])
    (1.5, 2.5)
    """
    return quantile(values, 0.25), quantile(values, 0.75)


def interval(a: Sequence[float], b: Sequence[float], of: Literal["ratio", "difference"] = "ratio") -> tuple[float, float]:
    """The 95 % percentile bootstrap interval of median(b) / median(a), or of median(b) - median(a) (Efron 1979).

    2,000 resamples of both by a fixed generator: the same values give the same interval. A resample in which neither median is
    finite (or both are zero) says nothing and counts as the smallest below and as the largest above. With the few seeds that
    are usual it is narrower than 95 % deserve.

    >>> interval([1.0, 1.0, 1.0], [2.0, 2.0, 2.0])
    (2.0, 2.0)
    """
    generator = np.random.default_rng(0)
    medians = [np.median(np.asarray(x)[generator.integers(len(x), size=(RESAMPLES, len(x)))], axis=1) for x in (a, b)]
    with np.errstate(divide="ignore", invalid="ignore"):
        found = medians[1] / medians[0] if of == "ratio" else medians[1] - medians[0]
    ends = [(0.0 if of == "ratio" else -math.inf, (1 - LEVEL) / 2), (math.inf, (1 + LEVEL) / 2)]
    low, high = (quantile(np.where(np.isnan(found), nothing, found).tolist(), share) for nothing, share in ends)
    return low, high


@final
@dataclass(frozen=True)
class Comparison:
    """How many times as fast a is as b."""

    ratio: float
    """median(b) / median(a)."""
    low: float
    high: float
    seeds: int
    """Of the one that has fewer."""

    @property
    def shown(self) -> bool:
        """Whether there are seeds enough, and the interval of the ratio leaves out 1."""
        return self.seeds >= FEW and not self.low <= 1 <= self.high

    def turned(self) -> Comparison:
        """b against a."""
        return Comparison(ratio(1, self.ratio), ratio(1, self.high), ratio(1, self.low), self.seeds)

    @property
    def ends(self) -> str:
        """ "1.4 to 1.8"."""
        return f"{digits(self.low)} {f'to {digits(self.high)}' if math.isfinite(self.high) else 'or more'}"


def compare(a: Sequence[float], b: Sequence[float]) -> Comparison:
    """a against b: each the seconds, samples, ... of its seeds to the target.

    >>> compare([1.0, 1.0, 1.0], [2.0, 2.0, 2.0]).shown
    True
    """
    a, b = known(a), known(b)
    seeds = min(len(a), len(b))
    if not seeds:
        return Comparison(math.nan, math.nan, math.nan, 0)
    return Comparison(ratio(median(b), median(a)), *interval(a, b), seeds)


def verdict(a: Sequence[float], b: Sequence[float], a_name: str = "a", b_name: str = "b") -> str:
    """A sentence without its stop: which of two is faster, if that is shown.

    >>> verdict([1.0, 1.1, 1.2], [2.0, 2.1, 2.2])
    'a is 1.91 times as fast as b (95 % interval 1.67 to 2.2)'
    >>> verdict([1.0], [2.0])
    'one seed: no statement'
    """
    found = compare(a, b)
    if found.seeds < FEW:
        return few(found.seeds)
    if not found.shown:
        return f"no difference shown between {a_name} and {b_name}"
    if found.high < 1:
        found, a_name, b_name = found.turned(), b_name, a_name
    if not math.isfinite(found.ratio):
        return f"{a_name} reached the target and {b_name} did not, with most of the seeds"
    return f"{a_name} is {digits(found.ratio)} times as fast as {b_name} (95 % interval {found.ends})"


def few(seeds: int) -> str:
    """Why there is no statement."""
    return ("nothing measured", "one seed", "two seeds")[seeds] + ": no statement"
