"""The kernels of `triton_class_statistics.py`: column sums of softmax rows, counts of their labels, moments of their confidences.

Each program of `columns_kernel` walks over rows that are the same on every run and keeps its own sums; `totals_kernel` adds those up in one
fixed order. So there are no atomics, and the same bits come out every time. Rows too long for the registers are read by `rows_kernel`
first, which keeps what `columns_kernel` then needs to know of a row while it sees a part of it.

Moments are kept as (count, mean, sum of squared deviations) and joined by Chan, Golub and LeVeque's formula (1983): a sum of squares less a
squared sum would leave nothing but rounding of confidences that all lie close to 1.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ._rows import confidence_of, exp, first_at, load_tile, row_threshold
from ._teacher_rows import teacher_rows


@triton.jit
def inside_label(label, classes):
    """A label at which memory may be read: NaN hides a row's label, and such a row is not counted whatever stands there."""
    return tl.maximum(tl.minimum(label, classes - 1), 0)


@triton.jit(do_not_specialize=["rows"])
def rows_kernel(
    teacher_ptr,  # [N, C] logits
    threshold_ptr,  # [], [C] or [N], by THRESHOLD; or None
    stats_ptr,  # [2, N] float32, written: top and total of the softmax
    counted_ptr,  # [N] int32, written: the label that is counted, or -1
    rows,
    classes_over,
    row_over,
    column,
    threshold,
    THRESHOLD: tl.constexpr,
    ALIGN: tl.constexpr,
    VECTOR: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The first look at rows that are walked along."""
    classes = classes_over * ALIGN
    n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    valid = n < rows
    label, confidence, top, total = teacher_rows(
        teacher_ptr, None, n * row_over * ALIGN, valid, classes, column, 1.0, False, "both", VECTOR, BLOCK_C, True
    )
    limit = row_threshold(threshold_ptr, threshold, label, n, valid, THRESHOLD)
    tl.store(stats_ptr + n, top, mask=valid)
    tl.store(stats_ptr + tl.cast(rows, tl.int64) + n, total, mask=valid)
    tl.store(counted_ptr + n, tl.where(confidence >= limit, label, -1), mask=valid)


@triton.jit(do_not_specialize=["rows", "steps"])
def columns_kernel(
    teacher_ptr,  # [N, C] logits
    threshold_ptr,  # [], [C] or [N], by THRESHOLD; or None
    stats_ptr,  # [2, N] and
    counted_ptr,  # [N] of `rows_kernel`; or None, where a tile holds whole rows
    sums_ptr,  # [G, C] float32, written
    counts_ptr,  # [G, C] int32, written
    moments_ptr,  # [3, G] float32, written: count, mean and sum of squared deviations of the confidences
    rows,
    steps,
    classes_over,
    row_over,
    column,
    threshold,
    THRESHOLD: tl.constexpr,
    FOLD: tl.constexpr,
    ALIGN: tl.constexpr,
    VECTOR: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Program (g, b) of (G, column blocks) sums the columns of block b over the rows of group g.

    Short rows are taken together, tile by tile as they lie. With FOLD, for long ones, a group has every G-th row: where G is a multiple of
    VECTOR they all start at the same place of a granule, so that a lane of the tile is the same class in each and a tile can be summed
    over its rows as soon as it is read.
    """
    classes = classes_over * ALIGN
    group = tl.program_id(0)
    groups = tl.num_programs(0)
    first = tl.program_id(1) * BLOCK_C
    i = tl.arange(0, BLOCK_N)
    slot = first + tl.arange(0, BLOCK_C)[None, :]
    row_in_step = i * groups + group if FOLD else group * BLOCK_N + i
    stride = tl.cast(groups, tl.int64) * BLOCK_N
    shape: tl.constexpr = [1 if FOLD else BLOCK_N, BLOCK_C]
    sums = tl.zeros(shape, tl.float32)
    counts = tl.zeros(shape, tl.int32)
    count = tl.zeros([BLOCK_N], tl.float32)
    mean = tl.zeros([BLOCK_N], tl.float32)
    squares = tl.zeros([BLOCK_N], tl.float32)
    for step in range(0, steps):
        n = tl.cast(step, tl.int64) * stride + row_in_step
        valid = n < rows
        x, col, inside = load_tile(teacher_ptr, n * row_over * ALIGN, valid, slot, classes, column, True, VECTOR)
        if stats_ptr is None:
            top = tl.max(x, 1)
            p = exp(x - top[:, None])
            total = tl.sum(p, 1)
            confidence = confidence_of(total)
            label = first_at(x, top[:, None], col)
            limit = row_threshold(threshold_ptr, threshold, inside_label(label, classes), n, valid, THRESHOLD)
            counted = tl.where(confidence >= limit, label, -1)
        else:
            top = tl.load(stats_ptr + n, mask=valid, other=0.0)
            total = tl.load(stats_ptr + tl.cast(rows, tl.int64) + n, mask=valid, other=1.0)
            counted = tl.load(counted_ptr + n, mask=valid, other=-1)
            p = exp(x - top[:, None])
            confidence = confidence_of(total)
        count += tl.where(valid, 1.0, 0.0)
        step_up = tl.where(valid, confidence - mean, 0.0)
        mean += step_up / tl.maximum(count, 1.0)
        squares += tl.where(valid, step_up * (confidence - mean), 0.0)
        p = tl.where(valid[:, None], p * (1.0 / total)[:, None], 0.0)
        # A lane that is no class may be -1, as the label of a row that is not counted or not there: only classes are stored.
        hit = (col == counted[:, None]).to(tl.int32)
        if FOLD:
            sums += tl.sum(p, 0)[None, :]
            counts += tl.sum(hit, 0)[None, :]
        else:
            sums += p
            counts += hit

    col = first + tl.arange(0, BLOCK_C)
    if VECTOR > 1:
        col -= (tl.cast(group, tl.int64) * row_over * ALIGN % VECTOR).to(tl.int32)
    at = tl.cast(group, tl.int64) * classes + col
    is_class = (col >= 0) & (col < classes)
    tl.store(sums_ptr + at, tl.sum(sums, 0), mask=is_class)
    tl.store(counts_ptr + at, tl.sum(counts, 0), mask=is_class)
    if tl.program_id(1) == 0:
        every, centre, off = joined(count, mean, squares)
        tl.store(moments_ptr + group, every)
        tl.store(moments_ptr + groups + group, centre)
        tl.store(moments_ptr + 2 * groups + group, off)


@triton.jit
def joined(count, mean, squares):
    """(count, mean, squared deviations) of many lots [K] -> of all of them together."""
    every = tl.sum(count, 0)
    centre = tl.sum(mean * count, 0) / tl.maximum(every, 1.0)
    off = mean - centre
    return every, centre, tl.sum(squares + count * off * off, 0)


@triton.jit(do_not_specialize=["rows", "groups"])
def totals_kernel(
    sums_ptr,  # [G, C] float32
    counts_ptr,  # [G, C] int32
    moments_ptr,  # [3, G] float32
    mean_probability_ptr,  # [C] float32, written
    histogram_ptr,  # [C] int64, written
    confidence_mean_ptr,  # [] float32, written
    confidence_var_ptr,  # [] float32, written
    rows,
    groups,
    classes,
    MOST_GROUPS: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Adds up what the groups found, always in the same order."""
    col = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    sums = tl.zeros([BLOCK_G, BLOCK_C], tl.float32)
    counts = tl.zeros([BLOCK_G, BLOCK_C], tl.int64)
    for first in range(0, groups, BLOCK_G):
        g = first + tl.arange(0, BLOCK_G)[:, None]
        there = (g < groups) & (col < classes)
        at = g.to(tl.int64) * classes + col
        sums += tl.load(sums_ptr + at, mask=there, other=0.0)
        counts += tl.load(counts_ptr + at, mask=there, other=0).to(tl.int64)
    is_class = col < classes
    tl.store(mean_probability_ptr + col, (tl.sum(sums, 0) / rows)[None, :], mask=is_class)
    tl.store(histogram_ptr + col, tl.sum(counts, 0)[None, :], mask=is_class)
    if tl.program_id(0) == 0:
        g = tl.arange(0, MOST_GROUPS)
        there = g < groups
        count = tl.load(moments_ptr + g, mask=there, other=0.0)
        mean = tl.load(moments_ptr + groups + g, mask=there, other=0.0)
        squares = tl.load(moments_ptr + 2 * groups + g, mask=there, other=0.0)
        every, centre, off = joined(count, mean, squares)
        tl.store(confidence_mean_ptr, centre)
        tl.store(confidence_var_ptr, tl.where(every > 1.0, off / tl.maximum(every - 1.0, 1.0), 0.0))
