"""How long each layer of a network takes on this machine."""

from __future__ import annotations

import copy
import time
from typing import Any

import torch
from torch import Tensor

from firesteel.models.layers import run_chain
from firesteel.parts.network import Layer, Network


def measured(network: Network, rows: int = 16, repetitions: int = 3) -> tuple[float, ...]:
    """Seconds of each layer's forward and backward pass over so many rows: the best of the repetitions, after one more.

    One layer at a time is made real, with random numbers; the next one gets what came of it. The global generator is left
    as it was.
    """
    found: list[float] = []
    learns = False  # whether a layer before has parameters, for whose sake gradients go on
    with torch.random.fork_rng(devices=[]):
        x = torch.zeros(rows, *network.inputs, dtype=network.dtype)  # as symbols: every table has the first
        for layer in network.layers:
            seconds, x = _timed(layer, x, learns and x.is_floating_point(), repetitions)
            found.append(seconds)
            learns = learns or any(True for _ in layer.module.parameters())
    return tuple(found)


def _timed(layer: Layer, x: Tensor, learns: bool, repetitions: int) -> tuple[float, Tensor]:
    module: Any = copy.deepcopy(layer.module).to_empty(device="cpu").train()
    with torch.no_grad():
        for each in (*module.parameters(), *module.buffers()):
            _ = each.normal_(0, 0.1) if each.is_floating_point() else each.zero_()
    best, out = float("inf"), x
    for _ in range(repetitions + 1):
        given = x.clone().requires_grad_(learns).clone()  # no leaf: a layer may write to what it gets
        began = time.perf_counter()
        out = run_chain([module], given)
        if out.requires_grad:
            torch.autograd.backward([out], [torch.ones_like(out)])
        best = min(best, time.perf_counter() - began)
    return best, out.detach()
