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
    """The images under one folder, before any is opened: ids sorted, `top` the first sub-folder of each ("" if directly in it)."""

    paths: dict[str, Path] = field(default_factory=dict)
    top: dict[str, str] = field(default_factory=dict)
    folders: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    unnamable: list[str] = field(default_factory=list)


def find(root: Path, prefix: str = "", without: Path | None = None) -> Found:
    """Lists the image files below `root` by their suffix; hidden files and folders, and links to folders, are passed over.

    Args:
        prefix: put before each id.
        without: a folder inside root that is left out.
    """
    found = Found()
    paths: dict[str, Path] = {}
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
                paths[prefix + relative] = Path(folder, name)
                found.top[prefix + relative] = here.parts[0] if here.parts else ""
    found.paths = dict(sorted(paths.items()))
    return found


def _namable(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _refuse(error: OSError) -> NoReturn:
    raise DataError(f"cannot list {error.filename}: {error.strerror}; make it readable or move it away")
