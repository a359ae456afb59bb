"""Pictures say what the run's tables say."""

from __future__ import annotations

import pytest
from problem import network, rows

import firesteel
from firesteel import Cluster, Compute, DynSGD, Failure, ModelAveraging, Network, Simulated
from firesteel.plots import _BLUE, gantt, speed_up
from firesteel.sim.planner import TRUST, suiting
from firesteel.strategies import CATALOGUE

AWAY = (0.05, 0.2)
FAILING = Cluster(3, Compute(1e-4, 1e-3), Network(1e-3, 1e7), failures=(Failure(1, *AWAY),))


def trained(strategy, cluster=FAILING):
    on = Simulated(cluster)
    return firesteel.train(network, rows(300), strategy=strategy, on=on, batch_size=8, epochs=6, progress="none")


def computing(figure) -> list[list[tuple[float, float]]]:
    """Of each worker: from when to when."""
    from matplotlib.collections import PolyCollection
    from matplotlib.colors import to_hex

    strips = [c for c in figure.axes[0].collections if isinstance(c, PolyCollection) and to_hex(c.get_facecolor()[0]) == _BLUE]
    return [[(p.get_extents().x0, p.get_extents().x1) for p in strip.get_paths()] for strip in strips]


@pytest.mark.parametrize(("strategy", "gone"), [(DynSGD(4), [1]), (ModelAveraging(4), [0, 1, 2])], ids=str)
def test_a_worker_that_is_away_computes_nothing(strategy, gone):
    run = trained(strategy)
    spans = computing(gantt(run))
    assert [r for r in range(3) if all(end <= AWAY[0] or begin >= AWAY[1] for begin, end in spans[r])] == gone
    for rank in gone:
        assert spans[rank][0][0] < AWAY[0] and spans[rank][-1][1] > AWAY[1]
    trace = run.trace.to_pylist()
    for rank in {0, 1, 2} - set(gone):  # who never was away computed whenever it did not wait
        waited = sum(e["waited_seconds"] for e in trace if e["rank"] == rank)
        end = max(e["seconds"] for e in trace if e["rank"] == rank)
        assert sum(b - a for a, b in spans[rank]) == pytest.approx(end - waited)


def test_strips_that_are_left_out_are_counted():
    run = trained(DynSGD(4))
    said = [t.get_text() for t in gantt(run, most_workers=2).axes[0].get_yticklabels()]
    assert said == ["worker 0", "worker 1", "and 1 more"]
    assert gantt(run).axes[0].get_xlabel() == "virtual seconds"


def test_the_seconds_above_a_curve_are_those_of_its_epochs():
    run = trained(ModelAveraging(5))
    axes = run.plot().axes[0]
    said = axes.child_axes[0].xaxis.get_major_formatter()
    table = run.history.to_pydict()
    assert table["seconds"][-1] / table["epoch"][-1] > 1.5 * table["seconds"][0] / table["epoch"][0]  # it was away since
    for epoch, seconds in zip(table["epoch"], table["seconds"], strict=True):
        assert float(said(epoch)) == pytest.approx(seconds, rel=0.01)


@pytest.mark.parametrize("failures", [1, 60])
def test_titles_stay_inside(failures):
    events = tuple(Failure(1, 0.01 * i, 0.01 * i + 0.005) for i in range(failures))
    run = trained(DynSGD(4), Cluster(3, Compute(1e-4, 1e-3), failures=events))
    for figure in (run.plot_staleness(), run.plot(), run.plot_loss(), run.plot_gantt()):
        figure.draw_without_rendering()
        (title,) = figure.texts
        box = title.get_window_extent()
        assert title.get_text().startswith("DynSGD(window=4)")
        assert box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.height < 0.25 * figure.bbox.height


def test_every_line_of_a_plan_looks_different():
    adam = firesteel.Adam()
    chosen = [*suiting([CATALOGUE[name]() for name in TRUST if name != "Grid"], network(), adam, [2]), ModelAveraging(4)]
    found = firesteel.plan(network, FAILING, 100, chosen, [2], batch_size=4, optimizer=adam)
    lines = speed_up(found).axes[0].lines
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == len(lines) == len(chosen) + 1
    labels = [str(line.get_label()).partition(":")[0] for line in lines]
    assert {"ModelAveraging()", "ModelAveraging(period=4)", "DiLoCo"} <= set(labels)
