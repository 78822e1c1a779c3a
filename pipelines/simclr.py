"""SimCLR's colour distortion and blur (Chen et al. 2020, "A Simple Framework for Contrastive Learning", appendix A; the official code).

With a probability of 0.8 brightness, contrast, saturation and hue are moved in random order, each by strength s, with a clip to [0, 1]
after each; then with 0.2 the image turns grey, and with 0.5 it is blurred by a Gaussian. All in fp32; uint8 goes in and comes out,
rounded once at the end. Every image has its own blur, where the code has one a batch: a view is a function of its key alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from . import keyed

_STREAM = keyed.key(0x434F4C52)  # words of their own, apart from those of flip and crop
_WORDS = 12  # jitter coin, four factors, four ranks of the order, grey coin, blur coin, sigma
_GREY = (0.2989, 0.587, 0.114)


@dataclass(frozen=True)
class Distortion:
    """How strong.

    Attributes:
        strength: the paper's s.
        blur: probability of the blur.
    """

    strength: float = 1.0
    blur: float = 0.5


def distortion_of(side: int) -> Distortion:
    """The paper's settings by the views' side: CIFAR's (s 0.5, no blur) up to 32 pixels, ImageNet's above."""
    return Distortion(0.5, 0.0) if side <= 32 else Distortion()


def _per_image(values: Tensor) -> Tensor:
    return values.to(torch.float32).view(-1, 1, 1, 1)


def brightness(x: Tensor, factor: Tensor) -> Tensor:
    """x [n, 3, H, W] fp32 in [0, 1] times factor [n], clipped."""
    return (x * _per_image(factor)).clamp_(0, 1)


def contrast(x: Tensor, factor: Tensor) -> Tensor:
    """Each channel about its own mean, clipped."""
    mean = x.mean((2, 3), keepdim=True, dtype=torch.float64).to(torch.float32)
    return ((x - mean) * _per_image(factor)).add_(mean).clamp_(0, 1)


def _turned(x: Tensor, saturation: Tensor | float, turn: Tensor | float) -> Tensor:
    """By way of hue, saturation and value: saturation times a factor, clipped, and hue moved by `turn` of a full turn."""
    red, green, blue = x.unbind(1)
    value, least = x.amax(1), x.amin(1)
    chroma = value - least
    safe = torch.where(chroma > 0, chroma, 1.0)
    hue = torch.where(
        value == red, (green - blue) / safe, torch.where(value == green, (blue - red) / safe + 2.0, (red - green) / safe + 4.0)
    )
    hue = torch.where(chroma > 0, hue / 6.0, 0.0)
    colour = torch.where(value > 0, chroma / torch.where(value > 0, value, 1.0), 0.0)
    colour, hue = (colour * saturation).clamp(0, 1), hue + turn
    channels = []
    for corner in (5.0, 3.0, 1.0):
        k = torch.remainder(corner + hue * 6.0, 6.0)
        channels.append(value - value * colour * torch.minimum(k, 4.0 - k).clamp(0, 1))
    return torch.stack(channels, 1).clamp_(0, 1)


def saturation(x: Tensor, factor: Tensor) -> Tensor:
    """Saturation of hue, saturation and value times factor [n], clipped."""
    return _turned(x, factor.to(torch.float32).view(-1, 1, 1), 0.0)


def hue(x: Tensor, turn: Tensor) -> Tensor:
    """Hue moved by turn [n], 1 for a full turn."""
    return _turned(x, 1.0, turn.to(torch.float32).view(-1, 1, 1))


_JITTER = (brightness, contrast, saturation, hue)


def blurred(x: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur with zeros around: x [n, 3, H, W] fp32, sigma [n] in pixels; 2 (H // 10 // 2) + 1 taps an axis."""
    radius = x.shape[2] // 10 // 2
    offset = torch.arange(radius + 1, dtype=torch.float64, device=x.device)
    weight = torch.exp(-(offset**2) / (2 * sigma.double()[:, None] ** 2))
    weight = (weight / (2 * weight.sum(1, keepdim=True) - 1)).to(torch.float32)
    # Sums of shifted images, not a convolution, whose rounding may depend on the batch.
    for axis in (3, 2):
        length = x.shape[axis]
        total = x * weight[:, 0].view(-1, 1, 1, 1)
        for k in range(1, min(radius + 1, length)):
            heavy = weight[:, k].view(-1, 1, 1, 1)
            total.narrow(axis, k, length - k).add_(x.narrow(axis, 0, length - k) * heavy)
            total.narrow(axis, 0, length - k).add_(x.narrow(axis, k, length - k) * heavy)
        x = total
    return x


def _jittered(x: Tensor, order: Tensor, factors: Tensor) -> Tensor:
    """Runs the four operations on each image in its own order: order [n, 4], factors [n, 4]."""
    for slot in range(4):
        if x.is_cuda:  # no host read: all four run on all images
            made = x
            for k, run in enumerate(_JITTER):
                made = torch.where((order[:, slot] == k).view(-1, 1, 1, 1), run(x, factors[:, k]), made)
            x = made
            continue
        for k, run in enumerate(_JITTER):
            rows = (order[:, slot] == k).nonzero()[:, 0]
            if len(rows):
                x[rows] = run(x[rows], factors[rows, k])
    return x


def distorted(x: Tensor, keys: Tensor, how: Distortion) -> Tensor:
    """SimCLR's colours and blur: x [n, 3, H, W] uint8, keys [n] int64 -> uint8 of the same shape; x is not written to."""
    out = torch.empty_like(x)
    step = len(x) if x.is_cuda else max(1, (1 << 18) // max(1, x[:1].numel()))
    for at in range(0, len(x), max(1, step)):
        part = slice(at, at + step)
        out[part] = _distorted(x[part], keys[part], how)
    return out


def _distorted(x: Tensor, keys: Tensor, how: Distortion) -> Tensor:
    words = keyed.bits(keyed.joined(_STREAM, keys), _WORDS)
    unit, s = keyed.unit(words), how.strength
    spread = unit[:, 1:5] * 2 - 1
    low = max(0.0, 1 - 0.8 * s)
    factors = torch.stack(
        [low + (1 + 0.8 * s - low) * unit[:, 1], 1 + 0.8 * s * spread[:, 1], 1 + 0.8 * s * spread[:, 2], 0.2 * s * spread[:, 3]], 1
    )
    pixels = x.to(torch.float32).div_(255)
    jittered = _jittered(pixels.clone(), unit[:, 5:9].argsort(1), factors)
    chosen = lambda coin, p: (unit[:, coin] < p).view(-1, 1, 1, 1)  # noqa: E731
    pixels = torch.where(chosen(0, 0.8), jittered, pixels)
    red, green, blue = pixels.unbind(1)
    grey = (red * _GREY[0] + green * _GREY[1] + blue * _GREY[2]).unsqueeze(1)
    pixels = torch.where(chosen(9, 0.2), grey, pixels)
    if how.blur:
        pixels = torch.where(chosen(10, how.blur), blurred(pixels, 0.1 + 1.9 * unit[:, 11]), pixels)
    return pixels.clamp_(0, 1).mul_(255).add_(0.5).floor_().to(torch.uint8)
