"""Image files with their labels -> Source: decoded into memory at once, or indexed and left where they are."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from . import images
from .choice import Room, choose, dali_version
from .errors import DataError
from .file_source import ImageFiles, Store
from .index_cache import Cache, index
from .quarantine import closed_up, counted, judge
from .resize import check_interpolation
from .source import Source

# Natural photographs: the constants that most pretrained networks were trained with, and that do not move with the files' content.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Taking(NamedTuple):
    """How image files are taken in.

    size: side of the square images in pixels; `images.native_size` if None.
    max_bad: largest share of images that may be undecodable, in [0, 1].
    workers: decoding threads; the number of cores, at most 8, if None.
    interpolation: how images of another size are resized, "bilinear" or "bicubic".
    enlarge: bring smaller images to `size` too; False leaves a set of equal small squares to a pipeline that enlarges each batch.
    pipeline: "auto", "resident" or "dali": who will serve them.
    room: the memory that "auto" asks whether they fit; endless if None.
    progress: called with (files done, files in all) while they are opened.
    beside: images that will be held beside them (extra.py), for "auto" to count.
    """

    size: int | None = None
    max_bad: float = 0.01
    workers: int | None = None
    interpolation: str = "bicubic"
    enlarge: bool = True
    pipeline: str = "resident"
    room: Room | None = None
    progress: Callable[[int, int], None] | None = None
    beside: int = 0


@dataclass
class FileSet:
    """What is known of image files before any is opened.

    Attributes:
        name, where: what the set is called, and where it lies.
        store: the files, sorted by name; their names are the ids.
        places: what tells this set's index from others'.
        classes: sorted.
        label: id -> class name of those whose label is known.
        given: ids whose label may be given to training. test: ids of the test part.
        quarantine: (id, reason) of files that are not in the store. warnings: sentences for the user.
    """

    name: str
    where: str
    store: Store
    places: tuple[str, ...]
    classes: list[str]
    label: dict[str, str]
    given: Collection[str]
    test: Collection[str]
    quarantine: list[tuple[str, str]]
    warnings: list[str]

    def source(self, taking: Taking) -> Source:
        """Opens every file. Raises DataError for fewer than two classes, for no image, and for too many bad ones."""
        if len(self.classes) < 2:
            raise DataError(f"{self.where} has {len(self.classes)} class{'es' * (not self.classes)}; a classifier needs at least two")
        ids = self.store.names
        if not ids:
            raise DataError(f"{self.where} holds no images ({', '.join(sorted(images.SUFFIXES))})")
        check_interpolation(taking.interpolation)
        side = images.kept_side(self.store, taking.size, taking.enlarge, taking.workers)
        choice = choose(taking.pipeline, len(ids) + taking.beside, side, taking.room, dali_version())
        held, content, bad = self.held(choice.name, taking, side)
        reasons = {ids[i]: reason for i, reason in bad.items()}
        quarantine = sorted([*self.quarantine, *reasons.items()])
        self.warnings += judge(self.where, quarantine, len(ids) + len(self.quarantine), taking.max_bad)
        lost = [name for name in reasons if name in self.given]
        if lost:
            self.warnings.append(f"labels lost with undecodable images: {counted(lost)}")
        if bad:
            ids = [name for i, name in enumerate(ids) if i not in bad]
        number = {name: c for c, name in enumerate(self.classes)}
        count = len(ids)
        return Source(
            name=self.name,
            classes=tuple(self.classes),
            ids=ids,
            label=np.fromiter((number[self.label[name]] if name in self.label else -1 for name in ids), np.int64, count),
            given=np.fromiter((name in self.given for name in ids), np.bool_, count),
            test=np.fromiter((name in self.test for name in ids), np.bool_, count),
            images=held,
            content=content,
            flip=True,
            mean=MEAN,
            std=STD,
            quarantine=quarantine,
            warnings=self.warnings,
            choice=choice,
        )

    def held(self, pipeline: str, taking: Taking, side: int) -> tuple[np.ndarray | ImageFiles, np.ndarray, dict[int, str]]:
        """(the good files as "resident" or "dali" wants them, [n] uint64 hashes of their bytes, {position: reason} of the others)."""
        return (self._indexed if pipeline == "dali" else self._decoded)(taking, side)

    def _decoded(self, taking: Taking, side: int) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
        pixels, content, bad = images.decode_each(
            self.store.read, len(self.store), side, taking.workers, taking.interpolation, taking.progress
        )
        keep = closed_up(pixels, bad)
        return pixels[: len(keep)], content[keep], bad

    def _indexed(self, taking: Taking, side: int) -> tuple[ImageFiles, np.ndarray, dict[int, str]]:
        cache = Cache(*self.places)
        try:
            found = index(self.store, cache, workers=taking.workers, progress=taking.progress)
        finally:
            cache.close()
        self.warnings += found.warnings
        keep = np.array([i for i in range(len(self.store)) if i not in found.bad], np.int64)
        content = found.content[keep]
        held = ImageFiles(self.store, keep, content, found.plain[keep], side, taking.interpolation, taking.workers)
        return held, content, found.bad
