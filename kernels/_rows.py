"""What every loss kernel does with a tile of logits in registers: load and store it, find its softmax, weigh its rows.

Legend: a tile is [BLOCK_N, BLOCK_C], rows by classes; `start` [BLOCK_N] int64 is the element offset of each row, `slot` [1, BLOCK_C] the
place in a row's run of memory (from `_walk.py` where the tile walks along the row), `col` the class that lies there, `inside`
[BLOCK_N, BLOCK_C] where that is a class of a row that is wanted. All arithmetic is float32. Nothing here branches on data, and no function
touches memory outside the 16-byte granules of the wanted rows.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)


@triton.jit
def exp(x):
    """exp as a power of two, which the hardware has: relative error about |x| * 2**-24, exp(0) exactly 1, results below 2**-126 are 0."""
    return tl.exp2(x * LOG2_E)


@triton.jit
def places(start, wanted, slot, classes, EDGE: tl.constexpr, VECTOR: tl.constexpr):
    """col, inside, granule (where a 16-byte granule holds a wanted element), whole (where it holds nothing else), and memory offsets.

    VECTOR = 1: slot and class are the same. VECTOR > 1 (elements in 16 bytes) is for rows that start anywhere in a contiguous,
    16-byte-aligned tensor, an odd number of classes for instance: slots count from the granule in which the row starts. All that is
    decided by granule then, so that loads stay 16 bytes wide, and stores too but in the two granules shared with the neighbours.
    EDGE = False promises that every slot is a class of a wanted row; the compiler then drops all masks.
    """
    everywhere = tl.full([start.shape[0], slot.shape[1]], True, tl.int1)
    if VECTOR > 1:
        base = start // VECTOR * VECTOR
        shift = (start - base).to(tl.int32)[:, None]
        col = slot - shift
        if not EDGE:
            return col, everywhere, everywhere, everywhere, base[:, None] + slot
        granule_slot = slot // VECTOR * VECTOR
        end = tl.where(wanted, classes + (start - base).to(tl.int32), 0)[:, None]
        # One comparison instead of two: what lies before the row is huge without a sign.
        inside = col.to(tl.uint32, bitcast=True) < tl.where(wanted, classes, 0).to(tl.uint32)[:, None]
        return col, inside, granule_slot < end, (granule_slot >= shift) & (granule_slot + VECTOR <= end), base[:, None] + slot
    else:
        col = slot + tl.zeros([start.shape[0], 1], tl.int32)
        inside = (slot < classes) & wanted[:, None] if EDGE else everywhere
        return col, inside, inside, inside, start[:, None] + slot


@triton.jit
def load_tile(ptr, start, wanted, slot, classes, stride_c, EDGE: tl.constexpr, VECTOR: tl.constexpr):
    """(tile float32 with -inf where not inside, col, inside). Granules are read whole: what belongs to a neighbour is thrown away."""
    col, inside, granule, _, offset = places(start, wanted, slot, classes, EDGE, VECTOR)
    if VECTOR > 1:
        x = tl.load(ptr + offset, mask=granule, other=0.0).to(tl.float32)
        x = tl.where(inside, x, float("-inf"))
    else:
        x = tl.load(ptr + start[:, None] + col.to(tl.int64) * stride_c, mask=inside, other=float("-inf")).to(tl.float32)
    return x, col, inside


@triton.jit
def store_tile(ptr, start, wanted, slot, classes, value, EDGE: tl.constexpr, VECTOR: tl.constexpr):
    """Writes the wanted rows of a contiguous tensor, every element once and nothing else."""
    _, inside, _, whole, offset = places(start, wanted, slot, classes, EDGE, VECTOR)
    value = value.to(ptr.dtype.element_ty)
    tl.store(ptr + offset, value, mask=whole)
    if VECTOR > 1 and EDGE:
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
def confidence_of(total):
    """max softmax = 1 / sum of exp(z - max z), correctly rounded, so that ties with a threshold fall as elsewhere; of only -inf: NaN."""
    return tl.where(total == 0.0, float("nan"), tl.div_rn(1.0, total))


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
            weight = tl.where(below == 0.0, 1.0, exp(-2.0 * below * below / variance))
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
