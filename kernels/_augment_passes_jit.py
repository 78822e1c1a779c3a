"""The passes over one image that the augmentation kernel is made of.

A picture is what the next pass reads: three planes of uint8 at `picture`, `height` x `width`, seen through a crop (`down` and `across`
from the output's corner to the picture's, mirrored if `flip`) and then through a table of 256 levels a channel where `lut` >= 0. So a crop
and the operations that map levels to levels cost no pass of their own: they are done as the next pass reads.

A pass walks over the output's pixels by tiles. It writes only memory that it does not read, and the kernel sets a barrier after it, so
tiles may come in any order. Lanes beyond the last pixel read and write nothing.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ._augment_random_jit import AUTOCONTRAST, CONTRAST, EQUALIZE, POSTERIZE, SOLARIZE, axes

LEVELS: tl.constexpr = tl.constexpr(256)


@triton.jit
def reflected(at, side):
    """A coordinate up to one side out of the picture, mirrored at the edge pixel."""
    return (side - 1) - tl.abs((side - 1) - tl.abs(at))


@triton.jit
def place(y, x, height, width, flip, down, across):
    """Offset within a plane of what output pixel (y, x) shows."""
    row, column = reflected(y + down, height), reflected(x + across, width)
    return row * width + tl.where(flip != 0, (width - 1) - column, column)


@triton.jit
def level(picture, at, mask, table_ptr, lut, channel):
    """Grey levels at offsets of the picture, 0 where not `mask`, after the channel's table if there is one; uint8."""
    value = tl.load(picture + at, mask=mask, other=0)
    if lut >= 0:
        value = tl.load(table_ptr + lut + channel * LEVELS + value.to(tl.int32), mask=mask, other=0)
    return value


@triton.jit
def blended(degenerate, x, factor):
    """Image.blend in float32: a multiplication and an addition that stay two operations, clipped and truncated; uint8."""
    mixed = (x - degenerate) * factor + degenerate
    return tl.minimum(tl.maximum(mixed, 0.0), 255.0).to(tl.int32).to(tl.uint8)


@triton.jit
def luma(red, green, blue):
    """Pillow's grey level of uint8 channels, int32."""
    return (red.to(tl.int32) * 19595 + green.to(tl.int32) * 38470 + blue.to(tl.int32) * 7471 + 32768) >> 16


@triton.jit
def channels(picture, plane, at, mask, table_ptr, lut):
    """The three levels at offsets of a plane."""
    red = level(picture, at, mask, table_ptr, lut, 0)
    green = level(picture + plane, at, mask, table_ptr, lut, 1)
    return red, green, level(picture + 2 * plane, at, mask, table_ptr, lut, 2)


@triton.jit
def mean_grey(picture, height, width, flip, down, across, table_ptr, lut, H: tl.constexpr, W: tl.constexpr, BLOCK_N: tl.constexpr):
    """The rounded mean luma of the image, float32."""
    total = tl.zeros([BLOCK_N], tl.int32)
    for start in range(0, H * W, BLOCK_N):
        p = start + tl.arange(0, BLOCK_N)
        inside = p < H * W
        y = p // W
        at = place(y, p - y * W, height, width, flip, down, across)
        red, green, blue = channels(picture, height * width, at, inside, table_ptr, lut)
        # A pixel that is not there is black, whose luma is 0.
        total += luma(red, green, blue)
    mean = tl.sum(total.to(tl.int64), 0).to(tl.float64) / (H * W)
    return tl.floor(mean + 0.5).to(tl.float32)


@triton.jit
def histograms(picture, height, width, flip, down, across, table_ptr, lut, H: tl.constexpr, W: tl.constexpr, BLOCK_N: tl.constexpr):
    """How often each level occurs in each channel: three [256] int32."""
    red_count = tl.zeros([256], tl.int32)
    green_count = tl.zeros([256], tl.int32)
    blue_count = tl.zeros([256], tl.int32)
    for start in range(0, H * W, BLOCK_N):
        p = start + tl.arange(0, BLOCK_N)
        inside = p < H * W
        y = p // W
        at = place(y, p - y * W, height, width, flip, down, across)
        red, green, blue = channels(picture, height * width, at, inside, table_ptr, lut)
        # A uint8 is a bin whatever it is; lanes without a pixel are masked out.
        red_count += tl.histogram(red.to(tl.int32), 256, mask=inside)
        green_count += tl.histogram(green.to(tl.int32), 256, mask=inside)
        blue_count += tl.histogram(blue.to(tl.int32), 256, mask=inside)
    return red_count, green_count, blue_count


@triton.jit
def before(table_ptr, lut, channel):
    """[256] uint8: what the table so far makes of each level."""
    value = tl.arange(0, 256).to(tl.uint8)
    if lut >= 0:
        value = tl.load(table_ptr + lut + channel * LEVELS + tl.arange(0, 256))
    return value


@triton.jit
def stretched(count, value):
    """Autocontrast: [256] occurrences in a channel, [256] levels -> [256] levels, in float64 as Pillow's Python."""
    at = tl.arange(0, 256)
    low = tl.min(tl.where(count > 0, at, 255), 0).to(tl.float64)
    high = tl.max(tl.where(count > 0, at, 0), 0).to(tl.float64)
    # A channel of one value is left alone: it is scaled by 1.
    scale = 255.0 / tl.where(high > low, high - low, 255.0)
    offset = tl.where(high > low, -low * scale, 0.0)
    mapped = value.to(tl.float64) * scale + offset
    return tl.minimum(tl.maximum(mapped, 0.0), 255.0).to(tl.int32).to(tl.uint8)


@triton.jit
def flattened(count, pixels):
    """Equalize by Pillow's rule: [256] occurrences in a channel -> [256] what becomes of each level."""
    at = tl.arange(0, 256)
    last = tl.max(tl.where(count > 0, at, 0), 0)
    step = (pixels - tl.sum(tl.where(at == last, count, 0), 0)) // 255
    lower = tl.cumsum(count, 0) - count
    mapped = tl.minimum((lower + step // 2) // tl.maximum(step, 1), 255)
    return tl.where(step > 0, mapped, at).to(tl.uint8)


@triton.jit
def add_table(
    op, value, new, picture, height, width, flip, down, across, table_ptr, lut,
    H: tl.constexpr, W: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Writes the table `lut` followed by an operation on levels to offset `new`; the last 3 x 256 bytes are for notes."""
    at = tl.arange(0, 256)
    if op <= EQUALIZE:
        counts = histograms(picture, height, width, flip, down, across, table_ptr, lut, H, W, BLOCK_N)
        if op == AUTOCONTRAST:
            for c in tl.static_range(3):
                tl.store(table_ptr + new + c * LEVELS + at, stretched(counts[c], before(table_ptr, lut, c)))
        else:
            for c in tl.static_range(3):
                tl.store(table_ptr + (6 + c) * LEVELS + at, flattened(counts[c], H * W))
            tl.debug_barrier()
            for c in tl.static_range(3):
                mapped = tl.load(table_ptr + (6 + c) * LEVELS + before(table_ptr, lut, c).to(tl.int32))
                tl.store(table_ptr + new + c * LEVELS + at, mapped)
    else:
        grey = tl.full([], 0.0, tl.float32)
        if op == CONTRAST:
            grey = mean_grey(picture, height, width, flip, down, across, table_ptr, lut, H, W, BLOCK_N)
        for c in tl.static_range(3):
            x = before(table_ptr, lut, c)
            if op == POSTERIZE:
                x = (x.to(tl.int32) & (255 << (8 - value.to(tl.int32)))).to(tl.uint8)
            elif op == SOLARIZE:
                x = tl.where(x.to(tl.float64) >= value, 255 - x, x)
            else:
                x = blended(grey, x.to(tl.float32), value.to(tl.float32))
            tl.store(table_ptr + new + c * LEVELS + at, x)


@triton.jit
def coloured(
    target, value, picture, height, width, flip, down, across, table_ptr, lut, H: tl.constexpr, W: tl.constexpr, BLOCK_N: tl.constexpr
):
    """ImageEnhance.Color, written to `target`."""
    for start in range(0, H * W, BLOCK_N):
        p = start + tl.arange(0, BLOCK_N)
        inside = p < H * W
        y = p // W
        at = place(y, p - y * W, height, width, flip, down, across)
        red, green, blue = channels(picture, height * width, at, inside, table_ptr, lut)
        grey, factor = luma(red, green, blue).to(tl.float32), value.to(tl.float32)
        tl.store(target + p, blended(grey, red.to(tl.float32), factor), mask=inside)
        tl.store(target + H * W + p, blended(grey, green.to(tl.float32), factor), mask=inside)
        tl.store(target + 2 * H * W + p, blended(grey, blue.to(tl.float32), factor), mask=inside)


@triton.jit
def sharpened(
    target, value, picture, height, width, flip, down, across, table_ptr, lut, H: tl.constexpr, W: tl.constexpr, BLOCK_N: tl.constexpr
):
    """ImageEnhance.Sharpness, written to `target`."""
    for start in range(0, 3 * H * W, BLOCK_N):
        e = start + tl.arange(0, BLOCK_N)
        inside = e < 3 * H * W
        channel = e // (H * W)
        p = e - channel * (H * W)
        y = p // W
        x = p - y * W
        inner = inside & (y > 0) & (y < H - 1) & (x > 0) & (x < W - 1)
        plane = channel * (height * width)
        centre = level(picture, plane + place(y, x, height, width, flip, down, across), inside, table_ptr, lut, channel)
        total = centre.to(tl.int32) * 4
        for k in range(9):
            at = plane + place(y + (k // 3 - 1), x + (k % 3 - 1), height, width, flip, down, across)
            total += level(picture, at, inner, table_ptr, lut, channel).to(tl.int32)
        # floor(total / 13 + 1/2); the outermost ring is the image's own.
        smooth = tl.where(inner, (2 * total + 13) // 26, centre.to(tl.int32))
        tl.store(target + e, blended(smooth.to(tl.float32), centre.to(tl.float32), value.to(tl.float32)), mask=inside)


@triton.jit
def warped(
    target, op, value, picture, height, width, flip, down, across, table_ptr, lut,
    H: tl.constexpr, W: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """A geometric operation, written to `target`: nearest neighbour, black outside."""
    x_start, x_column, x_row, y_start, y_column, y_row = axes(op, value, H, W)
    for start in range(0, H * W, BLOCK_N):
        p = start + tl.arange(0, BLOCK_N)
        y = p // W
        x = p - y * W
        column = (x_start + x_row * y + x_column * x) >> 16
        row = (y_start + y_row * y + y_column * x) >> 16
        inside = p < H * W
        there = inside & (column >= 0) & (column < W) & (row >= 0) & (row < H)
        at = place(row, column, height, width, flip, down, across)
        red, green, blue = channels(picture, height * width, at, there, table_ptr, lut)
        tl.store(target + p, red, mask=inside)
        tl.store(target + H * W + p, green, mask=inside)
        tl.store(target + 2 * H * W + p, blue, mask=inside)
