"""View name -> recipe, and the recipes run on batches of uint8 images.

* `plain`: the image, normalised. What evaluation reads.
* `weak`: mirrored with probability 1/2 where that keeps the label, padded by reflection by an eighth of the side, cropped at random.
  With `resize` it is first brought to that side, larger than the view's (FineSSL: 256 pixels, crops of 224).
* `strong`: the weak steps with their own draws, then a policy's operations in drawn order, then its cutout (policies.py). Policies whose
  `crop` is "resized" cut a random part and bring it to the size instead (crops.py).
* `simclr`: a random part brought to the size, mirrored where that keeps the label, then SimCLR's colours and blur (simclr.py).
* `probe`: the weak steps, then operations of CTAugment whose levels ignore its rates (ctaugment.py).

Images stay uint8 through every step, as with Pillow, and are normalised once at the end. Images that are stored smaller than the
network wants them are enlarged here, on the device, by the pixels of Pillow's own resize: a set of 32 x 32 takes 49 times less
memory than at 224.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import affine, crops, keyed
from .ctaugment import CTAugment, CTDrawn
from .errors import ConfigError, unknown
from .policies import Drawn, Policy, Sampler
from .resize import Resizer
from .simclr import distorted, distortion_of
from .strong_ops import LARGE, cut_out, operate_
from .strong_ops import operate as operate


@dataclass(frozen=True)
class Recipe:
    """What a view does to an image before it is normalised."""

    name: str
    crop: bool  # flip and a random crop
    policy: bool  # the strong policy's operations and cutout
    alone: bool = False  # made by itself, not with the other views of a batch


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("plain", False, False),
        Recipe("weak", True, False),
        Recipe("strong", True, True),
        Recipe("simclr", True, False, alone=True),
        Recipe("probe", True, False, alone=True),
    )
}


def recipe(name: str) -> Recipe:
    """The recipe of a view. Raises ConfigError naming the nearest views."""
    if name not in RECIPES:
        raise ConfigError(unknown("view", name, RECIPES))
    return RECIPES[name]


def normalised(x: Tensor, scale: Tensor, offset: Tensor, out: Tensor | None = None) -> Tensor:
    """[n, 3, H, W] uint8 -> fp32 x * scale + offset, into `out` where one is given: scale and offset broadcast against an image.

    A multiplication and an addition, not one fused step, so that all devices round alike.
    """
    out = torch.empty(x.shape, dtype=torch.float32, device=x.device) if out is None else out
    # On a CPU blocks that fit its cache go through all three steps at once.
    step = len(x) if x.is_cuda else max(1, (1 << 18) // max(1, x[0].numel() if len(x) else 1))
    for at in range(0, len(x), step or 1):
        out[at : at + step].copy_(x[at : at + step]).mul_(scale).add_(offset)
    return out


class Augmenter:
    """Makes views of uint8 images of one size on one device.

    Every random choice is a function of the image's key (CTAugment: and of its rates) alone, so that a view does not depend on the batch
    around it.

    Args:
        policy: the strong view's policy.
        size: (height, width) of the views.
        flip: whether mirroring keeps the label.
        stored: side of the square images that come in, where it differs from `size`; views are square then.
        resize: side to which views bring the image before they crop `size` out of it; `size` if None.
        interpolation: how images are resized, "bilinear" or "bicubic".

    Attributes:
        rates: CTAugment of a policy of that law, else None; a method that moves the rates puts its own there.
        probed: CTDrawn of the last probe views.

    Raises:
        ConfigError: a resize below size, an unknown interpolation, law or crop.
    """

    _CROP_WORDS = 3  # flip, top, left

    def __init__(
        self,
        policy: Policy,
        size: tuple[int, int],
        *,
        flip: bool,
        device: torch.device | str = "cpu",
        stored: int | None = None,
        resize: int | None = None,
        interpolation: str = "bicubic",
    ):
        if policy.crop not in ("reflect", "resized"):
            raise ConfigError(unknown("crop", policy.crop, ("reflect", "resized")))
        self.policy, self.flip, self.size, self.interpolation = policy, flip, size, interpolation
        self.pad = int(min(size) * policy.pad)
        self.rates = CTAugment(policy.draws).to(device) if policy.law == "ctaugment" else None
        self.probed: CTDrawn | None = None
        self.sampler = None if self.rates is not None else Sampler(policy, *size, device=device)
        if resize is not None and resize < max(size):
            raise ConfigError(f"data.resize {resize} is below the image size {max(size)}: crops are cut out of the resized image")
        stored = stored or max(size)
        self.picture = size if resize is None else (resize, resize)  # what crops are cut out of
        resizer = lambda side: Resizer(stored, side, interpolation, device) if side != stored else None  # noqa: E731
        self.to_picture, self.to_size = resizer(max(self.picture)), resizer(max(size))

    def plain(self, x: Tensor) -> Tensor:
        """The image itself at the views' size: x [n, 3, H, W] uint8; not written to."""
        return x if self.to_size is None else self.to_size.whole(x)

    def _mirrored(self, words: Tensor) -> Tensor:
        return keyed.below(words, 2) == 1 if self.flip else torch.zeros_like(words, dtype=torch.bool)

    def cropped(self, x: Tensor, keys: Tensor) -> Tensor:
        """The weak view's flip and crop: x [n, 3, H, W] uint8, keys [n] int64."""
        words = keyed.bits(keys, self._CROP_WORDS)
        flip = self._mirrored(words[:, 0])
        top, left = (keyed.below(words[:, 1 + axis], self.picture[axis] + 2 * self.pad - self.size[axis] + 1) for axis in (0, 1))
        rows, columns = affine.crop_index(flip, top, left, self.pad, self.picture, self.size)
        if self.to_picture is not None:
            return self.to_picture.cut(x, rows, columns)
        if x.is_cuda or x[:1].numel() < LARGE:
            return affine.gathered(x, rows, columns)
        out = torch.empty((len(x), 3, *self.size), dtype=torch.uint8)
        for i, (corner, mirrored) in enumerate(zip(left.tolist(), flip.tolist(), strict=True)):
            affine.slid(x[i], rows[i], corner, self.pad, mirrored, out[i])
        return out

    def resized_crop(self, x: Tensor, keys: Tensor) -> Tensor:
        """A random part of the picture, 8 % to all of it, brought to the views' size and mirrored as the weak view is."""
        x = x if self.to_picture is None else self.to_picture.whole(x)
        flip = self._mirrored(keyed.bits(keys, 1)[:, 0])
        return crops.resized_crop(x, crops.boxes(keys, x.shape[3]), self.size[0], self.interpolation, flip)

    def drawn(self, keys: Tensor) -> Drawn | CTDrawn:
        """The policy's table for keys [n]."""
        if self.rates is not None:
            return self.rates.drawn(keys, self.size[0])
        return self.sampler.drawn(keyed.bits(keys, self._CROP_WORDS + self.sampler.words)[:, self._CROP_WORDS :])

    def strengthened(self, x: Tensor, drawn: Drawn | CTDrawn) -> Tensor:
        """Runs a table, of one operation at least, on x [n, 3, H, W] uint8, which is not written to."""
        return self.strengthened_(x.clone(), drawn)

    def strengthened_(self, x: Tensor, drawn: Drawn | CTDrawn) -> Tensor:
        """`strengthened` into x itself, which is contiguous."""
        if self.rates is not None:
            return x.copy_(self.rates.applied(x, drawn))
        for slot in range(drawn.op.shape[1]):
            operate_(x, drawn.op[:, slot], drawn.value[:, slot])
        return cut_out(x, drawn.box, self.policy.fill)

    def view(self, x: Tensor, keys: Tensor, name: str) -> Tensor:
        """The named view of x [n, 3, H, W] uint8 under keys [n] int64, as uint8; x is not written to.

        Raises:
            ConfigError: an unknown view, or a probe without CTAugment.
        """
        how = recipe(name)
        if name == "simclr":
            side = self.size[0]
            return distorted(self.resized_crop(x, keys), keys, distortion_of(side))
        if name == "probe":
            if self.rates is None:
                raise ConfigError("the view probe needs the rates of CTAugment; take --policy ctaugment")
            self.probed = self.rates.drawn(keys, self.size[0], probe=True)
            return self.rates.applied(self.cropped(x, keys), self.probed)
        if not how.crop:
            return self.plain(x)
        x = self.resized_crop(x, keys) if how.policy and self.policy.crop == "resized" else self.cropped(x, keys)
        return self.strengthened_(x, self.drawn(keys)) if how.policy else x

    def views(self, x: Tensor, keys: Tensor, names: Sequence[str], sizes: Sequence[int]) -> Tensor:
        """Several views, one after the other in one buffer: `view` of each piece, made together where that is faster.

        Args:
            x: [n, 3, H, W] uint8, not written to.
            keys: [n] int64.
            names: of the views.
            sizes: images of each view, n in all.

        Returns:
            [n, 3, *size] uint8.
        """
        how = [recipe(name) for name in names]
        apart = any(h.alone for h in how) or (self.policy.crop != "reflect" and any(h.policy for h in how))
        if not apart and [h.policy for h in how] == sorted(h.policy for h in how) and all(h.crop for h in how):
            made = self.cropped(x, keys)
            strong = sum(size for h, size in zip(how, sizes, strict=True) if h.policy)
            if strong:
                self.strengthened_(made[len(x) - strong :], self.drawn(keys[len(x) - strong :]))
            return made
        pieces = zip(x.split(list(sizes)), keys.split(list(sizes)), names, strict=True)
        return torch.cat([self.view(piece, key, name) for piece, key, name in pieces])
