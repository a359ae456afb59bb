"""What code sees while its tensor operations are recorded: tensors on the CPU, though they have no numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes

_META, _CPU = torch.device("meta"), torch.device("cpu")
# What recorded code learns of a tensor's place: what it would have learnt without a tape.
_PLACE = {
    Tensor.device.__get__: _CPU,
    Tensor.is_cpu.__get__: True,  # pyright: ignore[reportAttributeAccessIssue]
    Tensor.is_meta.__get__: False,  # pyright: ignore[reportAttributeAccessIssue]
}
# Computations that choose between kernels by the device, so that what is recorded would not be what the CPU computes.
_FUSED = {
    nn.functional.multi_head_attention_forward,
    nn.functional.scaled_dot_product_attention,
    torch.gru,
    torch.lstm,
    torch.rnn_relu,
    torch.rnn_tanh,
}
# Ways to a tensor's memory round its operations.
_MEMORY = {
    Tensor.__array__,
    Tensor.__dlpack__,
    Tensor.__reduce_ex__,
    Tensor._typed_storage,
    Tensor.data_ptr,
    Tensor.numpy,
    Tensor.share_memory_,
    Tensor.storage,
    Tensor.untyped_storage,
}


@final
class Unrecordable(Exception):
    """The tape cannot give the numbers that the recorded code would have had: what the code does."""


@final
class Blame:
    """Remembers that something failed, though the recorded code may catch the error and go another way."""

    def __init__(self) -> None:
        self.error: BaseException | None = None
        """The first one."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self.error = self.error or error


@final
class Pretence(TorchFunctionMode):
    """Shows the recorded code tensors on the CPU."""

    def __init__(self, value: Callable[[Tensor], Tensor], blame: Blame) -> None:
        super().__init__()
        self._value: Callable[[Tensor], Tensor] = value
        """Gives the numbers that a tensor has now."""
        self._blame: Blame = blame

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with self._blame:
            if func in _PLACE and args[0].is_meta:
                return _PLACE[func]
            if func in _MEMORY:
                raise Unrecordable(f"it reaches into the memory of a tensor ({func.__name__})")
            if func in _FUSED:
                raise Unrecordable(f"it computes with {func.__name__}, which has kernels of its own on the CPU")
            if func is Tensor.tolist and args[0].is_meta:
                with _disable_current_modes():
                    return self._value(args[0]).tolist()
            places = {torch.device(x).type for x in (*args, *kwargs.values()) if _is_place(x)}
            if "meta" in places:
                raise Unrecordable('it makes tensors on the device "meta"')
            if func is torch.tensor and isinstance(args[0], np.ndarray):  # a copy, though it begins as `torch.from_numpy`
                with _disable_current_modes():
                    constant = func(*args, **kwargs)
                return constant.detach().requires_grad_(constant.requires_grad)
            if func is Tensor.cpu and args[0].is_meta:
                return args[0]
            if func is Tensor.to and places and args[0].is_meta:  # it is there already: no copy
                args = [_META if _is_place(x) else x for x in args]
                kwargs = {k: _META if _is_place(x) else x for k, x in kwargs.items()}
            return func(*args, **kwargs)


def _is_place(x: Any) -> bool:
    return isinstance(x, torch.device) or (isinstance(x, str) and x.split(":")[0] in ("cpu", "meta"))
