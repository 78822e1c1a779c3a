"""Source: a data set once read, checked and indexed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from .choice import Choice
from .file_source import ImageFiles
from .text_source import TextSource

EXTRA = "extra:"  # begins the ids of images or texts from elsewhere


@dataclass
class Source:
    """Images of one size with what is known of them. Rows are sorted by id, or in a published set's own order: never in the disk's.

    Attributes:
        name: what the set is called in reports.
        classes: class names, sorted, or in a published set's own order; a label is a position in this tuple.
        ids: one name a row: "digits/0007", "cifar10/train/000007", or the image's path relative to the data folder with forward slashes.
        label: [N] int64, -1 where unknown.
        given: [N] bool, whether the label may be given to training. A label that is known but not given (a class folder's image
            that labels.csv does not name) serves to measure pseudo-labels only.
        test: [N] bool, the fixed test part.
        images: [N, 3, S, S] uint8; or ImageFiles of that shape, which decodes the rows that it is asked for.
        content: [N] uint64, hash of the file's bytes: equal rows are copies of one image.
        flip: whether mirroring left to right keeps the label.
        mean, std: normalisation constants of the three channels, for values in [0, 1].
        quarantine: (id, reason) of each image that could not be decoded; such images have no row.
        warnings: sentences for the user.
        choice: which pipeline serves the set, and why.
        published: the parts are a benchmark's own, so copies between them are told of, not refused.
        extra: rows at the end that are more unlabelled images from elsewhere (extra.py); their ids begin with EXTRA.
    """

    sample: ClassVar[str] = "image"
    samples: ClassVar[str] = "images"

    name: str
    classes: tuple[str, ...]
    ids: list[str]
    label: np.ndarray
    given: np.ndarray
    test: np.ndarray
    images: np.ndarray | ImageFiles
    content: np.ndarray
    flip: bool
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    quarantine: list[tuple[str, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    choice: Choice = Choice("resident", "all of it is in memory")
    published: bool = False
    extra: int = 0

    @property
    def own(self) -> int:
        """Rows of the set itself, which come first."""
        return len(self.ids) - self.extra

    def __len__(self) -> int:
        return len(self.ids)


AnySource = Source | TextSource
