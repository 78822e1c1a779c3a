"""The data side of published training code: Pillow, one image at a time, in worker processes or in the training process itself."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fastssl.pipelines.batch import Batch

from .. import view_peers
from ..view_peers import Work

Norm = tuple[tuple[float, ...], tuple[float, ...]]  # mean and deviation of each channel


class Pictures(Dataset):
    """Images in memory, as CIFAR's files are read; each item is made anew: its views in turn, its label, its index."""

    def __init__(self, work: Work, labels: np.ndarray, rows: np.ndarray, kinds: tuple[str, ...], norm: Norm):
        self.work, self.labels, self.rows, self.kinds = work, labels, rows, kinds
        self.mean, self.std = (torch.tensor(c).view(3, 1, 1) for c in norm)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> tuple[list[Tensor], int, int]:
        row = int(self.rows[i])
        image = Image.fromarray(self.work.images[row].transpose(1, 2, 0))
        return [self._view(image, kind) for kind in self.kinds], int(self.labels[row]), row

    def _view(self, image: Image.Image, kind: str) -> Tensor:
        work = self.work
        places = work.resize + 2 * work.pad - work.size
        image = view_peers._cropped(image, work, random.random() < 0.5, random.randint(0, places), random.randint(0, places))
        if kind == "strong":
            image = view_peers._strong(image, work)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().to(torch.float32).div(255)
        return pixels.sub_(self.mean).div_(self.std)


class Fed:
    """A peer's step with its loaders: one call draws both batches, copies them to the device, and takes the step.

    `open` starts the workers, `close` ends them, so that they work for nobody else's time.

    Args:
        step: has a `batch`, read when it is called.
        work, labels: images and their classes.
        labelled: rows that are labelled; all rows are unlabelled.
        sizes: (B, U). norm: what pixels in [0, 1] are normalised by. strong: strong views of an unlabelled image.
        workers: processes of each of the two loaders; 0: this process makes the images between two steps.
        pinned: page-locked batches, copied without waiting.
        replay: labelled batches of the first pass come again as they were (FineSSL's code).
    """

    def __init__(
        self,
        step: Any,
        work: Work,
        labels: np.ndarray,
        labelled: np.ndarray,
        sizes: tuple[int, int],
        norm: Norm,
        *,
        strong: int = 1,
        workers: int = 0,
        pinned: bool = False,
        replay: bool = False,
    ):
        self.step, self.sizes, self.pinned = step, sizes, pinned
        self.device = step.batch.label.device
        options = {"shuffle": True, "drop_last": True, "num_workers": workers, "pin_memory": pinned}
        # As the codes do it: labels are repeated until they fill a good many batches.
        rows = np.resize(labelled, max(len(labelled), 64 * sizes[0])) if not replay else labelled
        self.labelled = DataLoader(Pictures(work, labels, rows, ("weak",), norm), sizes[0], **options)
        kinds = ("weak", *("strong",) * strong)
        self.unlabelled = DataLoader(Pictures(work, labels, np.arange(len(labels)), kinds, norm), sizes[1], **options)
        self.again: Callable[[DataLoader], Iterator] = itertools.cycle if replay else endless
        self.streams: tuple[Iterator, Iterator] | None = None

    def open(self) -> None:
        self.streams = self.again(self.labelled), endless(self.unlabelled)

    def close(self) -> None:
        self.streams = None  # the loaders' iterators end their workers as they go

    def draw(self) -> Batch:
        assert self.streams is not None, "open() comes first"
        (views, label, index), (views_u, _, index_u) = (next(stream) for stream in self.streams)
        move = lambda t: t.to(self.device, non_blocking=self.pinned)  # noqa: E731
        weight, hidden = torch.ones(len(label)), torch.full((len(index_u),), -1)
        moved = [move(t) for t in (label, weight, index, index_u, hidden)]
        return Batch(tuple(map(move, views)), *moved[:3], tuple(map(move, views_u)), *moved[3:])

    def __call__(self) -> None:
        self.step.batch = self.draw()
        self.step()


def endless(loader: DataLoader) -> Iterator:
    while True:
        yield from loader
