"""The whole set lives on the device as uint8 images; batches are indexed, augmented and normalised there.

A draw is a pure function of (seed, step): which rows come is a keyed bijection of the stream's position (order.py), and every random
choice of a view is keyed by (seed, stream, view number, row, visit) (keyed.py). So the pipeline's whole state is one counter, a view
is the same whatever the batch size, and nothing reads a global generator.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..kernels.augment import Order
from . import keyed
from .batch import Batch, DataSpec, Split, Sweep, Views
from .errors import CheckpointError, ConfigError, DataError
from .order import visited
from .parts import swept
from .policies import policy as policy_named
from .resident_fused import VIEWS, Fused, in_place, layout, serves_views
from .reused import Reused
from .source import Source
from .views import Augmenter, normalised, recipe

# Streams never share keys: a labelled row seen as unlabelled in the same epoch gets another crop.
_LABELLED, _UNLABELLED, _SWEEP = 1, 2, 3
_ORDER, _VIEW = 1, 2


class _Request(NamedTuple):
    """One view of one batch: where its rows come from, under which keys, by which recipe."""

    view: str
    rows: Tensor  # [n] int64
    keys: Tensor  # [n] int64


class ResidentPipeline:
    """Draws batches from a set that is held in the device's memory.

    Args:
        source: the set; its images are copied to the device once.
        split: who is labelled.
        views: the views of each draw.
        batch_size: labelled rows a draw, B.
        ratio: unlabelled rows per labelled one, U = ratio * B.
        seed: of the order of rows and of the views.
        policy: name of the strong view's policy.
        device: where the images live and batches are made.
        size: side of the views in pixels; the source's own if None. Smaller images are enlarged as each batch is made.
        resize: side to which weak and strong views bring an image before they crop `size` out of it; `size` if None.
        interpolation: how images are resized on the device, "bilinear" or "bicubic".
        dtype: of the views, torch.float32 or torch.bfloat16.
        channels_last: whether the views' memory format is channels_last.

    Attributes:
        spec: DataSpec of what is drawn.
        split: the split in use.
        fused: whether the kernels make the views (on CUDA with Triton, where they know the views and the policy), or plain torch.
        capturable: whether `draw` may run inside a captured graph: on CUDA it reads nothing on the host.

    Raises:
        ConfigError: unknown view or policy, batch size or ratio below 1, another dtype.
        RuntimeError: FASTSSL_KERNELS=triton where the kernels cannot serve.
        DataError: no labelled or no unlabelled row where views of them are asked for.
    """

    def __init__(
        self,
        source: Source,
        split: Split,
        views: Views,
        *,
        batch_size: int,
        ratio: int = 1,
        seed: int = 0,
        policy: str = "fixmatch",
        device: torch.device | str = "cpu",
        size: int | None = None,
        resize: int | None = None,
        interpolation: str = "bicubic",
        dtype: torch.dtype = torch.float32,
        channels_last: bool = False,
    ):
        if dtype not in (torch.float32, torch.bfloat16):
            raise ConfigError(f"views are float32 or bfloat16; got {dtype}")
        if batch_size < 1:
            raise ConfigError(f"batch size {batch_size}: ask for at least one labelled image a step")
        if views.unlabelled and ratio < 1:
            raise ConfigError(f"ratio {ratio}: ask for at least one unlabelled image per labelled one")
        self.source, self.views, self.seed = source, views, seed
        self.batch_size, self._ratio = batch_size, ratio
        self.device = torch.device(device)
        self.capturable = self.device.type == "cuda"
        self.dtype, self.format = dtype, torch.channels_last if channels_last else torch.contiguous_format
        stored = source.images.shape[3]
        self.size = size or stored
        self.augmenter = Augmenter(
            policy_named(policy),
            (self.size, self.size),
            flip=source.flip,
            device=self.device,
            stored=stored,
            resize=resize,
            interpolation=interpolation,
        )
        self.images = torch.from_numpy(source.images).to(self.device)
        self.known = torch.from_numpy(source.label).to(self.device)
        mean, std = torch.tensor(source.mean), torch.tensor(source.std)
        self.scale = (1 / (255 * std)).view(1, 3, 1, 1).to(self.device)
        self.offset = (-mean / std).view(1, 3, 1, 1).to(self.device)
        self.step = torch.zeros((), dtype=torch.int64, device=self.device)
        rows = len(source)
        # Room for every row in every role, so that a new split moves no address.
        self._rows = {name: torch.zeros(rows, dtype=torch.int64, device=self.device) for name in ("labelled", "unlabelled")}
        counts = torch.ones(2, dtype=torch.int64, device=self.device)
        self._count = {"labelled": counts[0], "unlabelled": counts[1]}
        self._label = torch.zeros(rows, dtype=torch.int64, device=self.device)
        self._weight = torch.zeros(rows, dtype=torch.float32, device=self.device)
        self.use(split)
        self._memory = Reused()
        self._fused_by: dict[Views, Fused | None] = {}  # what a captured step of earlier views reads must stay where it is
        self._make_kernels = lambda: self._kernels(counts, tuple(source.images.shape[2:]), interpolation, channels_last)
        self.show(views)

    def show(self, views: Views) -> None:
        """Draws these views from the next draw on, at the same place in the streams.

        Raises:
            ConfigError: an unknown view, or a probe without CTAugment.
            DataError: a part that the views need is empty.
        """
        if views.probe and self.augmenter.rates is None:
            raise ConfigError("method.ctaugment learns the rates of CTAugment; take --policy ctaugment, or method.ctaugment=false")
        for name in (*views.labelled, *views.unlabelled):
            recipe(name)
        self.views = views
        self.unlabelled_size = self.batch_size * self._ratio if views.unlabelled else 0
        self._check_parts(self.split)
        if views not in self._fused_by:
            names = (*views.labelled, *views.unlabelled)
            served = names and serves_views(names, self.augmenter.policy, self.device)
            self._fused_by[views] = self._make_kernels() if served else None
        self._fused = self._fused_by[views]

    def _kernels(self, counts: Tensor, stored: tuple[int, int], interpolation: str, channels_last: bool) -> Fused:
        """The kernels with this pipeline's tensors."""
        on_device = lambda values: torch.tensor(values, dtype=torch.int64, device=self.device)  # noqa: E731
        parts = ((_LABELLED, self.views.labelled), (_UNLABELLED, self.views.unlabelled))
        base = on_device([keyed.key(self.seed, _VIEW, stream, k) for stream, names in parts for k in range(len(names))])
        order = Order(
            step=self.step,
            size=counts,
            key=on_device([keyed.key(self.seed, _ORDER, stream) for stream, _ in parts]),
            base=base,
            place=torch.zeros_like(base),
            labelled=self._rows["labelled"],
            unlabelled=self._rows["unlabelled"],
            label=self._label,
            weight=self._weight,
            known=self.known,
            labelled_views=len(self.views.labelled),
        )
        return Fused(
            self.augmenter,
            stored,
            interpolation,
            self.scale.flatten(),
            self.offset.flatten(),
            dtype=self.dtype,
            channels_last=channels_last,
            views=self.views,
            counts=(self.batch_size, self.unlabelled_size),
            order=order,
        )

    @property
    def fused(self) -> bool:
        return self._fused is not None

    @property
    def spec(self) -> DataSpec:
        source = self.source
        return DataSpec(
            name=source.name,
            classes=source.classes,
            shape=(3, self.size, self.size),
            rows=len(source),
            unlabelled=len(self.split.unlabelled),
            mean=tuple(source.mean),
            std=tuple(source.std),
            keeps_label=frozenset({"flip"} if source.flip else ()),
            labelled_counts=tuple(np.bincount(self.split.label, minlength=len(source.classes)).tolist()),
            extra=source.extra,
        )

    def use(self, split: Split) -> None:
        """Takes another split in place: new labels, weights or roles, from the next draw on.

        Raises:
            DataError: a part that the views need is empty.
        """
        self._check_parts(split)
        self.split = split
        for role, rows in (("labelled", split.labelled), ("unlabelled", split.unlabelled)):
            self._rows[role][: len(rows)].copy_(torch.from_numpy(rows))
            # A part of no rows is never drawn from; 1 keeps the modulus defined.
            self._count[role].fill_(max(1, len(rows)))
        self._label[: len(split.label)].copy_(torch.from_numpy(split.label))
        self._weight[: len(split.weight)].copy_(torch.from_numpy(split.weight))

    def _check_parts(self, split: Split) -> None:
        name = self.source.name
        if not len(split.labelled) and self.views.labelled:
            raise DataError(f"no labelled images in {name}; give some labels")
        if not len(split.unlabelled) and self.views.unlabelled:
            raise DataError(f"no unlabelled images in {name}, and the method learns from them; add some, or take --method supervised")

    def _visit(self, role: str, stream: int, count: int) -> tuple[Tensor, Tensor]:
        """The stream's next rows: ([count] position within the role, [count] visit)."""
        return visited(self.step * count, count, self._count[role], keyed.key(self.seed, _ORDER, stream))

    def _requests(self, names: tuple[str, ...], stream: int, rows: Tensor, visit: Tensor) -> list[_Request]:
        base = [keyed.key(self.seed, _VIEW, stream, number) for number in range(len(names))]
        return [_Request(name, rows, keyed.joined(base[number], rows, visit)) for number, name in enumerate(names)]

    def _made(self, requests: list[_Request], memory: Reused | None = None) -> list[Tensor]:
        """Makes all views of a batch together, in one buffer, which lies in `memory` where one is given."""
        if not requests:
            return []
        order, sizes, plain, weak = layout(tuple(r.view for r in requests), [len(r.rows) for r in requests])
        rows = torch.cat([requests[i].rows for i in order])
        keys = torch.cat([requests[i].keys for i in order])
        if self._fused is not None and {request.view for request in requests} <= set(VIEWS):
            made = self._fused.kernel(self.images, rows, keys, plain=plain, weak=weak)
        else:
            x = self.augmenter.views(self.images.index_select(0, rows), keys, [requests[i].view for i in order], sizes)
            out = None
            if memory is not None and not x.is_cuda and self.dtype == torch.float32:
                out = memory.take(x.numel())
                out = out.view(x.shape) if self.format == torch.contiguous_format else out.view(len(x), *x.shape[2:], 3).permute(0, 3, 1, 2)
            made = normalised(x, self.scale, self.offset, out).to(self.dtype, memory_format=self.format)
        return list(in_place(made.split(sizes), order))

    def draw(self) -> Batch:
        """The next batch. Within an epoch of a stream no row comes twice; a set smaller than a batch repeats rows with fresh views."""
        if self._fused is not None:
            return self._fused.draw(self.images)
        other = self._visit("unlabelled", _UNLABELLED, self.unlabelled_size) if self.unlabelled_size else None
        batch = self._batch(self._visit("labelled", _LABELLED, self.batch_size), other, self._memory)
        self.step.add_(1)
        return batch

    def _batch(self, known: tuple[Tensor, ...], other: tuple[Tensor, ...] | None, memory: Reused | None = None) -> Batch:
        """The batch of these (position, visit) of the labelled stream and of the unlabelled one."""
        at, visit = known
        index, views = self._rows["labelled"].index_select(0, at), self.views
        requests = self._requests((*views.labelled, *["probe"] * views.probe), _LABELLED, index, visit)
        unlabelled = index[:0]
        if other is not None:
            unlabelled = self._rows["unlabelled"].index_select(0, other[0])
            requests += self._requests(views.unlabelled, _UNLABELLED, unlabelled, other[1])
        made, first = self._made(requests, memory), len(views.labelled)
        probe = (made[first], *self.augmenter.probed[:2]) if views.probe else ()
        label, weight = self._label.index_select(0, at), self._weight.index_select(0, at)
        hidden = self.known.index_select(0, unlabelled)
        return Batch(tuple(made[:first]), label, weight, index, tuple(made[first + views.probe :]), unlabelled, hidden, probe)

    def sweep(self, part: str | np.ndarray, batch_size: int = 512, view: str = "plain", *, ordered: bool = True) -> Iterator[Sweep]:
        """One ordered pass over a part: "labelled", "unlabelled", "test", "train" (labelled and unlabelled rows, each once), or [n] rows.

        Random views are keyed by the sample, at visit 0: every sweep of a view sees the same images. Labels of labelled rows are the
        split's; all others are the source's, for measuring alone, -1 where unknown. `ordered=False` allows any order; it makes no
        difference here.
        """
        recipe(view)
        rows, label = swept(part, self.split, self.source.label)
        for start in range(0, len(rows), batch_size):
            piece = rows[start : start + batch_size]
            index = torch.from_numpy(piece).to(self.device)
            inputs = self._made(self._requests((view,), _SWEEP, index, torch.zeros_like(index)))[0]
            yield Sweep(inputs, torch.from_numpy(label[piece]).to(self.device), index)

    def state_dict(self) -> dict[str, Tensor]:
        """The number of batches drawn: all that a resume needs besides split and seed."""
        return {"step": self.step.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Goes to the state's place in the streams, in place. Raises CheckpointError for a state of another kind of pipeline."""
        if set(state) != {"step"} or not isinstance(state["step"], Tensor) or state["step"].shape != ():
            raise CheckpointError(f"this pipeline's state is a single step; the checkpoint holds {', '.join(sorted(state)) or 'nothing'}")
        self.step.copy_(state["step"])
