"""A folder of images -> Source: who is in it, under which label, in which part.

Layouts:

* `DIR/<class>/...`: sub-folders are classes; images directly in DIR are unlabelled.
* `DIR/...` with labels.csv: images that the CSV names with a label are labelled, all others are unlabelled. Where more than half of the
  CSV's labels are names of sub-folders, the sub-folders are the classes, and tell the hidden label of the other images.
* `DIR/train` and `DIR/test`, and no other sub-folder: the two parts, each laid out as above.

The test part is `DIR/test`, or another folder with a sub-folder a class, or a CSV with the columns path,label.
"""

from __future__ import annotations

from pathlib import Path

from .errors import ConfigError, DataError, unknown
from .file_set import FileSet, Taking
from .file_source import PathStore
from .labels import Labels, read_labels
from .listing import Found, find
from .quarantine import counted
from .source import Source
from .table import Problems

_OUTSIDE = "test:"  # before the ids of test images that lie outside the data folder


class _Plan:
    """Collects rows and faults from the parts of a folder; `files` is what it holds."""

    def __init__(self, root: Path):
        self.root = root
        self.names: set[str] = set()
        self.label: dict[str, str] = {}
        self.given: set[str] = set()
        self.test: set[str] = set()
        self.classes: list[str] = []
        self.problems: Problems = []
        self.warnings: list[str] = []
        self.quarantine: list[tuple[str, str]] = []

    def note(self, found: Found) -> None:
        """Files that were passed over."""
        if found.others:
            self.warnings.append(f"passed over for want of an image's suffix: {counted(found.others)}")
        if found.links:
            self.warnings.append(f"links to folders are not followed: {counted(found.links)}; move their images below {self.root}")
        self.quarantine += [(name, "its name is not UTF-8; rename it") for name in sorted(found.unnamable)]

    def pool(self, found: Found, base: Path, labels: Path | None) -> None:
        """The part that training reads."""
        self.note(found)
        self.names.update(found.names)
        if labels is None:
            self.classes = sorted(found.folders)
            if not self.classes:
                raise DataError(f"{base} has no sub-folders to be classes; name the labelled images with --labels labels.csv (path,label)")
            self._by_folder(found)
            loose = found.loose()
            if loose:
                self.warnings.append(f"images in no class's sub-folder, taken as unlabelled: {counted(loose)}")
            self.given = set(self.label)
            return
        table = self._read(labels)
        # A file that the CSV names is meant as an image, whatever its suffix.
        self.names.update(table.label)
        named = {label for label in table.label.values() if label}
        if not named and not table.problems:
            table.problems.append((f"{labels.name}:1", "no row has a label"))
        # One shared name may be chance (a folder "cat" among many); more than half is a naming scheme.
        if 2 * len(named & set(found.folders)) > len(named):
            self.classes = sorted(found.folders)
            self._by_folder(found)
        else:
            self.classes = sorted(named)
        self._check(table)
        for name, label in table.label.items():
            if label:
                self.label[name] = label
                self.given.add(name)

    def test_folder(self, found: Found, base: Path) -> None:
        """The test part as a folder with class sub-folders."""
        self.note(found)
        if not found.names:
            raise DataError(f"the test folder {base} holds no images")
        loose = found.loose()
        if loose:
            self.problems.append((str(base), f"images in no class's sub-folder: {counted(loose)}"))
        for name in sorted({found.top(name) for name in found.names} - {""} - set(self.classes)):
            self.problems.append((str(base / name), unknown("class", name, self.classes)))
        for name in found.names:
            if name in self.given:
                self.problems.append((str(base), f"'{name}' is a test image and labelled for training; keep it in one part"))
        self.names.update(found.names)
        self._by_folder(found)
        self.test.update(found.names)
        self.given -= self.test

    def test_table(self, path: Path, *, exclusive: bool) -> None:
        """The test part as a CSV. `exclusive`: a row of labels.csv may not be in it (class folders merely give way)."""
        table = self._read(path, blank=False)
        for name in table.label:
            if exclusive and name in self.given:
                table.problems.append((table.place[name], f"'{name}' is a test image and labelled for training; keep it in one part"))
        self._check(table)
        self.names.update(table.label)
        self.label.update(table.label)
        self.test.update(table.label)
        self.given -= self.test

    def _by_folder(self, found: Found) -> None:
        shared = {top: top for top in found.folders}  # one string a class, not one a file
        self.label.update((name, shared.get(top, top)) for name in found.names if (top := found.top(name)))

    def _read(self, path: Path, *, blank: bool = True) -> Labels:
        table = read_labels(path, self.root, blank=blank)
        self.warnings += table.warnings
        return table

    def _check(self, table: Labels) -> None:
        known = set(self.classes)
        for name, label in table.label.items():
            if label and label not in known:
                table.problems.append((table.place[name], unknown("class", label, known)))
        self.problems += sorted(table.problems, key=lambda problem: int(problem[0].rsplit(":", 1)[1]))

    def files(self, test_root: Path | None) -> FileSet:
        """The rows, with the folder of those test images that lie outside. Raises DataError for the collected problems."""
        if self.problems:
            raise DataError(f"the labels of {self.root} cannot be used as they are; correct these places:", self.problems)
        names = sorted(self.names)
        store = PathStore(names, str(self.root)) if test_root is None else PathStore(names, str(self.root), _OUTSIDE, str(test_root))
        return FileSet(
            name=self.root.resolve().name,
            where=str(self.root),
            store=store,
            places=(str(self.root.resolve()), str(test_root or "")),
            classes=self.classes,
            label=self.label,
            given=self.given,
            test=self.test,
            quarantine=self.quarantine,
            warnings=self.warnings,
        )


def load_folder(root: Path, *, labels: Path | None = None, test: Path | None = None, taking: Taking | None = None) -> Source:
    """Reads a folder of images (layouts above).

    Args:
        root: the data folder; CSV paths are relative to it.
        labels: CSV path,label.
        test: a folder with a sub-folder a class, or a CSV path,label.
        taking: how the images are held; Taking() if None.

    Returns:
        a Source; images are taken to keep their label under mirroring.

    Raises:
        ConfigError: two test parts at once, or a test folder that holds the data folder.
        DataError: everything else that is wrong with the files, all of it at once.
    """
    plan = _Plan(root)
    base, prefix = root, ""
    parts = find(root)
    if parts.folders == ["test", "train"] and not parts.loose():
        if test is not None:
            raise ConfigError(f"{root} has its own test part, {root / 'test'}; leave out --test, or give {root / 'train'} as the data")
        base, prefix, test = root / "train", "train/", root / "test"
    test_root = test.resolve() if test is not None and test.is_dir() else None
    if test_root is not None and base.resolve().is_relative_to(test_root):
        raise ConfigError(f"the test folder {test} holds the data folder {base}; they must lie apart")
    inside = test_root is not None and test_root.is_relative_to(root.resolve())
    plan.pool(find(base, prefix, without=test_root) if inside else parts, base, labels)
    if test_root is not None:
        test_prefix = test_root.relative_to(root.resolve()).as_posix() + "/" if inside else _OUTSIDE
        if not inside and any(name.startswith(_OUTSIDE) for name in plan.names):
            raise DataError(f"names below {root} begin with '{_OUTSIDE}', which marks the test images; rename them")
        plan.test_folder(find(test_root, test_prefix), test)
    elif test is not None:
        plan.test_table(test, exclusive=labels is not None)
    return plan.files(None if inside else test_root).source(taking or Taking())
