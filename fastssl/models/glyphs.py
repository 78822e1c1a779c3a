"""Characters as distance fields: what glyph_clip's training images are made of.

Every glyph is kept as one SIZE x SIZE field of distances, not as a picture: the noise can then bend it without blur and choose the pen's
width afterwards (ink is where the distance is below the pen's radius). Three kinds of field:

* outline: signed distance to the outline of a font's glyph (negative inside);
* medial: distance to that glyph's skeleton, so that any font becomes a line drawn with a pen;
* pen: distance to the strokes of `glyph_strokes`.

The fonts are those that matplotlib ships. No handwriting and no image of any data set is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastssl.pipelines.errors import SetupError

from . import glyph_strokes
from .names import CHARACTERS, DIGITS, LETTERS

SIZE = 48  # side of a field
BODY = 32  # longer side of the glyph inside it
STEP = 1 / 12  # distance of one level of the stored uint8
ZERO = 48  # the level that means distance 0: fields reach from -4 to +17.25
KINDS = ("outline", "medial", "pen")
_FINE = 4  # rendering is this much finer than the field

# Computer Modern as matplotlib encodes it is ASCII for letters and digits only; the folder's other files are parts of large brackets.
_FONTS = {
    "DejaVuSans": CHARACTERS,
    "DejaVuSans-Bold": CHARACTERS,
    "DejaVuSans-Oblique": CHARACTERS,
    "DejaVuSans-BoldOblique": CHARACTERS,
    "DejaVuSansMono": CHARACTERS,
    "DejaVuSansMono-Bold": CHARACTERS,
    "DejaVuSansMono-Oblique": CHARACTERS,
    "DejaVuSerif": CHARACTERS,
    "DejaVuSerif-Bold": CHARACTERS,
    "DejaVuSerif-Italic": CHARACTERS,
    "DejaVuSerif-BoldItalic": CHARACTERS,
    "STIXGeneral": CHARACTERS,
    "STIXGeneralBol": CHARACTERS,
    "STIXGeneralItalic": CHARACTERS,
    "STIXGeneralBolIta": CHARACTERS,
    "cmr10": DIGITS + LETTERS,
    "cmb10": DIGITS + LETTERS,
    "cmss10": DIGITS + LETTERS,
    "cmtt10": DIGITS + LETTERS,
    "cmti10": DIGITS + LETTERS,
    "cmmi10": DIGITS + LETTERS,
}


@dataclass
class GlyphBank:
    """Fields [G, SIZE, SIZE] uint8, the character of each [G] int64 (a position in CHARACTERS) and its kind [G] (in KINDS)."""

    fields: Tensor
    character: Tensor
    kind: Tensor


def _renderer():
    try:
        import matplotlib
        from matplotlib.ft2font import FT2Font
        from PIL import Image, ImageDraw, ImageFont
    except ImportError as missing:
        raise SetupError(f"rendering glyphs needs {missing.name}; install it with: pip install 'fastssl[report]'") from None
    return Path(matplotlib.get_data_path()) / "fonts" / "ttf", FT2Font, Image, ImageDraw, ImageFont


def render_fonts() -> tuple[np.ndarray, np.ndarray]:
    """Every (font, character) as a bitmap: bool [G, SIZE*4, SIZE*4], body-sized and centred, and its character [G]."""
    folder, FT2Font, Image, ImageDraw, ImageFont = _renderer()
    bitmaps, owner = [], []
    side, body = SIZE * _FINE, BODY * _FINE
    for font_name, characters in _FONTS.items():
        path = str(folder / f"{font_name}.ttf")
        if not (folder / f"{font_name}.ttf").is_file():
            raise SetupError(f"this matplotlib ships no font {font_name}; run: pip install 'matplotlib>=3.11'")
        known = FT2Font(path).get_charmap()
        font = ImageFont.truetype(path, 2 * body)
        for character in characters:
            if ord(character) not in known:
                continue
            left, top, right, bottom = font.getbbox(character)
            tall = Image.new("L", (right - left, bottom - top))
            ImageDraw.Draw(tall).text((-left, -top), character, 255, font=font)
            box = tall.getbbox()
            if box is None:
                continue
            tall = tall.crop(box)
            scale = body / max(tall.size)
            tall = tall.resize([max(2, round(s * scale)) for s in tall.size], Image.Resampling.BOX)
            page = Image.new("L", (side, side))
            page.paste(tall, ((side - tall.width) // 2, (side - tall.height) // 2))
            bitmaps.append(np.asarray(page) > 127)
            owner.append(CHARACTERS.index(character))
    return np.stack(bitmaps), np.array(owner)


def skeleton(bitmaps: np.ndarray) -> np.ndarray:
    """One-pixel-wide centre lines of bool [G, H, W] bitmaps, all at once (Zhang and Suen 1984)."""
    x = np.pad(bitmaps, ((0, 0), (1, 1), (1, 1))).astype(np.uint8)
    active = np.arange(len(x))
    while len(active):
        gone = np.zeros(len(active), bool)
        for odd in (False, True):
            a = x[active]
            c = a[:, 1:-1, 1:-1]
            # neighbours clockwise from north
            n = [a[:, 1 + dy : a.shape[1] - 1 + dy, 1 + dx : a.shape[2] - 1 + dx] for dy, dx in _RING]
            count = sum(n[1:], n[0].copy())
            turns = sum(((n[i] == 0) & (n[(i + 1) % 8] == 1)).astype(np.uint8) for i in range(8))
            if odd:
                open_side = (n[0] * n[2] * n[6] == 0) & (n[0] * n[4] * n[6] == 0)
            else:
                open_side = (n[0] * n[2] * n[4] == 0) & (n[2] * n[4] * n[6] == 0)
            drop = (c == 1) & (count >= 2) & (count <= 6) & (turns == 1) & open_side
            a[:, 1:-1, 1:-1] = c & ~drop
            x[active] = a
            gone |= drop.any((1, 2))
        active = active[gone]
    return x[:, 1:-1, 1:-1].astype(bool)


_RING = ((-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1))


def _encode(distance: np.ndarray | Tensor) -> Tensor:
    return (torch.as_tensor(distance) / STEP + ZERO).round().clamp(0, 255).to(torch.uint8)


def decode(fields: Tensor) -> Tensor:
    """uint8 fields -> float distances in field pixels."""
    return (fields.float() - ZERO) * STEP


def font_fields() -> GlyphBank:
    """Outline and medial fields of every font glyph."""
    from scipy.ndimage import distance_transform_edt

    bitmaps, owner = render_fonts()
    coarse = bitmaps[:, 1::2, 1::2]
    lines = skeleton(coarse)
    outline, medial = [], []
    for bitmap, line in zip(bitmaps, lines, strict=True):
        signed = distance_transform_edt(~bitmap) - distance_transform_edt(bitmap)
        outline.append(signed.reshape(SIZE, _FINE, SIZE, _FINE).mean((1, 3)) / _FINE)
        far = distance_transform_edt(~line) if line.any() else np.full(line.shape, 99.0)
        medial.append(far.reshape(SIZE, _FINE // 2, SIZE, _FINE // 2).mean((1, 3)) * 2 / _FINE)
    fields = _encode(np.stack(outline + medial))
    character = torch.from_numpy(np.concatenate([owner, owner]))
    kind = torch.arange(2).repeat_interleave(len(owner))
    return GlyphBank(fields, character, kind)


def pen_fields(copies_of_digit: int, copies_of_capital: int, generator: torch.Generator) -> GlyphBank:
    """Fields of freshly drawn strokes: so many copies of every numeral and capital, spread over their allographs."""
    paths, owner = [], []
    for alphabet, copies in ((glyph_strokes.DIGITS, copies_of_digit), (glyph_strokes.CAPITALS, copies_of_capital)):
        for character, allographs in alphabet.items():
            for i in range(copies):
                jitter = float(torch.empty(()).uniform_(0.02, 0.08, generator=generator))
                paths.append(glyph_strokes.draw(allographs[i % len(allographs)], jitter, generator))
                owner.append(CHARACTERS.index(character))
    path = torch.stack(paths)
    width = torch.empty(len(path)).uniform_(0.45, 0.9, generator=generator)
    path = (path - 0.5) * torch.stack([width, torch.ones_like(width)], -1)[:, None] * BODY + SIZE / 2
    axis = torch.arange(SIZE) + 0.5
    pixels = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1).flatten(0, 1)
    fields = torch.cat([_encode(torch.cdist(pixels, chunk).amin(-1)) for chunk in path.split(64)])
    return GlyphBank(fields.view(-1, SIZE, SIZE), torch.tensor(owner), torch.full((len(owner),), 2))


def build_bank(copies_of_digit: int, copies_of_capital: int, generator: torch.Generator) -> GlyphBank:
    """The whole bank: fonts and pen."""
    fonts, pen = font_fields(), pen_fields(copies_of_digit, copies_of_capital, generator)
    return GlyphBank(*(torch.cat([getattr(fonts, f), getattr(pen, f)]) for f in ("fields", "character", "kind")))
