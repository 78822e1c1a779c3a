"""Published sets by name -> Source: parts that torchvision read, at one size, with what set_facts.py knows of them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from . import images
from .errors import DataError
from .quarantine import closed_up, judge
from .resize import Resizer
from .set_facts import SETS
from .source import Source
from .torchvision_sets import Part, read

_BLOCK = 512  # rows read, hashed and resized at a time


class _Pixels(NamedTuple):
    """Rows as they are held: good ones alone, in order."""

    images: np.ndarray  # [n, 3, S, S] uint8
    content: np.ndarray  # [n] uint64
    ids: list[str]
    keep: list[int]  # positions of the good rows among all
    bad: list[tuple[str, str]]


def load_published(
    name: str,
    *,
    root: str | Path | None = None,
    size: int | None = None,
    extra: bool = False,
    interpolation: str = "bicubic",
    enlarge: bool = True,
    max_bad: float = 0.01,
    workers: int | None = None,
) -> Source:
    """Reads a published set.

    Args:
        name: one of `set_facts.SETS`.
        root: the folder that holds it; `set_facts.default_root()` if None.
        size: side of the square images in pixels; the set's own if None, at most 224 for photographs.
        extra: SVHN's extra part too. Its labels are known but not given: they measure pseudo-labels.
        interpolation: how images of another size are resized, "bilinear" or "bicubic".
        enlarge: bring smaller images to `size` too; False leaves them as they are, for a pipeline that enlarges each batch.
        max_bad: largest share of image files that may be undecodable. workers: decoding threads.

    Returns:
        a Source whose rows are in the set's own order: training, test, then unlabelled or extra part.

    Raises:
        SetupError: the set, or a package that its format needs, is not there.
        DataError: files that cannot be used.
    """
    facts = SETS[name]
    classes, parts = read(name, root, extra=extra)
    label = np.concatenate([part.label for part in parts])
    if label.min() < -1 or label.max() >= len(classes):
        raise DataError(f"labels of {name} run from {label.min()} to {label.max()}, and it has {len(classes)} classes")
    if isinstance(parts[0].images, list):
        pixels = _from_files(name, parts, size, interpolation, enlarge, workers)
    else:
        pixels = _from_arrays(name, parts, size, interpolation, enlarge)
    warnings = judge(name, pixels.bad, len(label), max_bad)
    of = lambda flags: np.repeat(flags, [len(part.label) for part in parts])[pixels.keep]  # noqa: E731
    return Source(
        name=name,
        classes=classes,
        ids=pixels.ids,
        label=label[pixels.keep],
        given=of([part.given for part in parts]),
        test=of([part.name == "test" for part in parts]),
        images=pixels.images,
        content=pixels.content,
        flip=facts.flip,
        mean=facts.constants[0],
        std=facts.constants[1],
        quarantine=pixels.bad,
        warnings=warnings,
        published=True,
    )


def _hash(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def _from_arrays(name: str, parts: list[Part], size: int | None, interpolation: str, enlarge: bool) -> _Pixels:
    side = parts[0].side
    kept = side if size is None or (size > side and not enlarge) else size
    resizer = Resizer(side, kept, interpolation)
    total = sum(len(part.label) for part in parts)
    out, content, ids = images.room_for(total, kept), np.zeros(total, np.uint64), []
    at = 0
    for part in parts:
        for start in range(0, len(part.label), _BLOCK):
            rows = np.ascontiguousarray(part.images(start, min(start + _BLOCK, len(part.label))))
            content[at : at + len(rows)] = [_hash(row) for row in rows]
            out[at : at + len(rows)] = resizer.whole(torch.from_numpy(rows)).numpy()
            at += len(rows)
        ids += [f"{name}/{part.name}/{row:06d}" for row in range(len(part.label))]
    return _Pixels(out, content, ids, list(range(total)), [])


def _from_files(name: str, parts: list[Part], size: int | None, interpolation: str, enlarge: bool, workers: int | None) -> _Pixels:
    paths = [path for part in parts for path in part.images]
    ids = [f"{name}/{part.name}/{path.parent.name}/{path.name}" for part in parts for path in part.images]
    kept = images.kept_side(paths, size, enlarge, workers)
    pixels, content, reasons = images.decode_files(paths, kept, workers, interpolation)
    keep = closed_up(pixels, reasons)
    return _Pixels(pixels[: len(keep)], content[keep], [ids[i] for i in keep], keep, [(ids[i], reason) for i, reason in reasons.items()])
