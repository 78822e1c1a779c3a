"""Strong-augmentation policies by name: which operations are drawn, how strong, and the cutout that follows.

A policy is data. `drawn` turns keys into a table of operations and magnitudes, `views.py` runs the table; anything that can run the
same table makes the same views.

| name | operations | source |
|---|---|---|
| fixmatch | 2 of 14, level 1..9, each with P 1/2, cutout of half the side, grey 127 | FixMatch's RandAugment, kekmodel's PyTorch port |
| finessl | the same, cutout of 16/224 of the side | FineSSL's code at 224 pixels, kept in proportion at other sizes |
| finessl_16px | the same, cutout of 16 pixels at any size | FineSSL's code to the letter |
| fixmatch_tf | as fixmatch, but enhancers to 1.72, posterize to 1 bit, shifts of 1 to 9 pixels | FixMatch's own code (TensorFlow) |
| ctaugment | 2 of 19, magnitudes from rates that training moves, cutout of half the side | FixMatch's CTAugment (ctaugment.py) |
| usb | 3 of 14, continuous magnitudes, always applied, cutout up to half the side | USB |
| usb_medium | 1 of 14, else as usb | USB's medium views |
| usb_224 | as usb; strong views show 8 % to all of the picture, weak ones are not padded | USB at 224 pixels, with `data.resize=256` |
| digits | 2 of 12 that keep a character legible, cutout of a quarter of the side, black | ours: see POLICIES |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from . import keyed
from .errors import ConfigError, unknown

# Geometric operations come last, so that one comparison finds them.
OPS = (
    *("identity", "autocontrast", "equalize", "brightness", "color", "contrast", "sharpness", "posterize", "solarize"),
    *("rotate", "shear_x", "shear_y", "translate_x", "translate_y"),
)
GEOMETRIC = OPS.index("rotate")
_ENHANCE = ("brightness", "color", "contrast", "sharpness")
LEVELS = 9  # RandAugment's levels are 1..9: the codes draw below an exclusive 10


@dataclass(frozen=True)
class Policy:
    """A strong-augmentation policy.

    Attributes:
        ops: operations to draw from, uniformly and with replacement.
        draws: operations a view, applied in the drawn order.
        p: probability that a drawn operation is applied.
        law: "levels" (FixMatch's nine levels, a fair sign on geometric operations), "google" (the same with the original code's
            magnitudes), "continuous" (uniform over the whole range) or "ctaugment" (rates: ctaugment.py).
        shift: largest translation as a share of the side.
        cutout: side of the square as a share of the image's side, 0 for none; the largest one under the continuous law.
        cutout_pixels: the side in pixels instead, the same at any image size.
        fill: grey levels of the square.
        crop: of the strong view: "reflect" (the weak view's: padded by reflection) or "resized" (a random part, brought to the size).
        pad: pixels of reflection a side, as a share of the side.
    """

    ops: tuple[str, ...] = OPS
    draws: int = 2
    p: float = 0.5
    law: str = "levels"
    shift: float = 0.3
    cutout: float = 0.5
    cutout_pixels: int | None = None
    fill: tuple[int, int, int] = (127, 127, 127)
    crop: str = "reflect"
    pad: float = 1 / 8


POLICIES = {
    "fixmatch": Policy(),
    "finessl": Policy(cutout=16 / 224),
    "finessl_16px": Policy(cutout_pixels=16),
    "fixmatch_tf": Policy(law="google"),
    "ctaugment": Policy(law="ctaugment"),
    "usb": Policy(draws=3, p=1.0, law="continuous", fill=(125, 123, 114)),
    "usb_medium": Policy(draws=1, p=1.0, law="continuous", fill=(125, 123, 114)),
    "usb_224": Policy(draws=3, p=1.0, law="continuous", fill=(125, 123, 114), crop="resized", pad=0.0),
    # A digit's strokes are one or two of eight pixels wide and touch the border: shifts stay within a tenth of the side, the square
    # is small and has the background's colour, and the operations that do nothing to a grey image or make its negative are out.
    "digits": Policy(
        ops=tuple(op for op in OPS if op not in ("color", "solarize")),
        shift=0.1,
        cutout=0.25,
        fill=(0, 0, 0),
    ),
}


def policy(name: str) -> Policy:
    """The policy of that name. Raises ConfigError naming the nearest ones."""
    if name.split("+")[0] in ("tfidf", "uniform", "span_mask", "back_translation"):
        raise ConfigError(f"policy '{name}' is for texts; those for images are {', '.join(POLICIES)}")
    if name not in POLICIES:
        raise ConfigError(unknown("policy", name, POLICIES))
    return POLICIES[name]


class Drawn(NamedTuple):
    """The strong operations of n images: everything random about them but the crop."""

    op: Tensor  # [n, draws] int64, position in OPS; identity where the coin said no
    value: Tensor  # [n, draws] float64, the operation's magnitude with its sign
    box: Tensor  # [n, 4] int64: first and last column, first and last row of the cutout, inclusive; last < first for none


def level_value(op: str, level: int, side: int, shift: float) -> float:
    """Magnitude of `op` at FixMatch's `level` 1..9 before its sign; same order of float operations as the code that defined it."""
    if op in _ENHANCE:
        return level * 0.9 / 10 + 0.05
    if op == "posterize":
        return 4 + int(level * 4 / 10)
    if op == "solarize":
        return 256 - int(level * 256 / 10)
    if op == "rotate":
        return int(level * 30 / 10)
    if op in ("shear_x", "shear_y"):
        return level * 0.3 / 10
    if op in ("translate_x", "translate_y"):
        return int(level * shift / 10 * side)
    return 0.0


def google_value(op: str, level: int, side: int, shift: float) -> float:
    """Magnitude of `op` at level 1..9 before its sign in the original code, whose shifts are whole pixels of any image."""
    if op in _ENHANCE:
        return level * 1.8 / 10 + 0.1
    if op == "posterize":
        return 4 - int(level * 4 / 10)
    if op in ("translate_x", "translate_y"):
        return level
    return level_value(op, level, side, shift)


def continuous_range(op: str, side: int, shift: float) -> tuple[float, float]:
    """USB's range of `op`; posterize is truncated to whole bits after the draw."""
    if op in _ENHANCE:
        return 0.05, 0.95
    if op in ("translate_x", "translate_y"):
        return -shift * side, shift * side
    return {
        "posterize": (4.0, 8.0),
        "solarize": (0.0, 256.0),
        "rotate": (-30.0, 30.0),
        "shear_x": (-0.3, 0.3),
        "shear_y": (-0.3, 0.3),
    }.get(op, (0.0, 0.0))


LEVEL_LAWS = {"levels": level_value, "google": google_value}


class Sampler:
    """Draws a policy's tables for images of one size on one device.

    The magnitudes of all operations are tabulated when it is built, so that a draw is device arithmetic alone.
    """

    WORDS_PER_DRAW = 4  # operation, magnitude, apply coin, sign

    def __init__(self, policy: Policy, height: int, width: int, device: torch.device | str = "cpu"):
        self.policy, self.height, self.width = policy, height, width
        self.words = 3 + self.WORDS_PER_DRAW * policy.draws
        sides = [height if op == "translate_y" else width for op in policy.ops]
        make = lambda rows: torch.tensor(rows, dtype=torch.float64, device=device)  # noqa: E731
        self.ops = torch.tensor([OPS.index(op) for op in policy.ops], device=device)
        if policy.law in LEVEL_LAWS:
            value = LEVEL_LAWS[policy.law]
            self.table = make(
                [
                    [value(op, level, side, policy.shift) for level in range(1, LEVELS + 1)]
                    for op, side in zip(policy.ops, sides, strict=True)
                ]
            )
        elif policy.law == "continuous":
            self.table = make([continuous_range(op, side, policy.shift) for op, side in zip(policy.ops, sides, strict=True)])
        else:
            raise ConfigError(unknown("magnitude law", policy.law, (*LEVEL_LAWS, "continuous")))

    def drawn(self, words: Tensor) -> Drawn:
        """[n, self.words] random int64 words -> the table of n images."""
        policy = self.policy
        slots = words[:, 3:].view(len(words), policy.draws, self.WORDS_PER_DRAW)
        slot = keyed.below(slots[..., 0], len(policy.ops))
        op = self.ops[slot]
        if policy.law in LEVEL_LAWS:
            value = self.table[slot, keyed.below(slots[..., 1], LEVELS)]
            signed = (op >= GEOMETRIC) & (keyed.below(slots[..., 3], 2) == 1)
            value = torch.where(signed, -value, value)
        else:
            low, high = self.table[slot].unbind(-1)
            value = low + (high - low) * keyed.unit(slots[..., 1])
            value = torch.where(op == OPS.index("posterize"), value.floor().clamp(min=1), value)
        applied = keyed.unit(slots[..., 2]) < policy.p
        return Drawn(torch.where(applied, op, 0), value, self._box(words[:, :3]))

    def _box(self, words: Tensor) -> Tensor:
        """The cutout rectangles: [n, 3] words -> [n, 4] int64.

        Both codes clip the first corner at 0 and measure the side from the clipped corner, and both fill the last corner too:
        a nominal 16 pixels are 17 drawn, fewer at the right and lower border only.
        """
        policy = self.policy
        x, y, size = keyed.unit(words).unbind(1)
        if policy.law == "continuous":
            # The centre lies in (1, side], as in the code, whose one-argument call to uniform takes the side for the lower bound.
            side = size * policy.cutout * self.width
            x, y = self.width - (self.width - 1) * x, self.height - (self.height - 1) * y
        else:
            pixels = policy.cutout_pixels if policy.cutout_pixels is not None else int(self.width * policy.cutout)
            side = torch.full_like(x, float(pixels))
            x, y = self.width * x, self.height * y
        left, top = (x - side / 2).clamp(min=0).floor(), (y - side / 2).clamp(min=0).floor()
        right, bottom = (left + side).clamp(max=self.width).floor(), (top + side).clamp(max=self.height).floor()
        empty = side <= 0
        return torch.stack([left, torch.where(empty, left - 1, right), top, torch.where(empty, top - 1, bottom)], 1).long()
