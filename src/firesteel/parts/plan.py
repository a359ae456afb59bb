"""How each layer of a network is spread over the workers."""

from __future__ import annotations

import math
from typing import Any, Literal, final

from torch import nn

from firesteel.errors import UsageError
from firesteel.models.layers import ClassesFirst, Fold, Last
from firesteel.parts.network import Layer, Network
from firesteel.parts.recurrent import OwnCells
from firesteel.parts.split import (
    CONVOLVE,
    Drop,
    Each,
    OwnColumns,
    OwnInputs,
    OwnNorm,
    OwnOutputs,
    Reshape,
    SplitLayer,
    Whole,
    sizes_of,
)
from firesteel.parts.synced import SyncedNorm

Conv = Literal["data", "split"]
Weights = Literal["alternate", "rows"]

_EACH_UNIT = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus, nn.Softsign),
    *(nn.Tanh, nn.Sigmoid, nn.LogSigmoid, nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish, nn.Identity),
)
_EACH_CHANNEL = (
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
)
_DROPS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_OTHER_NORMS = (nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
_KNOWN = "Linear, Conv1d to 3d, Embedding, RNN, LSTM, BatchNorm, GroupNorm, LayerNorm, RMSNorm, and layers without parameters"


@final
class Planner:
    """Goes through a network once, and knows where its activations are."""

    def __init__(self, network: Network, rank: int, size: int, conv: Conv, weights: Weights, who: str) -> None:
        self._network: Network = network
        self._rank: int = rank
        self._size: int = size
        self._conv: Conv = conv
        self._weights: Weights = weights
        self._who: str = who
        self._at: Literal["rows", "all", "units"] = "rows"
        self._sizes: tuple[int, ...] = ()
        self._dim: int = 1  # along which units lie

    def layers(self) -> list[SplitLayer]:
        """Each layer as this worker has it.

        Raises:
            UsageError: a layer cannot be split, or has fewer units than there are parts.
        """
        return [self._layer(number, layer) for number, layer in enumerate(self._network.layers)]

    def _layer(self, number: int, layer: Layer) -> SplitLayer:
        module, kind = layer.module, type(layer.module)
        if kind in CONVOLVE and self._conv == "data" and self._at == "rows":
            return Whole(layer, own_rows=True)
        if kind is nn.Linear or kind in CONVOLVE:
            return self._weighted(number, layer)
        if kind in (nn.LSTM, nn.RNN):
            return self._units(layer, self._recurrent(layer).hidden_size, OwnCells, len(layer.outputs))
        if kind is nn.Embedding:
            return self._units(layer, self._embedding(layer).embedding_dim, OwnColumns, len(layer.outputs))
        channels = self._at == "units" and self._dim == 1  # which is where layers of channels look for them
        if kind in _BATCH_NORMS and self._at == "rows":
            return SyncedNorm(layer)
        if channels and (kind in _BATCH_NORMS or (kind is nn.GroupNorm and self._whole_groups(module))):
            return OwnNorm(layer, self._rank, self._sizes)
        if kind in _BATCH_NORMS or kind in _OTHER_NORMS:
            return self._whole(layer, row_by_row=kind in _OTHER_NORMS)
        if kind is nn.Dropout or (kind in _DROPS and len(layer.inputs) > 1 and (channels or self._at != "units")):
            return Drop(layer)
        if kind in _DROPS:
            return self._whole(layer, row_by_row=False)
        if kind in _EACH_UNIT or (kind in _EACH_CHANNEL and len(layer.inputs) > 1 and (channels or self._at != "units")):
            return Each(layer)
        if self._reshapes(layer, channels):
            if self._at == "units" and kind is nn.Flatten:
                places = math.prod(layer.inputs[1:])
                self._sizes = tuple(n * places for n in self._sizes)
            self._dim = 3 - self._dim if kind is ClassesFirst else 1
            return Reshape(layer)
        if any(True for _ in module.parameters()):
            raise UsageError(
                f"{self._who} cannot split layer {number}, {layer}. It knows {_KNOWN}. For other networks there are "
                "FullyShard() and TensorParallel(plan), which run PyTorch's own sharding."
            )
        return self._whole(layer, row_by_row=False)

    def _weighted(self, number: int, layer: Layer) -> SplitLayer:
        module: Any = layer.module
        self._check_plain(layer)
        if getattr(module, "groups", 1) != 1 or getattr(module, "padding_mode", "zeros") != "zeros":
            raise UsageError(
                f"{self._who} cannot split layer {number}, {layer}: it has groups or a padding of other than zeros. Leave "
                'convolutions whole, with conv="data".'
            )
        after = 0
        for later in self._network.layers[number + 1 :]:
            if type(later.module) in (nn.LSTM, nn.RNN):
                break
            after += type(later.module) is nn.Linear or type(later.module) in CONVOLVE
        # Pairs end with the last layer, whose few outputs are then summed, and not spread.
        reads = len(layer.inputs) if type(module) is nn.Linear else 1  # the dimension of its inputs
        if self._at == "units" and self._dim == reads and self._weights == "alternate" and after % 2 == 0:
            made = OwnInputs(layer, self._rank, self._size, self._sizes)
            self._at, self._sizes = "all", ()
            return made
        return self._units(layer, module.weight.shape[0], OwnOutputs, reads)

    def _units(self, layer: Layer, units: int, kind: Any, dim: int) -> SplitLayer:
        if units < self._size:
            raise UsageError(
                f"{self._who}: layer {layer} has {units} units, which cannot be spread over {self._size} parts; each needs one "
                "at least. Take fewer parts."
            )
        self._at, self._sizes, self._dim = "units", sizes_of(units, self._size), dim
        return kind(layer, self._rank, self._size)

    def _check_plain(self, layer: Layer) -> None:
        module = layer.module
        if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
            raise UsageError(
                f"{self._who} cannot split layer {layer}: it has hooks, which would not see the whole of it. Take them away, "
                "or take FullyShard(), which runs layers as they are."
            )

    def _recurrent(self, layer: Layer) -> Any:
        module: Any = layer.module
        self._check_plain(layer)
        if module.bidirectional or module.proj_size or not module.batch_first:
            raise UsageError(
                f"{self._who} cannot split layer {layer}: it takes an RNN or LSTM with batch_first=True, in one direction and "
                "without a projection."
            )
        return module

    def _embedding(self, layer: Layer) -> Any:
        module: Any = layer.module
        self._check_plain(layer)
        if module.max_norm is not None or module.scale_grad_by_freq or module.sparse:
            raise UsageError(f"{self._who} cannot split layer {layer}: max_norm, scale_grad_by_freq and sparse are not known.")
        return module

    def _whole(self, layer: Layer, row_by_row: bool) -> SplitLayer:
        if self._at == "rows" and row_by_row:
            return Whole(layer, own_rows=True)
        self._at, self._sizes = "all", ()
        return Whole(layer, own_rows=False)

    def _whole_groups(self, module: Any) -> bool:
        size = module.num_channels // module.num_groups
        return all(n % size == 0 for n in self._sizes)

    def _reshapes(self, layer: Layer, channels: bool) -> bool:
        module: Any = layer.module
        if isinstance(module, nn.Flatten):
            plain = (module.start_dim, module.end_dim) == (1, -1)
            return plain and (self._at != "units" or channels)
        if isinstance(module, Last):
            return self._at != "units" or self._dim == 2
        if isinstance(module, ClassesFirst):
            return self._at != "units" or len(layer.inputs) == 2
        return isinstance(module, Fold | nn.Unflatten) and self._at != "units"
