"""Noisy labels: drawn by the seed for experiments, or read from a file. Only labels that training is given change; test labels never do.

The split then holds the labels as given, and the source keeps its own, by which the log and the metrics of pseudo-labels count.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .batch import Split
from .errors import ConfigError, DataError, unknown
from .source import EXTRA, AnySource
from .split_file import split_hash
from .splits import _keys, _warn_of_empty
from .table import read_table, unguarded

KINDS = ("symmetric", "other", "asymmetric")
COLUMNS = ("id", "label")
Say = Callable[[str], None]

# Of CIFAR-10's classes (Patrini et al. 2017, section 5), and of STL-10's, whose automobile is a car; the others keep their label.
ALIKE = {"truck": "automobile", "bird": "airplane", "deer": "horse", "cat": "dog", "dog": "cat"}
# CIFAR-100's superclasses (Krizhevsky 2009, table 1).
SUPERCLASSES = (
    "beaver, dolphin, otter, seal, whale",
    "aquarium fish, flatfish, ray, shark, trout",
    "orchid, poppy, rose, sunflower, tulip",
    "bottle, bowl, can, cup, plate",
    "apple, mushroom, orange, pear, sweet pepper",
    "clock, keyboard, lamp, telephone, television",
    "bed, chair, couch, table, wardrobe",
    "bee, beetle, butterfly, caterpillar, cockroach",
    "bear, leopard, lion, tiger, wolf",
    "bridge, castle, house, road, skyscraper",
    "cloud, forest, mountain, plain, sea",
    "camel, cattle, chimpanzee, elephant, kangaroo",
    "fox, porcupine, possum, raccoon, skunk",
    "crab, lobster, snail, spider, worm",
    "baby, boy, girl, man, woman",
    "crocodile, dinosaur, lizard, snake, turtle",
    "hamster, mouse, rabbit, shrew, squirrel",
    "maple tree, oak tree, palm tree, pine tree, willow tree",
    "bicycle, bus, motorcycle, pickup truck, train",
    "lawn mower, rocket, streetcar, tank, tractor",
)


def configured(data: Any, source: AnySource, draw: Callable[[AnySource], Split], *, seed: int, note: Say) -> Split:
    """The split that `draw` makes of a source, with the noisy labels that the `data` section of a run's configuration asks for.

    Args:
        data: a DataConfig.
        draw: source -> Split.
        seed: of the noise.
        note: receives how many labels differ from the truth.

    Raises:
        ConfigError: noise and a file of labels, either beside a split file, or a share or kind that is none. DataError: the file does not
            fit the set.
    """
    if data.label_noise_kind != "symmetric" and not data.label_noise:
        raise ConfigError(
            "data.label_noise_kind says how data.label_noise draws labels, and there is none; give --set data.label_noise=0.4"
        )
    if data.noisy_labels is None and not data.label_noise:
        return draw(source)
    key = "data.noisy_labels" if data.noisy_labels is not None else "data.label_noise"
    if data.noisy_labels is not None and data.label_noise:
        raise ConfigError("data.noisy_labels and data.label_noise both replace labels; keep one")
    if data.split is not None:
        raise ConfigError(f"{key} replaces labels, and --split says which there are; leave one of them out")
    if data.noisy_labels is not None:
        split, held = by_file(data.noisy_labels, source, draw)
        told = f"noisy labels: of {Path(data.noisy_labels).name}" + (
            f" ({held:,} of its rows are held out and keep the set's)" if held else ""
        )
    else:
        split = by_chance(draw(source), source, share=data.label_noise, kind=data.label_noise_kind, seed=seed)
        told = f"noisy labels: {count_of(data.label_noise, len(split.labelled))} drawn anew ({data.label_noise_kind}, {data.label_noise:g})"
    truth = source.label[split.labelled]
    known, wrong = truth >= 0, int(((truth != split.label) & (truth >= 0)).sum())
    whose = "" if known.all() else f" whose truth is known (of {len(known):,})"
    note(f"{told}; {wrong:,} of {known.sum():,} labels{whose} differ from the truth")
    return split


def count_of(share: float, rows: int) -> int:
    """How many of so many labels a share is."""
    return int(np.floor(share * rows + 0.5))


def by_chance(split: Split, source: AnySource, *, share: float, kind: str, seed: int) -> Split:
    """A split with a share of its labels drawn anew, counted over all of them together.

    Args:
        share: of the labelled rows, in [0, 1]: those of the smallest keys of (seed, id), so that the rows at 0.2 are among those at 0.4,
            with the same labels. Nothing else decides, the order of rows and other random numbers included.
        kind: "symmetric", any class, the true one among them (DivideMix's loader); "other", any other class; "asymmetric", the class that
            `alike` names.

    Raises:
        ConfigError: a share out of range, or an unknown kind.
    """
    if not 0 <= share <= 1:
        raise ConfigError(f"data.label_noise {share} is out of range; give a share from 0 to 1")
    if kind not in KINDS:
        raise ConfigError(unknown("data.label_noise_kind", kind, KINDS))
    classes, label = len(source.classes), split.label.copy()
    if classes < 2:
        return split  # which no classifier takes, and whose caller says so
    names = [source.ids[row] for row in split.labelled]
    taken = np.argsort(_keys("label noise", seed, names), kind="stable")[: count_of(share, len(names))]
    keys = _keys("noisy class", seed, [names[i] for i in taken])
    if kind == "asymmetric":
        label[taken] = alike(source.classes)[label[taken]]
    elif kind == "symmetric":
        label[taken] = (keys % np.uint64(classes)).astype(np.int64)
    else:  # a step of 1 to C - 1 around the circle of classes never ends where it began
        label[taken] = (label[taken] + 1 + (keys % np.uint64(classes - 1)).astype(np.int64)) % classes
    return _relabelled(split, label, source)


def alike(classes: tuple[str, ...]) -> np.ndarray:
    """[C] int64: the class for which each is taken by mistake. By name where the classes are CIFAR-10's (or STL-10's) or CIFAR-100's, there
    the next one of the superclass; elsewhere the next class, the first after the last."""
    at = {name.lower().replace("_", " "): c for c, name in enumerate(classes)}
    found = np.arange(len(classes))
    if len(classes) == 10 and ALIKE.keys() <= at.keys():
        for name, other in ALIKE.items():
            found[at[name]] = at.get(other, at.get("car", at[name]))
        return found
    groups = [[at.get(name, -1) for name in group.split(", ")] for group in SUPERCLASSES]
    if len(classes) == 100 and all(c >= 0 for group in groups for c in group):
        for group in map(sorted, groups):
            found[group] = group[1:] + group[:1]
        return found
    return (found + 1) % len(classes)


def by_file(path: str | Path, source: AnySource, draw: Callable[[AnySource], Split]) -> tuple[Split, int]:
    """The split of a source whose labels are those of a CSV with the columns id,label, and how many of its rows are held out for tests,
    which keep the source's own labels as all do that it does not name.

    Who is labelled is drawn by these labels as it would be by the source's own, so that no truth decides it. A row whose label the source
    does not give becomes one that may be labelled.

    Raises:
        DataError: unreadable, or lines that do not fit the source: all of them, with their numbers; or held-out rows of unknown truth.
    """
    named = read(path, source)
    label = np.where(named >= 0, named, source.label)
    split = draw(dataclasses.replace(source, label=label, given=source.given | (named >= 0)))
    strangers = [source.ids[row] for row in split.test if source.label[row] < 0]
    if strangers:
        raise DataError(
            f"{len(strangers)} held-out {source.samples} of {source.name} have a label in {path} alone, which may be wrong ({strangers[0]} "
            "is one); give --test instead of --holdout"
        )
    return _relabelled(split, split.label, source), int((named[split.test] >= 0).sum())


def read(path: str | Path, source: AnySource) -> np.ndarray:
    """[N] int64 labels of a CSV with the columns id,label, -1 of rows that it does not name; as forgiving as `table.read_table`.

    Raises:
        DataError: as `by_file`.
    """
    path = Path(path)
    rows, problems = read_table(path, COLUMNS)
    # Fields are read without the spaces around them, so names are looked up without them too.
    row_of = {name.strip(): row for row, name in enumerate(source.ids)}
    class_of = {name.strip(): c for c, name in enumerate(source.classes)}
    lost = {name.strip() for name, _ in source.quarantine}  # of the set, but cannot be used
    found, at = np.full(len(source), -1, np.int64), {}

    def take(line: int, name: str, text: str) -> str | None:
        if name in lost:
            return None
        if name not in row_of:
            extra = name.startswith(EXTRA)
            return f"'{name}' comes from elsewhere and is unlabelled only" if extra else f"no row '{name}' in {source.name}"
        row = row_of[name]
        if row >= source.own:
            return f"'{name}' is an extra {source.sample}, and those are unlabelled only"
        if source.test[row]:
            return f"'{name}' belongs to the fixed test part of {source.name}, whose labels stay"
        if text not in class_of:
            return unknown("class", text, class_of) if text else f"'{name}' has no label"
        if at.setdefault(name, line) != line and found[row] != class_of[text]:
            return f"'{name}' is labelled '{text}' here and '{source.classes[found[row]]}' in line {at[name]}; keep one"
        found[row] = class_of[text]
        return None

    for line, fields in rows:
        fault = take(line, unguarded(fields["id"]), unguarded(fields["label"]))
        if fault:
            problems.append((f"{path.name}:{line}", fault))
    if not rows and not problems:
        problems.append((f"{path.name}:1", "has no row below its header"))
    if problems:
        raise DataError(f"{path} does not fit {source.name}; correct these lines:", problems)
    return found


def _relabelled(split: Split, label: np.ndarray, source: AnySource) -> Split:
    """The split with these labels, and its hash by the source's own test labels. Warns of classes that are left without any."""
    if len(set(label.tolist())) < len(set(split.label.tolist())):
        _warn_of_empty(source, label, source.warnings.append)
    parts = (split.labelled, label, split.weight, split.unlabelled, split.test)
    return Split(*parts, split_hash(source, *parts))
