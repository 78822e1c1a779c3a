"""More unlabelled images from elsewhere, as rows after a set's own: those of a folder, or those that a CSV names. (Texts: text_assembly.)

They bear no label, belong to no test part, and are held as the set's own images are: decoded at the side at which those are held, or left
in their files for a pipeline that streams. Ids are "extra:" and the path: below the folder, below the CSV's own folder, or whole where
the CSV names a file outside of that. The set's own rows, pixels and labels are what they would be without them.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .errors import DataError
from .file_set import FileSet, Taking
from .file_source import ImageFiles, JoinedStore, PathStore
from .images import SUFFIXES
from .listing import find
from .quarantine import counted, judge
from .source import EXTRA, Source
from .table import read_table, unguarded

FLAG = "--extra-unlabelled"


@dataclass
class Extra:
    """Images from elsewhere, before any is opened.

    Attributes:
        where: as the user named it. root: the folder that ids are relative to.
        names: ids, sorted.
        quarantine: (id, reason) of files that cannot be among them. warnings: sentences for the user.
    """

    where: str
    root: Path
    names: list[str] = field(default_factory=list)
    quarantine: list[tuple[str, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.names)


def listed(place: str | Path, apart: Iterable[Path]) -> Extra:
    """Lists the images of a folder, at any depth, or of a CSV with a column `path` (further columns are not read). None is opened.

    Args:
        place: the folder or the CSV. Paths of a CSV are relative to its own folder, or whole.
        apart: where the set's own images lie, test images too: folders or files.

    Raises:
        DataError: no such path, no image there, images that are the set's own, or lines of the CSV that name no file (all of them).
    """
    path = Path(place).expanduser()
    apart = [own.resolve() for own in apart]
    if not path.exists():
        raise DataError(f"{FLAG} {place}: no such folder or file; give a folder of images, or a CSV with a column path")
    found = _of_folder(path, apart) if path.is_dir() else _of_table(path, apart)
    found.where = str(place)
    if not found.names:
        raise DataError(f"{FLAG} {place} holds no images ({', '.join(sorted(SUFFIXES))}); give another place, or leave it out")
    return found


def _of_folder(folder: Path, apart: list[Path]) -> Extra:
    whole = folder.resolve()
    for own in apart:
        if own.is_relative_to(whole):
            raise DataError(f"{FLAG} {folder} holds the data set itself, {own}; give a folder that lies apart from it")
        if whole.is_relative_to(own):
            raise DataError(f"{FLAG} {folder} lies inside the data set, {own}, whose images are read already; leave it out or move it away")
    files = find(folder, EXTRA)
    found = Extra("", folder, files.names, [(EXTRA + name, "its name is not UTF-8; rename it") for name in sorted(files.unnamable)])
    if files.others:
        found.warnings.append(f"extra images: passed over for want of an image's suffix: {counted(files.others)}")
    if files.links:
        found.warnings.append(f"extra images: links to folders are not followed: {counted(files.links)}; move their images below {folder}")
    return found


def _of_table(table: Path, apart: list[Path]) -> Extra:
    rows, problems = read_table(table, ("path",), others=True)
    here = Path(os.path.abspath(table.parent))
    names: dict[str, int] = {}
    copies: list[str] = []
    for line, fields in rows:
        written = unguarded(fields["path"])
        file = here / written
        if written and not file.is_file():
            file = here / written.replace("\\", "/")  # written on Windows
        file = Path(os.path.normpath(file))
        if not written:
            fault = "the path is blank"
        elif not file.is_file():
            fault = f"no file '{written}'; paths are relative to {here}, or whole"
        elif any(file.resolve().is_relative_to(own) for own in apart):
            fault = f"'{written}' lies inside the data set, whose images are read already; leave it out"
        else:
            name = EXTRA + (file.relative_to(here) if file.is_relative_to(here) else file).as_posix()
            if names.setdefault(name, line) != line:
                copies.append(str(line))
            continue
        problems.append((f"{table.name}:{line}", fault))
    if not rows and not problems:
        problems.append((f"{table.name}:1", "has no row below its header"))
    if problems:
        raise DataError(f"{FLAG} {table} cannot be used as it is; correct these lines:", problems)
    found = Extra("", here, sorted(names))
    if copies:
        more = ", ..." if len(copies) > 10 else ""
        found.warnings.append(f"{table.name} repeats images that it already has, in line {', '.join(copies[:10])}{more}")
    return found


def joined(source: Source, extra: Extra, taking: Taking) -> Source:
    """The set with the images from elsewhere as its last rows.

    Args:
        taking: how the set's own images were taken in.

    Raises:
        DataError: more than the share `taking.max_bad` of the images from elsewhere cannot be decoded, or ids that clash.
    """
    clash = [name for name in source.ids if name.startswith(EXTRA)]
    if clash:
        raise DataError(f"names in {source.name} begin with '{EXTRA}', which marks the images of {FLAG}: {counted(clash)}; rename them")
    store = PathStore(extra.names, str(extra.root), EXTRA, str(extra.root))
    place = os.path.abspath(Path(extra.where).expanduser())
    files = FileSet(source.name, extra.where, store, (place, EXTRA), [], {}, (), (), extra.quarantine, extra.warnings)
    own, side = source.images, source.images.shape[3]
    streams = isinstance(own, ImageFiles)
    held, content, bad = files.held("dali" if streams else "resident", taking, side)
    reasons = sorted([*extra.quarantine, *((extra.names[i], reason) for i, reason in bad.items())])
    told = judge(extra.where, reasons, len(extra) + len(extra.quarantine), taking.max_bad)
    if streams:
        at = np.concatenate([own.at, len(own.store) + held.at])
        plain = np.concatenate([own.plain, held.plain])
        both = np.concatenate([own.content, held.content])
        images = ImageFiles(JoinedStore(own.store, store), at, both, plain, side, own.interpolation, own.workers)
    else:
        images = np.concatenate([own, held])
    ids = [name for i, name in enumerate(extra.names) if i not in bad]
    none = np.zeros(len(ids), np.bool_)
    return dataclasses.replace(
        source,
        ids=[*source.ids, *ids],
        label=np.concatenate([source.label, np.full(len(ids), -1, np.int64)]),
        given=np.concatenate([source.given, none]),
        test=np.concatenate([source.test, none]),
        images=images,
        content=np.concatenate([source.content, content]),
        quarantine=[*source.quarantine, *reasons],
        warnings=[*source.warnings, *extra.warnings, *told],
        extra=len(ids),
    )
