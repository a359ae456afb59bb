r"""Strategies whose workers leave the center for a while and push the way they travelled, without waiting for each other.

Every worker takes \(\lambda\) local steps with any optimizer, pushes \(\Delta = \theta_{after} - \theta_{before}\) or its
mean step, pulls, and goes on from there. What differs is how the server merges. Optimizer state stays with the worker and
survives a pull. Hermans 2017, "On Scalable Deep Learning and Parallelizing Gradient Descent" (CERN-THESIS-2017-103); the
names are the thesis's: what dist-keras calls `ADAG` is `AGN` here, and its `Experimental` is `ADAG(normalise=True)`.

With `prefetch`, the pull is posted and the next local step is computed meanwhile: that step starts from the old center and
is moved onto the new one when it arrives, so that what a worker pushes is one step staler.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch

from firesteel.errors import UsageError
from firesteel.net.protocol import Net, Push, Vec
from firesteel.worker import Worker

_BLOCK = 2**21  # numbers


async def excursions(worker: Worker, net: Net, window: int, normalise: bool, prefetch: bool) -> Vec:
    """Leave the center for `window` local steps, push the way travelled (or its mean step), pull; repeat."""
    center = worker.params = await net.pull()
    taken, pending, left = 0, None, worker.params

    def travelled() -> Vec:
        delta = torch.sub(worker.params, center, out=center)  # in its place: what is pulled next is another one
        return delta.div_(taken) if normalise else delta

    for _, batch in worker.steps():
        worker.step(worker.gradient(batch))
        taken += 1
        if pending is not None:
            center = await pending
            worker.params, pending = center + (worker.params - left), None
        if taken == window and prefetch:
            await net.push(travelled())
            left, pending, taken = worker.params.clone(), net.pull(), 0
        elif taken == window:
            center = worker.params = await net.exchange(travelled())
            taken = 0
    if pending is not None:
        center = worker.params = await pending
    if taken:  # the last, partial window is pushed too
        return await net.exchange(travelled())
    return center


def _checked(strategy: object, **lowest: float) -> None:
    for name, least in lowest.items():
        value = getattr(strategy, name)
        if value is not None and not value >= least:
            raise UsageError(f"{type(strategy).__name__}({name}={value}): {name} must be at least {least}.")


@final
@dataclass(frozen=True)
class Downpour:
    r"""Push what was gained, add it up: \( \tilde\theta \leftarrow \tilde\theta + \Delta_k \).

    Dean et al. 2012, "Large Scale Distributed Deep Networks", section 4.1; Hermans 2017, section 2.3. The sum of many
    workers' windows is too long a step: it diverges where workers times window is large (20 workers with window 20; at a
    rate of 0.1 already 4), and not at two. AGN and DynSGD do not.
    """

    window: int = 5
    """Local steps between two pushes, >= 1; dist-keras's default."""
    prefetch: bool = False
    """Compute one step while the pull is under way."""
    needs_seen: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _checked(self, window=1)

    async def run(self, worker: Worker, net: Net) -> Vec:
        return await excursions(worker, net, self.window, False, self.prefetch)

    def merge(self, center: Vec, push: Push) -> None:
        center.add_(push.delta)


@final
@dataclass(frozen=True)
class DynSGD:
    r"""Downpour that trusts the stale less: \( \tilde\theta \leftarrow \tilde\theta + \Delta_k / (\tau + 1) \).

    Jiang et al. 2017, "Heterogeneity-aware distributed parameter servers"; Hermans 2017, section 2.5.
    """

    window: int = 5
    """Local steps between two pushes, >= 1; dist-keras's default."""
    prefetch: bool = False
    """Compute one step while the pull is under way."""
    needs_seen: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _checked(self, window=1)

    async def run(self, worker: Worker, net: Net) -> Vec:
        return await excursions(worker, net, self.window, False, self.prefetch)

    def merge(self, center: Vec, push: Push) -> None:
        center.add_(push.delta, alpha=1 / (push.staleness + 1))


@final
@dataclass(frozen=True)
class AGN:
    r"""Accumulated gradient normalisation: push the mean step, \( \tilde\theta \leftarrow \tilde\theta + \Delta_k / \lambda \).

    Hermans 2017, chapter 3 (dist-keras: `ADAG`). With window 1 it is Downpour. The last, partial window is divided by
    the steps it really had. Slow by design where there are far fewer workers than steps in a window.
    """

    window: int | None = None
    """Local steps between two pushes, >= 1. None takes the thesis's rule, round((workers + layers) / 2), with the tensors
    of two dimensions and more for layers; dist-keras's 12 costs two workers several points."""
    prefetch: bool = False
    """Compute one step while the pull is under way."""
    needs_seen: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _checked(self, window=1)

    async def run(self, worker: Worker, net: Net) -> Vec:
        return await excursions(worker, net, self.window or _by_rule(worker, net), True, self.prefetch)

    def merge(self, center: Vec, push: Push) -> None:
        center.add_(push.delta)


def _by_rule(worker: Worker, net: Net) -> int:
    layers = sum(1 for slot in worker.slots if len(slot.shape) > 1)
    return max(1, round((net.size + layers) / 2))


@final
@dataclass(frozen=True)
class ADAG:
    r"""Downpour damped, coordinate by coordinate, where the center has moved away from what the sender saw.

    \( \tilde\theta_t \leftarrow \tilde\theta_t + \Delta_k \oslash (1 + (\tilde\theta_t - \tilde\theta_{t-\tau})^2 / \gamma) \).
    Hermans 2017, chapter 4; with `normalise` it is ADAG on AGN, the thesis's recommendation (dist-keras: `Experimental`).
    """

    window: int | None = None
    """Local steps between two pushes, >= 1. None takes 5, or with `normalise` AGN's rule."""
    gamma: float = 1e-4
    """About the square of a typical stale distance of one coordinate, > 0: smaller damps more."""
    normalise: bool = False
    """Push the mean step, as AGN does."""
    prefetch: bool = False
    """Compute one step while the pull is under way."""
    needs_seen: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _checked(self, window=1)
        if not self.gamma > 0:
            raise UsageError(f"ADAG(gamma={self.gamma}): gamma must be greater than 0.")

    async def run(self, worker: Worker, net: Net) -> Vec:
        window = self.window or (_by_rule(worker, net) if self.normalise else 5)
        return await excursions(worker, net, window, self.normalise, self.prefetch)

    def merge(self, center: Vec, push: Push) -> None:
        assert push.seen is not None  # the server keeps it, as `needs_seen` asks
        # By blocks that stay in a large cache: about one pass through memory in place of three.
        for c, moved, delta in zip(*(x.split(_BLOCK) for x in (center, push.seen, push.delta)), strict=True):
            torch.ops.aten.mse_loss.out(moved, c, 0, out=moved)  # (seen - c)^2 in one pass; 0: without a mean
            c.addcdiv_(delta, moved.add_(self.gamma), value=self.gamma)
