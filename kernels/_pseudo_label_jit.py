"""The kernels of `pseudo_label.py`: teacher and student in one launch, and the gradient from what that launch kept.

Legend: N rows, C classes, V views of a row, M = V * N; tiles as in `_rows.py`. Numbers that are options of the call come as float32.
`*_over` arguments are divided by ALIGN, which the kernel multiplies in again: so the compiler knows that they are multiples of it.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ._rows import row_threshold, row_weight, sampled
from ._student_rows import gradient_rows, student_rows
from ._teacher_rows import confidence_rows, teacher_rows


@triton.jit(do_not_specialize=["rows"])
def pseudo_label_kernel(
    student_ptr,  # [V, N, C] logits
    teacher_ptr,  # [N, C] logits; or None, and then
    ready_label_ptr,  # [N] integer and
    ready_confidence_ptr,  # [N]
    judge_ptr,  # [N, C] logits or None
    threshold_ptr,  # [], [C] or [N], by THRESHOLD; or None
    variance_ptr,  # [] or None
    log_align_ptr,  # [C] or None
    margin_ptr,  # [C] or None
    adjust_ptr,  # [C] or None
    sample_weight_ptr,  # [N] or None
    scale_ptr,  # [] or [N], by SCALE; or None
    loss_ptr,  # [M] float32, written
    label_ptr,  # [N] int64, written
    confidence_ptr,  # [N] float32, written
    weight_ptr,  # [M] float32, written
    stats_ptr,  # [3, M] float32, written; or None
    target_stats_ptr,  # [2, N] float32, written: top and total of the soft target; or None
    gradient_ptr,  # [V, N, C] contiguous, written; or None
    rows,  # N
    views,  # V
    classes_over,
    student_view_over,  # strides in elements
    student_row_over,
    student_column,
    teacher_row_over,
    teacher_column,
    judge_row_over,
    judge_column,
    threshold,
    power,
    variance,
    sharpness,  # 1 / temperature
    keep,  # what the label keeps of the target, 1 - smoothing
    spread,  # what every other class gets, smoothing / (C - 1)
    scale,
    WEIGHTING: tl.constexpr,
    THRESHOLD: tl.constexpr,  # "number", "scalar", "class", "row"
    SCALE: tl.constexpr,  # "number", "scalar", "row"
    ALIGN_FOR: tl.constexpr,  # "both", "weight"
    SOFT: tl.constexpr,
    SPREAD: tl.constexpr,
    ALIGN: tl.constexpr,
    STUDENT_VECTOR: tl.constexpr,
    TEACHER_VECTOR: tl.constexpr,
    JUDGE_VECTOR: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    LOOPED: tl.constexpr,
):
    classes = classes_over * ALIGN
    n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    valid = n < rows
    teacher_start = n * teacher_row_over * ALIGN

    if teacher_ptr is None:
        label = tl.load(ready_label_ptr + n, mask=valid, other=0).to(tl.int64)
        confidence = tl.load(ready_confidence_ptr + n, mask=valid, other=0.0).to(tl.float32)
        confidence = tl.where((label < 0) | (label >= classes), float("nan"), confidence)
        label = tl.maximum(tl.minimum(label, classes - 1), 0).to(tl.int32)
        target_top = confidence
        target_total = confidence
    else:
        label, confidence, target_top, target_total = teacher_rows(
            teacher_ptr, log_align_ptr, teacher_start, valid, classes, teacher_column, sharpness,
            SOFT, ALIGN_FOR, TEACHER_VECTOR, BLOCK_C, LOOPED,
        )  # fmt: skip
    judged = confidence
    if judge_ptr is not None:
        judge_start = n * judge_row_over * ALIGN
        judged = confidence_rows(judge_ptr, log_align_ptr, judge_start, valid, classes, judge_column, JUDGE_VECTOR, BLOCK_C, LOOPED)
    limit = row_threshold(threshold_ptr, threshold, label, n, valid, THRESHOLD)
    spread_of = tl.zeros([BLOCK_N], tl.float32)
    if variance_ptr is not None:
        spread_of += tl.load(variance_ptr).to(tl.float32)
    else:
        spread_of += variance
    weight = row_weight(judged, limit, power, spread_of, WEIGHTING)
    weight = tl.where(confidence != confidence, float("nan"), weight)
    weight = sampled(weight, sample_weight_ptr, n, valid)

    tl.store(label_ptr + n, label.to(tl.int64), mask=valid)
    tl.store(confidence_ptr + n, confidence, mask=valid)
    if target_stats_ptr is not None:
        tl.store(target_stats_ptr + n, target_top, mask=valid)
        tl.store(target_stats_ptr + rows + n, target_total, mask=valid)

    if SCALE == "scalar":
        factor = weight * tl.load(scale_ptr).to(tl.float32)
    elif SCALE == "row":
        factor = weight * tl.load(scale_ptr + n, mask=valid, other=0.0).to(tl.float32)
    else:
        factor = weight * scale
    for view in range(views):
        m = n + tl.cast(view, tl.int64) * rows
        tl.store(weight_ptr + m, weight, mask=valid)
        start = (tl.cast(view, tl.int64) * student_view_over + n * student_row_over) * ALIGN
        student_rows(
            student_ptr, loss_ptr, stats_ptr, gradient_ptr, teacher_ptr, None, log_align_ptr if ALIGN_FOR == "both" else None,
            adjust_ptr, margin_ptr, label, weight, factor, teacher_start, target_top, target_total, start, m * classes_over * ALIGN, m,
            valid, tl.cast(rows, tl.int64) * views, classes, student_column, teacher_column, sharpness, keep, spread,
            "logits" if SOFT else "hard", SPREAD, STUDENT_VECTOR, BLOCK_C, LOOPED,
        )  # fmt: skip


@triton.jit(do_not_specialize=["rows"])
def gradient_kernel(
    student_ptr,  # [V, N, C] logits
    target_ptr,  # [N, C] teacher logits or probabilities, None for hard targets
    class_weight_ptr,  # [C] or None
    log_align_ptr,  # [C] or None
    margin_ptr,  # [C] or None
    adjust_ptr,  # [C] or None
    label_ptr,  # [N] integer, or None for targets that need none
    weight_ptr,  # [M] float32
    upstream_ptr,  # [M] float32: gradient by the rows of the loss
    stats_ptr,  # [3, M] float32
    target_stats_ptr,  # [2, N] float32 or None
    gradient_ptr,  # [V, N, C] contiguous, written
    rows,
    views,
    classes_over,
    student_view_over,
    student_row_over,
    student_column,
    target_row_over,
    target_column,
    upstream_stride,
    sharpness,  # 1 / temperature
    keep,
    spread,
    TARGET: tl.constexpr,
    ALIGN: tl.constexpr,
    VECTOR: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    LOOPED: tl.constexpr,
):
    """d(sum upstream * loss) / d student from the row statistics of the forward launch: one read, one write."""
    classes = classes_over * ALIGN
    n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    view = tl.program_id(1).to(tl.int64) + tl.program_id(2).to(tl.int64) * tl.num_programs(1)
    valid = n < tl.where(view < views, rows, 0)
    m = n + view * rows
    count = tl.cast(rows, tl.int64) * views
    weight = tl.load(weight_ptr + m, mask=valid, other=0.0)
    live = valid & (weight != 0.0)
    factor = weight * tl.load(upstream_ptr + m * upstream_stride, mask=valid, other=0.0).to(tl.float32)
    top = tl.load(stats_ptr + m, mask=live, other=0.0)
    total = tl.load(stats_ptr + count + m, mask=live, other=1.0)
    mass = tl.load(stats_ptr + 2 * count + m, mask=live, other=0.0)
    label = n.to(tl.int32)
    if label_ptr is not None:
        label = tl.load(label_ptr + n, mask=valid, other=0).to(tl.int64)
        label = tl.maximum(tl.minimum(label, classes - 1), 0).to(tl.int32)
    target_top = top
    target_total = total
    if target_stats_ptr is not None:
        target_top = tl.load(target_stats_ptr + n, mask=valid, other=0.0)
        target_total = tl.load(target_stats_ptr + rows + n, mask=valid, other=1.0)
    start = (view * student_view_over + n * student_row_over) * ALIGN
    gradient_rows(
        student_ptr, gradient_ptr, target_ptr, class_weight_ptr, log_align_ptr, adjust_ptr, margin_ptr, label, factor, live, valid,
        n * target_row_over * ALIGN, target_top, target_total, top, total, mass, start, m * classes_over * ALIGN, classes,
        student_column, target_column, sharpness, keep, spread, TARGET, VECTOR, BLOCK_C, LOOPED,
    )  # fmt: skip
