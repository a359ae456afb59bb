"""The local optimizer and its schedule, as plain settings that travel to the workers.

Any class of `torch.optim` (or of the user) that steps without a closure works. The optimizer gets the module's own
parameters, so groups, decay masks and schedules keep their meaning.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import Any, Protocol, final, runtime_checkable

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from firesteel.errors import UsageError, did_you_mean

Groups = Callable[[nn.Module], Iterable[dict[str, Any]]]


@runtime_checkable
class OptimizerSettings(Protocol):
    """What `train(optimizer=...)` takes."""

    def build(self, module: nn.Module) -> torch.optim.Optimizer:
        """A fresh optimizer over the module's trainable parameters."""
        ...


def _parameters(module: nn.Module, groups: Groups | None) -> list[Any]:
    return list(groups(module)) if groups else [p for p in module.parameters() if p.requires_grad]


def _build(cls: type[torch.optim.Optimizer], settings: Any, module: nn.Module) -> torch.optim.Optimizer:
    named = {f.name: getattr(settings, f.name) for f in fields(settings) if f.name != "groups"}
    return cls(_parameters(module, settings.groups), **named)


@final
@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent, `torch.optim.SGD`."""

    lr: float = 0.01
    """Learning rate, > 0."""
    momentum: float = 0.0
    """Share of the last step that is kept, 0 .. 1."""
    nesterov: bool = False
    """Look ahead along the momentum before taking the gradient's step."""
    weight_decay: float = 0.0
    """L2 penalty, >= 0."""
    groups: Groups | None = None
    """module -> parameter groups, for example with a decay mask."""
    fused: bool = True
    """Use PyTorch's fused kernel, one pass over memory; it equals the plain one to rounding."""

    def build(self, module: nn.Module) -> torch.optim.Optimizer:
        return _build(torch.optim.SGD, self, module)


@final
@dataclass(frozen=True)
class Adam:
    """Adam (Kingma & Ba 2015), `torch.optim.Adam`."""

    lr: float = 1e-3
    """Learning rate, > 0."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the first and second moment, 0 .. 1."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.0
    """L2 penalty, >= 0."""
    groups: Groups | None = None
    """module -> parameter groups, for example with a decay mask."""
    fused: bool = True
    """Use PyTorch's fused kernel, one pass over memory; it equals the plain one to rounding."""

    def build(self, module: nn.Module) -> torch.optim.Optimizer:
        return _build(torch.optim.Adam, self, module)


@final
@dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019), `torch.optim.AdamW`."""

    lr: float = 1e-3
    """Learning rate, > 0."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the first and second moment, 0 .. 1."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.01
    """Share of each weight taken off per unit of learning rate, >= 0."""
    groups: Groups | None = None
    """module -> parameter groups, for example with a decay mask."""
    fused: bool = True
    """Use PyTorch's fused kernel, one pass over memory; it equals the plain one to rounding."""

    def build(self, module: nn.Module) -> torch.optim.Optimizer:
        return _build(torch.optim.AdamW, self, module)


@final
@dataclass(frozen=True)
class Adagrad:
    """AdaGrad (Duchi et al. 2011), `torch.optim.Adagrad`."""

    lr: float = 0.01
    """Learning rate, > 0."""
    lr_decay: float = 0.0
    """Decay of the learning rate per step."""
    eps: float = 1e-10
    """Added to the root of the accumulated squares."""
    weight_decay: float = 0.0
    """L2 penalty, >= 0."""
    groups: Groups | None = None
    """module -> parameter groups, for example with a decay mask."""
    fused: bool = True
    """Use PyTorch's fused kernel, one pass over memory; it equals the plain one to rounding."""

    def build(self, module: nn.Module) -> torch.optim.Optimizer:
        return _build(torch.optim.Adagrad, self, module)


def _check_settings(cls: type, settings: dict[str, Any], skip: int) -> None:
    known = [name for name in list(inspect.signature(cls).parameters)[skip:]]
    for name in settings:
        if name not in known and "kwargs" not in known:
            raise UsageError(f"{cls.__name__} has no setting {name!r}.{did_you_mean(name, known)} It has: {', '.join(known)}.")


@final
class Optimizer:
    """Any optimizer class with its settings: `Optimizer(torch.optim.RMSprop, lr=1e-3, alpha=0.9)`.

    `groups` maps the module to parameter groups.

    Raises:
        UsageError: a setting that the class does not have, or an optimizer that needs a closure.
    """

    def __init__(self, cls: type[torch.optim.Optimizer], *, groups: Groups | None = None, **settings: Any) -> None:
        if not (isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer)):
            raise UsageError(f"Optimizer takes a class of torch.optim, such as torch.optim.RMSprop; got {cls!r}.")
        step = inspect.signature(cls.step).parameters.get("closure")
        if step is not None and step.default is inspect.Parameter.empty:
            raise UsageError(f"{cls.__name__} evaluates the loss several times a step (a closure), which no strategy offers.")
        _check_settings(cls, settings, skip=1)
        self.cls: type[torch.optim.Optimizer] = cls
        self.groups: Groups | None = groups
        self.settings: dict[str, Any] = settings

    def build(self, module: nn.Module) -> torch.optim.Optimizer:
        return self.cls(_parameters(module, self.groups), **self.settings)

    def __repr__(self) -> str:
        return f"Optimizer({', '.join([self.cls.__name__, *(f'{k}={v!r}' for k, v in self.settings.items())])})"


class _Schedule:
    """A learning rate that changes as training goes on; its two forms below differ in what they count."""

    def __init__(self, rule: type[LRScheduler] | Callable[[int], float], **settings: Any) -> None:
        if isinstance(rule, type) and issubclass(rule, LRScheduler):
            _check_settings(rule, settings, skip=1)
        elif not callable(rule) or settings:
            raise UsageError(
                f"{type(self).__name__} takes a class of torch.optim.lr_scheduler with its settings, "
                f"or a function of the count that returns a factor; got {rule!r}."
            )
        self.rule: type[LRScheduler] | Callable[[int], float] = rule
        self.settings: dict[str, Any] = settings

    def build(self, optimizer: torch.optim.Optimizer) -> LRScheduler:
        if isinstance(self.rule, type):
            return self.rule(optimizer, **self.settings)
        return LambdaLR(optimizer, self.rule)

    def __repr__(self) -> str:
        name = getattr(self.rule, "__name__", repr(self.rule))
        return f"{type(self).__name__}({', '.join([name, *(f'{k}={v!r}' for k, v in self.settings.items())])})"


@final
class BySteps(_Schedule):
    """A schedule counted in local steps: `BySteps(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=1000)`."""


@final
class ByEpochs(_Schedule):
    """A schedule counted in epochs: `ByEpochs(lambda epoch: 0.5**epoch)`."""


Schedule = BySteps | ByEpochs
