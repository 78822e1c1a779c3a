"""The resident pipeline's way to the augmentation kernels: two launches a draw, and the same batches as by plain torch.

What the kernels do is set in `kernels/augment.py`; here a pipeline's sizes, policy and keys are put into its words.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..kernels.augment import Augment, Drawn, Order, Strong, Taps, order, serves
from .batch import Batch, Views
from .policies import OPS, Policy, Sampler
from .resize import weights
from .views import Augmenter, recipe

VIEWS = ("plain", "weak", "strong")
_LAWS = ("levels", "google", "continuous")
_NUMBERED = 14  # of OPS: what the kernel knows


def knows(views: tuple[str, ...], policy: Policy) -> bool:
    """Whether the kernel makes these views under this policy."""
    return set(views) <= set(VIEWS) and policy.law in _LAWS and policy.crop == "reflect" and set(policy.ops) <= set(OPS[:_NUMBERED])


def serves_views(views: tuple[str, ...], policy: Policy, device: torch.device) -> bool:
    """Whether the kernels make these views under this policy on this device. Raises RuntimeError as `kernels.augment.serves`."""
    return serves(device) and knows(views, policy)


def strong(sampler: Sampler) -> Strong:
    """A policy's draws as the kernel wants them."""
    policy = sampler.policy
    pixels = policy.cutout_pixels if policy.cutout_pixels is not None else int(sampler.width * policy.cutout)
    law = policy.law == "continuous"
    return Strong(sampler.ops, sampler.table, law, policy.draws, policy.p, policy.cutout, pixels, policy.fill)


def taps(stored: int, size: int, picture: int, interpolation: str, device: torch.device) -> Taps | None:
    """Pillow's weights from `stored` to the views' side and to the picture's; None where both are `stored`."""
    if stored == size == picture:
        return None
    tables = [torch.from_numpy(weights(stored, side, interpolation)) for side in (size, picture)]
    used = [table != 0 for table in tables]
    first = [mask.int().argmax(1) for mask in used]
    # From the first weight that is not 0 to the last; all rows as many as the longest has.
    count = max(int((mask.shape[1] - mask.flip(1).int().argmax(1) - at).max()) for mask, at in zip(used, first, strict=True))
    reach = torch.arange(count)
    rows = []
    for table, at in zip(tables, first, strict=True):
        place = at[:, None] + reach
        rows.append(torch.where(place < stored, table.gather(1, place.clamp(max=stored - 1)), 0.0))
    return Taps(torch.cat(first).int().to(device), torch.cat(rows).int().to(device))


class Fused:
    """Draws and sweeps by the kernels.

    Args:
        augmenter: sizes and policy of the views.
        stored: (height, width) of the stored images.
        interpolation: how images are resized, where they are.
        scale, offset: [3] fp32 on the device, of the normalisation.
        dtype, channels_last: of the views.
        views: of each draw.
        counts: images a draw, of the labelled part and of the unlabelled one.
        order: the tensors of the draw; its `place` is filled here.
    """

    def __init__(
        self,
        augmenter: Augmenter,
        stored: tuple[int, int],
        interpolation: str,
        scale: Tensor,
        offset: Tensor,
        *,
        dtype: torch.dtype,
        channels_last: bool,
        views: Views,
        counts: tuple[int, int],
        order: Order,
    ):
        size, picture = augmenter.size, augmenter.picture
        self.kernel = Augment(
            stored,
            size,
            scale,
            offset,
            picture=picture,
            pad=augmenter.pad,
            flip=augmenter.flip,
            strong=strong(augmenter.sampler),
            taps=None if stored == size == picture else taps(stored[1], size[1], picture[1], interpolation, scale.device),
            dtype=dtype,
            channels_last=channels_last,
        )
        self.names, self.first, self.counts = (*views.labelled, *views.unlabelled), len(views.labelled), counts
        images = [counts[k >= self.first] for k in range(len(self.names))]
        self.order, self.sizes, self.plain, self.weak = layout(self.names, images)
        places = torch.zeros(len(self.names), dtype=torch.int64)
        for at, k in enumerate(self.order):
            places[k] = sum(self.sizes[:at])
        order.place.copy_(places)
        self.given = order
        strong_images = sum(self.sizes) - self.plain - self.weak
        self.kernel.reserve(sum(self.sizes), strong_images)

    def draw(self, images: Tensor) -> Batch:
        """The next batch; the step is advanced by one."""
        labelled, unlabelled = self.counts
        given, total = self.given, sum(self.sizes)
        new = lambda n, dtype=torch.int64: torch.empty(n, dtype=dtype, device=images.device)  # noqa: E731
        out = Drawn(new(labelled), new(labelled), new(labelled, torch.float32), new(unlabelled), new(unlabelled), new(total), new(total))
        order(given, out)
        made = self.kernel(images, out.rows, out.keys, plain=self.plain, weak=self.weak, step=given.step)
        pieces = in_place(made.split(self.sizes), self.order)
        return Batch(
            labelled=pieces[: self.first],
            label=out.label,
            weight=out.weight,
            index=out.index,
            unlabelled=pieces[self.first :],
            unlabelled_index=out.unlabelled_index,
            hidden_label=out.hidden_label,
        )


def layout(names: tuple[str, ...], images: list[int]) -> tuple[list[int], list[int], int, int]:
    """How views share one buffer: (their order, images of each in that order, plain images, weak images).

    Sorted so that the views that need a crop, and among them those that need the policy, are its tail.
    """
    work = [recipe(name) for name in names]
    order = sorted(range(len(names)), key=lambda i: (work[i].policy, work[i].crop))
    sizes = [images[i] for i in order]
    plain = sum(size for i, size in zip(order, sizes, strict=True) if not work[i].crop)
    weak = sum(size for i, size in zip(order, sizes, strict=True) if work[i].crop and not work[i].policy)
    return order, sizes, plain, weak


def in_place(pieces: tuple[Tensor, ...], order: list[int]) -> tuple[Tensor, ...]:
    """The pieces of a buffer, each where its view stands."""
    at = dict(zip(order, pieces, strict=True))
    return tuple(at[k] for k in range(len(pieces)))
