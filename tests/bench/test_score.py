"""Scores of curves whose areas and times are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_runs import external, run

from firesteel.bench import score
from firesteel.errors import UsageError

# ---- to the target ---------------------------------------------------------------------------------------------------


def test_the_target_counts_where_it_is_first_seen():
    assert score.to_target([1, 2, 3, 4], [0.5, 0.8, 0.95, 0.7], 0.9, False) == 3.0  # not 2.67 between the points
    assert score.to_target([1, 2], [0.9, 0.95], 0.9, False) == 1.0  # it starts there
    assert score.to_target([1, 2], [0.5, 0.89], 0.9, False) is None
    assert score.to_target([], [], 0.9, False) is None


def test_of_losses_less_is_better():
    assert score.to_target([1, 2, 3], [2.0, 0.5, 0.1], 0.5, True) == 2.0
    assert [
        m for m in ("validation_loss", "x_mse", "x_mae", "loss", "validation_accuracy") if not score.smaller_is_better(m)
    ] == ["validation_accuracy"]


def test_points_without_a_metric_are_passed_over_and_a_missing_x_is_unknown():
    assert score.to_target([1, 2, 3], [math.nan, math.nan, 0.95], 0.9, False) == 3.0
    assert math.isnan(score.to_target([math.nan], [0.95], 0.9, False) or 0.0)


@pytest.mark.parametrize(
    ("result", "cost", "reached"),
    [
        (run("A", [(1.0, 0.5), (2.5, 0.95)]), 2.5, True),
        (run("A", [(1.0, 0.5), (2.5, 0.85)]), math.inf, False),
        (run("A", status="failed"), math.inf, False),
        (run("A", [(1.0, 0.95)], workload={"target": None}), math.nan, None),
        (external("A", 0.95, 40.0), 40.0, True),
        (external("A", 0.95), math.nan, True),
        (external("A", 0.85), math.inf, False),
        (external("A", None, 40.0), math.nan, None),
    ],
)
def test_cost_of_a_run(result, cost, reached):
    assert score.cost(result) == pytest.approx(cost, nan_ok=True)
    assert score.reached(result) is reached


def test_other_costs_and_totals():
    one = run("A", [(1.0, 0.5), (2.5, 0.95), (4.0, 0.9)])
    assert [score.cost(one, name) for name in ("samples", "step", "bytes_sent")] == [250.0, 25.0, 2.5e6]
    assert [score.total(one, name) for name in ("seconds", "samples")] == [4.0, 400.0]
    assert score.best(one) == 0.95
    assert score.best(run("A", [(1.0, 0.5), (2.0, 0.7)], workload={"metric": "validation_loss"})) == 0.5
    assert score.seconds_per_epoch(one) == 2.0
    nothing = run("A", status="failed")
    assert all(math.isnan(x) for x in (score.best(nothing), score.total(nothing), score.seconds_per_epoch(nothing)))


# ---- areas -----------------------------------------------------------------------------------------------------------

TENT = ([0.0, 1.0, 3.0], [0.0, 1.0, 0.0])  # up in one second, down in two: the area is 1.5


@pytest.mark.parametrize(
    ("until", "area"),
    [(0.0, 0.0), (0.5, 0.125), (1.0, 0.5), (2.0, 0.5 + 0.75), (2.5, 1.5 - 0.0625), (3.0, 1.5)],
)
def test_integral_of_a_tent(until, area):
    assert float(score.integral(*TENT, until)) == pytest.approx(area, abs=1e-12)


def test_integral_is_zero_before_the_first_point_and_jumps_there():
    late = ([2.0, 4.0], [0.5, 1.0])
    assert score.integral(*late, [0.0, 1.0, 2.0, 3.0, 4.0]).tolist() == pytest.approx([0, 0, 0, 0.625, 1.5], abs=1e-12)
    jump = ([1.0, 2.0, 2.0, 3.0], [0.0, 0.0, 1.0, 1.0])
    assert score.integral(*jump, [2.0, 2.5, 3.0]).tolist() == pytest.approx([0, 0.5, 1.0], abs=1e-12)
    assert float(score.integral([1.0], [0.5], 1.0)) == 0.0


def test_integral_of_a_sampled_cosine_is_that_of_the_trapezoids():
    t = np.linspace(0.0, 2.0, 201)
    assert float(score.integral(t, 1 - np.cos(t), 2.0)) == pytest.approx(float(np.trapezoid(1 - np.cos(t), t)), abs=1e-12)


def test_nothing_is_known_beyond_the_last_point():
    with pytest.raises(UsageError, match="ends at 3 seconds"):
        score.integral(*TENT, 3.1)
    with pytest.raises(UsageError, match="do not fall"):
        score.integral([1.0, 0.5], [0.0, 1.0], 0.5)
    with pytest.raises(UsageError, match="one point at least"):
        score.integral([], [], 0.0)


# ---- temporal efficiency ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ((([0.0, 10.0], [0.0, 1.0])), ([0.0, 10.0], [0.0, 0.5]), 2.0),
        (([0.0, 4.0], [0.0, 1.0]), ([0.0, 10.0], [0.0, 1.0]), (4 / 2) / (4 * 4 / 20)),  # b is cut at 4, inside its segment
        (([0.0, 1.0, 9.0], [0.0, 0.8, 0.8]), ([0.0, 3.0, 5.0], [0.0, 0.6, 0.6]), (0.4 + 4 * 0.8) / (0.9 + 2 * 0.6)),
        (([2.0, 6.0], [0.5, 0.9]), ([0.0, 5.0], [0.5, 0.5]), (3 * (0.5 + 0.8) / 2) / 2.5),  # a begins late and is cut at 5
        (([4.0, 6.0], [0.5, 0.9]), ([0.0, 3.0], [0.5, 0.5]), 0.0),  # a begins after b has ended
        (([0.0, 3.0], [0.5, 0.5]), ([4.0, 6.0], [0.5, 0.9]), math.inf),
        (([4.0, 6.0], [0.5, 0.9]), ([0.0, 3.0], [0.0, 0.0]), math.nan),
    ],
)
def test_temporal_efficiency_in_closed_form(a, b, expected):
    assert score.temporal_efficiency(a, b) == pytest.approx(expected, abs=1e-9, nan_ok=True)


@st.composite
def curves(draw):
    """Curves with a positive area from the first second on."""
    steps = draw(st.lists(st.floats(0.05, 5.0), min_size=2, max_size=8))
    seconds = np.cumsum(steps) - steps[0] / 2  # the first point is at 2.5 seconds at most
    return seconds.tolist(), draw(st.lists(st.floats(0.1, 1.0), min_size=len(steps), max_size=len(steps)))


@settings(max_examples=60, deadline=None)
@given(curves(), curves(), st.floats(0.01, 100.0))
def test_laws_of_temporal_efficiency(a, b, factor):
    assert score.temporal_efficiency(a, a) == 1.0
    there, back = score.temporal_efficiency(a, b), score.temporal_efficiency(b, a)
    if 1e-3 < there < 1e3:
        assert there * back == pytest.approx(1.0, abs=1e-9)
        slow_a, slow_b = (([t * factor for t in seconds], values) for seconds, values in (a, b))
        assert score.temporal_efficiency(slow_a, slow_b) == pytest.approx(there, rel=1e-9)


def test_smoothed_temporal_efficiency_is_near_the_exact_one_and_its_scale_of_virtual_time_is_free():
    t = np.linspace(0.0, 300.0, 61)
    a, b = (t, 1 - np.exp(-t / 20)), (t, 1 - np.exp(-t / 60))
    exact = score.temporal_efficiency(a, b)
    assert score.smoothed_temporal_efficiency(a, b) == pytest.approx(exact, rel=0.02)
    assert score.smoothed_temporal_efficiency(a, a) == 1.0
    short_a, short_b = (t / 1e4, a[1]), (t / 1e4, b[1])
    virtual = score.smoothed_temporal_efficiency(a, b, virtual=True)
    assert score.smoothed_temporal_efficiency(short_a, short_b) == pytest.approx(virtual, rel=1e-9)
    assert virtual != score.smoothed_temporal_efficiency(a, b)


def test_smoothed_temporal_efficiency_of_straight_lines_in_closed_form():
    """A line through 0 has the mean t/2 up to the window w, t - w/2 beyond: m²/2 - w m/2 + w²/4 but for the spline's bend."""
    assert score.smoothed_temporal_efficiency(([0.0, 200.0], [1.0, 1.0]), ([0.0, 300.0], [0.5, 0.5])) == pytest.approx(
        2.0, abs=1e-9
    )
    line, flat = ([0.0, 200.0], [0.0, 200.0]), ([0.0, 200.0], [1.0, 1.0])
    assert score.smoothed_temporal_efficiency(line, flat) == pytest.approx((20000 - 500 + 6.25) / 200, abs=1e-3)


def test_which_curve_is_integrated():
    both = [{"seconds": s, "validation_accuracy": 0.5, "training_accuracy": 0.6} for s in (1.0, 2.0)]
    trained, plain = run("A", points=both), run("B", [(1.0, 0.5), (2.0, 0.6)])
    assert score.efficiency_of([trained]) == "training_accuracy"
    assert score.efficiency_of([trained, external("C", 0.9, 20.0), run("D", status="failed")]) == "training_accuracy"
    assert score.efficiency_of([trained, plain]) == "validation_accuracy"
    assert score.efficiency_of([external("C", 0.9, 20.0)]) is None
    assert score.efficiency_of([run("A", [(1.0, 0.5), (2.0, 0.4)], workload={"metric": "validation_loss"})]) is None
    assert score.efficiency_of([]) is None


def test_runs_are_paired_by_seed_or_each_with_each():
    flat = {value: [(0.0, value), (2.0, value)] for value in (0.2, 0.4, 0.8)}
    a = [run("A", flat[0.8], 0), run("A", flat[0.4], 1), run("A", status="failed", seed=2)]
    b = [run("B", flat[0.4], 1), run("B", flat[0.4], 0)]
    assert score.temporal_efficiencies(a, b, "validation_accuracy") == pytest.approx([2.0, 1.0])
    c = [run("C", flat[0.2], 5)]
    assert score.temporal_efficiencies(a, c, "validation_accuracy") == pytest.approx([4.0, 2.0])
    assert score.temporal_efficiencies(a, c, "validation_accuracy", smoothed=True) == pytest.approx([4.0, 2.0])
    assert score.temporal_efficiencies(a, b, "training_accuracy") == []


# ---- workers, workloads, staleness -----------------------------------------------------------------------------------


def test_speed_up_and_efficiency():
    gains = score.speed_up({4: 3.0, 1: 9.0, 2: 6.0})
    assert gains == {1: 1.0, 2: 1.5, 4: 3.0}
    assert score.efficiency(gains) == {1: 1.0, 2: 0.75, 4: 0.75}
    assert score.efficiency(score.speed_up({2: 6.0, 8: 2.0})) == {2: 1.0, 8: 0.75}  # against the fewest there are
    assert score.speed_up({1: 9.0, 2: math.inf}) == {1: 1.0, 2: 0.0}
    assert all(map(math.isnan, score.speed_up({1: math.inf, 2: 3.0}).values()))


def test_performance_profile():
    costs = [[1.0, 4.0, math.inf, math.inf], [2.0, 2.0, 5.0, math.inf], [math.nan, math.inf, 5.0, math.inf], [0.0] * 4]
    assert score.performance_profile(costs[:3], [1.0, 2.0, math.inf]).tolist() == [
        [0.25, 0.5, 0.5],
        [0.5, 0.75, 0.75],
        [0.25] * 3,
    ]
    assert score.performance_profile(costs[3:], [1.0, math.inf]).tolist() == [[1.0, 1.0]]


def test_staleness():
    runs = [run("A", staleness={"steps": {"0": 2, "10": 1}, "distance": [0, 1, 2, 3, 4, 5, 6]}), run("A")]
    runs += [run("A", staleness={"steps": {"2": 6, "0": 1}, "distance": [2, 3, 4, 5, 6, 7, 8]})]
    counts = score.staleness_counts(runs)
    assert list(counts.items()) == [(0, 3), (2, 6), (10, 1)]
    assert score.staleness_quantiles(counts) == (2.2, [2, 10, 10])
    assert score.staleness_quantiles(counts, [0.0, 0.3, 0.9]) == (2.2, [0, 0, 2])
    assert score.distance_quantiles(runs) == [1, 2, 3, 4, 5, 6, 7]
    assert score.distance_quantiles(runs[1:2]) is None
