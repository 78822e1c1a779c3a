"""Pointwise and neighbourhood image operations on batches of uint8 images, equal to Pillow's to the last bit.

Every operation takes x [n, 3, H, W] uint8 and v [n] float64 (the image's magnitude, ignored by operations that have none) and
returns uint8 of the same shape; x is never written to. The formulas are those of Pillow's ImageEnhance, ImageOps and C blending:
rounding to uint8 happens at the same places, by truncation where Pillow truncates.

Arithmetic that must be exact is done in float32 on integers below 2**24, or in float64 where Pillow's Python code uses doubles.
Multiplications and additions stay separate operations: a fused multiply-add changes grey levels.
"""

from __future__ import annotations

import torch
from torch import Tensor


def identity(x: Tensor, v: Tensor) -> Tensor:
    """The image itself."""
    return x


def looked_up(table: Tensor, x: Tensor) -> Tensor:
    """Each pixel's value in its channel's table: table [n, 3, 256] uint8, x [n, 3, H, W] uint8."""
    return table.gather(2, x.flatten(2).long()).view(x.shape)


def autocontrast(x: Tensor, v: Tensor) -> Tensor:
    """Stretches each channel's occupied range to 0..255 (ImageOps.autocontrast, cutoff 0)."""
    flat = x.flatten(2)
    low, high = flat.amin(2, keepdim=True).double(), flat.amax(2, keepdim=True).double()
    # Not `255.0 / tensor`: torch computes that as a reciprocal and a product, which rounds twice.
    scale = torch.full_like(high, 255.0) / (high - low)
    offset = -low * scale
    level = torch.arange(256, dtype=torch.float64, device=x.device)
    # A channel of one value has an infinite scale; it is left alone.
    table = torch.where(high > low, (level * scale).add_(offset).clamp_(0, 255), level)
    return looked_up(table.to(torch.uint8), x)


def equalize(x: Tensor, v: Tensor) -> Tensor:
    """Flattens each channel's histogram by Pillow's integer rule (ImageOps.equalize)."""
    n, channels, height, width = x.shape
    values = x.reshape(n * channels, height * width).long()
    one = torch.ones(1, dtype=torch.int64, device=x.device)
    histogram = torch.zeros(n * channels, 256, dtype=torch.int64, device=x.device).scatter_add_(1, values, one.expand_as(values))
    brightest = histogram.gather(1, values.amax(1, keepdim=True))
    step = torch.div(height * width - brightest, 255, rounding_mode="floor")
    before = histogram.cumsum(1) - histogram
    safe = step.clamp(min=1)
    table = torch.div(before + torch.div(step, 2, rounding_mode="floor"), safe, rounding_mode="floor").clamp_(max=255)
    # Step 0 (one occupied value among others) leaves the channel alone.
    table = torch.where(step > 0, table, torch.arange(256, device=x.device)).to(torch.uint8)
    return table.gather(1, values).view_as(x)


def blended(degenerate: Tensor | float, x: Tensor, factor: Tensor) -> Tensor:
    """Image.blend: degenerate + factor * (x - degenerate) in float32, clipped, truncated.

    Args:
        degenerate: float32 whole numbers, broadcast against x, or one number.
        x: [n, 3, H, W] uint8.
        factor: [n] float64, cast to float32 as Pillow does.
    """
    mixed = x.float().sub_(degenerate).mul_(factor.to(torch.float32).view(-1, 1, 1, 1)).add_(degenerate)
    return mixed.clamp_(0, 255).to(torch.uint8)


def luma(x: Tensor) -> Tensor:
    """[n, 1, H, W] float32 grey levels, Pillow's (19595 R + 38470 G + 7471 B + 32768) >> 16; every product is below 2**24."""
    red, green, blue = x.float().unbind(1)
    return (red * 19595 + green * 38470 + blue * 7471 + 32768).mul_(2.0**-16).floor_().unsqueeze(1)


def brightness(x: Tensor, v: Tensor) -> Tensor:
    """ImageEnhance.Brightness: blends with black."""
    return blended(0.0, x, v)


def color(x: Tensor, v: Tensor) -> Tensor:
    """ImageEnhance.Color: blends with the image's own grey."""
    return blended(luma(x), x, v)


def contrast(x: Tensor, v: Tensor) -> Tensor:
    """ImageEnhance.Contrast: blends with one grey, the rounded mean luma of the image."""
    # Sums of a row are exact in float32; an image's sum may not be.
    mean = luma(x).sum(3).double().sum((1, 2)) / (x.shape[2] * x.shape[3])
    return blended((mean + 0.5).floor_().to(torch.float32).view(-1, 1, 1, 1), x, v)


def smoothed(x: Tensor) -> Tensor:
    """ImageFilter.SMOOTH as float32 whole numbers: 3 x 3 with a centre of 5, over 13; the outermost ring of pixels is the image's own."""
    smooth = x.float()
    if min(x.shape[2:]) < 3:
        return smooth
    rows = smooth[:, :, :-2] + smooth[:, :, 1:-1] + smooth[:, :, 2:]
    box = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    # Sums are whole, so sum/13 + 1/2 is never closer than 1/26 to a whole number and float32 floors it exactly.
    smooth[:, :, 1:-1, 1:-1] = box.add_(smooth[:, :, 1:-1, 1:-1] * 4).mul_(1 / 13).add_(0.5).floor_()
    return smooth


def blurred(x: Tensor) -> Tensor:
    """ImageFilter.BLUR as float32 whole numbers: the ring of a 5 x 5 square, over 16; the two outer rings of pixels are the image's own."""
    blur = x.float()
    if min(x.shape[2:]) < 5:
        return blur
    middle = blur[:, :, 1:-3] + blur[:, :, 2:-2] + blur[:, :, 3:-1]
    rows = middle + blur[:, :, :-4] + blur[:, :, 4:]
    square = rows[..., :-4] + rows[..., 1:-3] + rows[..., 2:-2] + rows[..., 3:-1] + rows[..., 4:]
    inner = middle[..., 1:-3] + middle[..., 2:-2] + middle[..., 3:-1]
    blur[:, :, 2:-2, 2:-2] = square.sub_(inner).mul_(1 / 16).add_(0.5).floor_()
    return blur


def sharpness(x: Tensor, v: Tensor) -> Tensor:
    """ImageEnhance.Sharpness: blends with ImageFilter.SMOOTH."""
    return blended(smoothed(x), x, v)


def invert(x: Tensor) -> Tensor:
    """ImageOps.invert: 255 - x, which is x with every bit flipped."""
    return x ^ 255


def posterize(x: Tensor, v: Tensor) -> Tensor:
    """Keeps the v highest bits, v in 1..8 (ImageOps.posterize)."""
    mask = torch.bitwise_left_shift(torch.full_like(v, 255, dtype=torch.int64), 8 - v.long()) & 255
    return x & mask.to(torch.uint8).view(-1, 1, 1, 1)


def solarize(x: Tensor, v: Tensor) -> Tensor:
    """Inverts the values that are not below v, a real threshold in 0..256 (ImageOps.solarize)."""
    inverted = x.to(torch.int16) >= v.ceil().to(torch.int16).view(-1, 1, 1, 1)
    return x ^ (inverted.to(torch.uint8) * 255)
