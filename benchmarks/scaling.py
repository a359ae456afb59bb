"""Speed-up of a CNN to 256 workers, by simulation, calibrated from this machine.

Beside it stands what was published for a data- and model-parallel framework on Spark: up to 11 times for a CNN (Shrivastava,
Chaudhury and Jayadeva 2017, arXiv 1708.05840).
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
from pathlib import Path

import firesteel
from benchmarks import report
from firesteel.plots import speed_up
from firesteel.sim.dry import Prediction

ROWS, BATCH = 60_000, 64
WORKERS = [1, 2, 4, 8, 11, 16, 32, 64, 128, 256]
STRATEGIES = [firesteel.SyncSGD(), firesteel.ModelAveraging(16), firesteel.DiLoCo(), firesteel.DynSGD(), firesteel.AEASGD()]
PICTURE = Path(__file__).parents[1] / "docs" / "scaling.png"

_ABOUT = f"""LeNet on {ROWS:,} rows of MNIST, batches of {BATCH} a worker, Adam; speed-up in seconds per epoch over one worker;
`make bench-scaling`. The published framework reports up to 11 times for a CNN, on a cluster that we cannot describe;
the column 11 is there for comparison."""

_ASSUMED = """Assumed: every worker computes like one of this machine's ({row:.0f} us a row, {step:.0f} us a step, as
calibrated), has a host of its own with a 1 Gbit/s card and 0.1 ms of latency behind one switch that is never
the bottleneck; all-reduce by a ring; servers with hosts of their own merge at {merging:.1f} GB/s; rows are in
memory; nobody fails or slows down. An epoch is an epoch: that more workers make an epoch's batches fewer and
larger, and so teach less, is not in these numbers."""

_WHY = """Why it saturates: an all-reduce at every step costs 2(n-1) latencies and twice the model over the card, while the
computing of a step stays the same and only the number of steps shrinks; so SyncSGD levels off at the ratio of the
two. Averaging every 16 or 100 steps moves that limit out. A single server's card carries every worker's pushes and
pulls, so workers that do not wait level off at what the card takes, and more servers move that limit in proportion."""


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--mnist", help="folder of the four IDX files")
    given = flags.parse_args()
    data = firesteel.datasets.mnist(report.mnist_folder(given.mnist))
    columns = firesteel.Image("features", (1, 28, 28))
    here = firesteel.calibrate(
        firesteel.models.LeNet, data, on=firesteel.Local(2, threads=1), batch_size=BATCH, features=columns
    )
    # Its computing and merging, on hosts of their own: what one machine cannot measure is assumed.
    network = firesteel.Network(latency_seconds=1e-4, bandwidth=125e6)
    merging = dataclasses.replace(here.merging, place="own")
    cluster = dataclasses.replace(here, network=network, merging=merging, compute=_mean(here))
    settings = {"batch_size": BATCH, "optimizer": firesteel.Adam()}
    plan = firesteel.plan(firesteel.models.LeNet(), cluster, ROWS, STRATEGIES, WORKERS, **settings)
    wide = firesteel.plan(firesteel.models.LeNet(), cluster, ROWS, [firesteel.DynSGD()], WORKERS, shards=8, **settings)
    speed_up(plan).savefig(PICTURE, dpi=144)
    rows = []
    for strategy in STRATEGIES:
        found = [p for p in plan.predictions if p.strategy == strategy]
        rows.append([type(strategy).__name__, *(f"{plan.speed_up(p):.1f}" for p in found), _saturation(found)])
    found = list(wide.predictions)
    rows.append(["DynSGD, 8 servers", *(f"{wide.speed_up(p):.1f}" for p in found), _saturation(found)])
    assumed = _ASSUMED.format(
        row=1e6 * cluster.row_seconds(0)[0], step=1e6 * cluster.compute.step_seconds, merging=cluster.merging.bandwidth / 1e9
    )
    text = "\n\n".join(
        [
            "## Scaling, by simulation",
            _ABOUT,
            report.table(["workers", *(str(n) for n in WORKERS), "saturates at"], rows),
            "![Speed-up over workers](scaling.png)",
            assumed,
            _WHY,
        ]
    )
    print(text)
    report.write("bench-scaling", text)


def _mean(cluster: firesteel.Cluster) -> firesteel.Compute:
    each = cluster.row_seconds(0)
    return dataclasses.replace(cluster.compute, row_seconds=sum(each) / len(each))


def _saturation(found: list[Prediction]) -> str:
    """The first number of workers at which twice as many bring less than a third more, and what holds it up there."""
    for one, two in itertools.pairwise(found):
        if two.workers >= 2 * one.workers and one.epoch_seconds / two.epoch_seconds < 1.33:
            return f"{one.workers}, by {two.dominated_by}"
    return "not here"


if __name__ == "__main__":
    main()
