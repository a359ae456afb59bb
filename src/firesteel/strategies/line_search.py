"""Searches along a line, without any network or model: generators that say where to look next.

A search yields a step length and is sent (value, slope) there; it returns the step that it takes. Every worker runs its
own copy on the same numbers, so all take the same steps.
"""

from __future__ import annotations

import math
from collections.abc import Generator

_Point = tuple[float, float, float]  # where, value, slope
Search = Generator[float, tuple[float, float], float]


def strong_wolfe(value: float, slope: float, step: float, c1: float, c2: float, trials: int) -> Search:
    r"""A step with \( f(t) \le f(0) + c_1 t f'(0) \) and \( |f'(t)| \le c_2 |f'(0)| \).

    Nocedal & Wright 2006, algorithms 3.5 and 3.6 in one loop: `low` is the best point so far that decreases enough; once
    the minimum is known to lie between it and `high`, their values and slopes say where to look, well inside of them.

    Args:
        value, slope: f(0) and f'(0) < 0.
        step: where to look first.
        trials: points to look at, at most.

    Returns:
        The step; where no point has been found that fulfils both, the best one that decreases enough, else 0.
    """
    low: _Point = (0.0, value, slope)
    high: _Point | None = None
    for _ in range(trials):
        found, rise = yield step
        here = (step, found, rise)
        if not math.isfinite(found) or found > value + c1 * step * slope or (found >= low[1] and low[0] > 0):
            high = here
        elif abs(rise) <= -c2 * slope:
            return step
        else:
            if rise * ((math.inf if high is None else high[0]) - low[0]) >= 0:
                high = low
            low, before = here, low
            if high is None:
                # Still falling: farther out, where the minimum seems to be, but neither a little nor far too far.
                least, most = step + 1.1 * (step - before[0]), step + 4.0 * (step - before[0])
                step = min(max(_minimum(before, here), least), most)
                continue
        assert high is not None
        inside, width = _minimum(low, high), high[0] - low[0]
        ends = sorted((low[0] + 0.1 * width, low[0] + 0.9 * width))
        step = min(max(inside, ends[0]), ends[1])
    return low[0]


def backtracking(value: float, step: float, c1: float, trials: int) -> Search:
    """A step with f(t) <= f(0) + c1 * (what the slope at 0 predicts there), by halving.

    For `OWL-QN`, whose path is bent: in place of the slope, `Search` is sent what the gradient at 0 predicts at t, <= 0.
    """
    for _ in range(trials):
        found, predicted = yield step
        if found <= value + c1 * predicted:
            return step
        step /= 2
    return 0.0


def _minimum(a: _Point, b: _Point) -> float:
    """Where the function's minimum seems to be, from its best point and its newest (More & Thuente 1994, section 4)."""
    (x, f, g), (y, h, k) = a, b
    if not (math.isfinite(h) and math.isfinite(k)):
        return (x + y) / 2
    cubic = _of_cubic(a, b)
    if h > f:  # it lies between: the cubic, or where it trusts the high value too little, half the way to the parabola
        parabola = x + g * (y - x) / (2 * (g - (h - f) / (y - x)))
        return cubic if abs(cubic - x) < abs(parabola - x) else (cubic + parabola) / 2
    if g * k < 0:  # it lies between, and nearer to the newest: the cubic or the secant, whichever dares more
        secant = y + k * (x - y) / (k - g)
        return cubic if abs(cubic - y) > abs(secant - y) else secant
    return cubic


def _of_cubic(a: _Point, b: _Point) -> float:
    """The minimum of the cubic through two points and their slopes: beyond `b` for ever if it falls and has none."""
    (x, f, g), (y, h, k) = a, b
    d = g + k - 3 * (f - h) / (x - y)
    square = d * d - g * k
    if square < 0:
        return math.copysign(math.inf, y - x) if k * (y - x) < 0 else (x + y) / 2
    root = math.copysign(math.sqrt(square), y - x)
    below = k - g + 2 * root
    return y - (y - x) * (k + root - d) / below if below else (x + y) / 2
