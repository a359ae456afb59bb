"""Matrix products on AMD's processors, where PyTorch's default library (MKL) leaves half of their speed unused.

MKL takes its AVX2 kernels on any processor that is not Intel's; oneDNN, which comes with PyTorch too, looks at what the
processor can do. Measured on a Zen 5 core with AVX-512: 0.1 and 0.22 TFLOP/s in float32, with errors of the same size.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

_LEAST = 2**20  # products of numbers: below that the call itself costs more than it saves


@functools.cache
def _helps() -> bool:
    """Whether oneDNN's kernels are faster here. By the processor, not by a race: the same machine must round the same way."""
    try:
        amd = "AuthenticAMD" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    wide = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return amd and wide and torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


@final
class _Product(torch.autograd.Function):
    """a @ b.T + bias, differentiable as often as one likes: its derivatives are such products again."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(a, b)
        return torch.ops.mkldnn._linear_pointwise(_whole(a), _whole(b), bias, "none", [], "")

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        (grad,), (a, b) = grads, ctx.saved_tensors
        for_a, for_b, for_bias = ctx.needs_input_grad
        return (
            _Product.apply(grad, b.T, None) if for_a else None,
            _Product.apply(grad.T, a.T, None) if for_b else None,
            grad.sum(0) if for_bias else None,
        )


def _whole(x: Tensor) -> Tensor:
    """The matrix by rows or by columns, without gaps or numbers that stand for many."""
    return x if x.is_contiguous() or x.T.is_contiguous() else x.contiguous()


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    if _fits(x, layer.weight, layer.bias):
        return _Product.apply(x, layer.weight, layer.bias)
    return nn.Linear.forward(layer, x)


def _fits(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    plain = all(t is None or (t.dtype == torch.float32 and t.device.type == "cpu") for t in (x, weight, bias))
    return (
        plain
        and x.dim() == 2
        and x.numel() * len(weight) >= _LEAST
        and not torch.is_autocast_enabled("cpu")
        and not torch._C._are_functorch_transforms_active()
    )


@contextlib.contextmanager
def fast_products(module: nn.Module) -> Iterator[None]:
    """Inside of it, the module's large linear layers in float32 on the CPU take the faster library; nothing else changes."""
    layers = [m for m in module.modules() if type(m) is nn.Linear and "forward" not in vars(m)] if _helps() else []
    for layer in layers:
        vars(layer)["forward"] = functools.partial(_linear, layer)
    try:
        yield
    finally:
        for layer in layers:
            del vars(layer)["forward"]
