"""How fast and how large simulations are: events per second without gradients, and a thousand workers with them."""

from __future__ import annotations

import argparse
import multiprocessing as mp
import resource
import time
from typing import Any

import torch

import firesteel
from benchmarks import report
from firesteel import Cluster, Compute, Simulated
from firesteel.net.center import Center
from firesteel.net.control import Control
from firesteel.sim.center import Servers, SimulatedWorker
from firesteel.sim.fabric import Fabric
from firesteel.sim.gang import Circle, SimulatedGang
from firesteel.sim.simulation import Member, Simulation, paces

WORKERS = 1000


def messages(rounds: int = 100) -> tuple[int, float]:
    """A thousand workers in a ring: send to the next, receive from the one before."""
    simulation, circle, pace = _begin()

    async def program(net: Any, member: Member) -> None:
        for _ in range(rounds):
            member.meter(1)(1.0)
            sent = net.send(x, (net.rank + 1) % net.size)
            _ = await net.recv((net.rank - 1) % net.size)
            await sent

    x = torch.zeros(1)
    for rank in range(WORKERS):
        member = Member(simulation, rank, pace[rank])
        member.start(program(SimulatedGang(member, circle, rank, Control()), member))
    return _timed(simulation)


def exchanges(rounds: int = 50) -> tuple[int, float]:
    """A thousand workers and one server, which merges eight numbers."""
    simulation, _, pace = _begin()
    servers = Servers(simulation, [Center(torch.zeros(8), firesteel.Downpour(), WORKERS)], [slice(0, 8)])

    async def program(net: Any, member: Member) -> None:
        for _ in range(rounds):
            member.meter(1)(1.0)
            _ = await net.exchange(delta)

    delta = torch.zeros(8)
    for rank in range(WORKERS):
        member = Member(simulation, rank, pace[rank])
        net = SimulatedWorker(member, WORKERS, servers)
        _ = net.join()
        member.on_end = net.close
        member.start(program(net, member))
    return _timed(simulation)


def _begin() -> tuple[Simulation, Circle, Any]:
    torch.set_num_threads(1)
    cluster = Cluster(WORKERS, Compute(1e-3))
    return Simulation(Fabric(cluster)), Circle(tuple(range(WORKERS))), paces(cluster, 0)


def _timed(simulation: Simulation) -> tuple[int, float]:
    began = time.perf_counter()
    simulation.run()
    return simulation.events, time.perf_counter() - began


def large(strategy: Any, pipe: Any) -> None:
    """A thousand workers with 100,000 parameters each and Adam, five steps; sends wall seconds and peak bytes."""
    torch.set_num_threads(1)
    x, y = torch.randn(20_000, 100), torch.randint(10, (20_000,))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    run = firesteel.train(
        lambda: firesteel.models.MLP(100, 910, 10),
        (x, y),
        strategy=strategy,
        on=Simulated(Cluster(WORKERS)),
        batch_size=4,
        epochs=1,
        validation=None,
        progress="none",
    )
    numbers = sum(p.numel() for p in run.model.parameters())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pipe.send((numbers, time.perf_counter() - began, 1024 * peak, 1024 * before))


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    rows = []
    for what, call in (("send and receive", messages), ("push and pull", exchanges)):
        events, seconds = max((call() for _ in range(3)), key=lambda found: found[0] / found[1])
        met = "met" if events / seconds >= 1e5 else "NOT MET"
        rows.append([what, f"{events:,}", f"{events / seconds:,.0f}", f"100,000, {met}"])
        print(rows[-1], flush=True)
    sizes = []
    for strategy in (firesteel.SyncSGD(), firesteel.ModelAveraging(4), firesteel.AGN(3), firesteel.ADAG(3)):
        ours, theirs = mp.get_context("spawn").Pipe()
        process = mp.get_context("spawn").Process(target=large, args=(strategy, theirs))
        process.start()
        numbers, seconds, peak, before = ours.recv()
        process.join()
        met = "met" if peak < 4e9 else "NOT MET"
        sizes.append([type(strategy).__name__, f"{numbers:,}", f"{seconds:.0f}", f"{peak / 1e9:.2f}", f"4, {met}"])
        print(sizes[-1], f"{before / 1e9:.2f} GB before", flush=True)
    text = "\n\n".join(
        [
            "## The simulator",
            f"{WORKERS:,} workers; `make bench-simulator`. The event loop without gradients, the best of three:",
            report.table(["", "events", "events/s", "bar"], rows),
            "A training with real gradients, Adam, five steps of each worker; the whole process:",
            report.table(["strategy", "parameters", "wall seconds", "peak GB", "bar, GB"], sizes),
        ]
    )
    print(text)
    report.write("bench-simulator", text)


if __name__ == "__main__":
    main()
