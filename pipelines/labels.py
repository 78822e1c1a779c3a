"""labels.csv: which images of a folder carry which label, checked against the disk before anything is decoded."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass, field
from pathlib import Path

from .table import Problems, read_table

COLUMNS = ("path", "label")


@dataclass
class Labels:
    """What a labels file says.

    Attributes:
        label: id -> label text, "" where the file leaves it blank.
        place: id -> "labels.csv:12".
        problems: every fault found, (place, sentence).
        warnings: sentences for the user.
    """

    label: dict[str, str] = field(default_factory=dict)
    place: dict[str, str] = field(default_factory=dict)
    problems: Problems = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


class _Root:
    """A data folder that turns written paths into ids and refuses those that leave it."""

    def __init__(self, root: Path):
        self.root = root.resolve()
        self.inside: dict[Path, bool] = {}

    def id(self, written: str) -> str:
        """The id of a path as written in the file: relative to the folder, or absolute inside it. Raises ValueError with the reason."""
        path = written
        if Path(path).is_absolute():
            if not Path(posixpath.normpath(path)).is_relative_to(self.root):
                raise ValueError(f"'{written}' lies outside the data folder {self.root}; paths are relative to it")
            path = Path(posixpath.normpath(path)).relative_to(self.root).as_posix()
        if not (self.root / path).exists():
            path = path.replace("\\", "/")  # written on Windows
        path = posixpath.normpath(path)
        if path.split("/")[0] == "..":
            raise ValueError(f"'{written}' leaves the data folder {self.root}; paths are relative to it and stay inside")
        file = self.root / path
        if not file.is_file():
            raise ValueError(f"no file '{written}' in {self.root}; paths are relative to that folder")
        if not self._stays(file):
            raise ValueError(f"'{written}' is a link that leaves the data folder {self.root}; copy the file into it")
        return path

    def _stays(self, file: Path) -> bool:
        # Folders repeat, files do not: only the folder's resolution is worth remembering.
        folder = file.parent
        if folder not in self.inside:
            self.inside[folder] = folder.resolve().is_relative_to(self.root)
        return self.inside[folder] and (not file.is_symlink() or file.resolve().is_relative_to(self.root))


def read_labels(path: Path, root: Path, *, blank: bool = True) -> Labels:
    """Reads `path,label` rows against the images of `root`.

    Args:
        path: the CSV; see `table.read_table` for what it may look like.
        root: the data folder that its paths are relative to.
        blank: whether a label may be blank (unlabelled).

    Raises:
        DataError: the file cannot be read or is not UTF-8. All other faults are returned in `problems`.
    """
    rows, problems = read_table(path, COLUMNS)
    found = Labels(problems=problems)
    folder = _Root(root)
    copies = []
    for line, fields in rows:
        place, label = f"{path.name}:{line}", fields["label"]
        if not fields["path"]:
            found.problems.append((place, "the path is blank"))
            continue
        try:
            name = folder.id(fields["path"])
        except (ValueError, OSError) as error:
            found.problems.append((place, str(error)))
            continue
        if not label and not blank:
            found.problems.append((place, f"'{fields['path']}' has no label, and a test image needs one"))
        elif name in found.label and found.label[name] != label:
            first = f"'{found.label[name]}' in line {found.place[name].rsplit(':', 1)[1]}"
            found.problems.append((place, f"'{fields['path']}' is labelled '{label}' here and {first}; keep one"))
        elif name in found.label:
            copies.append(str(line))
        else:
            found.label[name], found.place[name] = label, place
    if copies:
        found.warnings.append(
            f"{path.name} repeats rows that it already has, in line {', '.join(copies[:10])}{', ...' if len(copies) > 10 else ''}"
        )
    if not rows and not problems:
        found.problems.append((f"{path.name}:1", "has no row below its header"))
    return found
