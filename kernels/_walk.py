"""How a tile walks along rows that no registers hold, on the device: which slots a step takes, and the softmax that is kept meanwhile.

Legend as in `_rows.py`; one row a program. The slots of a row are walked in two parts: first all steps that lie inside the row whole, which
need no masks, then the EDGE, which are the row's first granule (where it starts at no border) and what is left at its end.

The running softmax is kept for GROUP slots together, as many as lie in 16 bytes and so in one thread: a group's maximum costs no exchange,
and one exponential moves the group's sum when its maximum rises.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ._rows import exp

LOWEST: tl.constexpr = tl.constexpr(-3.4028234663852886e38)  # the running maximum before anything was seen: finite, so differences are too
NOWHERE: tl.constexpr = tl.constexpr(1 << 30)  # a slot behind every row


@triton.jit
def group_of(ptr):
    """GROUP: elements in 16 bytes."""
    return 128 // ptr.dtype.element_ty.primitive_bitwidth


@triton.jit
def inner_slots(start, live, classes, VECTOR: tl.constexpr, BLOCK_C: tl.constexpr):
    """How many slots are walked without masks, a multiple of BLOCK_C; none of a row that is not live, so that masks hold all of it off."""
    tl.static_assert(start.shape[0] == 1, "one row a program walks")
    length = classes
    if VECTOR > 1:
        length = classes - VECTOR + tl.max((start % VECTOR).to(tl.int32), 0)
    return tl.where(tl.max(live.to(tl.int32), 0) != 0, tl.maximum(length, 0) // BLOCK_C * BLOCK_C, 0)


@triton.jit
def step_slots(first, inner, EDGE: tl.constexpr, VECTOR: tl.constexpr, COUNT: tl.constexpr, GROUP: tl.constexpr):
    """Slots [1, COUNT], GROUP apart, of the step that starts at the `first` slot of its part."""
    slot = first + tl.arange(0, COUNT)[None, :] * GROUP
    if VECTOR > 1:
        # The first granule belongs to the edge.
        return slot + tl.where(slot // VECTOR == 0, 0, inner) if EDGE else slot + VECTOR
    else:
        return slot + inner if EDGE else slot


@triton.jit
def grouped(x, GROUP: tl.constexpr):
    """[1, BLOCK_C] -> [1, BLOCK_C / GROUP, GROUP]."""
    return tl.reshape(x, [x.shape[0], x.shape[1] // GROUP, GROUP])


@triton.jit
def online(x, top, total):
    """One element more in each place of every group [1, G, GROUP]: the groups' running maxima, and sums of exp(element - maximum).

    NaN turns the total into NaN and leaves the maximum; +inf shows as inf - inf.
    """
    higher = tl.maximum(top, tl.max(x, 2))
    return higher, total * exp(top - higher) + tl.sum(exp(x - higher[:, :, None]), 2)


@triton.jit
def join(top, total):
    """Groups [1, G] of `online` -> maximum [1] and sum [1] of the row (0 where all is -inf)."""
    highest = tl.max(top, 1)
    return highest, tl.sum(total * exp(top - highest[:, None]), 1)
