"""The student's side of every cross-entropy, on the device: loss and gradient of rows of logits against hard or soft targets.

Legend as in `_rows.py`; z the student's logits with `adjust` added and the margin taken off the label's, p = softmax(z), q the target:

| TARGET | q of class c |
|---|---|
| "hard" | keep at the label, spread elsewhere (keep = 1 - smoothing, spread = smoothing / (C - 1)) |
| "logits" | exp((t_c - target_top) * sharpness) / target_total, t the teacher's logits, aligned where log_align_ptr is given |
| "probabilities" | as it stands in memory |

times class_weight[c], if that is given. Then, with mass = sum q (1 where no class weight and no probabilities come in):

    loss = -sum_c q_c log p_c = -sum_c q_c (z_c - top) + mass * log(total),   d loss / d z_c = p_c * mass - q_c

`adjust` and the margin add constants to z, so the derivative by the student's logits is the same.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ._rows import LOG2_E, by_class, exp, load_tile, store_tile
from ._teacher_rows import aligned
from ._walk import LOWEST, group_of, grouped, inner_slots, join, online, step_slots


@triton.jit
def student_tile(
    ptr, adjust_ptr, margin_ptr, label, start, live, slot, classes, stride_c, EDGE: tl.constexpr, VECTOR: tl.constexpr
):  # fmt: skip
    """(z, col, inside): a tile of student logits, shifted.

    The balanced margin adds margin[label] to every other logit. A softmax does not see a constant added to a whole row, so taking it off
    the label's logit is the same.
    """
    z, col, inside = load_tile(ptr, start, live, slot, classes, stride_c, EDGE, VECTOR)
    if adjust_ptr is not None:
        z = z + by_class(adjust_ptr, col, inside, 0.0)
    if margin_ptr is not None:
        margin = tl.load(margin_ptr + label, mask=live, other=0.0).to(tl.float32)
        z = tl.where(col == label[:, None], z - margin[:, None], z)
    return z, col, inside


@triton.jit
def label_logit(ptr, adjust_ptr, margin_ptr, label, start, live, stride_c):
    """z [BLOCK_N] at the label, read by itself: cheaper than finding it among the elements of a tile."""
    z = tl.load(ptr + start + label.to(tl.int64) * stride_c, mask=live, other=0.0).to(tl.float32)
    if adjust_ptr is not None:
        z += tl.load(adjust_ptr + label, mask=live, other=0.0).to(tl.float32)
    if margin_ptr is not None:
        z -= tl.load(margin_ptr + label, mask=live, other=0.0).to(tl.float32)
    return z


@triton.jit
def target_tile(
    target_ptr,  # [N, C] teacher logits or probabilities, None for hard targets
    class_weight_ptr,  # [C] or None
    log_align_ptr,  # [C] or None
    factor,  # [BLOCK_N], multiplied in row by row rather than element by element
    label, target_start, col, inside, target_stride_c, target_top, target_total, sharpness, keep, spread,
    TARGET: tl.constexpr,
):  # fmt: skip
    """factor * q [BLOCK_N, BLOCK_C], 0 where not inside; of hard targets without class weight nothing certain there."""
    if TARGET == "hard":
        # No smoothing leaves exactly 0, whatever the factor.
        q = tl.where(col == label[:, None], (keep * factor)[:, None], tl.where(spread == 0.0, 0.0, spread * factor)[:, None])
    else:
        offset = target_start[:, None] + col.to(tl.int64) * target_stride_c
        if TARGET == "logits":
            t = tl.load(target_ptr + offset, mask=inside, other=float("-inf")).to(tl.float32)
            if log_align_ptr is not None:
                t = aligned(t, log_align_ptr, col, inside)
            q = tl.exp2((t - target_top[:, None]) * (sharpness * LOG2_E)) * (factor / target_total)[:, None]
            q = tl.where(inside, q, 0.0)
        else:
            q = tl.load(target_ptr + offset, mask=inside, other=0.0).to(tl.float32) * factor[:, None]
    if class_weight_ptr is not None:
        q = tl.where(inside, q * by_class(class_weight_ptr, col, inside, 0.0), 0.0)
    return q


@triton.jit
def student_rows(
    ptr,  # [M, C] logits, M = V * N
    loss_ptr,  # [M] float32, written
    stats_ptr,  # [3, M] float32, written: top, total, mass of each row, for `gradient_tile`; or None
    gradient_ptr,  # [M, C] contiguous, written; or None
    target_ptr, class_weight_ptr, log_align_ptr, adjust_ptr, margin_ptr,
    label, weight, factor, target_start, target_top, target_total,  # [BLOCK_N]; factor = weight * upstream gradient
    start, gradient_start, m, valid,  # [BLOCK_N]
    count,  # M
    classes, stride_c, target_stride_c, sharpness, keep, spread,
    TARGET: tl.constexpr,
    SPREAD: tl.constexpr,  # smoothing is not 0
    VECTOR: tl.constexpr,
    BLOCK_C: tl.constexpr,
    LOOPED: tl.constexpr,
):  # fmt: skip
    """Loss, and what of gradient and statistics is wanted, of rows whose label, weight and target are known.

    Rows of weight 0 are not read at all: their loss and gradient are 0 whatever their logits hold, and their bytes are saved.
    """
    live = valid & (weight != 0.0)
    MASS: tl.constexpr = TARGET == "probabilities" or class_weight_ptr is not None
    ONE_HOT: tl.constexpr = TARGET == "hard" and not SPREAD and class_weight_ptr is None
    one = tl.full(weight.shape, 1.0, tl.float32)
    mass = one
    if LOOPED:
        GROUP: tl.constexpr = group_of(ptr)
        shape: tl.constexpr = [1, BLOCK_C // GROUP]
        group_top = tl.full(shape, LOWEST, tl.float32)
        group_total = tl.zeros(shape, tl.float32)
        group_dot = tl.zeros(shape, tl.float32)  # sum of q * (z - group_top), moved along with group_top
        group_mass = tl.zeros(shape, tl.float32)
        inner = inner_slots(start, live, classes, VECTOR, BLOCK_C)
        edge = tl.where(tl.max(live.to(tl.int32), 0) != 0, classes + (VECTOR - 1) - inner, 0)
        for EDGE in tl.static_range(2):
            for first in range(0, edge if EDGE else inner, BLOCK_C):
                slot = step_slots(first, inner, EDGE, VECTOR, BLOCK_C, 1)
                z, col, inside = student_tile(ptr, adjust_ptr, margin_ptr, label, start, live, slot, classes, stride_c, EDGE, VECTOR)
                old = group_top
                group_top, group_total = online(grouped(z, GROUP), group_top, group_total)
                if not ONE_HOT:
                    q = target_tile(
                        target_ptr, class_weight_ptr, log_align_ptr, one, label, target_start, col, inside, target_stride_c,
                        target_top, target_total, sharpness, keep, spread, TARGET,
                    )  # fmt: skip
                    q = grouped(tl.where(inside, q, 0.0), GROUP)
                    # Where nothing was seen yet, 0 * (group_top - LOWEST) could be 0 * inf.
                    moved = tl.where(group_mass == 0.0, 0.0, group_mass * (group_top - old))
                    group_dot = group_dot - moved + tl.sum(tl.where(q == 0.0, 0.0, q * (grouped(z, GROUP) - group_top[:, :, None])), 2)
                    group_mass += tl.sum(q, 2)
        top, total = join(group_top, group_total)
        if not ONE_HOT:
            dot = tl.sum(group_dot - tl.where(group_mass == 0.0, 0.0, group_mass * (top[:, None] - group_top)), 1)
            mass = tl.sum(group_mass, 1)
    else:
        slot = tl.arange(0, BLOCK_C)[None, :]
        z, col, inside = student_tile(ptr, adjust_ptr, margin_ptr, label, start, live, slot, classes, stride_c, True, VECTOR)
        top = tl.where(live, tl.max(z, 1), 0.0)
        z = z - top[:, None]
        e = exp(z)
        total = tl.sum(e, 1)
        if not ONE_HOT:
            q = target_tile(
                target_ptr, class_weight_ptr, log_align_ptr, one, label, target_start, col, inside, target_stride_c,
                target_top, target_total, sharpness, keep, spread, TARGET,
            )  # fmt: skip
            q = tl.where(inside, q, 0.0)
            # Not q * z alone: a class that the target leaves out may be impossible for the student (-inf).
            dot = tl.sum(tl.where(q == 0.0, 0.0, q * z), 1)
            if MASS:
                mass = tl.sum(q, 1)
    if ONE_HOT:
        dot = label_logit(ptr, adjust_ptr, margin_ptr, label, start, live, stride_c) - top
    loss = mass * tl.log(total) - dot
    tl.store(loss_ptr + m, tl.where(live, weight * loss, 0.0), mask=valid)
    if stats_ptr is not None:
        tl.store(stats_ptr + m, tl.where(live, top, 0.0), mask=valid)
        tl.store(stats_ptr + count + m, tl.where(live, total, 1.0), mask=valid)
        tl.store(stats_ptr + 2 * count + m, mass, mask=valid)
    if gradient_ptr is not None:
        if LOOPED:
            gradient_rows(
                ptr, gradient_ptr, target_ptr, class_weight_ptr, log_align_ptr, adjust_ptr, margin_ptr, label, factor, live, valid,
                target_start, target_top, target_total, top, total, mass, start, gradient_start, classes, stride_c,
                target_stride_c, sharpness, keep, spread, TARGET, VECTOR, BLOCK_C, LOOPED,
            )  # fmt: skip
        else:
            share, factor = gradient_factors(factor, live, total, mass)
            if ONE_HOT:
                q = target_tile(
                    None, None, None, factor, label, target_start, col, inside, target_stride_c,
                    target_top, target_total, sharpness, keep, spread, TARGET,
                )  # fmt: skip
            else:
                q = q * factor[:, None]
            store_tile(gradient_ptr, gradient_start, valid, slot, classes, e * share[:, None] - q, True, VECTOR)


@triton.jit
def gradient_factors(factor, live, total, mass):
    """(a, b), each [BLOCK_N], of the gradient a * exp(z - top) - b * q: both 0 for rows that are not live, whose tiles hold exp = 0."""
    return tl.where(live, factor * mass / total, 0.0), tl.where(live, factor, 0.0)


@triton.jit
def gradient_rows(
    ptr, gradient_ptr, target_ptr, class_weight_ptr, log_align_ptr, adjust_ptr, margin_ptr, label, factor, live, valid,
    target_start, target_top, target_total, top, total, mass, start, gradient_start, classes, stride_c,
    target_stride_c, sharpness, keep, spread,
    TARGET: tl.constexpr, VECTOR: tl.constexpr, BLOCK_C: tl.constexpr, LOOPED: tl.constexpr,
):  # fmt: skip
    """Writes factor * (p * mass - q), from logits read here and the rows' known top, total and mass."""
    share, factor = gradient_factors(factor, live, total, mass)
    top = tl.where(live, top, 0.0)
    # A row that is not live is all edge: nothing of it is read, and zeros are written.
    inner = inner_slots(start, live, classes, VECTOR, BLOCK_C) if LOOPED else 0
    for EDGE in tl.static_range(0 if LOOPED else 1, 2):
        for first in range(0, (classes + (VECTOR - 1) - inner if EDGE else inner) if LOOPED else 1, BLOCK_C):
            slot = step_slots(first, inner, EDGE, VECTOR, BLOCK_C, 1)
            z, col, inside = student_tile(ptr, adjust_ptr, margin_ptr, label, start, live, slot, classes, stride_c, EDGE, VECTOR)
            q = target_tile(
                target_ptr, class_weight_ptr, log_align_ptr, factor, label, target_start, col, inside, target_stride_c,
                target_top, target_total, sharpness, keep, spread, TARGET,
            )  # fmt: skip
            slope = exp(z - top[:, None]) * share[:, None] - q
            store_tile(gradient_ptr, gradient_start, valid, slot, classes, slope, EDGE, VECTOR)
