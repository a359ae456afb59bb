"""A batch that comes in pieces: what each layer gets, and masks of dropout as one process would draw them for all of it."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from firesteel.errors import UsageError
from firesteel.models.layers import run_chain
from firesteel.parts.network import Layer, Network
from firesteel.parts.shapes import Shapes
from firesteel.parts.tape import aliased

_DROPS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


@final
class Masks:
    """What a network in training draws for its dropout layers, and what they get.

    Raises:
        UsageError: another layer draws numbers of its own, which nobody can draw in its place, or changes its buffers.
    """

    def __init__(self, network: Network, sequences: bool, who: str) -> None:
        self._network: Network = network
        self._sequences: bool = sequences
        self._who: str = who
        self._found: dict[tuple[int, int], tuple[list[tuple[int, Tensor, float]], list[Tensor]]] = {}
        rows, steps = 2, network.inputs[0] or 1 if sequences else 0
        for number, noise, _ in self._traced(rows, steps)[0]:
            layer = network.layers[number]
            if type(layer.module) not in _DROPS or len(noise) != rows:
                way_out = (
                    "Stack layers of one each, with nn.Dropout between them"
                    if isinstance(layer.module, nn.RNNBase)
                    else "Take nn.Dropout layers of the chain for it"
                )
                raise UsageError(
                    f"{who} runs a batch in pieces and draws the masks of its dropout layers beforehand, but layer {layer} "
                    f"draws random numbers inside. {way_out}, or another strategy, such as NeuronParallel()."
                )

    def draw(self, rows: int, steps: int, keep: range) -> dict[int, Tensor]:
        """The masks of all dropout layers, [rows, ...], from the global generator, in the network's order.

        Only those of the layers numbered in `keep` are returned; who has the others draws the same.

        Args:
            steps: of sequences, T.
        """
        masks: dict[int, Tensor] = {}
        for number, noise, kept in self._traced(rows, steps)[0]:
            mask = torch.empty_like(noise, device="cpu").bernoulli_(kept).div_(kept)  # laid out as dropout would have it
            if number in keep:
                masks[number] = mask
        return masks

    def given(self, rows: int, steps: int, number: int) -> Tensor:
        """What layer `number` gets in a batch of so many rows, on the device "meta"."""
        return self._traced(rows, steps)[1][number]

    def _traced(self, rows: int, steps: int) -> tuple[list[tuple[int, Tensor, float]], list[Tensor]]:
        """Of everything that is drawn: layer, noise on the device "meta", and the probability that a number is kept.

        And what each layer gets.
        """
        key = (rows, steps)
        if key not in self._found:
            network = self._network
            shape = (steps, *network.inputs[1:]) if self._sequences else network.inputs
            x = torch.empty(rows, *shape, dtype=network.dtype, device="meta")
            lengths = torch.empty(rows, dtype=torch.int64, device="meta") if self._sequences else None
            found: list[tuple[int, Tensor, float]] = []
            inputs: list[Tensor] = []
            for number, layer in enumerate(network.layers):
                inputs.append(x)
                before = dict(layer.module.named_buffers())
                with Shapes(), _Watch() as watch, torch.no_grad():
                    x = run_chain([layer.module], x, lengths)
                found += [(number, noise, kept) for noise, kept in watch.drawn]
                self._check_kept(layer, before, watch.written)
            self._found[key] = found, inputs
        return self._found[key]

    def _check_kept(self, layer: Layer, before: dict[str, Tensor], written: set[int]) -> None:
        """Refuse a layer in training that has put another tensor in a buffer's place, or written to its memory."""
        for name, b in layer.module.named_buffers():
            if layer.module.training and (b is not before.get(name) or b.untyped_storage()._cdata in written):
                raise UsageError(
                    f"{self._who} runs a batch in pieces, and layer {layer} would change its buffer '{name}' with each. "
                    "Take a layer that keeps nothing of what it has seen, or a strategy that runs all layers at once, such as "
                    "SyncSGD()."
                )


@final
class _Watch(TorchDispatchMode):
    """Sees every operation that draws random numbers, and which memory is written."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn: list[tuple[Tensor, float]] = []
        """What is filled, and the probability that a number is kept."""
        self.written: set[int] = set()
        """Storages."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            plain = func is torch.ops.aten.bernoulli_.float
            kept = args[1] if len(args) > 1 else 0.5  # its default, which is left out
            self.drawn.append((args[0], kept) if plain else (torch.empty(0, device="meta"), 1.0))
        self.written |= {x.untyped_storage()._cdata for x in aliased(func, args, kwargs or {}, to_write=True)}
        return func(*args, **(kwargs or {}))
