"""A network tried on the device "meta", where it gives shapes without numbers."""

from __future__ import annotations

from typing import Any, final

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only


@final
class Shapes(TorchDispatchMode):
    """Lets real tensors meet those without numbers: a module's plain attributes, and what forward makes itself.

    Only their shapes count then, as with everything on the device "meta".

        >>> import torch
        >>> with Shapes():
        ...     x = torch.empty(2, 3, device="meta") + torch.arange(3.0)
        >>> x.shape, x.device.type
        (torch.Size([2, 3]), 'meta')
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: else the first operation imports torch's compiler, which takes seconds."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = args, kwargs or {}
        if any(x.is_meta for x in tree_leaves(given) if isinstance(x, Tensor)):
            given = tree_map_only(Tensor, lambda x: x.to("meta"), given)
        args, kwargs = given
        return func(*args, **kwargs)
