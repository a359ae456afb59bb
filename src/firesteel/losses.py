"""Losses and metrics by name, or the user's own.

A loss is a mean over rows; with weights it is sum_i w_i l_i / sum_i w_i.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from firesteel.errors import UsageError, did_you_mean

RowLoss = Callable[[Tensor, Tensor], Tensor]  # (outputs, targets) -> [B]
Loss = Callable[[Tensor, Tensor, Tensor | None], Tensor]  # (outputs, targets, weights) -> scalar


def _by_row(loss: Callable[..., Tensor]) -> RowLoss:
    def rows(outputs: Tensor, targets: Tensor) -> Tensor:
        each = loss(outputs, targets, reduction="none")
        return each.flatten(1).mean(1) if each.dim() > 1 else each

    return rows


ROW_LOSSES: Mapping[str, RowLoss] = {
    "cross_entropy": _by_row(F.cross_entropy),
    "bce_with_logits": _by_row(F.binary_cross_entropy_with_logits),
    "mse": _by_row(F.mse_loss),
    "mae": _by_row(F.l1_loss),
    "huber": _by_row(F.huber_loss),
}

MEAN_LOSSES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross_entropy": F.cross_entropy,
    "bce_with_logits": F.binary_cross_entropy_with_logits,
    "mse": F.mse_loss,
    "mae": F.l1_loss,
    "huber": F.huber_loss,
}


def _accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    if targets.is_floating_point():  # two classes from one logit
        return ((outputs > 0) == (targets > 0.5)).flatten(1).all(1).float()
    right = (outputs.argmax(1) == targets).float()
    return right.flatten(1).mean(1) if right.dim() > 1 else right  # of a sequence the share of its steps


def _mse(outputs: Tensor, targets: Tensor) -> Tensor:
    return ROW_LOSSES["mse"](outputs, targets)


def _mae(outputs: Tensor, targets: Tensor) -> Tensor:
    return ROW_LOSSES["mae"](outputs, targets)


SMALLER_IS_BETTER = ("loss", "mse", "mae")
METRICS: Mapping[str, RowLoss] = {"accuracy": _accuracy, "mse": _mse, "mae": _mae}


def target_kind(loss: str | Callable[..., Any]) -> Literal["class", "value"]:
    """Whether the label is a class (int64) or a value (floats). A callable says so by an attribute `target`."""
    if callable(loss):
        kind = getattr(loss, "target", "class")
        if kind not in ("class", "value"):
            raise UsageError(f"loss.target is {kind!r}; it must be 'class' (int64 labels) or 'value' (float labels).")
        return kind
    return "class" if loss == "cross_entropy" else "value"


def default_metrics(loss: str | Callable[..., Any]) -> tuple[str, ...]:
    """What is measured where nothing is asked for: accuracy wherever labels are classes, one logit or many."""
    return ("accuracy",) if loss == "bce_with_logits" or target_kind(loss) == "class" else ()


def resolve_loss(loss: str | Callable[..., Any], weighted: bool) -> Loss:
    """The loss as (outputs, targets, weights or None) -> scalar.

    Raises:
        UsageError: an unknown name, or a callable that cannot take weights where there is a weight column.
    """
    if isinstance(loss, str):
        if loss not in MEAN_LOSSES:
            raise UsageError(
                f"loss={loss!r} is not known.{did_you_mean(loss, MEAN_LOSSES)} "
                f"Known: {', '.join(MEAN_LOSSES)}; or give a callable (outputs, targets) -> scalar."
            )
        mean, rows = MEAN_LOSSES[loss], ROW_LOSSES[loss]

        def named(outputs: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
            if weights is None:
                return mean(outputs, targets)
            return torch.dot(rows(outputs, targets), weights.to(outputs.dtype)) / weights.sum()

        named.__name__ = loss  # a network whose classes lie on several workers computes it in a way of its own
        return named
    if not callable(loss):
        raise UsageError(f"loss={loss!r} is neither a name nor a callable (outputs, targets) -> scalar.")
    own = loss
    if weighted:
        try:
            inspect.signature(own).bind(None, None, None)
        except TypeError:
            raise UsageError(
                "with a weight column the loss is called as loss(outputs, targets, weights) and must return "
                "sum(w * l) / sum(w); this callable does not take three arguments. Use a named loss, or add the third."
            ) from None

    def call(outputs: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
        value = own(outputs, targets) if weights is None else own(outputs, targets, weights)
        if not isinstance(value, Tensor) or value.numel() != 1:
            got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise UsageError(f"the loss must return a scalar tensor, but it returned {got}; take its mean over the rows.")
        return value.reshape(())

    return call


def resolve_metrics(metrics: tuple[str | Callable[..., Any], ...]) -> dict[str, RowLoss]:
    """Metrics by name: each maps (outputs, targets) to one number a row, [B], or to their mean (a scalar)."""
    found: dict[str, RowLoss] = {}
    for metric in metrics:
        if callable(metric):
            found[getattr(metric, "__name__", type(metric).__name__)] = metric
        elif metric in METRICS:
            found[metric] = METRICS[metric]
        else:
            raise UsageError(
                f"metric {metric!r} is not known.{did_you_mean(str(metric), METRICS)} Known: {', '.join(METRICS)}; "
                "or give a callable (outputs, targets) -> one number a row."
            )
    return found
