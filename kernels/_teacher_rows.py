"""The teacher's side of a pseudo-label loss, on the device: label, confidence and softmax of rows of logits, in one read.

Legend as in `_rows.py`. LOOPED rows are too long for the registers: the tile walks along them as `_walk.py` says.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ._rows import LOG2_E, by_class, confidence_of, exp, first_at, load_tile
from ._walk import LOWEST, NOWHERE, group_of, grouped, inner_slots, join, online, step_slots


@triton.jit
def aligned(x, log_align_ptr, col, inside):
    """Logits whose softmax is normalise(softmax(x) * align); what is not inside stays -inf."""
    return x + by_class(log_align_ptr, col, inside, 0.0)


@triton.jit
def confidence_rows(
    ptr,  # [N, C] logits
    log_align_ptr,  # [C] or None
    start,
    valid,
    classes,
    stride_c,
    VECTOR: tl.constexpr,
    BLOCK_C: tl.constexpr,
    LOOPED: tl.constexpr,
):
    """max softmax [BLOCK_N] of rows, aligned where `log_align_ptr` is given: what is asked of a judge."""
    if LOOPED:
        GROUP: tl.constexpr = group_of(ptr)
        top = tl.full([1, BLOCK_C // GROUP], LOWEST, tl.float32)
        total = tl.zeros([1, BLOCK_C // GROUP], tl.float32)
        inner = inner_slots(start, valid, classes, VECTOR, BLOCK_C)
        for EDGE in tl.static_range(2):
            for first in range(0, classes + (VECTOR - 1) - inner if EDGE else inner, BLOCK_C):
                slot = step_slots(first, inner, EDGE, VECTOR, BLOCK_C, 1)
                x, col, inside = load_tile(ptr, start, valid, slot, classes, stride_c, EDGE, VECTOR)
                if log_align_ptr is not None:
                    x = aligned(x, log_align_ptr, col, inside)
                top, total = online(grouped(x, GROUP), top, total)
        _, sum_ = join(top, total)
    else:
        x, col, inside = load_tile(ptr, start, valid, tl.arange(0, BLOCK_C)[None, :], classes, stride_c, True, VECTOR)
        if log_align_ptr is not None:
            x = aligned(x, log_align_ptr, col, inside)
        sum_ = tl.sum(exp(x - tl.max(x, 1)[:, None]), 1)
    return confidence_of(sum_)


@triton.jit
def teacher_rows(
    ptr,  # [N, C] logits
    log_align_ptr,  # [C] or None
    start,
    valid,
    classes,
    stride_c,
    sharpness,  # of the soft target: 1 / temperature
    SOFT: tl.constexpr,  # the soft target's sum is wanted
    ALIGN_FOR: tl.constexpr,  # "both" or "weight"; looked at where log_align_ptr is given
    VECTOR: tl.constexpr,
    BLOCK_C: tl.constexpr,
    LOOPED: tl.constexpr,
):
    """(label int32, confidence, top, soft_total), each [BLOCK_N].

    The soft target of class c is exp((z_c - top) * sharpness) / soft_total, z the logits that name the label (aligned for "both").
    """
    SPLIT: tl.constexpr = log_align_ptr is not None and ALIGN_FOR == "weight"  # one softmax names, another one is judged
    NAMED_ALIGNED: tl.constexpr = log_align_ptr is not None and not SPLIT
    by_two = sharpness * LOG2_E
    if LOOPED:
        GROUP: tl.constexpr = group_of(ptr)
        GROUPS: tl.constexpr = BLOCK_C // GROUP
        top = tl.full([1, GROUPS], LOWEST, tl.float32)
        total = tl.zeros([1, GROUPS], tl.float32)
        best = tl.full([1, GROUPS], NOWHERE, tl.int32)  # the first slot of the first 16 bytes that reached `top`
        soft = tl.zeros([1, GROUPS], tl.float32)
        judged_top = top
        judged_total = total
        inner = inner_slots(start, valid, classes, VECTOR, BLOCK_C)
        for EDGE in tl.static_range(2):
            for first in range(0, classes + (VECTOR - 1) - inner if EDGE else inner, BLOCK_C):
                slot = step_slots(first, inner, EDGE, VECTOR, BLOCK_C, 1)
                x, col, inside = load_tile(ptr, start, valid, slot, classes, stride_c, EDGE, VECTOR)
                if SPLIT:
                    judged_top, judged_total = online(grouped(aligned(x, log_align_ptr, col, inside), GROUP), judged_top, judged_total)
                if NAMED_ALIGNED:
                    x = aligned(x, log_align_ptr, col, inside)
                x = grouped(x, GROUP)
                # Not higher alone: the edge is walked last but begins first, and a logit may be LOWEST itself.
                at = step_slots(first, inner, EDGE, VECTOR, GROUPS, GROUP)
                high = tl.max(x, 2)
                best = tl.where((high > top) | ((high == top) & (at < best)), at, best)
                old = top
                top, total = online(x, top, total)
                if SOFT:
                    soft = soft * tl.exp2((old - top) * by_two) + tl.sum(tl.exp2((x - top[:, :, None]) * by_two), 2)
        highest, sum_ = join(top, total)
        # The label lies among the 16 bytes found, which are read again.
        slot = tl.min(tl.where(top == highest[:, None], best, NOWHERE), 1)[:, None] + tl.arange(0, GROUP)[None, :]
        x, col, inside = load_tile(ptr, start, valid, slot, classes, stride_c, True, VECTOR)
        if NAMED_ALIGNED:
            x = aligned(x, log_align_ptr, col, inside)
        label = first_at(x, highest[:, None], col)
        soft_total = tl.sum(soft * tl.exp2((top - highest[:, None]) * by_two), 1) if SOFT else sum_
        if SPLIT:
            _, sum_ = join(judged_top, judged_total)
    else:
        x, col, inside = load_tile(ptr, start, valid, tl.arange(0, BLOCK_C)[None, :], classes, stride_c, True, VECTOR)
        if SPLIT:
            judged = aligned(x, log_align_ptr, col, inside)
            sum_ = tl.sum(exp(judged - tl.max(judged, 1)[:, None]), 1)
        if NAMED_ALIGNED:
            x = aligned(x, log_align_ptr, col, inside)
        highest = tl.max(x, 1)
        label = first_at(x, highest[:, None], col)
        x = x - highest[:, None]
        if not SPLIT:
            sum_ = tl.sum(exp(x), 1)
        soft_total = tl.sum(tl.exp2(x * by_two), 1) if SOFT else sum_
    # A NaN may have hidden the label: then any class does, for the confidence is NaN, but memory is read at it.
    return tl.maximum(tl.minimum(label, classes - 1), 0), confidence_of(sum_), highest, soft_total
