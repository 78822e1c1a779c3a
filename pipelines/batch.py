"""The words that data and methods share: Views, Batch, Split, FoundationLabels, DataSpec, Pipeline.

N rows of a data set, B labelled and U unlabelled rows of a batch; an image is [C, H, W], a text [L] token ids with -1 beyond its end.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class Views:
    """The views that a method asks for, by name, in the order in which its loss reads them.

    A name may repeat: `unlabelled=("weak", "strong", "strong")` asks for two strong views of each unlabelled sample.
    `no_grad` counts the leading unlabelled views whose logits need no gradient (teachers). `probe` asks for one view more of each labelled
    sample, by which the rates of CTAugment are learned; no loss reads it.
    """

    labelled: tuple[str, ...] = ("weak",)
    unlabelled: tuple[str, ...] = ()
    no_grad: int = 0
    probe: bool = False

    def count(self, ratio: int) -> int:
        """Images for each labelled row of a batch that has `ratio` unlabelled rows for each labelled one."""
        return len(self.labelled) + ratio * len(self.unlabelled) + self.probe


class Batch(NamedTuple):
    """One step's inputs: fixed shapes, all on the run's device."""

    labelled: tuple[Tensor, ...]  # one [B, ...] a view of Views.labelled: normalised fp32 images, or int64 token ids
    label: Tensor  # [B] int64
    weight: Tensor  # [B] fp32, the label's weight (1 unless the split says otherwise)
    index: Tensor  # [B] int64, row of the data set
    unlabelled: tuple[Tensor, ...]  # one [U, ...] a view of Views.unlabelled, as above; () if none is asked for
    unlabelled_index: Tensor  # [U] int64, row of the data set
    hidden_label: Tensor  # [U] int64, -1 where unknown; for measuring pseudo-labels, never for training
    # Where Views.probe asks: [B, ...] fp32 view of the labelled rows, the operations [B, depth] int64 that made it and their levels
    # [B, depth, 2] float64; else ().
    probe: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Split:
    """Who is labelled. Rows are positions in the data set, whose order does not depend on the order of files."""

    labelled: np.ndarray  # [n] int64 rows
    label: np.ndarray  # [n] int64 class of each labelled row
    weight: np.ndarray  # [n] float32
    unlabelled: np.ndarray  # [m] int64 rows (the labelled ones among them, their labels hidden, unless left out)
    test: np.ndarray  # [k] int64 rows, read by evaluation alone
    hash: str = ""  # of the sorted (id, role, label, weight) lines; written to split.csv and checkpoints


class FoundationLabels(NamedTuple):
    """What a foundation model says of each row of the data set; read from a file (foundation.py)."""

    label: np.ndarray  # [rows] int64 class, -1 where the file has none
    weight: np.ndarray  # [rows] float32 confidence in [0, 1]: 1 where the file gives none, 0 where the label is missing


@dataclass(frozen=True)
class DataSpec:
    """What a network and a method must know of the data."""

    name: str
    classes: tuple[str, ...]
    shape: tuple[int, ...]  # [C, H, W] of one image as it reaches the network; (L,) of the longest text
    rows: int  # rows of the data set, train and test: the size of a per-sample bank
    unlabelled: int  # rows of the split's unlabelled part
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    keeps_label: frozenset[str] = field(default_factory=frozenset)  # operations that keep the label beyond the safe ones: "flip"
    labelled_counts: tuple[int, ...] = ()  # labelled rows of each class in the split
    extra: int = 0  # of `rows`, those at the end that are more unlabelled samples from elsewhere (extra.py)
    kind: str = "image"  # or "text"
    foundation: FoundationLabels | None = field(default=None, compare=False)  # where the run was given such labels

    @property
    def num_classes(self) -> int:
        return len(self.classes)


class Sweep(NamedTuple):
    """A piece of one ordered pass over a part of the data."""

    inputs: Tensor  # [n, ...], the "plain" view unless another was asked for
    label: Tensor  # [n] int64, -1 where unknown
    index: Tensor  # [n] int64, row of the data set


class Pipeline(Protocol):
    """Draws batches without end and sweeps parts in order. Draws never ask the device from the host."""

    spec: DataSpec
    split: Split
    capturable: bool  # whether `draw` may run inside a CUDA graph; where not, its batches have the same addresses each time
    # A pipeline whose batches have a few shapes also has `form`, `forms`, `held` and `passed` (text_resident.py).

    def draw(self) -> Batch: ...

    def sweep(self, part: str | np.ndarray, batch_size: int = 512, view: str = "plain", *, ordered: bool = True) -> Iterator[Sweep]: ...

    def use(self, split: Split) -> None: ...

    def show(self, views: Views) -> None: ...

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state: dict[str, Tensor]) -> None: ...
