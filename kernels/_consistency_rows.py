"""Rows of distance between two predictions, on the device: what `_consistency_jit.py` launches is made of this.

Legend: tiles as in `_rows.py`; p = softmax(student / T), q the teacher's prediction, d = p - q, mass = sum q, S = 1 / T ("sharpness").

| TEACHER | q of class c |
|---|---|
| "logits" | softmax(teacher / T) |
| "probabilities" | as it stands in memory (T = 1) |
| "powers" | teacher ** S, normalised: the softmax of log(teacher) / T, and computed so; a negative "probability" makes the row NaN |

With r = log p for "ce", log p - log q for "kl", and 0 for a class with q = 0:

| KIND | row | d row / d student | d row / d q, then through q's softmax |
|---|---|---|---|
| mse | sum d^2 / C | S * 2/C * p * (d - sum p d) | -2/C * d, then -S * 2/C * q * (d - sum q d) |
| ce | -sum q r | S * (p * mass - q) | -r, then -S * q * (r + row) |
| kl | -sum q r | S * (p * mass - q) | 1 - r (0 where q = 0), then -S * q * (r + row) |

For "powers" the last is divided by the probability, d log(x) = dx / x. All sums over classes are row statistics of the forward launch:
top, total of the student's softmax; the same of the teacher's, unless "probabilities"; `balance`: sum p d for mse, mass for "probabilities"
with ce and kl; `teacher_balance`: sum q d for mse, else the row itself, where BOTH sides want a gradient through a softmax.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ._rows import exp, load_tile
from ._walk import LOWEST


@triton.jit
def probabilities_in(x, inside, TEACHER: tl.constexpr):
    """The teacher's tile as the rest wants it: logits with -inf outside, or probabilities with 0 outside."""
    if TEACHER == "powers":
        return tl.where(inside, tl.log2(x) * 0.6931471805599453, float("-inf"))
    elif TEACHER == "probabilities":
        return tl.where(inside, x, 0.0)
    else:
        return x


@triton.jit
def sharp(x, top, sharpness):
    """One element more in each lane of a softmax at a temperature: (maximum, factor on what was summed so far, the element's own term).

    Of the two factors exp(old - new) and exp(x - new) one is always exp(0), so a single exponential serves both. The difference is taken
    before the sharpness, so that large logits keep theirs.
    """
    step = exp(-tl.abs(x - top) * sharpness)
    higher = x > top
    return tl.where(higher, x, top), tl.where(higher, step, 1.0), tl.where(higher, 1.0, step)


@triton.jit
def moved(open, rise):
    """open * rise where a lane that has counted nothing has nothing to move, though it rise from LOWEST by more than float32 holds."""
    return tl.where(open == 0.0, 0.0, open * rise)


@triton.jit
def log_ratio(z, log_total, y, log_target_total, q, KIND: tl.constexpr, TEACHER: tl.constexpr):
    """r of the module's legend, from z = (student - top) / T and, for teachers with a softmax, y = (teacher - its top) / T."""
    r = z - log_total[:, None]
    if KIND == "kl":
        if TEACHER == "probabilities":
            r -= tl.log(q)
        else:
            r -= y - log_target_total[:, None]
    # 0 * log 0 = 0, also for a class that is impossible for the student.
    return tl.where(q == 0.0, 0.0, r)


@triton.jit
def whole_rows(
    student_ptr, teacher_ptr, student_start, teacher_start, live, classes, student_column, teacher_column, sharpness,
    KIND: tl.constexpr, TEACHER: tl.constexpr, VECTOR: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """(row, top, total, target_top, target_total, balance, teacher_balance), each [BLOCK_N], of rows that lie in registers."""
    slot = tl.arange(0, BLOCK_C)[None, :]
    s, _, inside = load_tile(student_ptr, student_start, live, slot, classes, student_column, True, VECTOR)
    t, _, _ = load_tile(teacher_ptr, teacher_start, live, slot, classes, teacher_column, True, VECTOR)
    t = probabilities_in(t, inside, TEACHER)
    top = tl.max(s, 1)
    z = (s - top[:, None]) * sharpness
    p = exp(z)
    total = tl.sum(p, 1)
    if TEACHER == "probabilities":
        q = t
        y = t
        target_top = top
        target_total = total
    else:
        target_top = tl.max(t, 1)
        y = (t - target_top[:, None]) * sharpness
        q = exp(y)
        target_total = tl.sum(q, 1)
        q = q * (1.0 / target_total)[:, None]
    if KIND == "mse":
        p = p * (1.0 / total)[:, None]
        d = p - q
        squares = tl.sum(d * d, 1)
        row = squares / classes
        balance = tl.sum(p * d, 1)
        teacher_balance = balance - squares  # q d = p d - d d
    else:
        row = -tl.sum(q * log_ratio(z, tl.log(total), y, tl.log(target_total), q, KIND, TEACHER), 1)
        row = tl.where(total == total, row, float("nan"))  # a student without a softmax, whatever the teacher holds
        balance = tl.sum(q, 1)
        teacher_balance = row
    return row, top, total, target_top, target_total, balance, teacher_balance


@triton.jit
def looped_rows(
    student_ptr, teacher_ptr, student_start, teacher_start, live, classes, student_column, teacher_column, sharpness,
    KIND: tl.constexpr, TEACHER: tl.constexpr, VECTOR: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """As `whole_rows` for rows too long for the registers, in one walk; a second one for mse, whose differences need both normalisers.

    Each lane keeps running maxima of both sides, and relative to those `open`, the sum of the teacher's terms, and `gap`, that of the
    teacher's terms times the student's (for kl: minus the teacher's) logit. A rise of a maximum by D moves every logit that was counted by
    -D, that is, gap by -D * open. Teacher's mass on classes that are impossible for the student (-inf) makes the row infinite, unless it
    shrinks to nothing once the teacher's maximum is known: `shut` sums it, and gap is kept finite, for infinity times nothing is NaN.
    """
    end = tl.where(tl.max(live.to(tl.int32), 0) != 0, classes + (VECTOR - 1), 0)
    shape: tl.constexpr = [live.shape[0], BLOCK_C]
    SOFT: tl.constexpr = TEACHER != "probabilities"
    top = tl.full(shape, LOWEST, tl.float32)
    total = tl.zeros(shape, tl.float32)
    target_top = tl.full(shape, LOWEST, tl.float32)
    open = tl.zeros(shape, tl.float32)
    shut = tl.zeros(shape, tl.float32)
    gap = tl.zeros(shape, tl.float32)
    for first in range(0, end, BLOCK_C):
        slot = first + tl.arange(0, BLOCK_C)[None, :]
        s, _, inside = load_tile(student_ptr, student_start, live, slot, classes, student_column, True, VECTOR)
        old = top
        top, kept, term = sharp(s, top, sharpness)
        total = total * kept + term
        if KIND != "mse" or SOFT:
            t, _, _ = load_tile(teacher_ptr, teacher_start, live, slot, classes, teacher_column, True, VECTOR)
            t = probabilities_in(t, inside, TEACHER)
            if SOFT:
                target_old = target_top
                target_top, kept, q = sharp(t, target_top, sharpness)
                if KIND == "mse":
                    open = open * kept + q
                else:
                    rise = top - old
                    here = s - top
                    if KIND == "kl":
                        rise -= target_top - target_old
                        here -= t - target_top
                    open = open * kept
                    gap = gap * kept - moved(open, rise) + tl.where(q == 0.0, 0.0, q * here)
                    gap = tl.where(gap < LOWEST, LOWEST, gap)
                    open += q
                    shut = shut * kept + tl.where(s == float("-inf"), q, 0.0)
            else:
                here = s - top
                if KIND == "kl":
                    here -= tl.log(t)
                gap = gap - moved(open, top - old) + tl.where(t == 0.0, 0.0, t * here)
                open += t
    highest = tl.max(top, 1)
    row_total = tl.sum(total * exp((top - highest[:, None]) * sharpness), 1)
    rise = highest[:, None] - top
    if SOFT:
        target_highest = tl.max(target_top, 1)
        kept = exp((target_top - target_highest[:, None]) * sharpness)
        if KIND == "kl":
            rise -= target_highest[:, None] - target_top
        open = open * kept
        target_total = tl.sum(open, 1)
        balance = tl.full([live.shape[0]], 1.0, tl.float32)
        if KIND != "mse":
            row = tl.log(row_total) - tl.sum(gap * kept - moved(open, rise), 1) * sharpness / target_total
            if KIND == "kl":
                row -= tl.log(target_total)
            row += tl.where(tl.sum(shut * kept, 1) / target_total > 0.0, float("inf"), 0.0)
    else:
        target_highest = highest
        target_total = row_total
        balance = tl.sum(open, 1)
        if KIND != "mse":
            row = balance * tl.log(row_total) - tl.sum(gap - moved(open, rise), 1)
    teacher_balance = balance
    if KIND == "mse":
        squares = tl.zeros(shape, tl.float32)
        by_p = tl.zeros(shape, tl.float32)
        for first in range(0, end, BLOCK_C):
            slot = first + tl.arange(0, BLOCK_C)[None, :]
            s, _, inside = load_tile(student_ptr, student_start, live, slot, classes, student_column, True, VECTOR)
            t, _, _ = load_tile(teacher_ptr, teacher_start, live, slot, classes, teacher_column, True, VECTOR)
            p = exp((s - highest[:, None]) * sharpness) * (1.0 / row_total)[:, None]
            q = probabilities_in(t, inside, TEACHER)
            if SOFT:
                q = exp((q - target_highest[:, None]) * sharpness) * (1.0 / target_total)[:, None]
            d = p - q
            squares += d * d
            by_p += p * d
        sum_of_squares = tl.sum(squares, 1)
        row = sum_of_squares / classes
        balance = tl.sum(by_p, 1)
        teacher_balance = balance - sum_of_squares
    else:
        teacher_balance = row
    return row, highest, row_total, target_highest, target_total, balance, teacher_balance
