r"""Training without gradients: the alternating direction method of multipliers, with Bregman iteration.

Taylor, Burmeister, Xu, Singh, Patel & Goldstein 2016, "Training neural networks without gradients: a scalable ADMM
approach" (arXiv 1605.02026). The network's equations become penalties,

\[ \ell(z_L, y) + \langle z_L, u \rangle + \beta_L \|z_L - W_L a_{L-1}\|^2
   + \sum_{l<L} \gamma_l \|a_l - h(z_l)\|^2 + \beta_l \|z_l - W_l a_{l-1}\|^2, \]

and a sweep minimises their sum over one group of variables after the other, each globally and in closed form.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from firesteel.errors import UsageError
from firesteel.net.protocol import Net, Vec
from firesteel.strategies import outputs
from firesteel.strategies.chain import Chain, chain
from firesteel.strategies.layerwise import Layerwise, Part, Tally, least_squares, towards, unmet
from firesteel.strategies.outputs import OUTPUTS, Output
from firesteel.strategies.ranges import one_of, positive, whole
from firesteel.worker import Worker

Multiplier = Literal["bregman", "exact", "none"]
Start = Literal["forward", "random"]
Penalty = float | tuple[float, ...]


@final
@dataclass(frozen=True)
class TaylorADMM:
    r"""ADMM with one multiplier, on the output (Taylor et al. 2016, algorithm 1). A step is a sweep and an epoch.

    \( W_l = (\sum z_l a_{l-1}^\top)(\sum a_{l-1} a_{l-1}^\top + rI)^{-1} \),
    \( a_l = (\beta_{l+1} W_{l+1}^\top W_{l+1} + \gamma_l I)^{-1} (\beta_{l+1} W_{l+1}^\top z_{l+1} + \gamma_l h(z_l)) \),
    \( z_l = \arg\min_z \gamma_l (a_l - h(z))^2 + \beta_l (z - W_l a_{l-1})^2 \),
    \( z_L = \arg\min_z \ell(z, y) + u z + \beta_L (z - W_L a_{L-1})^2 \),
    and after `warm` sweeps \( u \leftarrow u + \beta_L (z_L - W_L a_{L-1}) \).

    In this Bregman form the multiplier is not in the weights' update, so that even a linear network with squared error
    does not end at least squares: `multiplier="exact"` is the augmented Lagrangian, which does.

    `Run.history` has, as roots of mean squares, the residuals primal \(z_L - W_L a_{L-1}\), dual (the change of
    \( 2 \beta_L W_L a_{L-1} \)) and hidden \(a_l - h(z_l)\), and the multiplier; and the objective, the sum above without the
    multiplier's term, for a row. The model that scored best in validation is kept.
    """

    gamma: Penalty = 10.0
    """Between a layer's activations and its outputs before them, > 0: one for all hidden layers, or one for each."""
    beta: Penalty = 1.0
    """Between a layer's outputs and what it makes of its inputs, > 0: one for all layers, or one for each."""
    output: Output = "hinge"
    """What is minimised: "hinge" or "cross_entropy" for classes, "squared" for classes (as 0 and 1) or values."""
    multiplier: Multiplier = "bregman"
    """"bregman" is the paper's; "exact" the augmented Lagrangian; "none" holds it at 0."""
    warm: int | None = None
    """Sweeps before the multiplier moves, >= 0; 10 if None."""
    ridge: float = 1e-6
    """Added to the diagonal of the sums before they are inverted, as a share of its mean, > 0."""
    bias: bool = False
    """Whether the layers' biases are solved for; else they are 0. With them it soon is a linear classifier."""
    start: Start = "forward"
    """Where activations begin: a "forward" pass through the model as it is, whose last layer is then fitted; or "random",
    drawn from N(0, 1), and the outputs of all layers too, as in the paper. "forward" begins the last outputs as labels."""

    own_steps = True
    full_batch = True
    keeps_best = True

    def __post_init__(self) -> None:
        for name in ("gamma", "beta"):
            if isinstance(getattr(self, name), list):  # as JSON has it
                object.__setattr__(self, name, tuple(getattr(self, name)))
        positive(self, "gamma", "beta", "ridge")
        one_of(self, output=OUTPUTS, multiplier=("bregman", "exact", "none"), start=("forward", "random"), bias=(True, False))
        if self.warm is not None:
            whole(self, warm=0)
            if self.multiplier == "none":
                raise UsageError(f"TaylorADMM(warm={self.warm}): without a multiplier nothing waits for it; leave warm out.")

    def check(self, workers: int, optimizer: torch.optim.Optimizer, module: nn.Module) -> str | None:
        network = chain(module, "TaylorADMM")
        outputs.check("TaylorADMM", self.output, network.layers[-1].out_features)
        _ = self._penalties(network)
        return None

    def review(self, history: list[dict[str, Any]]) -> str | None:
        return unmet(history, "Raise the last layer's beta, lower gamma, or let the multiplier wait longer (warm).")

    def _penalties(self, network: Chain) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """gamma of each hidden layer, and beta of each layer."""
        found: list[tuple[float, ...]] = []
        for name, count in (("gamma", len(network.between)), ("beta", len(network.layers))):
            value = getattr(self, name)
            values = value if isinstance(value, tuple) else (value,) * count
            if len(values) != count:
                raise UsageError(f"TaylorADMM({name}={value}): this model needs {count} of them, or one number for all.")
            found.append(values)
        return found[0], found[1]

    async def run(self, worker: Worker, net: Net) -> Vec:
        network = chain(worker.module, "TaylorADMM")
        sweeps = _Sweeps(self, Layerwise(worker, network, self.output), *self._penalties(network))
        resumed = net.resume()
        if resumed:
            (sweeps.before,) = sweeps.rows.restore(resumed)
        elif worker.plan.total_steps:
            await sweeps.begin(net)
        for step in worker.iterations():
            await sweeps.sweep(net, step)
            worker.measure()
            net.publish(worker.params, *sweeps.rows.state(), sweeps.before)
        return worker.params


@final
class _Sweeps:
    def __init__(self, settings: TaylorADMM, rows: Layerwise, gamma: tuple[float, ...], beta: tuple[float, ...]) -> None:
        self.settings: TaylorADMM = settings
        self.rows: Layerwise = rows
        self.gamma: tuple[float, ...] = gamma
        self.beta: tuple[float, ...] = beta
        self.before: Tensor = torch.zeros_like(rows.u)  # W_L a_{L-1} of the sweep before
        self.last: int = len(beta) - 1
        self.warm: int = 10 if settings.warm is None else settings.warm
        self.exact: bool = settings.multiplier == "exact"
        if not settings.bias:
            for layer in rows.chain.layers:
                if layer.bias is not None:
                    _ = layer.bias.data.zero_()

    async def begin(self, net: Net) -> None:
        rows, forward = self.rows, self.settings.start == "forward"
        for k, activation in enumerate(rows.chain.between):
            a = rows.new_inputs(k + 1)
            for part in rows.parts:
                z = rows.mapped(k, part)
                rows.z[k][part] = z if forward else torch.randn_like(z)
                a[part] = activation(z) if forward else torch.randn_like(z)
        if forward:
            rows.z[self.last].copy_(rows.y)
            await self._fit(net, self.last)  # before anything is asked to come nearer to what it makes
        else:
            _ = rows.z[self.last].normal_()

    async def sweep(self, net: Net, step: int) -> None:
        rows, chain, last, tally = self.rows, self.rows.chain, self.last, Tally()
        for k, activation in enumerate(chain.between):
            gamma, beta, following = self.gamma[k], self.beta[k], chain.layers[k + 1]
            await self._fit(net, k)
            a = rows.new_inputs(k + 1)
            gain = towards(following.weight.data, self.beta[k + 1], gamma)
            for part in rows.parts:
                h = activation(rows.z[k][part])
                wanted = self._wanted(k + 1, part)
                if following.bias is not None:
                    wanted = wanted - following.bias.data
                a[part] = h + (wanted - h @ following.weight.data.T) @ gain.T
                m = rows.mapped(k, part)
                z = rows.z[k][part] = activation.nearest(a[part], m, gamma, beta)
                gap = a[part] - activation(z)
                tally.square(hidden=gap)
                tally.cost(rows.weight(part), gamma * (gap**2).sum(1) + beta * ((z - m) ** 2).sum(1))
        await self._fit(net, last)
        beta = self.beta[last]
        for part in rows.parts:
            m, u, y = rows.mapped(last, part), rows.u[part], rows.y[part]
            z = outputs.nearest(rows.output, y, m - u / (2 * beta), beta, rows.z[last][part])
            gap = z - m
            if self.settings.multiplier != "none" and step > self.warm:
                _ = u.add_(gap, alpha=2 * beta if self.exact else beta)
            tally.square(primal=gap, dual=2 * beta * (m - self.before[part]), multiplier=u)
            tally.cost(rows.weight(part), outputs.loss(rows.output, z, y) + beta * (gap**2).sum(1))
            rows.z[last][part], self.before[part] = z, m
        rows.worker.figures = await tally.figures(net, rows)
        rows.worker.spend(rows.gradients)

    def _wanted(self, k: int, part: Part) -> Tensor:
        """What layer k's outputs are to come near to."""
        z = self.rows.z[k][part]
        return z + self.rows.u[part] / (2 * self.beta[k]) if self.exact and k == self.last else z

    async def _fit(self, net: Net, k: int) -> None:
        """A layer's weights: least squares over all workers' rows."""
        cross, gram = await self.rows.sums(net, k, lambda part: self._wanted(k, part))
        layer = self.rows.chain.layers[k]
        inner = layer.in_features
        if self.settings.bias and layer.bias is not None:
            found = least_squares(cross, gram, self.settings.ridge)
            layer.bias.data.copy_(found[:, inner])
        else:
            found = least_squares(cross[:, :inner], gram[:inner, :inner], self.settings.ridge)
        layer.weight.data.copy_(found[:, :inner])
