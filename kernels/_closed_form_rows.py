"""Closed-form softmax rows on the CPU: labels of a teacher, losses of a student, and the losses' gradient without an autograd graph.

N rows, C classes, R = V * N rows of a student in V views. What a host can do and a device cannot is used here: rows of weight 0 are left
out, and a value is read where it decides how to go on. Large inputs are worked on in chunks whose temporaries are used again, because
memory that is new to the process costs more than the arithmetic (a page fault for every 1024 floats).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ._row_losses import hard_rows, shifted, soft_rows

SMALL = 2**16  # elements up to which leaving rows out costs more than working on all of them
CHUNK = 2**19  # elements worked on at a time: 2 MiB in float32
NARROW = 32  # classes below which torch's max with its index, and its exp, are faster than what replaces them here
FAR = 1e30  # where the sum of exp comes this far from 1, a row is done again by log softmax
LOG2_E = math.log2(math.e)


class Rows(NamedTuple):
    """Rows of student logits and what they are held against: hard labels, or a soft target where `target` is given."""

    logits: Tensor  # [R, C], any dtype
    weight: Tensor | None  # [R] in the working dtype; None: 1 for all
    label: Tensor | None  # [R] int64
    target: Tensor | None  # [N, C]: probabilities, or logits where there is a temperature
    log_ratio: Tensor | None  # [C] in the working dtype, added to the logits in `target`
    margin: Tensor | None
    adjust: Tensor | None
    temperature: float | None
    smoothing: float
    dtype: torch.dtype  # the working dtype


TENSORS = Rows._fields.index("temperature")  # the fields before it are tensors


def is_small(logits: Tensor) -> bool:
    """Whether logits (some, not none) are few enough to be worked on whole, and their softmax kept."""
    return 0 < logits.numel() <= SMALL


def predictions(
    logits: Tensor, dtype: torch.dtype, log_ratio: Tensor | None = None, class_sum: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """argmax [N] int64 and max softmax [N] of logits [N, C] + log_ratio, computed in `dtype`; their softmax is added to class_sum [C]."""
    rows, classes = logits.shape
    if rows * classes <= CHUNK:
        return _predictions(logits, dtype, log_ratio, class_sum)
    label = torch.empty(rows, dtype=torch.int64)
    confidence = torch.empty(rows, dtype=dtype)
    out, second = _scratch(rows, classes, dtype)
    for chunk in _chunks(rows, classes):
        size = chunk.stop - chunk.start
        label[chunk], confidence[chunk] = _predictions(logits[chunk], dtype, log_ratio, class_sum, out[:size], second[:size])
    return label, confidence


def _predictions(logits: Tensor, dtype: torch.dtype, log_ratio: Tensor | None, class_sum: Tensor | None, out=None, second=None):
    if logits.dtype != dtype:
        logits = logits.to(dtype)
    if log_ratio is not None:
        logits = logits + log_ratio
    classes = logits.shape[1]
    if classes < NARROW:
        top, label = logits.max(dim=1, keepdim=True)
        label = label.squeeze(1)
        e = torch.sub(logits, top, out=out).exp_()
        confidence = e.sum(dim=1).reciprocal_()
    else:
        # 0 - top, so that +0 is left of every maximum, of -0 too.
        e = torch.add(logits, torch.rsub(logits.amax(dim=1, keepdim=True), 0.0), out=out)
        label = _first_zero(e, second)
        confidence = exp_(e).sum(dim=1).reciprocal_()
        if not all_finite(confidence):
            broken = confidence.isnan().nonzero().squeeze(1)
            label.index_copy_(0, broken, logits.index_select(0, broken).argmax(dim=1))
    if class_sum is not None:
        class_sum.add_(e.mul_(confidence.unsqueeze(1)).sum(dim=0))
    return label, confidence


def _first_zero(values: Tensor, second: Tensor | None) -> Tensor:
    """The index [k] of the first +0 in rows of numbers that are +0 or negative; any where there is NaN.

    The bits of +0, or of a negative number, are those of an integer that is 0, or negative whatever its lower bits say. So each takes on
    its place counted from the end, and the largest integer of a row is the place. torch's argmax goes by elements, this by whole vectors.
    """
    classes = values.shape[1]
    integer = torch.int64 if values.dtype == torch.float64 else torch.int32
    places = torch.bitwise_or(values.view(integer), _from_the_end(classes, integer), out=None if second is None else second.view(integer))
    return torch.rsub(places.amax(dim=1), classes - 1).to(torch.int64)


@functools.lru_cache(maxsize=4)
def _from_the_end(classes: int, dtype: torch.dtype) -> Tensor:
    return torch.arange(classes - 1, -1, -1, dtype=dtype)


def exp_(values: Tensor) -> Tensor:
    """exp in place, by powers of 2: four times as fast as torch's exp where that is MKL's on a CPU that MKL was not tuned for."""
    return values.mul_(LOG2_E).exp2_()


def all_finite(values: Tensor) -> bool:
    """False where one is not; may be False where their sum overflows."""
    return math.isfinite(values.sum().item())


def losses_and_gradient(rows: Rows, factor: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Weighted losses [R] and, where a factor [R] is given, factor * d loss / d logits [R, C].

    The factor holds the weight already: it is 0 where the weight is 0. Such a row is exactly 0 in both results, whatever its logits hold.
    The gradient has the dtype of the logits.
    """
    count, classes = rows.logits.shape
    dtype = rows.logits.dtype
    if is_small(rows.logits):
        loss, gradient, sound = _piece(rows, None, factor, None, None)
        if not sound and rows.weight is not None:
            clear_dead(rows.weight, loss, gradient)
        return loss, None if factor is None else gradient if dtype == rows.dtype else gradient.to(dtype)

    kept = torch.arange(0) if count == 0 else None if rows.weight is None else rows.weight.nonzero().squeeze(1)
    few = kept is not None and 3 * kept.shape[0] <= 2 * count
    loss = (torch.zeros if few else torch.empty)(count, dtype=rows.dtype)
    gradient = None if factor is None else (torch.zeros if few else torch.empty)(count, classes, dtype=dtype)
    out, second = _scratch(kept.shape[0] if few else count, classes, rows.dtype)
    if few:
        for chunk in _chunks(kept.shape[0], classes):
            pick = kept[chunk]
            size = chunk.stop - chunk.start
            part, slope, _ = _piece(rows, pick, factor, out[:size], second[:size])
            loss.index_copy_(0, pick, part)
            if gradient is not None:
                gradient.index_copy_(0, pick, slope.to(dtype))
        return loss, gradient

    in_place = gradient is not None and dtype == rows.dtype
    all_sound = True
    for chunk in _chunks(count, classes):
        loss[chunk], slope, sound = _piece(rows, chunk, factor, gradient[chunk] if in_place else out[: chunk.stop - chunk.start], None)
        all_sound = all_sound and sound
        if gradient is not None and not in_place:
            gradient[chunk] = slope
    if not all_sound and rows.weight is not None:
        clear_dead(rows.weight, loss, gradient)
    return loss, gradient


def _scratch(rows: int, classes: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return torch.empty(2, min(rows, max(1, CHUNK // classes)), classes, dtype=dtype).unbind()


def _chunks(rows: int, classes: int) -> Iterator[slice]:
    step = max(1, CHUNK // classes)
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def clear_dead(weight: Tensor, *values: Tensor | None) -> None:
    """Rows of weight 0 become 0, which a product with 0 does not do to NaN and inf."""
    dead = (weight == 0).nonzero().squeeze(1)
    for value in values:
        if value is not None:
            value.index_fill_(0, dead, 0.0)


def _take(values: Tensor, pick: Tensor | slice | None, out: Tensor | None = None) -> Tensor:
    if pick is None:
        return values
    if isinstance(pick, slice):
        return values[pick]
    fits = out is not None and out.dtype == values.dtype
    return torch.index_select(values, 0, pick, out=out if fits else None)


def _piece(
    rows: Rows, pick: Tensor | slice | None, factor: Tensor | None, out: Tensor | None, second: Tensor | None
) -> tuple[Tensor, Tensor | None, bool]:
    """Weighted losses [k] and factor * gradient [k, C] of the picked rows, and whether none can be NaN where it should be 0.

    The gradient lies in `out` where that is given.
    """
    label = None if rows.label is None else _take(rows.label, pick)
    logits = shifted(_take(rows.logits, pick, second), label, rows.margin, rows.adjust, rows.dtype)
    factor = None if factor is None else _take(factor, pick)
    if rows.target is None and not rows.smoothing:
        loss, e, total, sound = hard_softmax(logits, label, out)
        gradient = None if factor is None else hard_gradient_(e, total, label, factor)
    else:
        loss, gradient = _spread(rows, logits, label, pick, factor, out)
        sound = False
    if rows.weight is not None:
        loss = loss.mul_(_take(rows.weight, pick))
    return loss, gradient, sound


def hard_softmax(logits: Tensor, label: Tensor, out: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, bool]:
    """(losses [k], e [k, C], total [k, 1], sound) of rows against labels [k]: softmax is e / total, `sound` that every row is finite.

    exp is measured from the label's logit, not from the maximum: one pass less, and the loss is the logarithm of the total. Rows in which
    that leaves the range of exp are done again.
    """
    label = label.unsqueeze(1)
    e = torch.sub(logits, logits.gather(1, label), out=out)
    e = e.exp_() if logits.shape[1] < NARROW else exp_(e)
    total = e.sum(dim=1, keepdim=True)
    loss = total.log()
    sound = total.amax().item() < FAR
    if not sound:
        again = (total < FAR).logical_not_().squeeze(1).nonzero().squeeze(1)
        log_p = logits.index_select(0, again).log_softmax(dim=1)
        loss.index_copy_(0, again, log_p.gather(1, label.index_select(0, again)).neg_())
        e.index_copy_(0, again, log_p.exp_())
        total.index_fill_(0, again, 1.0)
    return loss.squeeze(1), e, total, sound


def hard_gradient_(e: Tensor, total: Tensor, label: Tensor, factor: Tensor) -> Tensor:
    """factor [k] * (e / total - one-hot) [k, C], in the place of e."""
    factor = factor.unsqueeze(1)
    return e.mul_(factor / total).scatter_add_(1, label.unsqueeze(1), factor.neg())


def _spread(rows: Rows, logits: Tensor, label: Tensor | None, pick: Tensor | slice | None, factor: Tensor | None, out: Tensor | None):
    """Losses [k] of rows against smoothed labels or a soft target q, and factor * gradient: softmax * sum(q) - q."""
    log_p = torch.log_softmax(logits, 1, out=out)
    factor = None if factor is None else factor.unsqueeze(1)
    if rows.target is not None:
        q = _soft(rows, pick)
        loss = soft_rows(log_p, q)
        if factor is not None:
            exp_(log_p)
            if rows.temperature is None:
                log_p.mul_(q.sum(dim=1, keepdim=True))
            log_p.sub_(q).mul_(factor)
        return loss, log_p
    loss = hard_rows(log_p, label, rows.smoothing)
    if factor is not None:
        other = rows.smoothing / (logits.shape[1] - 1)
        exp_(log_p).sub_(other).mul_(factor).scatter_add_(1, label.unsqueeze(1), factor * (rows.smoothing + other - 1))
    return loss, log_p


def _soft(rows: Rows, pick: Tensor | slice | None) -> Tensor:
    """The soft targets [k, C] of the picked rows; views share them."""
    count, shared = rows.logits.shape[0], rows.target.shape[0]
    if count != shared:
        every = torch.arange(count) if pick is None else torch.arange(pick.start, pick.stop) if isinstance(pick, slice) else pick
        pick = every % shared
    q = _take(rows.target, pick).to(rows.dtype)
    if rows.temperature is None:
        return q
    if rows.log_ratio is not None:
        q = q + rows.log_ratio
    return (q / rows.temperature).softmax(dim=1)


def differentiable_losses(rows: Rows) -> Tensor:
    """The weighted losses [R] once more, in operations that autograd differentiates as often as asked."""
    logits = shifted(rows.logits, rows.label, rows.margin, rows.adjust, rows.dtype)
    dead = None if rows.weight is None else rows.weight == 0
    if dead is not None:
        logits = logits.masked_fill(dead[:, None], 0.0)
    log_p = logits.log_softmax(dim=1)
    loss = hard_rows(log_p, rows.label, rows.smoothing) if rows.target is None else soft_rows(log_p, _soft(rows, None))
    return loss if dead is None else (rows.weight * loss).masked_fill(dead, 0.0)
