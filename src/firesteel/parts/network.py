"""A network as a chain of layers, with the shape and the cost of each."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from firesteel.errors import UsageError
from firesteel.models.layers import run_chain
from firesteel.parts.shapes import Shapes


@final
@dataclass(frozen=True)
class Layer:
    name: str
    """Of the module in the whole network: the start of its parameters' names."""
    module: Any
    """An nn.Module on the device "meta"."""
    inputs: tuple[int, ...]
    """Shape of what one row brings to it, without the rows' dimension."""
    outputs: tuple[int, ...]
    """Shape of what one row leaves it with."""
    order: tuple[int, ...]
    """Dimensions of what a batch brings to it, from those that lie farthest apart in memory to those that lie nearest."""
    flops: float
    """Of one row's forward pass: two for each multiply-add, and one for each number where there are none."""

    def __str__(self) -> str:
        return f"'{self.name}' ({type(self.module).__name__})" if self.name else type(self.module).__name__


@final
@dataclass(frozen=True)
class Network:
    """The layers, from the inputs to the outputs."""

    module: nn.Module
    layers: tuple[Layer, ...]
    inputs: tuple[int, ...]
    dtype: torch.dtype
    """Of the inputs."""
    costs: tuple[float, ...] = ()
    """Seconds that each layer takes, where they have been measured."""

    @property
    def flops(self) -> float:
        """Of one row's forward pass."""
        return sum(layer.flops for layer in self.layers)


def network(module: nn.Module, inputs: Sequence[Tensor], who: str) -> Network:
    """A module on the device "meta" as a chain; `who` asks for it.

    Args:
        inputs: two rows as the model takes them, on any device: only their shapes are looked at.

    Raises:
        UsageError: it is neither an `nn.Sequential` nor has a method `chain()`, a layer with tensors is no submodule of it, or
            a parameter or buffer does not belong to exactly one layer.
    """
    names = {id(each): name for name, each in module.named_modules()}
    chain = chain_of(module, who)
    x, *rest = (each.to("meta") for each in inputs)
    lengths = rest[0] if rest else None
    layers: list[Layer] = []
    for each in chain:
        if id(each) not in names and (own := [name for name, _ in _tensors(each)]):
            raise UsageError(
                f"{who} takes a network layer by layer, but a layer that chain() returns, {type(each).__name__} with "
                f"'{own[0]}', is no module of {type(module).__name__} itself: make it once, as an attribute, and return that."
            )
        before, strides = tuple(x.shape[1:]), x.stride()
        order = tuple(sorted(range(x.dim()), key=lambda dim, strides=strides: -strides[dim]))
        with Shapes(), torch.no_grad():
            x = run_chain([each], x, lengths)
        after = tuple(x.shape[1:])
        layers.append(Layer(names.get(id(each), ""), each, before, after, order, _flops(each, after)))
    owners = Counter(id(x) for each in chain for _, x in _tensors(each))
    for name, x in _tensors(module):
        kind = "parameter" if isinstance(x, nn.Parameter) else "buffer"
        if not owners[id(x)]:
            raise UsageError(f"{who} takes a network layer by layer, but {kind} '{name}' belongs to none of its layers.")
        if owners[id(x)] > 1:
            raise UsageError(f"{who} gives every layer to its owners, but two layers of this network share a {kind}, '{name}'.")
        if kind == "parameter" and not x.requires_grad:
            raise UsageError(f"{who} trains every parameter of a network, but '{name}' is frozen.")
    return Network(module, tuple(layers), tuple(inputs[0].shape[1:]), inputs[0].dtype)


def _tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Parameters and buffers, each by its first name."""
    return [*module.named_parameters(), *module.named_buffers()]


def _flops(layer: nn.Module, outputs: tuple[int, ...]) -> float:
    """Of one row's forward pass: each output of a layer with weights takes one row of them."""
    weights = [p for name, p in layer.named_parameters() if name.startswith("weight") and p.dim() > 1]
    if isinstance(layer, nn.RNNBase):
        return 2.0 * outputs[0] * sum(p.numel() for p in weights)
    numbers = float(math.prod(outputs))
    if not weights or isinstance(layer, nn.Embedding):
        return numbers
    return 2.0 * numbers * (weights[0].numel() / len(weights[0]))


def chain_of(module: nn.Module, who: str) -> list[nn.Module]:
    """The layers of a module, in order.

    Raises:
        UsageError: it is neither an `nn.Sequential` nor has a method `chain()`.
    """
    chain = getattr(module, "chain", None)
    if type(module) is nn.Sequential:
        return [inner for each in module for inner in (chain_of(each, who) if type(each) is nn.Sequential else [each])]
    if not callable(chain):
        raise UsageError(
            f"{who} takes a network layer by layer, and does not know the layers of {type(module).__name__}: give an "
            "nn.Sequential, or a module with a method chain() that returns its layers in order, of which forward(x) is the "
            "composition."
        )
    found: list[nn.Module] = list(chain())  # pyright: ignore[reportArgumentType]
    return [inner for each in found for inner in (chain_of(each, who) if type(each) is nn.Sequential else [each])]
