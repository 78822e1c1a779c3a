"""CTAugment: strong views whose magnitudes follow what the network still recognises (Berthelot et al. 2020, ReMixMatch, section 3.2.2;
as FixMatch's code has it: Sohn et al. 2020, appendix D).

Each of 19 operations has one or two parameters in [0, 1), cut into bins, and each bin a weight. A strong view draws bins whose weight is
near the largest; a `probe` view of a labelled image draws all alike, and how much probability the network then gives the true class moves
the weights of the bins that were drawn.

The published shifts reach 0.3 pixels, which nearest sampling does not show: `translate_x` and `translate_y` change nothing, there as here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from . import affine, crops, image_ops, keyed
from .errors import ConfigError

# operation -> bins of each parameter
BINS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("autocontrast", "blur", "brightness", "color", "contrast", "cutout", "equalize", "invert"), (17,)),
    "identity": (),
    "posterize": (8,),
    "rescale": (17, 6),
    **dict.fromkeys(("rotate", "sharpness", "shear_x", "shear_y", "smooth", "solarize", "translate_x", "translate_y"), (17,)),
}
OPS = tuple(BINS)
_MOST = 17
_WORDS = 7  # of a draw: operation, two bins, two places within them, two of a cutout's centre
_RESCALE = ("lanczos", "bicubic", "bilinear", "box", "hamming", "nearest")
_STREAM, _PROBE = keyed.key(0x435441, 0), keyed.key(0x435441, 1)


class CTDrawn(NamedTuple):
    """The operations of n images."""

    op: Tensor  # [n, depth] int64, position in OPS
    level: Tensor  # [n, depth, 2] float64 in [0, 1), the operation's parameters; those that it lacks are ignored
    place: Tensor  # [n, depth, 2] float64 in [0, 1), where a cutout's centre lies
    box: Tensor  # [n, 4] int64, the cutout of half the side, as in policies.Drawn; empty for probes


def _blend(run: Callable[[Tensor], Tensor]) -> Callable:
    return lambda x, level, place: image_ops.blended(x.float(), run(x), level[:, 0])


def _scaled(run: Callable, low: float, high: float, whole: Callable[[Tensor], Tensor] | None = None) -> Callable:
    def operation(x: Tensor, level: Tensor, place: Tensor) -> Tensor:
        v = low + (high - low) * level[:, 0]
        return run(x, v if whole is None else whole(v))

    return operation


def _warp(matrix: Callable, reach: float, whole: Callable[[Tensor], Tensor] | None = None) -> Callable:
    return _scaled(lambda x, v: affine.warped(x, matrix(v, *x.shape[2:])), -reach, reach, whole)


def cutout_box(level: Tensor, place: Tensor, height: int, width: int) -> Tensor:
    """[n] level, [n, 2] place in [0, 1) -> [n, 4] int64 first and last column, first and last row; last < first for a square of one pixel,
    whose half is none."""
    half = torch.div(1 + (level * min(height, width) * 0.499).long(), 2, rounding_mode="floor")
    x, y = (place[:, 0] * width).long(), (place[:, 1] * height).long()
    return torch.stack(
        [(x - half).clamp(min=0), (x + half).clamp(max=width) - 1, (y - half).clamp(min=0), (y + half).clamp(max=height) - 1], 1
    )


def filled(x: Tensor, box: Tensor) -> Tensor:
    """x [n, 3, H, W] uint8 with grey 127 in each image's box."""
    columns, rows = torch.arange(x.shape[3], device=x.device), torch.arange(x.shape[2], device=x.device)
    across = (columns >= box[:, 0, None]) & (columns <= box[:, 1, None])
    down = (rows >= box[:, 2, None]) & (rows <= box[:, 3, None])
    return torch.where((down[:, :, None] & across[:, None, :]).unsqueeze(1), 127, x)


def _cutout(x: Tensor, level: Tensor, place: Tensor) -> Tensor:
    return filled(x, cutout_box(level[:, 0], place, *x.shape[2:]))


def _rescale(x: Tensor, level: Tensor, place: Tensor) -> Tensor:
    """Cuts up to a quarter off each side and brings the rest back to the size, by one of six filters."""
    side = x.shape[3]
    share = level[:, 0] * 0.25
    # Pillow's crop rounds its corners, half to even.
    first, last = torch.round(share * side).long(), torch.round(side * (1 - share)).long()
    box = torch.stack([first, first, last - first, last - first], 1)
    method = (level[:, 1] * 5.99).long()
    out = x
    for k, name in enumerate(_RESCALE):
        if x.is_cuda:
            out = torch.where((method == k).view(-1, 1, 1, 1), crops.resized_crop(x, box, side, name), out)
        elif len(rows := (method == k).nonzero()[:, 0]):
            out = out.index_copy(0, rows, crops.resized_crop(x[rows], box[rows], side, name))
    return out


_RUN: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "autocontrast": _blend(lambda x: image_ops.autocontrast(x, x)),
    "blur": _blend(lambda x: image_ops.blurred(x).to(torch.uint8)),
    "brightness": _scaled(image_ops.brightness, 0.1, 2.0),
    "color": _scaled(image_ops.color, 0.1, 2.0),
    "contrast": _scaled(image_ops.contrast, 0.1, 2.0),
    "cutout": _cutout,
    "equalize": _blend(lambda x: image_ops.equalize(x, x)),
    "invert": _blend(image_ops.invert),
    "identity": lambda x, level, place: x,
    "posterize": _scaled(image_ops.posterize, 1.0, 8.999, torch.floor),
    "rescale": _rescale,
    "rotate": _warp(affine.rotation, 45.0, torch.round),
    "sharpness": _scaled(image_ops.sharpness, 0.1, 2.0),
    "shear_x": _warp(affine.shear_x, 0.3),
    "shear_y": _warp(affine.shear_y, 0.3),
    "smooth": _blend(lambda x: image_ops.smoothed(x).to(torch.uint8)),
    "solarize": _scaled(image_ops.solarize, 0.0, 255.999, torch.floor),
    "translate_x": _warp(affine.translate_x, 0.3),
    "translate_y": _warp(affine.translate_y, 0.3),
}


def operate(x: Tensor, op: Tensor, level: Tensor, place: Tensor) -> Tensor:
    """One operation an image: x [n, 3, S, S] uint8, op [n], level and place [n, 2] -> uint8; x is not written to."""
    out = x
    for k, name in enumerate(OPS):
        if name == "identity":
            continue
        if x.is_cuda:  # no host read: every operation runs on all images
            out = torch.where((op == k).view(-1, 1, 1, 1), _RUN[name](x, level, place), out)
        elif len(rows := (op == k).nonzero()[:, 0]):
            out = out.index_copy(0, rows, _RUN[name](x[rows], level[rows], place[rows]))
    return out


def proximity(logits: Tensor, label: Tensor) -> Tensor:
    """[n, C] logits of probe views, [n] int64 labels -> [n] fp32: the label's probability.

    The published form, 1 - sum of |softmax - one-hot| / 2, is the same number.
    """
    return logits.detach().float().softmax(1).gather(1, label[:, None])[:, 0]


class CTAugment(nn.Module):
    """The rates, and draws from them. They are a buffer: a method that holds this module saves and restores them with itself.

    Args:
        depth: operations a view.
        threshold: bins whose weight is below this share of the largest are not drawn.
        decay: of a bin's weight at each update.

    Attributes:
        weight: [19, 2, 17] float64, of each operation's parameters' bins; 0 where there is none.

    Raises:
        ConfigError: a number out of range.
    """

    def __init__(self, depth: int = 2, threshold: float = 0.80, decay: float = 0.99):
        super().__init__()
        if depth < 1 or not 0 <= threshold <= 1 or not 0 < decay < 1:
            raise ConfigError(f"CTAugment takes depth >= 1, threshold in [0, 1] and decay in (0, 1), got {depth}, {threshold}, {decay}")
        self.depth, self.threshold, self.decay = depth, threshold, decay
        counts = torch.tensor([[*BINS[op], 0, 0][:2] for op in OPS])
        self.register_buffer("weight", (torch.arange(_MOST) < counts[..., None]).double())
        self.register_buffer("bins", counts, persistent=False)

    def probability(self) -> Tensor:
        """[19, 2, 17] float64: how likely each bin of a parameter is drawn."""
        usable = torch.arange(_MOST, device=self.weight.device) < self.bins[..., None]
        p = torch.where(usable, self.weight + (1 - self.decay), 0.0)
        p = p / p.amax(2, keepdim=True).clamp(min=1e-300)
        p = torch.where(p < self.threshold, 0.0, p)
        return p / p.sum(2, keepdim=True).clamp(min=1e-300)

    def drawn(self, keys: Tensor, side: int, probe: bool = False) -> CTDrawn:
        """The operations of images with keys [n] int64 and sides of `side` pixels: by the rates, or all levels alike for probes."""
        words = keyed.bits(keyed.joined(_PROBE if probe else _STREAM, keys), _WORDS * self.depth + 2)
        slots = words[:, 2:].view(-1, self.depth, _WORDS)
        op = keyed.below(slots[..., 0], len(OPS))
        level, place = keyed.unit(slots[..., 3:5]), keyed.unit(slots[..., 5:7])
        box = cutout_box(torch.ones_like(level[:, 0, 0]), keyed.unit(words[:, :2]), side, side)
        if probe:
            box = torch.stack([box[:, 0], box[:, 0] - 1, box[:, 2], box[:, 2] - 1], 1)
        else:
            reached = self.probability()[op].cumsum(3)
            chosen = (keyed.unit(slots[..., 1:3])[..., None] * reached[..., -1:] >= reached).sum(3)
            # A running sum may end just below where it should: the last bin that can be drawn is the end.
            count = self.bins[op].clamp(min=1)
            level = (torch.minimum(chosen, count - 1) + level) / count
        return CTDrawn(op, level, place, box)

    def applied(self, x: Tensor, drawn: CTDrawn) -> Tensor:
        """Runs the operations and the cutout on x [n, 3, S, S] uint8, which is not written to."""
        for slot in range(self.depth):
            x = operate(x, drawn.op[:, slot], drawn.level[:, slot], drawn.place[:, slot])
        return filled(x, drawn.box)

    @torch.no_grad()
    def update(self, proximity: Tensor, op: Tensor, level: Tensor) -> None:
        """Moves the weights of the bins that probes drew, in place and without a host read.

        Args:
            proximity: [n] in [0, 1], from `proximity`.
            op, level: [n, depth] and [n, depth, 2], of the probes' CTDrawn.

        The result is that of one update after the other in the batch's order: w <- decay w + (1 - decay) proximity.
        """
        count = self.bins[op]
        at = torch.where(count > 0, (level * count * 0.999).long(), 0)
        parameter = torch.arange(2, device=op.device)
        # A parameter that an operation lacks goes to a place behind all the others.
        flat = torch.where(count > 0, (op[..., None] * 2 + parameter) * _MOST + at, self.weight.numel()).flatten()
        value = proximity.double()[:, None, None].expand(count.shape).flatten()
        same = flat[:, None] == flat
        later = same.triu(1).sum(1).double()
        hit = (flat[:, None] == torch.arange(self.weight.numel(), device=op.device)).double()
        moved = hit.T @ ((1 - self.decay) * value * self.decay**later)
        self.weight.mul_((self.decay ** hit.sum(0)).view_as(self.weight)).add_(moved.view_as(self.weight))
