"""The teacher's side of a pseudo-label loss, on the device: label, confidence and softmax of rows of logits, in one read.

Legend as in `_rows.py`. LOOPED rows are too long for the registers: the tile walks along them, each lane keeping its own running softmax.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ._rows import LOWEST, by_class, confidence_of, first_at, join, load_tile, online


@triton.jit
def aligned(x, align_ptr, col, inside):
    """Logits whose softmax is normalise(softmax(x) * align)."""
    return tl.where(inside, x + tl.log(by_class(align_ptr, col, inside, 1.0)), float("-inf"))


@triton.jit
def confidence_rows(
    ptr,  # [N, C] logits
    align_ptr,  # [C] or None
    start,
    valid,
    classes,
    stride_c,
    VECTOR: tl.constexpr,
    BLOCK_C: tl.constexpr,
    LOOPED: tl.constexpr,
):
    """max softmax [BLOCK_N] of rows, aligned where `align_ptr` is given: what is asked of a judge."""
    if LOOPED:
        top = tl.full([start.shape[0], BLOCK_C], LOWEST, tl.float32)
        total = tl.zeros([start.shape[0], BLOCK_C], tl.float32)
        for first in range(0, classes + (VECTOR - 1), BLOCK_C):
            x, col, inside = load_tile(ptr, start, valid, first, classes, stride_c, VECTOR, BLOCK_C)
            if align_ptr is not None:
                x = aligned(x, align_ptr, col, inside)
            top, total, _ = online(x, top, total)
        _, sum_ = join(top, total)
    else:
        x, col, inside = load_tile(ptr, start, valid, 0, classes, stride_c, VECTOR, BLOCK_C)
        if align_ptr is not None:
            x = aligned(x, align_ptr, col, inside)
        sum_ = tl.sum(tl.exp(x - tl.max(x, 1)[:, None]), 1)
    return confidence_of(sum_)


@triton.jit
def teacher_rows(
    ptr,  # [N, C] logits
    align_ptr,  # [C] or None
    start,
    valid,
    classes,
    stride_c,
    temperature,
    SOFT: tl.constexpr,  # the soft target's sum is wanted
    ALIGN_FOR: tl.constexpr,  # "both" or "weight"; looked at where align_ptr is given
    VECTOR: tl.constexpr,
    BLOCK_C: tl.constexpr,
    LOOPED: tl.constexpr,
):
    """(label int32, confidence, top, soft_total), each [BLOCK_N].

    The soft target of class c is exp((z_c - top) / temperature) / soft_total, z the logits that name the label (aligned for "both").
    """
    SPLIT: tl.constexpr = align_ptr is not None and ALIGN_FOR == "weight"  # one softmax names, another one is judged
    if LOOPED:
        shape: tl.constexpr = [start.shape[0], BLOCK_C]
        top = tl.full(shape, LOWEST, tl.float32)
        total = tl.zeros(shape, tl.float32)
        best = tl.full(shape, 2147483647, tl.int32)
        soft = tl.zeros(shape, tl.float32)
        judged_top = top
        judged_total = total
        for first in range(0, classes + (VECTOR - 1), BLOCK_C):
            x, col, inside = load_tile(ptr, start, valid, first, classes, stride_c, VECTOR, BLOCK_C)
            if SPLIT:
                judged_top, judged_total, _ = online(aligned(x, align_ptr, col, inside), judged_top, judged_total)
            elif align_ptr is not None:
                x = aligned(x, align_ptr, col, inside)
            if SOFT:
                step = tl.exp(-tl.abs(x - top) / temperature)
                soft = tl.where(x > top, soft * step + 1.0, soft + step)
            top, total, higher = online(x, top, total)
            best = tl.where(higher, col, best)
        highest, sum_ = join(top, total)
        label = tl.min(tl.where(top == highest[:, None], best, 2147483647), 1)
        soft_total = tl.sum(soft * tl.exp((top - highest[:, None]) / temperature), 1) if SOFT else sum_
        if SPLIT:
            _, sum_ = join(judged_top, judged_total)
    else:
        x, col, inside = load_tile(ptr, start, valid, 0, classes, stride_c, VECTOR, BLOCK_C)
        if SPLIT:
            judged = aligned(x, align_ptr, col, inside)
            sum_ = tl.sum(tl.exp(judged - tl.max(judged, 1)[:, None]), 1)
        elif align_ptr is not None:
            x = aligned(x, align_ptr, col, inside)
        highest = tl.max(x, 1)
        label = first_at(x, highest[:, None], col)
        if not SPLIT:
            sum_ = tl.sum(tl.exp(x - highest[:, None]), 1)
        soft_total = tl.sum(tl.exp((x - highest[:, None]) / temperature), 1) if SOFT else sum_
    # A NaN may have hidden the label: then any class does, for the confidence is NaN, but memory is read at it.
    return tl.maximum(tl.minimum(label, classes - 1), 0), confidence_of(sum_), highest, soft_total
