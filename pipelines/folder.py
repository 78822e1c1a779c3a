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

import numpy as np

from . import images
from .errors import ConfigError, DataError, unknown
from .labels import Labels, read_labels
from .listing import Found, find
from .quarantine import closed_up, counted, judge
from .source import Source
from .table import Problems

# Natural photographs: the constants that most pretrained networks were trained with, and that do not move with the folder's content.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class _Plan:
    """Collects rows and faults from the parts of a folder; `source` decodes what it holds."""

    def __init__(self, root: Path):
        self.root = root
        self.paths: dict[str, Path] = {}
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
        self.paths.update(found.paths)
        if labels is None:
            self.classes = sorted(found.folders)
            if not self.classes:
                raise DataError(f"{base} has no sub-folders to be classes; name the labelled images with --labels labels.csv (path,label)")
            self._by_folder(found)
            loose = [name for name in found.paths if not found.top[name]]
            if loose:
                self.warnings.append(f"images in no class's sub-folder, taken as unlabelled: {counted(loose)}")
            self.given = set(self.label)
            return
        table = self._read(labels)
        for name in table.label:
            # A file that the CSV names is meant as an image, whatever its suffix.
            self.paths.setdefault(name, self.root / name)
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
        if not found.paths:
            raise DataError(f"the test folder {base} holds no images")
        loose = [name for name in found.paths if not found.top[name]]
        if loose:
            self.problems.append((str(base), f"images in no class's sub-folder: {counted(loose)}"))
        for name in sorted(set(found.top.values()) - {""} - set(self.classes)):
            self.problems.append((str(base / name), unknown("class", name, self.classes)))
        for name in found.paths:
            if name in self.given:
                self.problems.append((str(base), f"'{name}' is a test image and labelled for training; keep it in one part"))
        self.paths.update(found.paths)
        self.label.update((name, top) for name, top in found.top.items() if top)
        self.test.update(found.paths)
        self.given -= self.test

    def test_table(self, path: Path, *, exclusive: bool) -> None:
        """The test part as a CSV. `exclusive`: a row of labels.csv may not be in it (class folders merely give way)."""
        table = self._read(path, blank=False)
        for name in table.label:
            if exclusive and name in self.given:
                table.problems.append((table.place[name], f"'{name}' is a test image and labelled for training; keep it in one part"))
        self._check(table)
        for name, label in table.label.items():
            self.paths.setdefault(name, self.root / name)
            self.label[name] = label
        self.test.update(table.label)
        self.given -= self.test

    def _by_folder(self, found: Found) -> None:
        self.label.update((name, top) for name, top in found.top.items() if top)

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

    def source(self, size: int | None, max_bad: float, workers: int | None, interpolation: str, enlarge: bool) -> Source:
        """Decodes the rows. Raises DataError for collected problems, for no image, and for too many bad ones."""
        if self.problems:
            raise DataError(f"the labels of {self.root} cannot be used as they are; correct these places:", self.problems)
        if len(self.classes) < 2:
            raise DataError(f"{self.root} has {len(self.classes)} class{'es' * (not self.classes)}; a classifier needs at least two")
        ids = sorted(self.paths)
        if not ids:
            raise DataError(f"{self.root} holds no images ({', '.join(sorted(images.SUFFIXES))})")
        paths = [self.paths[name] for name in ids]
        size = images.kept_side(paths, size, enlarge, workers)
        pixels, content, bad = images.decode_files(paths, size, workers, interpolation)
        reasons = {ids[i]: reason for i, reason in bad.items()}
        quarantine = sorted([*self.quarantine, *reasons.items()])
        self.warnings += judge(str(self.root), quarantine, len(ids) + len(self.quarantine), max_bad)
        lost = [name for name in reasons if name in self.given]
        if lost:
            self.warnings.append(f"labels lost with undecodable images: {counted(lost)}")
        keep = closed_up(pixels, bad)
        ids = [ids[i] for i in keep]
        number = {name: c for c, name in enumerate(self.classes)}
        label = np.array([number[self.label[name]] if name in self.label else -1 for name in ids], np.int64)
        return Source(
            name=self.root.resolve().name,
            classes=tuple(self.classes),
            ids=ids,
            label=label,
            given=np.array([name in self.given for name in ids], np.bool_),
            test=np.array([name in self.test for name in ids], np.bool_),
            images=pixels[: len(ids)],
            content=content[keep],
            flip=True,
            mean=MEAN,
            std=STD,
            quarantine=quarantine,
            warnings=self.warnings,
        )


def load_folder(
    root: Path,
    *,
    size: int | None = None,
    labels: Path | None = None,
    test: Path | None = None,
    max_bad: float = 0.01,
    workers: int | None = None,
    interpolation: str = "bicubic",
    enlarge: bool = True,
) -> Source:
    """Reads a folder of images (layouts above).

    Args:
        root: the data folder; CSV paths are relative to it.
        size: side of the square images in pixels; `images.native_size` if None.
        labels: CSV path,label.
        test: a folder with a sub-folder a class, or a CSV path,label.
        max_bad: largest share of images that may be undecodable, in [0, 1].
        workers: decoding threads.
        interpolation: how images of another size are resized, "bilinear" or "bicubic".
        enlarge: bring smaller images to `size` too; False leaves a set of equal small squares to a pipeline that enlarges each batch.

    Returns:
        a Source; images are taken to keep their label under mirroring.

    Raises:
        ConfigError: two test parts at once, or a test folder that holds the data folder.
        DataError: everything else that is wrong with the files, all of it at once.
    """
    plan = _Plan(root)
    base, prefix = root, ""
    parts = find(root)
    if parts.folders == ["test", "train"] and not any(top == "" for top in parts.top.values()):
        if test is not None:
            raise ConfigError(f"{root} has its own test part, {root / 'test'}; leave out --test, or give {root / 'train'} as the data")
        base, prefix, test = root / "train", "train/", root / "test"
    test_root = test.resolve() if test is not None and test.is_dir() else None
    if test_root is not None and base.resolve().is_relative_to(test_root):
        raise ConfigError(f"the test folder {test} holds the data folder {base}; they must lie apart")
    inside = test_root is not None and test_root.is_relative_to(root.resolve())
    plan.pool(find(base, prefix, without=test_root) if inside else parts, base, labels)
    if test_root is not None:
        test_prefix = test_root.relative_to(root.resolve()).as_posix() + "/" if inside else "test:"
        plan.test_folder(find(test_root, test_prefix), test)
    elif test is not None:
        plan.test_table(test, exclusive=labels is not None)
    return plan.source(size, max_bad, workers, interpolation, enlarge)
