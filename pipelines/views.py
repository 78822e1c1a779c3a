"""View name -> recipe, and the recipes run on batches of uint8 images.

* `plain`: the image, normalised. What evaluation reads.
* `weak`: mirrored with probability 1/2 where that keeps the label, padded by reflection by an eighth of the side, cropped at random.
  With `resize` it is first brought to that side, larger than the view's (FineSSL: 256 pixels, crops of 224).
* `strong`: the weak steps with their own draws, then a policy's operations in drawn order, then its cutout (policies.py).

Images stay uint8 through every step, as with Pillow, and are normalised once at the end. Images that are stored smaller than the
network wants them are enlarged here, on the device, by the pixels of Pillow's own resize: a set of 32 x 32 takes 49 times less
memory than at 224.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from . import affine, image_ops, keyed
from .errors import ConfigError, unknown
from .policies import GEOMETRIC, OPS, Drawn, Policy, Sampler
from .resize import Resizer

_POINTWISE = (
    image_ops.identity,
    image_ops.autocontrast,
    image_ops.equalize,
    image_ops.brightness,
    image_ops.color,
    image_ops.contrast,
    image_ops.sharpness,
    image_ops.posterize,
    image_ops.solarize,
)
_MATRICES = (affine.rotation, affine.shear_x, affine.shear_y, affine.translate_x, affine.translate_y)


@dataclass(frozen=True)
class Recipe:
    """What a view does to an image before it is normalised."""

    name: str
    crop: bool  # flip and reflect-pad crop
    policy: bool  # the strong policy's operations and cutout


RECIPES = {recipe.name: recipe for recipe in (Recipe("plain", False, False), Recipe("weak", True, False), Recipe("strong", True, True))}


def recipe(name: str) -> Recipe:
    """The recipe of a view. Raises ConfigError naming the nearest views."""
    if name not in RECIPES:
        raise ConfigError(unknown("view", name, RECIPES))
    return RECIPES[name]


def warp(x: Tensor, op: Tensor, value: Tensor) -> Tensor:
    """Geometric operations, one an image: op [n] int64 positions in OPS; images of other operations come back as they are."""
    height, width = x.shape[2:]
    matrix = affine.upright(value)
    for k, made in enumerate(_MATRICES):
        matrix = torch.where((op == GEOMETRIC + k)[:, None], made(value, height, width), matrix)
    return affine.warped(x, matrix)


def operate(x: Tensor, op: Tensor, value: Tensor) -> Tensor:
    """Applies one operation to each image.

    Args:
        x: [n, 3, H, W] uint8, not written to.
        op: [n] int64, positions in OPS.
        value: [n] float64 magnitudes.

    Returns:
        [n, 3, H, W] uint8.
    """
    if x.is_cuda:
        # No host read here: every operation runs on all images and `where` keeps the drawn one.
        out = warp(x, op, value)
        for k, run in enumerate(_POINTWISE[1:], 1):
            at = (op == k).view(-1, 1, 1, 1)
            # Magnitudes of other operations are out of an operation's range; 1 is in everybody's.
            out = torch.where(at, run(x, torch.where(op == k, value, 1.0)), out)
        return out
    # Sorted by operation every group is a slice, and gathering back by the inverse is far cheaper than scattering group by group.
    order = op.argsort(stable=True)
    counts = torch.bincount(op, minlength=len(OPS)).tolist()
    sizes = [*counts[:GEOMETRIC], sum(counts[GEOMETRIC:])]
    images, ops, values = x.index_select(0, order).split(sizes), op[order].split(sizes), value[order].split(sizes)
    done = [run(x, v) if len(x) else x for run, x, v in zip(_POINTWISE, images[:-1], values[:-1], strict=True)]
    done.append(warp(images[-1], ops[-1], values[-1]) if len(images[-1]) else images[-1])
    return torch.cat(done).index_select(0, order.argsort())


def cut_out(x: Tensor, box: Tensor, fill: tuple[int, int, int]) -> Tensor:
    """Fills a rectangle of each image, in place: box [n, 4] as in Drawn, fill one grey level a channel."""
    columns, rows = torch.arange(x.shape[3], device=x.device), torch.arange(x.shape[2], device=x.device)
    across = (columns >= box[:, 0, None]) & (columns <= box[:, 1, None])
    down = (rows >= box[:, 2, None]) & (rows <= box[:, 3, None])
    hole = (down[:, :, None] & across[:, None, :]).to(torch.uint8)
    x.mul_((1 - hole).unsqueeze(1))
    for channel, level in enumerate(fill):
        if level:
            x[:, channel].add_(hole, alpha=level)
    return x


class Augmenter:
    """Makes views of uint8 images of one size on one device.

    Every random choice is a function of the image's key alone, so that a view does not depend on the batch around it.

    Args:
        policy: the strong view's policy.
        size: (height, width) of the views.
        flip: whether mirroring keeps the label.
        stored: side of the square images that come in, where it differs from `size`; views are square then.
        resize: side to which weak and strong views bring the image before they crop `size` out of it; `size` if None.
        interpolation: how images are resized, "bilinear" or "bicubic".

    Raises:
        ConfigError: a resize below size, or an unknown interpolation.
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
        self.policy, self.flip, self.size = policy, flip, size
        self.pad = min(size) // 8
        self.sampler = Sampler(policy, *size, device=device)
        if resize is not None and resize < max(size):
            raise ConfigError(f"data.resize {resize} is below the image size {max(size)}: crops are cut out of the resized image")
        stored = stored or max(size)
        self.picture = size if resize is None else (resize, resize)  # what crops are cut out of
        resizer = lambda side: Resizer(stored, side, interpolation, device) if side != stored else None  # noqa: E731
        self.to_picture, self.to_size = resizer(max(self.picture)), resizer(max(size))

    def plain(self, x: Tensor) -> Tensor:
        """The image itself at the views' size: x [n, 3, H, W] uint8; not written to."""
        return x if self.to_size is None else self.to_size.whole(x)

    def cropped(self, x: Tensor, keys: Tensor) -> Tensor:
        """The weak view's flip and crop: x [n, 3, H, W] uint8, keys [n] int64."""
        words = keyed.bits(keys, self._CROP_WORDS)
        flip = keyed.below(words[:, 0], 2) == 1 if self.flip else torch.zeros_like(words[:, 0], dtype=torch.bool)
        top, left = (keyed.below(words[:, 1 + axis], self.picture[axis] + 2 * self.pad - self.size[axis] + 1) for axis in (0, 1))
        rows, columns = affine.crop_index(flip, top, left, self.pad, self.picture, self.size)
        return affine.gathered(x, rows, columns) if self.to_picture is None else self.to_picture.cut(x, rows, columns)

    def drawn(self, keys: Tensor) -> Drawn:
        """The policy's table for keys [n]."""
        return self.sampler.drawn(keyed.bits(keys, self._CROP_WORDS + self.sampler.words)[:, self._CROP_WORDS :])

    def strengthened(self, x: Tensor, drawn: Drawn) -> Tensor:
        """Runs a table, of one operation at least, on x [n, 3, H, W] uint8, which is not written to."""
        for slot in range(drawn.op.shape[1]):
            x = operate(x, drawn.op[:, slot], drawn.value[:, slot])
        return cut_out(x, drawn.box, self.policy.fill)

    def view(self, x: Tensor, keys: Tensor, name: str) -> Tensor:
        """The named view of x [n, 3, H, W] uint8 under keys [n] int64, as uint8; x is not written to."""
        how = recipe(name)
        x = self.cropped(x, keys) if how.crop else self.plain(x)
        return self.strengthened(x, self.drawn(keys)) if how.policy else x
