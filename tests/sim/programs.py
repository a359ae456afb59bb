"""Small programs on an imagined cluster, without models or data."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import torch

from firesteel.net.center import Center, Rules
from firesteel.net.control import Control
from firesteel.sim.center import Servers, SimulatedWorker
from firesteel.sim.cluster import Cluster
from firesteel.sim.fabric import Fabric
from firesteel.sim.gang import Circle, SimulatedGang
from firesteel.sim.simulation import Member, Simulation, paces

Program = Callable[[Any, Any], Coroutine[Any, Any, Any]]


def gang(cluster: Cluster, program: Program, draws: bool = False, failing: float | None = None, **limits: Any) -> list[Member]:
    """Run `program(net, member)` on every worker; returns the members, with result, clock and trace.

    Args:
        draws: each draws from a share of torch's global generator of its own.
        failing: the virtual second at which worker 1 dies.
    """
    simulation = Simulation(Fabric(cluster), **limits)
    circle, pace = Circle(tuple(range(cluster.workers))), paces(cluster, 0)
    for rank in range(cluster.workers):
        member = Member(simulation, rank, pace[rank])
        generator = torch.Generator().manual_seed(rank).get_state() if draws else None
        member.start(program(SimulatedGang(member, circle, rank, Control()), member), generator)
    if failing is not None:
        simulation.at(failing, 1, simulation.members[1].die)
    simulation.run()
    return simulation.members


def served(cluster: Cluster, program: Program, center: Any, strategy: Any, **rules: Any) -> Center:
    """The same with a server that holds `center`, [P]; returns it as it ends."""
    simulation = Simulation(Fabric(cluster))
    fold = Center(center, strategy, cluster.workers, rules=Rules(**rules))
    servers = Servers(simulation, [fold], [slice(0, center.numel())], rules.get("max_ahead") is not None)
    pace = paces(cluster, 0)
    for rank in range(cluster.workers):
        member = Member(simulation, rank, pace[rank])
        net = SimulatedWorker(member, cluster.workers, servers)
        _ = net.join()
        member.on_end = net.close
        member.start(program(net, member))
    simulation.run()
    return fold
