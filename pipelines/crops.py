"""Crops of random place and size, each brought to one size: RandomResizedCrop, with the pixels of Pillow's own resize of each crop.

`resize.py` tabulates one resize for all images; here every image has its own, so the weights are made on the device, in Pillow's order of
float64 operations. Only the filters' sines (lanczos, hamming) may differ from C's in the last bit, which the rounding to 22 places hides.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from . import keyed
from .errors import ConfigError, unknown
from .resize import _PLACES, weighted

TRIES = 10  # torchvision's; a square picture refuses about one box in six, so all ten with a probability of 1e-8
_WORDS = 4  # of a try: area, aspect, top, left
_STREAM = keyed.key(0x43524F50)  # crops of this kind share no word with the flip and the operations of their view


def _bilinear(x: Tensor) -> Tensor:
    return (1.0 - x.abs()).clamp(min=0.0)


def _bicubic(x: Tensor) -> Tensor:
    a, x = -0.5, x.abs()
    near, far = ((a + 2.0) * x - (a + 3.0)) * x * x + 1, (((x - 5) * x + 8) * x - 4) * a
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


def _box(x: Tensor) -> Tensor:
    return ((x > -0.5) & (x <= 0.5)).to(x.dtype)


def _sinc(x: Tensor) -> Tensor:
    turned = x * math.pi
    return torch.where(x == 0, 1.0, torch.sin(turned) / turned)


def _hamming(x: Tensor) -> Tensor:
    x = x.abs()
    turned = x * math.pi
    window = torch.sin(turned) / turned * (0.54 + 0.46 * torch.cos(turned))
    return torch.where(x == 0, 1.0, torch.where(x < 1, window, 0.0))


def _lanczos(x: Tensor) -> Tensor:
    return torch.where((x >= -3) & (x < 3), _sinc(x) * _sinc(x / 3), 0.0)


# name -> filter, reach in input pixels
FILTERS: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "bilinear": (_bilinear, 1.0),
    "bicubic": (_bicubic, 2.0),
    "box": (_box, 0.5),
    "hamming": (_hamming, 1.0),
    "lanczos": (_lanczos, 3.0),
}


def boxes(keys: Tensor, side: int, area: tuple[float, float] = (0.08, 1.0), aspect: tuple[float, float] = (3 / 4, 4 / 3)) -> Tensor:
    """RandomResizedCrop's boxes in a square picture: the first of ten tries that fits, else the whole picture.

    Args:
        keys: [n] int64.
        side: of the picture in pixels.
        area: share of the picture, drawn uniformly.
        aspect: width over height, its logarithm drawn uniformly.

    Returns:
        [n, 4] int64: top, left, height, width.
    """
    words = keyed.bits(keyed.joined(_STREAM, keys), _WORDS * TRIES).view(-1, TRIES, _WORDS)
    unit = keyed.unit(words[..., :2])
    pixels = (area[0] + (area[1] - area[0]) * unit[..., 0]) * side * side
    low, high = math.log(aspect[0]), math.log(aspect[1])
    ratio = torch.exp(low + (high - low) * unit[..., 1])
    width, height = (torch.round(torch.sqrt(edge)).long() for edge in (pixels * ratio, pixels / ratio))
    fits = (width > 0) & (width <= side) & (height > 0) & (height <= side)
    top, left = (keyed.below(words[..., k], (side - edge).clamp(min=0) + 1) for k, edge in ((2, height), (3, width)))
    found = torch.stack([top, left, height, width], 2)
    chosen = found.gather(1, fits.to(torch.uint8).argmax(1)[:, None, None].expand(-1, 1, 4))[:, 0]
    whole = (torch.arange(4, device=keys.device) >= 2) * side  # 0, 0, side, side: a list would be copied from the host
    return torch.where(fits.any(1, keepdim=True), chosen, whole)


def stretches(first: Tensor, length: Tensor, source: int, target: int, interpolation: str) -> Tensor:
    """Weights that bring pixels first .. first+length-1 of an axis to `target` pixels.

    Args:
        first, length: [n] int64.
        source: pixels of the axis.
        target: pixels that come out.
        interpolation: a name of FILTERS, or "nearest".

    Returns:
        [n, target, source] float64 whole numbers, times 2**22.
    """
    out = torch.arange(target, dtype=torch.float64, device=first.device)
    table = torch.zeros(len(first), target, source, dtype=torch.float64, device=first.device)
    scale = (length.double() / target)[:, None]
    if interpolation == "nearest":
        # Pillow adds the scale step by step; so does a running sum.
        steps = torch.cat([scale * 0.5, scale.expand(-1, target - 1)], 1).cumsum(1)
        at = first[:, None] + steps.long().clamp(max=source - 1)
        return table.scatter_(2, at.clamp(max=source - 1)[..., None], float(1 << _PLACES))
    if interpolation not in FILTERS:
        raise ConfigError(unknown("interpolation", interpolation, [*FILTERS, "nearest"]))
    function, reach = FILTERS[interpolation]
    stretch = scale.clamp(min=1.0)
    support = reach * stretch
    centre = (out + 0.5) * scale
    start = (centre - support + 0.5).clamp(min=0).long()
    stop = torch.minimum((centre + support + 0.5).long(), length[:, None])
    most = 2 * math.ceil(reach * max(source / target, 1.0)) + 1
    at = start[..., None] + torch.arange(most, device=first.device)
    inside = at < stop[..., None]
    weight = function((at - centre[..., None] + 0.5) * (1.0 / stretch)[..., None]) * inside
    total = torch.zeros_like(centre)
    for k in range(most):  # one after the other, as Pillow adds them
        total = total + weight[..., k]
    fixed = weight / total[..., None] * (1 << _PLACES)
    whole = torch.trunc(fixed + torch.copysign(torch.full_like(fixed, 0.5), fixed)) * inside
    # By one dimension: asked for determinism, CUDA's sum over more of them fetches its strides from the host, in the midst of a capture.
    row = torch.arange(len(first) * target, device=first.device).view(len(first), target, 1) * source
    place = row + (first[:, None, None] + at).clamp(max=source - 1)
    table.view(-1).scatter_add_(0, place.reshape(-1), whole.reshape(-1))
    return table


def resized_crop(x: Tensor, box: Tensor, size: int, interpolation: str, flip: Tensor | None = None) -> Tensor:
    """Each image's box brought to size x size, then mirrored where `flip` says so.

    Args:
        x: [n, 3, side, side] uint8.
        box: [n, 4] int64 as from `boxes`.
        flip: [n] bool.

    Returns:
        [n, 3, size, size] uint8, equal to Pillow's `crop`, `resize` of the columns, then of the rows, and mirroring.
    """
    side = x.shape[3]
    top, left, height, width = box.unbind(1)
    out = []
    # The weights of a CPU's share of images stay in its cache.
    step = len(x) if x.is_cuda else max(1, (1 << 18) // (size * side))
    for at in range(0, len(x), max(1, step)):
        part = slice(at, at + step)
        down = stretches(top[part], height[part], side, size, interpolation)
        across = stretches(left[part], width[part], side, size, interpolation)
        if flip is not None:
            across = torch.where(flip[part, None, None], across.flip(1), across)
        out.append(weighted(x[part], down, across, 256 if x.is_cuda else 4))
    return torch.cat(out) if out else torch.empty((0, 3, size, size), dtype=torch.uint8, device=x.device)
