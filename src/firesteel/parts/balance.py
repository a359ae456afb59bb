"""Where to cut a chain of layers, so that the slowest piece of it is as fast as can be."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence


def balanced(costs: Sequence[float], trained: Sequence[bool], stages: int) -> tuple[int, ...]:
    """The layers at which stages 1, 2, ... begin: of all ways to cut, one whose dearest stage costs the least.

    Every stage gets a layer that has parameters. Of equals, the first cut that can be.

    Args:
        costs: of each layer, >= 0.
        trained: whether it has parameters; at least `stages` of them have.

        >>> balanced([3.0, 1.0, 1.0, 1.0], [True] * 4, 2)
        (1,)
    """
    layers = len(costs)
    before = [0.0, *itertools.accumulate(costs)]
    with_parameters = [0, *itertools.accumulate(map(int, trained))]
    # worst[j]: of the first j layers, in as many stages as have been placed; cuts[j]: where those begin
    worst = [math.inf if with_parameters[j] == 0 else before[j] for j in range(layers + 1)]
    cuts: list[tuple[int, ...]] = [()] * (layers + 1)
    for _ in range(stages - 1):
        further, further_cuts = [math.inf] * (layers + 1), list(cuts)
        for stop, start in itertools.combinations(range(layers, -1, -1), 2):
            found = max(worst[start], before[stop] - before[start])
            if with_parameters[start] < with_parameters[stop] and found <= further[stop] and found < math.inf:
                further[stop], further_cuts[stop] = found, (*cuts[start], start)
        worst, cuts = further, further_cuts
    return cuts[layers]
