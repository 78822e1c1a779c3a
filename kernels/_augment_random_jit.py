"""What a key decides, inside the augmentation kernels: the hash of `pipelines/keyed.py` and the draws of `views.py` and `policies.py`.

Keys and words are uint64 here, the same bits as the int64 of those files; products wrap alike. Everything else is float64 and
unfused, operation by operation as there, so that the same numbers come out.

Words of a key, counted from 1: flip, top, left; two of the cutout's place and one of its size; then four for each drawn operation
(which, how strong, whether, sign).
"""

from __future__ import annotations

import triton
import triton.language as tl

# Positions of operations in `policies.OPS`, where those that have no number of their own here are told apart by comparisons.
AUTOCONTRAST: tl.constexpr = tl.constexpr(1)
EQUALIZE: tl.constexpr = tl.constexpr(2)
COLOR: tl.constexpr = tl.constexpr(4)
CONTRAST: tl.constexpr = tl.constexpr(5)
SHARPNESS: tl.constexpr = tl.constexpr(6)
POSTERIZE: tl.constexpr = tl.constexpr(7)
SOLARIZE: tl.constexpr = tl.constexpr(8)
ROTATE: tl.constexpr = tl.constexpr(9)
SHEAR_X: tl.constexpr = tl.constexpr(10)
SHEAR_Y: tl.constexpr = tl.constexpr(11)
TRANSLATE_X: tl.constexpr = tl.constexpr(12)

GOLDEN: tl.constexpr = tl.constexpr(0x9E3779B97F4A7C15)
ROUNDS: tl.constexpr = tl.constexpr(32)  # of `order.shuffled`


@triton.jit
def mixed(bits):
    """splitmix64's finaliser of uint64."""
    bits = (bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9
    bits = (bits ^ (bits >> 27)) * 0x94D049BB133111EB
    return bits ^ (bits >> 31)


@triton.jit
def word(key, number):
    """The word of that number, from 1 on."""
    return mixed(key + tl.cast(number, tl.uint64) * GOLDEN)


@triton.jit
def below(bits, bound):
    """int64 in [0, bound) for bound < 2**31."""
    return (((bits >> 32) * tl.cast(bound, tl.uint64)) >> 32).to(tl.int64)


@triton.jit
def unit(bits):
    """float64 in [0, 1)."""
    return (bits >> 11).to(tl.int64).to(tl.float64) * 1.1102230246251565e-16


@triton.jit
def joined(key, more):
    """`keyed.joined` of a uint64 key and one int64 word."""
    return mixed(key + GOLDEN + more.to(tl.uint64))


@triton.jit
def drawn_crop(key, down_room, across_room, FLIP: tl.constexpr):
    """(mirrored, top, left) of a crop that has so many places down and across."""
    flip = tl.full([], 0, tl.int32)
    if FLIP:
        flip = below(word(key, 1), 2).to(tl.int32)
    return flip, below(word(key, 2), down_room).to(tl.int32), below(word(key, 3), across_room).to(tl.int32)


@triton.jit
def drawn_box(key, H: tl.constexpr, W: tl.constexpr, CONTINUOUS: tl.constexpr, CUTOUT: tl.constexpr, PIXELS: tl.constexpr):
    """The cutout: first and last column, first and last row, inclusive; last before first for none."""
    x, y = unit(word(key, 4)), unit(word(key, 5))
    side = tl.full([], PIXELS, tl.float64)
    if CONTINUOUS:
        side = unit(word(key, 6)) * CUTOUT * W
        x = W - (W - 1) * x
        y = H - (H - 1) * y
    else:
        x = W * x
        y = H * y
    left, top = tl.floor(tl.maximum(x - side / 2, 0.0)), tl.floor(tl.maximum(y - side / 2, 0.0))
    right, bottom = tl.floor(tl.minimum(left + side, W)), tl.floor(tl.minimum(top + side, H))
    right, bottom = tl.where(side > 0, right, left - 1), tl.where(side > 0, bottom, top - 1)
    return left.to(tl.int32), right.to(tl.int32), top.to(tl.int32), bottom.to(tl.int32)


@triton.jit
def drawn_operation(
    key,
    slot,
    op_ptr,  # [K] int64
    magnitude_ptr,  # [K, LEVELS] float64
    CHOICES: tl.constexpr,
    LEVELS: tl.constexpr,
    CONTINUOUS: tl.constexpr,
    P: tl.constexpr,
):
    """(operation, magnitude) of a slot; the identity where the coin said no."""
    first = 7 + 4 * slot
    choice = below(word(key, first), CHOICES)
    op = tl.load(op_ptr + choice).to(tl.int32)
    at = magnitude_ptr + choice * LEVELS
    if CONTINUOUS:
        low, high = tl.load(at), tl.load(at + 1)
        value = low + (high - low) * unit(word(key, first + 1))
        value = tl.where(op == POSTERIZE, tl.maximum(tl.floor(value), 1.0), value)
    else:
        value = tl.load(at + below(word(key, first + 1), LEVELS))
        value = tl.where((op >= ROTATE) & (below(word(key, first + 3), 2) == 1), -value, value)
    return tl.where(unit(word(key, first + 2)) < P, op, 0), value


@triton.jit
def cos_sin(angle):
    """Cosine and sine of a float64 angle within two turns, rounded to 15 decimals as `affine.rotation` rounds them.

    By Taylor's series within an eighth of a turn, whose first term left out is below 1e-19. CUDA's own functions are made for any angle,
    and keep memory a thread for huge ones.
    """
    quarter = tl.floor(angle * 0.6366197723675814 + 0.5)
    # A quarter of a turn in two parts, the first short enough that its product is exact.
    r = (angle - quarter * 1.570796325802803) - quarter * 9.920935796805404e-10
    s = r * r
    c = 1 / 20922789888000 - s * (1 / 6402373705728000)
    c = 1 / 479001600 - s * (1 / 87178291200 - s * c)
    c = 1 / 40320 - s * (1 / 3628800 - s * c)
    c = 1 / 24 - s * (1 / 720 - s * c)
    c = 1 - s * (1 / 2 - s * c)
    d = 1 / 355687428096000 - s * (1 / 121645100408832000)
    d = 1 / 6227020800 - s * (1 / 1307674368000 - s * d)
    d = 1 / 362880 - s * (1 / 39916800 - s * d)
    d = 1 / 120 - s * (1 / 5040 - s * d)
    d = r - r * (s * (1 / 6 - s * d))
    turn = quarter.to(tl.int32) & 3
    cos = tl.where(turn == 0, c, tl.where(turn == 1, -d, tl.where(turn == 2, -c, d)))
    sin = tl.where(turn == 0, d, tl.where(turn == 1, c, tl.where(turn == 2, -d, -c)))
    # Adding and taking off 1.5 * 2**52 rounds a number below 2**51 to a whole one, halves to even.
    cos = (cos * 1e15 + 6755399441055744.0) - 6755399441055744.0
    sin = (sin * 1e15 + 6755399441055744.0) - 6755399441055744.0
    return cos / 1e15, sin / 1e15


@triton.jit
def fixed(value):
    """float64 -> 16.16 fixed point."""
    return tl.floor(value * 65536.0 + 0.5).to(tl.int32)


@triton.jit
def axes(op, value, H: tl.constexpr, W: tl.constexpr):
    """Output -> input map of a geometric operation in 16.16 fixed point: (start, per column, per row) of x, then of y."""
    none = value * 0.0
    a, b, c = none + 1.0, none, none
    d, e, f = none, none + 1.0, none
    if op == ROTATE:
        turned = tl.where(value < 0, value + 360.0, value)
        cos, sin = cos_sin(turned * -0.017453292519943295)
        a, b, d, e = cos, sin, -sin, cos
        c = (cos * (-W / 2) + sin * (-H / 2)) + W / 2
        f = (-sin * (-W / 2) + cos * (-H / 2)) + H / 2
    elif op == SHEAR_X:
        b = value
    elif op == SHEAR_Y:
        d = value
    elif op == TRANSLATE_X:
        c = tl.floor(value + 0.5)
    else:
        f = tl.floor(value + 0.5)
    return fixed(c + a * 0.5 + b * 0.5), fixed(a), fixed(b), fixed(f + d * 0.5 + e * 0.5), fixed(d), fixed(e)
