"""How the closed-form losses of the CPU enter an autograd graph.

The forward pass computes the gradient too, of the rows that count, and the backward pass finishes it in place: one buffer as large as the
logits, where autograd keeps two. In half precision the gradient is computed by the backward pass, chunk by chunk, because kept it would be
rounded before a loss scale could lift it. A second backward pass over the same graph computes it again. Under `create_graph` the
differentiable formula is differentiated instead, so that a second derivative is right. Inputs are saved the official way: changing one of
them before the backward pass is an error.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._autograd import savable
from ._closed_form_rows import (
    TENSORS,
    Rows,
    all_finite,
    clear_dead,
    differentiable_losses,
    hard_gradient_,
    hard_softmax,
    is_small,
    losses_and_gradient,
)


def row_losses(logits: Tensor, rows: Rows) -> Tensor:
    """Losses [R] of `rows`, whose logits are `logits` [..., C] without their graph; differentiable where `logits` require grad."""
    if not (logits.requires_grad and torch.is_grad_enabled()):
        return losses_and_gradient(rows, None)[0]
    hard = rows.target is rows.margin is rows.adjust is None and not rows.smoothing
    if hard and logits.dim() == 2 and logits.dtype == rows.dtype and is_small(logits):
        return _SmallHard.apply(logits, rows.label, rows.weight)
    return _AnyRows.apply(logits, rows)


def small_hard_losses(logits: Tensor, label: Tensor, weight: Tensor | None) -> Tensor:
    """`row_losses` of logits [R, C] in their own dtype that `is_small` holds for, against labels [R], in as few steps as it takes."""
    if logits.requires_grad and torch.is_grad_enabled():
        return _SmallHard.apply(logits, label, weight)
    loss, _, _, sound = hard_softmax(logits.detach(), label)
    return _weighted(loss, weight, sound)


class _SmallHard(torch.autograd.Function):
    """What it keeps is the softmax, which costs less than to keep the gradient: each pass over a small input is a call into torch."""

    @staticmethod
    def forward(ctx, logits: Tensor, label: Tensor, weight: Tensor | None) -> Tensor:
        loss, e, total, sound = hard_softmax(logits, label)
        ctx.kept = e, total
        ctx.sound = sound
        ctx.save_for_backward(logits, savable(label), savable(weight))
        return _weighted(loss, weight, sound)

    @staticmethod
    def backward(ctx, upstream: Tensor) -> tuple[Tensor, None, None]:
        logits, label, weight = ctx.saved_tensors
        if torch.is_grad_enabled():
            rows = Rows(logits, weight, label, None, None, None, None, None, 0.0, logits.dtype)
            return _differentiable(rows, logits, upstream), None, None
        kept, ctx.kept = ctx.kept, None
        e, total = kept or hard_softmax(logits, label)[1:3]
        factor = upstream if weight is None else weight * upstream
        gradient = hard_gradient_(e, total, label, factor)
        if weight is not None and not (ctx.sound and all_finite(factor)):
            clear_dead(weight, gradient)
        return gradient, None, None


class _AnyRows(torch.autograd.Function):
    """Everything but the logits comes in `rows` and is constant."""

    @staticmethod
    def forward(ctx, logits: Tensor, rows: Rows) -> Tensor:
        loss, ctx.gradient = losses_and_gradient(rows, _ones(rows) if logits.dtype == rows.dtype else None)
        ctx.save_for_backward(logits, *map(savable, rows[1:TENSORS]))
        ctx.settings = rows[TENSORS:]
        return loss

    @staticmethod
    def backward(ctx, upstream: Tensor) -> tuple[Tensor, None]:
        logits, *others = ctx.saved_tensors
        rows = Rows(logits.flatten(0, -2), *others, *ctx.settings)
        if torch.is_grad_enabled():
            return _differentiable(rows, logits, upstream), None
        gradient, ctx.gradient = ctx.gradient, None
        if logits.dtype != rows.dtype:
            factor = upstream if rows.weight is None else (rows.weight * upstream).masked_fill_(rows.weight == 0, 0.0)
            _, gradient = losses_and_gradient(rows, factor)
            return gradient.reshape(logits.shape), None
        if gradient is None:
            _, gradient = losses_and_gradient(rows, _ones(rows))
        gradient.mul_(upstream.unsqueeze(1))
        if rows.weight is not None and not all_finite(upstream):
            clear_dead(rows.weight, gradient)
        return gradient.reshape(logits.shape), None


def _ones(rows: Rows) -> Tensor:
    """The factor [R] that makes the gradient that of the sum of the losses."""
    return rows.logits.new_ones(rows.logits.shape[0]) if rows.weight is None else rows.weight


def _weighted(loss: Tensor, weight: Tensor | None, sound: bool) -> Tensor:
    if weight is not None:
        loss = loss.mul_(weight)
        if not sound:
            clear_dead(weight, loss)
    return loss


def _differentiable(rows: Rows, logits: Tensor, upstream: Tensor) -> Tensor:
    """The gradient as a function of `logits` and `upstream` that can be differentiated again."""
    return torch.autograd.grad(differentiable_losses(rows), logits, upstream, create_graph=True)[0]
