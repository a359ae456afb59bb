"""L-BFGS with its history on one worker and spread over all of them: which is faster, over the number of parameters.

Chen, Wang & Zhou 2014, "Large-scale L-BFGS using MapReduce" (NIPS), 16 nodes: below about 10 M parameters the central form is
faster; at 512 M it runs out of memory where the vector-free one reaches 1 B.
"""

from __future__ import annotations

import argparse
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from recipes.methods import CentralLBFGS, recursion
from torch import Tensor, nn

import firesteel
from benchmarks import report
from firesteel import Cluster, Compute, Network, VectorFreeLBFGS
from firesteel.net.protocol import Vec, drive
from firesteel.sim import costs
from firesteel.strategies.curvature import History

WORKERS, MEMORY = 16, 10
SIZES = [10**k for k in range(3, 10)]
LARGE, LARGER = 512 * 10**6, 10**9
PAPER = 10**7  # parameters, where the paper's forms cross
NETWORKS = {"1 Gbit/s, 0.1 ms": Network(1e-4, 125e6), "10 Gbit/s, 0.02 ms": Network(2e-5, 1.25e9)}


# ---- multiply-adds, on this machine ----------------------------------------------------------------------------------


@final
class _Alone:
    """As much of a net as a history needs that is not shared."""

    async def all_reduce(self, x: Tensor, op: str) -> Tensor:
        return x


def multiply_add_seconds(numbers: int = 2**22) -> tuple[float, float]:
    """Of the recursion and of the history that is spread out, on one core, with vectors that no cache holds."""
    torch.set_num_threads(1)
    vectors = torch.rand(2, MEMORY, numbers) + 0.5
    pairs = deque(zip(*vectors, strict=True))
    gradient = torch.rand(numbers)
    central = _shortest(lambda: recursion(pairs, gradient))
    history, net = History(MEMORY, gradient), _Alone()

    def spread(s: Vec, y: Vec) -> None:
        drive(history.add(net, s, y, gradient))  # pyright: ignore[reportArgumentType]
        _ = history.direction()

    for s, y in pairs:
        spread(s, y)
    shared = _shortest(lambda: spread(*pairs[0]))
    one, all_ = (form("ring", 1, numbers, MEMORY, 0.0, 1.0) for form in (costs.central_lbfgs, costs.vector_free_lbfgs))
    return central / one.multiply_adds, shared / all_.multiply_adds


def _shortest(call: Callable[[], Any]) -> float:
    found = []
    for _ in range(5):
        began = time.perf_counter()
        call()
        found.append(time.perf_counter() - began)
    return min(found)


# ---- both forms on imagined clusters ---------------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class Cost:
    seconds: float
    memory_bytes: int


def rehearsed(numbers: int, network: Network, each: tuple[float, float]) -> list[Cost]:
    """An iteration of both forms, by the planner, and what their multiply-adds take here; passes over the rows left out."""
    model = nn.Linear(numbers, 1, bias=False, device="meta")
    cluster = Cluster(WORKERS, Compute(1e-12), network, all_reduce="halving_doubling")
    strategies = [CentralLBFGS(MEMORY), VectorFreeLBFGS(MEMORY)]
    plan = firesteel.plan(model, cluster, WORKERS, strategies, [WORKERS], optimizer=firesteel.SGD())
    shown = network.latency_seconds + 4 * numbers / network.bandwidth  # of the model, to the caller
    forms = [form(numbers, network) for form in (central, vector_free)]
    return [
        Cost(p.epoch_seconds - shown + form.multiply_adds * seconds, p.memory_bytes)
        for p, form, seconds in zip(plan.predictions, forms, each, strict=True)
    ]


def central(numbers: int, network: Network) -> costs.Step:
    return costs.central_lbfgs("halving_doubling", WORKERS, numbers, MEMORY, network.latency_seconds, network.bandwidth)


def vector_free(numbers: int, network: Network) -> costs.Step:
    return costs.vector_free_lbfgs("halving_doubling", WORKERS, numbers, MEMORY, network.latency_seconds, network.bandwidth)


def crossing(network: Network, each: tuple[float, float], extra_seconds: float = 0.0) -> float:
    """The parameters from which on the vector-free form is faster: in closed form, both are straight lines."""

    def ahead(numbers: int) -> float:
        one, all_ = central(numbers, network), vector_free(numbers, network)
        return one.seconds + one.multiply_adds * each[0] - all_.seconds - all_.multiply_adds * each[1]

    return (extra_seconds - ahead(0)) / (ahead(1) - ahead(0))


_ABOUT = f"""Seconds of an iteration of L-BFGS with one look along the line and {MEMORY} pairs, {WORKERS} workers;
`make bench-crossover`. Central: worker 0 alone has the history; gradients go to it by a tree of messages, the direction
comes back by another (`benchmarks/crossover.py`). Both programs are rehearsed by the planner, and their multiply-adds are
added as this machine takes them on one core: {{0:.2f}} ns each for the recursion, {{1:.2f}} ns for the history that is spread
out, which sums in float64. GB: of the worker that holds most. Passes over the rows cost the same in both forms and are left
out. Assumed: a host for each worker, no rack in the way, numbers of 4 bytes, all-reduce by halving and doubling."""


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    each = multiply_add_seconds()
    lines, off = [], 0.0
    for numbers in sorted([*SIZES, LARGE]):
        row = [f"{numbers:,}"]
        for network in NETWORKS.values():
            found = rehearsed(numbers, network, each)
            forms = central(numbers, network), vector_free(numbers, network)
            said = [form.seconds + form.multiply_adds * seconds for form, seconds in zip(forms, each, strict=True)]
            off = max(off, *(abs(a.seconds / b - 1) for a, b in zip(found, said, strict=True)))
            row += [f"{cost.seconds:.3g}" for cost in found]
        lines.append([*row, *(f"{cost.memory_bytes / 1e9:.3g}" for cost in found)])
        print(lines[-1], flush=True)
    header = ["parameters", *(f"{form}, s, {name}" for name in NETWORKS for form in ("central", "vector-free"))]
    crossings = [
        f"On {name} they cross at {crossing(network, each):,.0f} parameters; at {PAPER // 10**6} M if the vector-free form "
        f"loses {_missing(network, each):.2g} s an iteration elsewhere."
        for name, network in NETWORKS.items()
    ]
    text = "\n\n".join(
        [
            "## Central and vector-free L-BFGS",
            _ABOUT.format(*(1e9 * seconds for seconds in each)),
            report.table([*header, "central, GB", "vector-free, GB"], lines),
            f"The closed forms of `firesteel.sim.costs` differ from the rehearsals by {off:.1%} at most.",
            "\n".join(crossings),
            _verdict(each),
        ]
    )
    print(text)
    report.write("bench-crossover", text)


def _missing(network: Network, each: tuple[float, float]) -> float:
    """Seconds an iteration that the vector-free form would have to lose elsewhere, to cross where the paper's does."""
    here, later = crossing(network, each), crossing(network, each, 1.0)
    return (PAPER - here) / (later - here)


def _verdict(each: tuple[float, float]) -> str:
    network = next(iter(NETWORKS.values()))
    most = [cost.memory_bytes for cost in (rehearsed(LARGE, network, each)[0], rehearsed(LARGER, network, each)[1])]
    fits = "met" if most[1] < most[0] else "NOT MET"
    late = min(crossing(network, each) for network in NETWORKS.values())
    found = "found again" if 0.5 * PAPER <= late <= 2 * PAPER else "NOT found again"
    memory = f"worker 0 needs {most[0] / 1e9:.1f} GB at 512 M, each worker of the other {most[1] / 1e9:.1f} GB at 1 B; {fits}"
    return f"""The paper (Chen, Wang & Zhou 2014; {WORKERS} nodes) says two things. Below about {PAPER // 10**6} M parameters
the central form is faster: {found} here, where a meeting costs a millisecond or less; there it is a MapReduce job (our
reading), of which the vector-free form needs more. At 512 M the central form runs out of memory where the other reaches 1 B:
{memory}, on nodes with memory between the two."""


if __name__ == "__main__":
    main()
