"""From distance fields to noisy 32 x 32 pictures: the channel between a glyph and what glyph_clip sees in training.

The chain copies what happens to a scanned character: a hand bends it (affine, perspective, elastic), a pen of some width draws it
(the threshold of the distance, itself noisy along the line), a scanner crops it tight and digitises it, a set stores it small, a
pipeline scales it up, and light, framing and occlusion differ. Everything is vectorised over the batch in torch.

Legend: N glyphs, k nodes a side of a coarse random grid.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .glyphs import BODY, SIZE, decode

PICTURE = 32  # side of the result, in pixels
_WIDE = 1.45  # half-width of the page on which a bent glyph is looked for, in half bodies


@dataclass(frozen=True)
class Noise:
    """Ranges of the noise. Angles in radians, displacements in half bodies, pen radius in pixels of the 32 x 32 picture."""

    rotation: float = 0.16  # standard deviation
    slant: float = 0.28  # standard deviation
    slant_mean: float = 0.08  # hands lean right
    perspective: float = 0.12
    elastic: float = 0.16  # largest standard deviation of a 3 x 3 displacement grid; finer grids move less
    pen: tuple[float, float] = (1.6, 4.3)
    outline: tuple[float, float] = (-1.2, 2.2)  # offset of a font's outline
    pressure: float = 0.25  # relative standard deviation of the pen's width along the line
    ragged: float = 0.35  # standard deviation of the edge, in pixels
    tight: float = 0.75  # share cropped to the full height
    stored: tuple[int, ...] = (8, 8, 8, 8, 8, 8, 7, 9, 10, 12, 16, 32)  # sides of the stored picture, drawn with equal chance
    framing: float = 0.15  # share shifted, scaled and turned after the crop
    shift: float = 0.3  # share of the others shifted by whole pixels, an eighth of the side at most, the rim reflected
    occlusion: float = 0.12
    light: float = 0.15  # share with another contrast, ground and sensor noise
    inverse: float = 0.08  # share of dark ink on light ground


class _Draw:
    """Random tensors of one generator."""

    def __init__(self, generator: torch.Generator):
        self.generator = generator

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator) * (high - low) + low

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator)

    def chance(self, share: float, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator) < share

    def smooth(self, n: int, channels: int, nodes: int, side: int) -> Tensor:
        """Smooth random fields of unit variance at the nodes, [n, channels, side, side]."""
        return F.interpolate(self.normal(n, channels, nodes, nodes), size=side, mode="bicubic", align_corners=True)


def _grid(side: int, reach: float) -> Tensor:
    """[side, side, 2] pixel centres (x, y) of a page from -reach to reach."""
    axis = (torch.arange(side) + 0.5) / side * 2 * reach - reach
    return torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)


def _bend(fields: Tensor, draw: _Draw, noise: Noise) -> Tensor:
    """[N, 1, SIZE, SIZE] distances -> [N, 1, SIZE, SIZE] distances on the wider page, bent."""
    n = len(fields)
    angle = draw.normal(n) * noise.rotation
    slant = draw.normal(n) * noise.slant + noise.slant_mean
    stretch = (draw.normal(n) * 0.15).exp()
    cos, sin = angle.cos(), angle.sin()
    zeros, ones = torch.zeros(n), torch.ones(n)
    shear = torch.stack([ones, slant, zeros, ones], -1).view(n, 2, 2)
    turn = torch.stack([cos, -sin, sin, cos], -1).view(n, 2, 2)
    scale = torch.stack([stretch, zeros, zeros, 1 / stretch], -1).view(n, 2, 2)
    page = _grid(SIZE, _WIDE).expand(n, -1, -1, -1)
    where = torch.einsum("nij,nhwj->nhwi", turn @ shear @ scale, page)
    tilt = draw.normal(n, 1, 1, 2) * noise.perspective
    where = where / (1 + (page * tilt).sum(-1, keepdim=True)).clamp_min(0.4)
    strength = draw.uniform(0, noise.elastic, n, 1, 1, 1)
    moved = torch.zeros(n, 2, SIZE // 3, SIZE // 3)
    for nodes, share in ((3, 1.0), (4, 0.7), (6, 0.35)):
        moved += draw.smooth(n, 2, nodes, SIZE // 3) * share
    moved = F.interpolate(moved, size=SIZE, mode="bilinear", align_corners=False).permute(0, 2, 3, 1)
    where = (where + moved * strength) * (BODY / SIZE)
    return F.grid_sample(fields, where, mode="bilinear", padding_mode="border", align_corners=False)


def _crop(bent: Tensor, radius: Tensor, draw: _Draw, noise: Noise) -> tuple[Tensor, Tensor]:
    """Crop to the ink. [N, 1, SIZE, SIZE] -> [N, 1, 32, 32] distances in pages' pixels, and [N] picture pixels per such pixel."""
    n = len(bent)
    ink = bent[:, 0] < radius[:, None, None]
    ink[:, SIZE // 2, SIZE // 2] |= ~ink.flatten(1).any(1)  # a glyph that the pen lost altogether keeps a dot
    low, high = [], []
    for dim in (1, 2):  # columns, rows
        line = ink.any(dim).float()
        place = torch.arange(SIZE).float()
        low.append(torch.where(line > 0, place, torch.tensor(float(SIZE))).amin(1))
        high.append(torch.where(line > 0, place, torch.tensor(-1.0)).amax(1) + 1)
    (left, top), (right, bottom) = low, high
    wide, tall = right - left, bottom - top
    # height and width of the glyph in the picture
    loose = ~draw.chance(noise.tight, n)
    height = torch.where(loose, draw.uniform(18, 31, n), draw.uniform(31, 33, n))
    natural = height * (wide / tall) * (draw.normal(n) * 0.15 - 0.1).exp()
    fixed = height * draw.uniform(0.5, 0.9, n)
    width = torch.where(draw.chance(0.5, n), natural, torch.maximum(fixed, natural.clamp(max=12))).clamp(4, 32)
    width = torch.where(draw.chance(0.8, n), torch.minimum(width, draw.uniform(19, 28, n)), width)
    flat = natural > 1.3 * height  # a glyph wider than tall fills the width instead
    height = torch.where(flat, (32 * tall / wide).clamp(4, 32), height)
    width = torch.where(flat, torch.full_like(width, 32.0), width)
    zoom_x, zoom_y = width / wide, height / tall
    slack_x, slack_y = (PICTURE - width).clamp_min(0) / 2, (PICTURE - height).clamp_min(0) / 2
    middle_x = PICTURE / 2 + draw.uniform(-1, 1, n) * torch.where(loose, slack_x, slack_x.clamp(max=2.5))
    middle_y = PICTURE / 2 + draw.uniform(-1, 1, n) * slack_y
    grid = _grid(PICTURE, PICTURE / 2) + PICTURE / 2  # picture pixels
    x = (grid[..., 0] - middle_x[:, None, None]) / zoom_x[:, None, None] + ((left + right) / 2)[:, None, None]
    y = (grid[..., 1] - middle_y[:, None, None]) / zoom_y[:, None, None] + ((top + bottom) / 2)[:, None, None]
    where = torch.stack([x, y], -1) / SIZE * 2 - 1
    return F.grid_sample(bent, where, mode="bilinear", padding_mode="border", align_corners=False), (zoom_x * zoom_y).sqrt()


def _store(ink: Tensor, draw: _Draw, noise: Noise) -> Tensor:
    """Area-average to a small picture of 17 levels, and scale up again, bilinear or bicubic."""
    side = torch.tensor(noise.stored)[torch.randint(len(noise.stored), (len(ink),), generator=draw.generator)]
    cubic = draw.chance(0.5, len(ink))
    out = ink.clone()
    for small in sorted(set(noise.stored) - {PICTURE}):
        for mode, mine in (("bilinear", ~cubic), ("bicubic", cubic)):
            rows = ((side == small) & mine).nonzero()[:, 0]
            if len(rows):
                stored = (F.interpolate(ink[rows], size=small, mode="area") * 16).round() / 16
                out[rows] = F.interpolate(stored, size=PICTURE, mode=mode, align_corners=False).clamp(0, 1)
    return out


def _frame(x: Tensor, draw: _Draw, noise: Noise) -> Tensor:
    """Shift, scale and turn a share of the pictures, shift another by whole pixels, and cover a square in a third."""
    n = len(x)
    turned, moved = draw.uniform(0, 1, 2, n) < torch.tensor([[noise.framing], [noise.shift]])
    angle, zoom = draw.normal(n) * 0.12, draw.uniform(0.85, 1.25, n)
    far = draw.uniform(-0.3, 0.3, n, 2)
    matrix = torch.stack([angle.cos() * zoom, -angle.sin() * zoom, far[:, 0], angle.sin() * zoom, angle.cos() * zoom, far[:, 1]], -1)
    upright = torch.eye(2, 3).repeat(n, 1, 1)
    upright[:, :, 2] = torch.randint(-4, 5, (n, 2), generator=draw.generator) * (2 / PICTURE)
    for rows, how, padding in ((turned, matrix.view(n, 2, 3), "zeros"), (moved & ~turned, upright, "reflection")):
        rows = rows.nonzero()[:, 0]
        if len(rows):
            where = F.affine_grid(how[rows], [len(rows), 1, PICTURE, PICTURE], align_corners=False)
            x = x.index_copy(0, rows, F.grid_sample(x[rows], where, padding_mode=padding, align_corners=False))
    side = draw.uniform(4, 13, n, 1, 1)
    middle = draw.uniform(0, PICTURE, n, 2, 1, 1)
    axis = torch.arange(PICTURE) + 0.5
    covered = ((axis[None, None, :] - middle[:, 0]).abs() < side / 2) & ((axis[None, :, None] - middle[:, 1]).abs() < side / 2)
    covered &= draw.chance(noise.occlusion, n, 1, 1)
    shade = draw.uniform(0, 1, n, 1, 1, 1) * draw.chance(0.5, n, 1, 1, 1)
    return torch.where(covered[:, None], shade, x)


def _lighten(x: Tensor, draw: _Draw, noise: Noise) -> Tensor:
    n = len(x)
    some = draw.chance(noise.light, n, 1, 1, 1)
    contrast, ground = draw.uniform(0.4, 1.0, n, 1, 1, 1), draw.uniform(0, 1, n, 1, 1, 1)
    other = contrast * x.clamp_min(0) ** draw.uniform(0.6, 1.6, n, 1, 1, 1) + ground * (1 - contrast)
    other = other + draw.normal(n, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3) * 0.05 + draw.normal(*x.shape) * 0.06
    x = torch.where(some, other.clamp(0, 1), x)
    return torch.where(draw.chance(noise.inverse, n, 1, 1, 1), 1 - x, x)


def render(fields: Tensor, kind: Tensor, generator: torch.Generator, noise: Noise | None = None) -> Tensor:
    """Noisy pictures of glyphs.

    Args:
        fields: [N, SIZE, SIZE] uint8 distance fields of a GlyphBank.
        kind: [N] int64, 0 outline, 1 medial, 2 pen.
        generator: where all randomness comes from.
        noise: ranges, the default's where None.

    Returns:
        [N, 1, 32, 32] fp32 in [0, 1], light ink on dark ground but for the inverse share.
    """
    noise = noise or Noise()
    draw, n = _Draw(generator), len(fields)
    bent = _bend(decode(fields)[:, None], draw, noise)
    outlined = kind == 0
    zoom_guess = PICTURE * _WIDE / SIZE  # picture pixels per page pixel, were the glyph not bent
    pen = draw.uniform(*noise.pen, n)
    offset = draw.uniform(*noise.outline, n) / zoom_guess
    distance, zoom = _crop(bent, torch.where(outlined, offset, pen / zoom_guess), draw, noise)
    # Half the lines keep the width that the hand gave them, so that the crop fattens what was written small or narrow.
    kept = draw.chance(0.5, n)
    radius = torch.where(outlined, offset * zoom, torch.where(kept, pen * (zoom / zoom_guess).clamp(max=1.8), pen))[:, None, None, None]
    pressure = draw.smooth(n, 1, 5, PICTURE) * noise.pressure
    rough = draw.normal(n, 1, PICTURE // 2, PICTURE // 2)
    rough = F.interpolate(rough, size=PICTURE, mode="bilinear", align_corners=False) * noise.ragged
    reach = radius + pressure * torch.where(outlined[:, None, None, None], torch.full_like(radius, 1.5), radius) + rough
    ink = ((reach - distance * zoom[:, None, None, None]) * 2 + 0.5).clamp(0, 1)
    return _lighten(_frame(_store(ink, draw, noise), draw, noise), draw, noise)
