"""What every loss kernel does with a tile of logits in registers: load and store it, find its softmax, weigh its rows.

Legend: a tile is [BLOCK_N, BLOCK_C], rows by classes; `start` [BLOCK_N] int64 is the element offset of each row, `slot` [1, BLOCK_C] the
place in a row's run of memory, `col` the class that lies there, `inside` [BLOCK_N, BLOCK_C] where that is a class of a row that is wanted.
All arithmetic is float32. Nothing here branches on data, and no function touches memory outside the 16-byte granules of the wanted rows.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOWEST: tl.constexpr = tl.constexpr(-3.4028234663852886e38)  # the running maximum before anything was seen: finite, so differences are too


@triton.jit
def places(start, wanted, first, classes, VECTOR: tl.constexpr, BLOCK_C: tl.constexpr):
    """col, inside, granule (where a 16-byte granule holds a wanted element), whole (where it holds nothing else), and memory offsets.

    VECTOR = 1: slot and class are the same. VECTOR > 1 (elements in 16 bytes) is for rows that start anywhere in a contiguous,
    16-byte-aligned tensor, an odd number of classes for instance: the tile starts at the granule in which the row starts. All that is
    decided by granule then, so that loads stay 16 bytes wide, and stores too but in the two granules shared with the neighbours.
    """
    slot = first + tl.arange(0, BLOCK_C)[None, :]
    if VECTOR > 1:
        base = start // VECTOR * VECTOR
        shift = (start - base).to(tl.int32)[:, None]
        col = slot - shift
        granule_slot = slot // VECTOR * VECTOR
        inside = (col >= 0) & (col < classes) & wanted[:, None]
        granule = (granule_slot + (VECTOR - 1) >= shift) & (granule_slot < shift + classes) & wanted[:, None]
        whole = (granule_slot >= shift) & (granule_slot + VECTOR <= shift + classes) & wanted[:, None]
        return col, inside, granule, whole, base[:, None] + slot
    else:
        col = slot + tl.zeros([start.shape[0], 1], tl.int32)
        inside = (slot < classes) & wanted[:, None]
        return col, inside, inside, inside, start[:, None] + slot


@triton.jit
def load_tile(ptr, start, wanted, first, classes, stride_c, VECTOR: tl.constexpr, BLOCK_C: tl.constexpr):
    """(tile float32 with -inf where not inside, col, inside). Granules are read whole: what belongs to a neighbour is thrown away."""
    col, inside, granule, _, offset = places(start, wanted, first, classes, VECTOR, BLOCK_C)
    if VECTOR > 1:
        x = tl.load(ptr + offset, mask=granule, other=0.0).to(tl.float32)
        x = tl.where(inside, x, float("-inf"))
    else:
        x = tl.load(ptr + start[:, None] + col.to(tl.int64) * stride_c, mask=inside, other=float("-inf")).to(tl.float32)
    return x, col, inside


@triton.jit
def store_tile(ptr, start, wanted, first, classes, value, VECTOR: tl.constexpr, BLOCK_C: tl.constexpr):
    """Writes the wanted rows of a contiguous tensor, every element once and nothing else."""
    _, inside, _, whole, offset = places(start, wanted, first, classes, VECTOR, BLOCK_C)
    value = value.to(ptr.dtype.element_ty)
    tl.store(ptr + offset, value, mask=whole)
    if VECTOR > 1:
        tl.store(ptr + offset, value, mask=inside & (whole == 0))


@triton.jit
def by_class(ptr, col, inside, other):
    """Values [C] spread over a tile."""
    return tl.load(ptr + col, mask=inside, other=other).to(tl.float32)


@triton.jit
def first_at(x, top, col):
    """The first class [BLOCK_N] int32 at which a tile reaches `top` [BLOCK_N, 1]; a number above every class where NaN hides it."""
    return tl.min(tl.where(x == top, col, 2147483647), 1)


@triton.jit
def online(x, top, total):
    """One element more in each lane: the running maximum, and the sum of exp(element - maximum).

    Of the two factors exp(old - new) and exp(x - new) one is always exp(0), so a single exponential serves both.
    NaN turns the total into NaN and leaves the maximum; +inf shows when the lanes are joined, as inf - inf.
    """
    step = tl.exp(-tl.abs(x - top))
    higher = x > top
    return tl.where(higher, x, top), tl.where(higher, total * step + 1.0, total + step), higher


@triton.jit
def join(top, total):
    """Lanes [BLOCK_N, BLOCK_C] of `online` -> maximum [BLOCK_N] and sum [BLOCK_N] of the row (0 where all is -inf)."""
    highest = tl.max(top, 1)
    return highest, tl.sum(total * tl.exp(top - highest[:, None]), 1)


@triton.jit
def confidence_of(total):
    """max softmax = 1 / sum of exp(z - max z); a row of nothing but -inf has none."""
    return tl.where(total == 0.0, float("nan"), 1.0 / total)


@triton.jit
def row_threshold(threshold_ptr, threshold, label, n, valid, THRESHOLD: tl.constexpr):
    """The threshold of each row: a number, or read from [] ("scalar"), [C] by the row's label ("class") or [N, 1] ("row")."""
    if THRESHOLD == "number":
        return threshold + tl.zeros(n.shape, tl.float32)
    elif THRESHOLD == "scalar":
        return tl.load(threshold_ptr).to(tl.float32) + tl.zeros(n.shape, tl.float32)
    elif THRESHOLD == "class":
        return tl.load(threshold_ptr + label, mask=valid, other=0.0).to(tl.float32)
    else:
        return tl.load(threshold_ptr + n, mask=valid, other=0.0).to(tl.float32)


@triton.jit
def row_weight(judged, threshold, power, variance, WEIGHTING: tl.constexpr):
    """Weight [BLOCK_N] of rows with judged confidence [BLOCK_N]; the table is in `reference.pseudo_label_loss`.

    A comparison would turn NaN into a silent 0, so NaN is put back at the end.
    """
    lost = judged != judged
    if WEIGHTING == "none":
        weight = judged * 0.0 + 1.0
    else:
        lost = lost | (threshold != threshold)
        kept = tl.where(judged >= threshold, 1.0, 0.0)
        if WEIGHTING == "step":
            weight = kept
        elif WEIGHTING == "confidence":
            weight = tl.where(judged >= threshold, judged, 0.0)
        elif WEIGHTING == "smooth":
            # Every curve reaches 1 at confidence 1, so the curve for a threshold of 1 is the step; above 1 nothing is kept.
            share = tl.maximum(judged - threshold, 0.0) / tl.where(threshold < 1.0, 1.0 - threshold, 1.0)
            curve = tl.where(power == 1.0, share, tl.exp2(power * tl.log2(share)))
            weight = tl.where(threshold < 1.0, curve, kept)
        else:
            below = tl.minimum(judged - threshold, 0.0)
            # A row at or above the threshold has weight 1 even where the variance has shrunk to 0.
            weight = tl.where(below == 0.0, 1.0, tl.exp(-2.0 * below * below / variance))
            lost = lost | (variance != variance)
    return tl.where(lost, float("nan"), weight)


@triton.jit
def sampled(weight, sample_weight_ptr, n, valid):
    """Weight times the row's sample weight [N], if there is one; 0 of those wins over NaN."""
    if sample_weight_ptr is None:
        return weight
    else:
        sample_weight = tl.load(sample_weight_ptr + n, mask=valid, other=0.0).to(tl.float32)
        return tl.where(sample_weight == 0.0, 0.0, weight * sample_weight)
