"""The image files below a folder, by name alone: nothing is opened here."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from .errors import DataError
from .images import SUFFIXES


@dataclass
class Found:
    """The images under one folder, before any is opened. A set may have millions: one string is held for each, and no more.

    Attributes:
        prefix: put before each id.
        names: ids, sorted: prefix and path below the folder.
        folders: its sub-folders, sorted.
        others, links, unnamable: what was passed over.
    """

    prefix: str = ""
    names: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    unnamable: list[str] = field(default_factory=list)

    def top(self, name: str) -> str:
        """The first sub-folder of an id, "" if it lies directly in the folder."""
        at = name.find("/", len(self.prefix))
        return "" if at < 0 else name[len(self.prefix) : at]

    def loose(self) -> list[str]:
        """Ids of images directly in the folder."""
        return [name for name in self.names if name.find("/", len(self.prefix)) < 0]


def find(root: Path, prefix: str = "", without: Path | None = None) -> Found:
    """Lists the image files below `root` by their suffix; hidden files and folders, and links to folders, are passed over.

    Args:
        prefix: put before each id.
        without: a folder inside root that is left out.
    """
    found = Found(prefix)
    for folder, below, files in os.walk(root, onerror=_refuse):
        kept = []
        for name in sorted(below):
            path = Path(folder, name)
            if name.startswith(".") or (without is not None and path.resolve() == without):
                continue
            if path.is_symlink():
                found.links.append(path.relative_to(root).as_posix())
                continue
            kept.append(name)
        below[:] = kept
        here = Path(folder).relative_to(root)
        if here == Path("."):
            found.folders = list(kept)
        for name in files:
            if name.startswith("."):
                continue
            relative = (here / name).as_posix()
            if os.path.splitext(name)[1].lower() not in SUFFIXES:
                found.others.append(relative)
            elif not _namable(relative):
                found.unnamable.append(os.fsencode(relative).decode("utf-8", "replace"))
            else:
                found.names.append(prefix + relative)
    found.names.sort()
    return found


def _namable(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _refuse(error: OSError) -> NoReturn:
    raise DataError(f"cannot list {error.filename}: {error.strerror}; make it readable or move it away")
