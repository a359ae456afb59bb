"""Medians, intervals and verdicts over seeds."""

from __future__ import annotations

import math

import numpy as np
import pytest

from firesteel.bench import statistics

INF, NAN = math.inf, math.nan


def test_quantiles_with_runs_that_never_got_there():
    assert statistics.median([3.0, 1.0]) == 2.0
    assert statistics.quartiles([1.0, 2.0, 3.0, 4.0, 5.0]) == (2.0, 4.0)
    assert statistics.median([1.0, 2.0, INF]) == 2.0
    assert statistics.median([1.0, INF]) == INF
    assert statistics.quartiles([1.0, 2.0, INF]) == (1.5, INF)
    assert statistics.quartiles([INF, INF, INF]) == (INF, INF)
    assert statistics.median([NAN, 2.0, NAN]) == 2.0
    assert math.isnan(statistics.median([NAN])) and math.isnan(statistics.median([]))


def test_quantiles_are_those_of_numpy():
    values = np.random.default_rng(1).normal(size=17).tolist()
    assert [statistics.quantile(values, q / 20) for q in range(21)] == pytest.approx(np.quantile(values, np.arange(21) / 20))


def test_the_interval_is_the_same_each_time():
    a, b = np.random.default_rng(0).normal(5, 1, size=(2, 9)).tolist()
    assert statistics.interval(a, b) == statistics.interval(a, b)
    assert statistics.interval([2.0] * 3, [3.0] * 4) == (1.5, 1.5)
    assert statistics.interval([2.0] * 3, [3.0] * 4, "difference") == (1.0, 1.0)


def test_the_interval_of_two_seeds_by_hand():
    """A resample of (1, 3) has the median 1 in one case of four, 2 in two and 3 in one."""
    assert statistics.interval([1.0, 3.0], [1.0] * 3, "difference") == (-2.0, 0.0)


def test_the_interval_covers():
    generator = np.random.default_rng(3)
    inside = 0
    for _ in range(200):
        low, high = statistics.interval(generator.lognormal(0.0, 0.2, 15), 1.5 * generator.lognormal(0.0, 0.2, 15))
        inside += low <= 1.5 <= high
    assert 0.9 <= inside / 200 <= 0.995


def test_censored_resamples_widen_the_interval():
    assert statistics.interval([INF] * 3, [INF] * 3) == (0.0, INF)
    assert statistics.interval([INF] * 3, [INF] * 3, "difference") == (-INF, INF)
    assert statistics.interval([1.0] * 3, [INF] * 3) == (INF, INF)
    assert statistics.interval([INF] * 3, [1.0] * 3) == (0.0, 0.0)
    assert statistics.interval([1.0, 1.0, 1.0], [2.0, 2.0, INF]) == (2.0, INF)


@pytest.mark.parametrize(
    ("a", "b", "said"),
    [
        ([1.0, 1.1, 1.2], [2.0, 2.2, 2.4], "a is 2 times as fast as b (95 % interval 1.67 to 2.4)"),
        ([2.0, 2.2, 2.4], [1.0, 1.1, 1.2], "b is 2 times as fast as a (95 % interval 1.67 to 2.4)"),
        ([1.0, 2.0, 3.0], [1.5, 2.5, 3.5], "no difference shown between a and b"),
        ([1.0, 1.0, 1.0], [1.0, 1.0, 1.0], "no difference shown between a and b"),
        ([1.0], [9.0], "one seed: no statement"),
        ([1.0, 1.0], [9.0, 9.0, 9.0], "two seeds: no statement"),
        ([NAN, NAN], [9.0, 9.0, 9.0], "nothing measured: no statement"),
        ([INF] * 3, [INF] * 3, "no difference shown between a and b"),
        ([0.0] * 3, [0.0] * 3, "no difference shown between a and b"),
        ([1.0] * 3, [INF] * 3, "a reached the target and b did not, with most of the seeds"),
        ([INF] * 3, [1.0] * 3, "b reached the target and a did not, with most of the seeds"),
        ([1.0] * 3, [2.0, 2.0, INF], "a is 2 times as fast as b (95 % interval 2 or more)"),
    ],
)
def test_verdicts(a, b, said):
    assert statistics.verdict(a, b) == said


@pytest.mark.parametrize("other", [[1.0] * 5, [100.0] * 5, [INF] * 5])
def test_censored_is_never_fast(other):
    found = statistics.compare([1e-9, INF, INF, INF, INF], other)
    assert not (found.shown and found.low > 1)
    assert not found.ratio > 1


def test_a_comparison_turned():
    found = statistics.compare([1.0] * 3, [2.0, 4.0, 8.0])
    assert (found.ratio, found.low, found.high) == (4.0, 2.0, 8.0)
    assert found.turned() == statistics.Comparison(0.25, 0.125, 0.5, 3)
