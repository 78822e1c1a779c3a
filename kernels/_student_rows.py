"""The student's side of every cross-entropy, on the device: loss and gradient of rows of logits against hard or soft targets.

Legend as in `_rows.py`; z the student's logits with `adjust` added and the margin taken off the label's, p = softmax(z), q the target:

| TARGET | q of class c |
|---|---|
| "hard" | keep at the label, spread elsewhere (keep = 1 - smoothing, spread = smoothing / (C - 1)) |
| "logits" | exp((t_c - target_top) / temperature) / target_total, t the teacher's logits, aligned where align_ptr is given |
| "probabilities" | as it stands in memory |

times class_weight[c], if that is given. Then, with mass = sum q (1 where no class weight and no probabilities come in):

    loss = -sum_c q_c log p_c = -sum_c q_c (z_c - top) + mass * log(total),   d loss / d z_c = p_c * mass - q_c

`adjust` and the margin add constants to z, so the derivative by the student's logits is the same.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ._rows import LOWEST, by_class, join, load_tile, online, store_tile
from ._teacher_rows import aligned


@triton.jit
def student_tile(
    ptr, adjust_ptr, margin_ptr, label, start, live, first, classes, stride_c, VECTOR: tl.constexpr, BLOCK_C: tl.constexpr
):  # fmt: skip
    """(z, col, inside): a tile of student logits, shifted.

    The balanced margin adds margin[label] to every other logit. A softmax does not see a constant added to a whole row, so taking it off
    the label's logit is the same.
    """
    z, col, inside = load_tile(ptr, start, live, first, classes, stride_c, VECTOR, BLOCK_C)
    if adjust_ptr is not None:
        z = z + by_class(adjust_ptr, col, inside, 0.0)
    if margin_ptr is not None:
        margin = tl.load(margin_ptr + label, mask=live, other=0.0).to(tl.float32)
        z = tl.where(col == label[:, None], z - margin[:, None], z)
    return z, col, inside


@triton.jit
def target_tile(
    target_ptr,  # [N, C] teacher logits or probabilities, None for hard targets
    class_weight_ptr,  # [C] or None
    align_ptr,  # [C] or None
    label, target_start, live, col, inside, target_stride_c, target_top, target_total, temperature, keep, spread,
    TARGET: tl.constexpr,
):  # fmt: skip
    """q [BLOCK_N, BLOCK_C], 0 where not inside."""
    if TARGET == "hard":
        q = tl.where(col == label[:, None], keep, spread)
    else:
        offset = target_start[:, None] + col.to(tl.int64) * target_stride_c
        if TARGET == "logits":
            t = tl.load(target_ptr + offset, mask=inside, other=float("-inf")).to(tl.float32)
            if align_ptr is not None:
                t = aligned(t, align_ptr, col, inside)
            q = tl.exp((t - target_top[:, None]) / temperature) / target_total[:, None]
        else:
            q = tl.load(target_ptr + offset, mask=inside, other=0.0).to(tl.float32)
    if class_weight_ptr is not None:
        q = q * by_class(class_weight_ptr, col, inside, 0.0)
    return tl.where(inside, q, 0.0)


@triton.jit
def student_rows(
    ptr,  # [M, C] logits, M = V * N
    loss_ptr,  # [M] float32, written
    stats_ptr,  # [3, M] float32, written: top, total, mass of each row, for `student_gradient`; or None
    gradient_ptr,  # [M, C] contiguous, written; or None
    target_ptr, class_weight_ptr, align_ptr, adjust_ptr, margin_ptr,
    label, weight, factor, target_start, target_top, target_total,  # [BLOCK_N]; factor = weight * upstream gradient
    start, gradient_start, m, valid,  # [BLOCK_N]
    count,  # M
    classes, stride_c, target_stride_c, temperature, keep, spread,
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
    mass = tl.full(weight.shape, 1.0, tl.float32)
    if LOOPED:
        end = tl.where(tl.max(live.to(tl.int32), 0) != 0, classes + (VECTOR - 1), 0)
        shape: tl.constexpr = [weight.shape[0], BLOCK_C]
        lane_top = tl.full(shape, LOWEST, tl.float32)
        lane_total = tl.zeros(shape, tl.float32)
        lane_dot = tl.zeros(shape, tl.float32)  # sum of q * (z - lane_top), moved along with lane_top
        lane_mass = tl.zeros(shape, tl.float32)
        for first in range(0, end, BLOCK_C):
            z, col, inside = student_tile(ptr, adjust_ptr, margin_ptr, label, start, live, first, classes, stride_c, VECTOR, BLOCK_C)
            old = lane_top
            lane_top, lane_total, _ = online(z, lane_top, lane_total)
            if not ONE_HOT:
                q = target_tile(
                    target_ptr, class_weight_ptr, align_ptr, label, target_start, live, col, inside, target_stride_c,
                    target_top, target_total, temperature, keep, spread, TARGET,
                )  # fmt: skip
                # Where nothing was seen yet, 0 * (lane_top - LOWEST) could be 0 * inf.
                moved = tl.where(lane_mass == 0.0, 0.0, lane_mass * (lane_top - old))
                lane_dot = lane_dot - moved + tl.where(q == 0.0, 0.0, q * (z - lane_top))
                lane_mass += q
        top, total = join(lane_top, lane_total)
        if ONE_HOT:
            chosen = tl.load(ptr + start + label.to(tl.int64) * stride_c, mask=live, other=0.0).to(tl.float32)
            if adjust_ptr is not None:
                chosen += tl.load(adjust_ptr + label, mask=live, other=0.0).to(tl.float32)
            if margin_ptr is not None:
                chosen -= tl.load(margin_ptr + label, mask=live, other=0.0).to(tl.float32)
            dot = chosen - top
        else:
            dot = tl.sum(lane_dot - tl.where(lane_mass == 0.0, 0.0, lane_mass * (top[:, None] - lane_top)), 1)
            mass = tl.sum(lane_mass, 1)
    else:
        z, col, inside = student_tile(ptr, adjust_ptr, margin_ptr, label, start, live, 0, classes, stride_c, VECTOR, BLOCK_C)
        top = tl.max(z, 1)
        z = z - top[:, None]
        e = tl.exp(z)
        total = tl.sum(e, 1)
        q = target_tile(
            target_ptr, class_weight_ptr, align_ptr, label, target_start, live, col, inside, target_stride_c,
            target_top, target_total, temperature, keep, spread, TARGET,
        )  # fmt: skip
        # Not q * z alone: a class that the target leaves out may be impossible for the student (-inf).
        dot = tl.sum(tl.where(q == 0.0, 0.0, q * z), 1)
        if MASS:
            mass = tl.sum(q, 1)
    loss = mass * tl.log(total) - dot
    tl.store(loss_ptr + m, tl.where(live, weight * loss, 0.0), mask=valid)
    if stats_ptr is not None:
        tl.store(stats_ptr + m, tl.where(live, top, 0.0), mask=valid)
        tl.store(stats_ptr + count + m, tl.where(live, total, 1.0), mask=valid)
        tl.store(stats_ptr + 2 * count + m, mass, mask=valid)
    if gradient_ptr is not None:
        if LOOPED:
            for first in range(0, classes + (VECTOR - 1), BLOCK_C):
                gradient_chunk(
                    ptr, gradient_ptr, target_ptr, class_weight_ptr, align_ptr, adjust_ptr, margin_ptr, label, factor, live, valid,
                    target_start, target_top, target_total, top, total, mass, start, gradient_start, first, classes, stride_c,
                    target_stride_c, temperature, keep, spread, TARGET, VECTOR, BLOCK_C,
                )  # fmt: skip
        else:
            slope = (e * (mass / total)[:, None] - q) * factor[:, None]
            slope = tl.where(live[:, None], slope, 0.0)
            store_tile(gradient_ptr, gradient_start, valid, 0, classes, slope, VECTOR, BLOCK_C)


@triton.jit
def gradient_chunk(
    ptr, gradient_ptr, target_ptr, class_weight_ptr, align_ptr, adjust_ptr, margin_ptr, label, factor, live, valid,
    target_start, target_top, target_total, top, total, mass, start, gradient_start, first, classes, stride_c,
    target_stride_c, temperature, keep, spread,
    TARGET: tl.constexpr, VECTOR: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Writes factor * (p * mass - q) for the tile at `first`, from logits read here and the row's known top, total and mass."""
    z, col, inside = student_tile(ptr, adjust_ptr, margin_ptr, label, start, live, first, classes, stride_c, VECTOR, BLOCK_C)
    q = target_tile(
        target_ptr, class_weight_ptr, align_ptr, label, target_start, live, col, inside, target_stride_c,
        target_top, target_total, temperature, keep, spread, TARGET,
    )  # fmt: skip
    slope = (tl.exp(z - top[:, None]) * (mass / total)[:, None] - q) * factor[:, None]
    store_tile(gradient_ptr, gradient_start, valid, first, classes, tl.where(live[:, None], slope, 0.0), VECTOR, BLOCK_C)
