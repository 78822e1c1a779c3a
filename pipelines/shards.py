"""Tar shards of images, in the convention of WebDataset -> Source. Nothing is unpacked: members are found once, by their offsets.

* Shards are uncompressed `.tar` files in DIR, or in `DIR/train` and `DIR/test`; a folder for `--test` may hold more.
* A sample is the files of one shard that share their name up to the first dot: an image, and beside it its label.
* The label is the text of `name.cls`; else "label", "cls" or "class" of `name.json`; else the member's first folder. A sample without
  any is unlabelled. Where all labels are whole numbers and DIR holds a `classes.txt`, number k is the name in its line k, from 0.
"""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .errors import ConfigError, DataError, unknown
from .file_set import FileSet, Taking
from .file_source import ShardStore, Stamp
from .images import SUFFIXES
from .index_cache import Cache, Member
from .source import Source

_LARGEST_LABEL = 1 << 20  # bytes of a label file; anything larger is no label
_JSON_KEYS = ("label", "cls", "class")


class _Part(NamedTuple):
    folder: Path
    prefix: str  # before the ids
    test: bool


def sharded(folder: Path) -> bool:
    """Whether a folder holds tar shards and no images of its own: an archive left lying among class folders does not make it one."""
    tars = False
    with os.scandir(folder) as entries:
        for entry in entries:
            suffix = os.path.splitext(entry.name)[1].lower()
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                if entry.name not in ("train", "test"):
                    return False
                tars |= any(Path(entry.path).glob("*.tar"))
            elif suffix in SUFFIXES:
                return False
            tars |= suffix == ".tar"
    return tars


def members(path: Path) -> list[Member]:
    """The images of one shard, in its order. Raises DataError for a file that is no uncompressed tar."""
    found: list[tuple[str, int, int]] = []
    labels: dict[str, str] = {}
    described: dict[str, str] = {}
    try:
        # Names are ids here, not places on a disk: one that is not UTF-8 is as good with its odd bytes replaced.
        with tarfile.open(path, "r:", encoding="utf-8", errors="replace") as archive:
            while (member := archive.next()) is not None:
                archive.members = []  # tarfile would keep all of them
                if not member.isreg() or member.sparse is not None:
                    continue
                stem, suffix = _split(member.name)
                if suffix in SUFFIXES:
                    found.append((member.name, member.offset_data, member.size))
                elif suffix in (".cls", ".json") and member.size <= _LARGEST_LABEL:
                    text = archive.extractfile(member).read().decode("utf-8", "replace")
                    (labels if suffix == ".cls" else described)[stem] = text
    except (tarfile.TarError, EOFError) as error:
        raise DataError(f"{path} cannot be read as an uncompressed tar file ({error}); pack it anew with tar -cf") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error

    def label(name: str) -> str:
        stem, _ = _split(name)
        if stem in labels:
            return labels[stem].strip()
        if stem in described:
            return _described(described[stem], f"{path}: {stem}.json")
        return name.removeprefix("./").rpartition("/")[0].partition("/")[0]

    return [Member(name, offset, length, label(name)) for name, offset, length in found]


def _split(name: str) -> tuple[str, str]:
    """ "a.b/0001.left.jpg" -> ("a.b/0001", ".jpg")."""
    folder, _, base = name.rpartition("/")
    return f"{folder}/{base.partition('.')[0]}", os.path.splitext(base)[1].lower()


def _described(text: str, place: str) -> str:
    try:
        body = json.loads(text)
    except ValueError as error:
        raise DataError(f"{place} is not JSON ({error}); mend it or leave it out") from error
    values = [body[key] for key in _JSON_KEYS if isinstance(body, dict) and isinstance(body.get(key), (str, int))]
    return str(values[0]).strip() if values else ""


def load_shards(root: Path, *, labels: Path | None = None, test: Path | None = None, taking: Taking | None = None) -> Source:
    """Reads a folder of tar shards (conventions above).

    Args:
        root: the folder.
        labels: not taken: shards hold their labels.
        test: a folder of shards that are the test part.
        taking: how the images are held; Taking() if None.

    Raises:
        ConfigError: labels, a test part that is a file, or two test parts.
        DataError: everything that is wrong with the shards.
    """
    if labels is not None:
        raise ConfigError(f"{root} holds tar shards, which carry their labels; leave out --labels, or give a folder of image files")
    parts = [_Part(root, "", False)]
    if (root / "train").is_dir():
        parts = [_Part(root / "train", "train/", False), _Part(root / "test", "test/", True)]
        if test is not None:
            raise ConfigError(f"{root} has its own test part, {root / 'test'}; leave out --test, or give {root / 'train'} as the data")
    elif test is not None:
        if not test.is_dir():
            raise ConfigError(f"--test {test} is a file; the test part of tar shards is a folder of tar shards")
        parts.append(_Part(test, "test:", True))
    cache = Cache(str(root.resolve()), "" if test is None else str(test.resolve()))
    rows: list[tuple[str, int, Member, bool]] = []  # id, shard, member, whether of the test part
    shards: list[str] = []
    problems: list[tuple[str, str]] = []
    try:
        for part in parts:
            for path in sorted(part.folder.glob("*.tar")) if part.folder.is_dir() else ():
                rows += [(f"{part.prefix}{path.name}/{m.name}", len(shards), m, part.test) for m in _remembered(path, part, cache)]
                shards.append(str(path))
    finally:
        cache.close()
    rows.sort(key=lambda row: row[0])
    problems += [(b[0], "comes twice in its shard; keep one") for a, b in zip(rows, rows[1:], strict=False) if a[0] == b[0]]
    label, classes = _labels(root, rows, problems)
    if problems:
        raise DataError(f"the labels of {root} cannot be used as they are; correct these places:", problems)
    return FileSet(
        name=root.resolve().name,
        where=str(root),
        store=ShardStore(
            [row[0] for row in rows],
            shards,
            np.array([row[1] for row in rows], np.int32),
            np.array([row[2].offset for row in rows], np.int64),
            np.array([row[2].length for row in rows], np.int64),
        ),
        places=(str(root.resolve()), "" if test is None else str(test.resolve())),
        classes=classes,
        label=label,
        given={row[0] for row in rows if row[0] in label and not row[3]},
        test={row[0] for row in rows if row[3]},
        quarantine=[],
        warnings=[cache.fault] if cache.fault else [],
    ).source(taking or Taking())


def _remembered(path: Path, part: _Part, cache: Cache) -> list[Member]:
    found = os.stat(path)
    name, stamp = part.prefix + path.name, Stamp(found.st_size, found.st_mtime_ns)
    known = cache.shard(name, stamp)
    if known is None:
        known = members(path)
        cache.keep_shard(name, stamp, known)
    return known


def _labels(root: Path, rows: list, problems: list[tuple[str, str]]) -> tuple[dict[str, str], list[str]]:
    """({id: class name}, class names) of the rows; faults go to `problems`."""
    known = {row[2].label for row in rows if not row[3]} - {""}
    number = bool(known) and all(text.isascii() and text.isdigit() for text in known)
    classes = sorted(known, key=int) if number else sorted(known)
    renamed = {text: text for text in classes}
    listing = root / "classes.txt"
    if number and listing.is_file():
        lines = [line.strip() for line in listing.read_text(encoding="utf-8").splitlines()]
        classes = [line for line in lines if line]
        renamed = {str(k): line for k, line in enumerate(lines) if line}
        if len(set(classes)) < len(classes):
            problems.append((str(listing), "names a class twice"))
    label: dict[str, str] = {}
    for name, _, member, test in rows:
        if member.label in renamed:
            label[name] = renamed[member.label]
        elif member.label:
            problems.append((name, unknown("class", member.label, renamed)))
        elif test:
            problems.append((name, "has no label, and a test image needs one"))
    return label, classes
