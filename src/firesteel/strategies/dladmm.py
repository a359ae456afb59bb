r"""Training deeper networks without gradients: ADMM that sweeps backward and then forward.

Wang, Yu, Chen & Zhao 2019, "ADMM for efficient deep learning with global convergence" (KDD, arXiv 1905.13611). Minimised is

\[ \phi = R(z_L, y) + \tfrac{\nu}{2} \sum_{l<L} (\|z_l - W_l a_{l-1} - b_l\|^2 + \|a_l - h(z_l)\|^2)
   + u^\top (z_L - W_L a_{L-1} - b_L) + \tfrac{\rho}{2} \|z_L - W_L a_{L-1} - b_L\|^2, \]

summed over rows: layers from last to first in the order \(a_l, z_l, b_l, W_l\), then from first to last in the order
\(W_l, b_l, z_l, a_l\), then \( u \leftarrow u + \rho (z_L - W_L a_{L-1} - b_L) \).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from firesteel.errors import Diverged, UsageError
from firesteel.net.protocol import Net, Vec
from firesteel.strategies import outputs
from firesteel.strategies.chain import chain
from firesteel.strategies.layerwise import Layerwise, Part, Tally, least_squares, towards, unmet
from firesteel.strategies.outputs import OUTPUTS, Output
from firesteel.strategies.ranges import one_of, positive
from firesteel.worker import Worker

Update = Literal["exact", "majorised"]


@final
@dataclass(frozen=True)
class DlADMM:
    r"""ADMM for deep networks (dlADMM, Wang et al. 2019). A step is a sweep, backward and forward, and an epoch.

    Two forms of the update of weights and activations. "majorised" is the paper's: one gradient step of length
    \(1/\theta\), where \(\theta\) doubles until the step's quadratic model lies above \(\phi\); no matrix is inverted.
    "exact", the default, solves their least squares, with a ridge centered on the weights as they were: a few sweeps of it
    learn what hundreds of the other do.

    `accelerate` lets a sweep begin beyond the weights that the last one ended with, as Nesterov's method does, and starts
    anew where that points uphill: Goldstein, O'Donoghue, Setzer & Baraniuk 2014, "Fast alternating direction optimization
    methods", section 4.3; the test is that of O'Donoghue & Candes 2015, section 3.2. It is not in the paper.

    Weights begin as the model has them (PyTorch's or, better here, He's), activations by a forward pass, the multiplier at
    0. The paper's code raises its penalties while it runs; here they stay as they are given.

    `Run.history` has, as roots of mean squares, the residuals primal \(z_L - W_L a_{L-1} - b_L\), dual (the change of
    \( \rho (W_L a_{L-1} + b_L) \)) and hidden \(a_l - h(z_l)\), and the multiplier; and the objective, \(\phi\) without the
    multiplier's term, for a row. The model that scored best in validation is kept.
    """

    nu: float = 0.01
    """Penalty of the hidden layers, > 0."""
    rho: float = 0.1
    """Penalty of the output layer, > 0."""
    output: Output = "cross_entropy"
    """What is minimised: "cross_entropy" or "hinge" for classes, "squared" for classes (as 0 and 1) or values."""
    update: Update = "exact"
    """How weights and activations are updated: "exact" or "majorised"."""
    ridge: float | None = None
    """How much "exact" holds weights where they are, as a share of the mean diagonal of their inputs' sums, > 0; 0.03 if None.
    Deeper networks need more: 3 for two hidden layers."""
    accelerate: bool | None = None
    """Whether "exact" sweeps begin beyond the last weights; True if None."""

    own_steps = True
    full_batch = True
    keeps_best = True

    def __post_init__(self) -> None:
        positive(self, "nu", "rho", *(() if self.ridge is None else ("ridge",)))
        one_of(self, output=OUTPUTS, update=("exact", "majorised"), accelerate=(None, True, False))
        if self.update == "majorised" and (self.ridge is not None or self.accelerate):
            given = "accelerate=True" if self.ridge is None else f"ridge={self.ridge}"
            raise UsageError(f'DlADMM(update="majorised", {given}): only update="exact" has it; leave it out.')

    def check(self, workers: int, optimizer: torch.optim.Optimizer, module: nn.Module) -> str | None:
        outputs.check("DlADMM", self.output, chain(module, "DlADMM").layers[-1].out_features)
        return None

    def review(self, history: list[dict[str, Any]]) -> str | None:
        return unmet(history, "Raise rho, or lower nu.")

    async def run(self, worker: Worker, net: Net) -> Vec:
        sweeps = _Sweeps(self, Layerwise(worker, chain(worker.module, "DlADMM"), self.output), net)
        pace = _Pace(worker.params) if self.update == "exact" and self.accelerate is not False else None
        resumed = net.resume()
        if resumed:
            left = sweeps.restore(resumed)
            if pace is not None:
                pace.restore(left)
        else:
            sweeps.begin()
        for _ in worker.iterations():
            if pace is not None:
                worker.params = pace.ahead(worker.params)
            await sweeps.sweep()
            if pace is not None:
                pace.arrived(worker.params)
            worker.measure()
            net.publish(worker.params, *sweeps.state(), *(() if pace is None else pace.state()))
        return worker.params


@final
class _Sweeps:
    def __init__(self, settings: DlADMM, rows: Layerwise, net: Net) -> None:
        self.settings: DlADMM = settings
        self.rows: Layerwise = rows
        self.net: Net = net
        self.ridge: float = 0.03 if settings.ridge is None else settings.ridge
        self.last: int = len(rows.chain.layers) - 1
        self.before: Tensor = torch.zeros_like(rows.u)  # W_L a_{L-1} + b_L of the sweep before
        self.theta: Tensor = torch.ones(2, self.last + 1, dtype=torch.float64)  # of each layer's weights, and inputs

    def begin(self) -> None:
        rows = self.rows
        for k in range(self.last + 1):
            for part in rows.parts:
                rows.z[k][part] = rows.mapped(k, part)
            if k < self.last:
                a = rows.new_inputs(k + 1)
                for part in rows.parts:
                    a[part] = rows.chain.between[k](rows.z[k][part])

    def state(self) -> tuple[Tensor, ...]:
        return *self.rows.state(), self.before, self.theta

    def restore(self, found: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        before, theta, *left = self.rows.restore(found)
        self.before, self.theta = before.clone(), theta.clone()
        return tuple(left)

    async def sweep(self) -> None:
        rows, last = self.rows, self.last
        sums: tuple[Tensor, ...] = ()
        for k in reversed(range(last + 1)):
            if k < last:
                await self._inputs(k + 1, None)
            for part in rows.parts:
                rows.z[k][part] = self._nearest(k, part, rows.mapped(k, part))
            sums = await self._sums(k)
            self._layer(k, *sums, bias_first=True)
        tally = Tally()
        for k in range(last):
            # Between the ways back and forth the first layer's sums are the same ones.
            self._layer(k, *(sums if k == 0 else await self._sums(k)), bias_first=False)
            for part in rows.parts:
                m = rows.mapped(k, part)
                z = rows.z[k][part] = self._nearest(k, part, m)
                tally.cost(rows.weight(part), self.settings.nu / 2 * ((z - m) ** 2).sum(1))
            await self._inputs(k + 1, tally)
        self._layer(last, *(sums if last == 0 else await self._sums(last)), bias_first=False)
        rho = self.settings.rho
        for part in rows.parts:
            m, u = rows.mapped(last, part), rows.u[part]
            z = rows.z[last][part] = self._nearest(last, part, m)
            gap = z - m
            _ = u.add_(gap, alpha=rho)
            tally.square(primal=gap, dual=rho * (m - self.before[part]), multiplier=u)
            tally.cost(rows.weight(part), outputs.loss(rows.output, z, rows.y[part]) + rho / 2 * (gap**2).sum(1))
            self.before[part] = m
        rows.worker.figures = await tally.figures(self.net, rows)
        rows.worker.spend(2 * rows.gradients)

    def _penalty(self, k: int) -> float:
        return self.settings.rho if k == self.last else self.settings.nu

    def _wanted(self, k: int, part: Part) -> Tensor:
        """What layer k is to make of its inputs: completing the square takes the multiplier in."""
        z = self.rows.z[k][part]
        return z + self.rows.u[part] / self.settings.rho if k == self.last else z

    def _nearest(self, k: int, part: Part, m: Tensor) -> Tensor:
        rows, half = self.rows, self._penalty(k) / 2
        if k < self.last:
            return rows.chain.between[k].nearest(rows.inputs(k + 1, part), m, half, half)
        return outputs.nearest(rows.output, rows.y[part], m - rows.u[part] / self.settings.rho, half, rows.z[k][part])

    async def _inputs(self, k: int, tally: Tally | None) -> None:
        """Layer k's inputs, between what the layer before makes and what layer k needs."""
        rows, layer, nu, c = self.rows, self.rows.chain.layers[k], self.settings.nu, self._penalty(k)
        weight, activation = layer.weight.data, rows.chain.between[k - 1]
        gain = towards(weight, c, nu) if self.settings.update == "exact" else None
        rate = 1.0 if gain is not None else await self._rate_of_inputs(k)
        a = rows.new_inputs(k)
        for part in rows.parts:
            h = activation(rows.z[k - 1][part])
            if gain is not None:
                bias = 0.0 if layer.bias is None else layer.bias.data
                a[part] = h + (self._wanted(k, part) - bias - h @ weight.T) @ gain.T
            else:
                a[part] -= self._slope(k, part) / rate
            if tally is not None:
                gap = a[part] - h
                tally.square(hidden=gap)
                tally.cost(rows.weight(part), nu / 2 * (gap**2).sum(1))

    async def _sums(self, k: int) -> tuple[Tensor, Tensor]:
        return await self.rows.sums(self.net, k, lambda part: self._wanted(k, part))

    def _layer(self, k: int, cross: Tensor, gram: Tensor, bias_first: bool) -> None:
        """Layer k's bias and weights, one after the other, from the sums over all workers' rows."""
        layer, c = self.rows.chain.layers[k], self._penalty(k)
        inner = layer.in_features
        weight, total, seen = layer.weight.data.double(), cross[:, inner], gram[:inner, inner]
        bias = torch.zeros(len(weight), dtype=weight.dtype, device=weight.device)
        if layer.bias is not None:
            bias = layer.bias.data.double()
        count = float(gram[inner, inner])
        for what in ("bias", "weight") if bias_first else ("weight", "bias"):
            if what == "bias" and layer.bias is not None:
                bias = (total - weight @ seen) / count
                layer.bias.data.copy_(bias)
            elif what == "weight":
                targets, squares = cross[:, :inner] - torch.outer(bias, seen), gram[:inner, :inner]
                if self.settings.update == "exact":
                    weight = least_squares(targets, squares, self.ridge, near=weight)
                else:
                    slope = c * (weight @ squares - targets)
                    bend = c * float((slope @ squares * slope).sum())
                    weight = weight - slope / self._doubled(0, k, bend, float((slope**2).sum()))
                layer.weight.data.copy_(weight)

    # ---- gradient steps ----------------------------------------------------------------------------------------------

    def _slope(self, k: int, part: Part) -> Tensor:
        """The gradient of phi in some rows' inputs of layer k, [B, in]."""
        rows, weight = self.rows, self.rows.chain.layers[k].weight.data
        a = rows.inputs(k, part)
        missing = rows.mapped(k, part) - self._wanted(k, part)
        return self._penalty(k) * missing @ weight + self.settings.nu * (a - rows.chain.between[k - 1](rows.z[k - 1][part]))

    async def _rate_of_inputs(self, k: int) -> float:
        rows, c, nu = self.rows, self._penalty(k), self.settings.nu
        both = torch.zeros(2, dtype=torch.float64, device=rows.u.device)
        for part in rows.parts:
            slope, weight = self._slope(k, part), rows.weight(part).double()
            own = (weight * slope.double().square()).sum()
            further = (weight * (slope @ rows.chain.layers[k].weight.data.T).double().square()).sum()
            both += torch.stack([c * further + nu * own, own])
        bend, square = (await self.net.all_reduce(both, "sum")).tolist()
        return self._doubled(1, k, bend, square)

    def _doubled(self, which: int, k: int, bend: float, square: float) -> float:
        """theta: half its last value, doubled until it is at least the curvature along the slope.

        phi is quadratic there, so that this is the paper's test, phi(new) <= phi + <slope, step> + theta/2 |step|^2.
        """
        if not (math.isfinite(bend) and math.isfinite(square)):
            raise Diverged("a gradient of the penalties is no longer finite: scale the features, or lower the penalties.")
        theta = float(self.theta[which, k])
        if square > 0:
            theta /= 2
            if bend > 0:
                theta *= 2.0 ** max(0, math.ceil(math.log2(bend / square / theta)))
            self.theta[which, k] = theta
        return theta


@final
class _Pace:
    """Nesterov's extrapolation of what a sweep begins with, and when to begin it anew."""

    def __init__(self, params: Vec) -> None:
        self._last: Vec = params.clone()  # where the sweep before ended
        self._begun: Vec = params.clone()  # where this sweep began
        self._t: float = 1.0

    def ahead(self, params: Vec) -> Vec:
        before, self._t = self._t, (1 + math.sqrt(1 + 4 * self._t**2)) / 2
        self._begun = params + (before - 1) / self._t * (params - self._last)
        self._last = params.clone()
        return self._begun

    def arrived(self, params: Vec) -> None:
        if float(torch.dot((self._begun - params).double(), (params - self._last).double())) > 0:
            self._t = 1.0

    def state(self) -> tuple[Tensor, ...]:
        return self._last, torch.tensor(self._t, dtype=torch.float64)

    def restore(self, found: tuple[Tensor, ...]) -> None:
        self._last, self._t = found[0].clone(), float(found[1])
