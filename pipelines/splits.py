"""Who is labelled, who is not, who is test: drawn by keys, so that nothing but (seed, ids) decides.

Every candidate has a key, the hash of (seed, id), and the smallest keys are taken. The choice is therefore independent of the order
of files and of any global generator, and with one seed a larger labelled set contains every smaller one of its kind. Under "first"
(FineSSL's code) a row's key is its place in the set's order, whatever the seed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from .batch import Split
from .errors import ConfigError, DataError, unknown
from .imbalance import Imbalance
from .source import AnySource
from .split_file import load, save, split_hash

SAMPLING = ("balanced", "uniform", "first")
_SHOWN = 10

__all__ = ["SAMPLING", "load", "make", "save", "split_hash"]


def _keys(purpose: str, seed: int, names: list[str]) -> np.ndarray:
    """[n] uint64."""
    prefix = f"{purpose}\0{seed}\0".encode()
    digests = (hashlib.blake2b(prefix + name.encode("utf-8", "surrogateescape"), digest_size=8).digest() for name in names)
    return np.array([int.from_bytes(digest, "big") for digest in digests], np.uint64)


def _smallest(rows: np.ndarray, count: int, purpose: str, seed: int, source: AnySource) -> np.ndarray:
    keys = _keys(purpose, seed, [source.ids[r] for r in rows])
    return rows[np.argsort(keys, kind="stable")[:count]]


def _named(names: list[str], total: int) -> str:
    """ "12 of 100 (a, b, ...)": how many, and the first few by name."""
    return f"{len(names)} of {total} ({', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''})"


def _at_least_half(value: float) -> int:
    return int(np.floor(value + 0.5))


def _wanted(
    source: AnySource, have: np.ndarray, per_class: int | None, fraction: float | None, total: int | None, seed: int | None
) -> np.ndarray:
    """[C] labels to take of each class; `have` [C] counts the candidates. No seed: the first classes take the remainder of a total."""
    classes = len(source.classes)
    if per_class is not None:
        if per_class < 1:
            raise ConfigError(f"--labels-per-class {per_class}: ask for at least one label a class")
        return np.full(classes, per_class)
    if fraction is not None:
        if not 0 < fraction <= 1:
            raise ConfigError(f"--label-fraction {fraction} is out of range; give a share above 0 and at most 1")
        return np.array([max(1, _at_least_half(fraction * n)) for n in have])
    if total is not None:
        if total < classes:
            raise ConfigError(
                f"--labels-total {total} is fewer than the {classes} classes of {source.name}; ask for at least {classes}, "
                "or take --sampling uniform"
            )
        # The remainder goes to classes in a keyed order, so that one label more only ever adds one.
        order = np.arange(classes) if seed is None else np.argsort(_keys("remainder", seed, list(source.classes)))
        first = np.argsort(order)
        return total // classes + (first < total % classes)
    return have


def _per_class(source: AnySource, rows: np.ndarray, wanted: np.ndarray, purpose: str, seed: int | None) -> np.ndarray:
    """`wanted` rows of each class, sorted: those of the smallest keys, or the first ones where there is no seed."""
    of = [rows[source.label[rows] == c] for c in range(len(wanted))]
    if seed is None:
        taken = [some[: int(n)] for some, n in zip(of, wanted, strict=True)]
    else:
        taken = [_smallest(some, int(n), purpose, seed, source) for some, n in zip(of, wanted, strict=True)]
    return np.sort(np.concatenate(taken))


def _check_enough(source: AnySource, have: np.ndarray, wanted: np.ndarray) -> None:
    empty = [source.classes[c] for c in np.flatnonzero(have == 0)]
    if empty:
        raise DataError(
            f"classes of {source.name} without a labelled {source.sample}: {_named(empty, len(source.classes))}; label some, or leave the "
            "class out"
        )
    short = np.flatnonzero(wanted > have)
    if len(short):
        problems = [(source.classes[c], f"{wanted[c]} asked for, {have[c]} there") for c in short]
        raise DataError(
            f"more labels asked for than {source.name} has: {wanted.sum()} asked for, {have.sum()} there, "
            f"{have.min()} in the smallest class; ask for fewer:",
            problems,
        )


def _held_out(source: AnySource, candidates: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Rows kept back as the test part: `share` of each class's labelled rows, at least one, leaving at least one."""
    have = np.bincount(source.label[candidates], minlength=len(source.classes))
    wanted = np.array([min(max(1, _at_least_half(share * n)), max(n - 1, 0)) for n in have])
    if not wanted.sum():
        raise DataError(f"--holdout {share} finds no class of {source.name} with two labelled {source.samples}; label more, or give --test")
    return _per_class(source, candidates, wanted, "holdout", seed)


def _check_leaks(source: AnySource, labelled: np.ndarray, unlabelled: np.ndarray, test: np.ndarray, warn: Callable[[str], None]) -> None:
    """Copies of test samples: an error among the labelled (a warning where the parts are a benchmark's), a warning among the unlabelled."""
    tested = {int(source.content[r]): source.ids[r] for r in test}
    leaks = [
        (source.ids[r], f"is a copy of test {source.sample} {tested[int(source.content[r])]}")
        for r in labelled
        if int(source.content[r]) in tested
    ]
    if leaks and not source.published:
        raise DataError(
            f"labelled {source.samples} of {source.name} that are also in its test part: {len(leaks)}; remove one of each pair:", leaks
        )
    if leaks:
        named = _named([name for name, _ in leaks], len(labelled))
        warn(f"copies of test {source.samples} among the labelled, as {source.name} was published: {named}; accuracy may flatter")
    copies = unlabelled[np.isin(source.content[unlabelled], source.content[test])]
    if len(copies):
        named = _named([source.ids[r] for r in copies], len(unlabelled))
        warn(f"copies of test {source.samples} among the unlabelled: {named}; accuracy may flatter")


def make(
    source: AnySource,
    *,
    per_class: int | None = None,
    fraction: float | None = None,
    total: int | None = None,
    sampling: str = "balanced",
    seed: int = 0,
    split_file: str | Path | None = None,
    holdout: float | None = None,
    imbalance: Imbalance | None = None,
    warn: Callable[[str], None] | None = None,
) -> Split:
    """Chooses the labelled rows. At most one of `per_class`, `fraction`, `total`, `split_file`; with none, every label there is.

    Args:
        per_class: labels of each class.
        fraction: share of each class's labels, in (0, 1], rounded, at least one.
        total: labels in all: shared equally between classes under `balanced` and `first`, drawn from all alike under `uniform`.
        sampling: "balanced"; "uniform", which may leave a class empty, with a warning; or "first", FineSSL's own: the first rows of each
            class in the set's order, the same for every seed.
        seed: of the choice.
        split_file: a CSV as `save` writes it.
        holdout: share of each class's labelled rows that becomes the test part, in (0, 1); they are in no other part.
        imbalance: long-tailed profiles: of the labelled rows, `per_class` being the head class's number, and of the unlabelled ones.
        warn: receives sentences for the user; appended to `source.warnings` if None.

    Returns:
        a Split whose rows are sorted; unlabelled rows are all that are not test, the labelled ones among them. With `imbalance` the
        labelled ones are not, and of the others each class gives those of the next keys, as many as the profile asks for.

    Raises:
        ConfigError: two selectors at once, or a value out of range.
        DataError: a class without a label, more labels than there are, a test sample among the labelled, a split file that does not fit.
    """
    warn = warn or source.warnings.append
    asked = {"--labels-per-class": per_class, "--label-fraction": fraction, "--labels-total": total, "--split": split_file}
    asked = [flag for flag, value in asked.items() if value is not None]
    if len(asked) > 1:
        raise ConfigError(f"{' and '.join(asked)} both say who is labelled; keep one")
    if sampling not in SAMPLING:
        raise ConfigError(unknown("sampling", sampling, SAMPLING))
    if sampling == "uniform" and total is None:
        raise ConfigError("--sampling uniform needs --labels-total N")
    if holdout is not None and not 0 < holdout < 1:
        raise ConfigError(f"--holdout {holdout} is out of range; give a share between 0 and 1")
    if holdout is not None and (split_file is not None or source.test.any()):
        other = "--split says which rows are test" if split_file is not None else f"{source.name} has a test part"
        raise ConfigError(f"{other}; leave out --holdout")
    imbalance = imbalance or Imbalance()
    imbalance.check(per_class, split_file)
    if split_file is not None:
        split = with_extra(load(split_file, source), source, warn)
        _warn_of_empty(source, split.label, warn)
        _check_leaks(source, split.labelled, split.unlabelled, split.test, warn)
        return split

    test = source.test.copy()
    candidates = np.flatnonzero(source.given & (source.label >= 0) & ~source.test)
    out = np.zeros(len(source), np.bool_)
    if holdout is not None:
        test[_held_out(source, candidates, holdout, seed)] = True
        out = ~test & np.isin(source.content, source.content[test])
        if out.any():
            warn(f"copies of held-out {source.samples}, left out of training: {int(out.sum())}")
    candidates = candidates[~(test | out)[candidates]]
    have = np.bincount(source.label[candidates], minlength=len(source.classes))
    key = None if sampling == "first" else seed
    if sampling == "uniform":
        if total < 1 or total > len(candidates):
            kind = DataError if total > len(candidates) else ConfigError
            raise kind(f"--labels-total {total}: {source.name} has {len(candidates)} labels; ask for 1 to {len(candidates)}")
        labelled = np.sort(_smallest(candidates, total, "label", seed, source))
    else:
        wanted = _wanted(source, have, per_class, fraction, total, key)
        if imbalance.labelled is not None:
            wanted = imbalance.of_labelled(per_class, source.classes)
        _check_enough(source, have, wanted)
        labelled = _per_class(source, candidates, wanted, "label", key)
    label = source.label[labelled]
    _warn_of_empty(source, label, warn)
    unlabelled, tested = np.flatnonzero(~(test | out)), np.flatnonzero(test)
    if imbalance:
        unlabelled = np.setdiff1d(unlabelled, labelled)
        if imbalance.head_unlabelled is not None:  # a profile of the set's own; what comes from elsewhere has no class
            own, extra = unlabelled[unlabelled < source.own], unlabelled[unlabelled >= source.own]
            own = _per_class(source, own, imbalance.of_unlabelled(source, own, labelled), "label", key)
            unlabelled = np.concatenate([own, extra])
    _check_leaks(source, labelled, unlabelled, tested, warn)
    weight = np.ones(len(labelled), np.float32)
    return Split(labelled, label, weight, unlabelled, tested, split_hash(source, labelled, label, weight, unlabelled, tested))


def with_extra(split: Split, source: AnySource, warn: Callable[[str], None]) -> Split:
    """A split whose file names no sample from elsewhere, with all of them among the unlabelled ones: the file was made without them."""
    if not source.extra or (split.unlabelled >= source.own).any():
        return split
    warn(f"the split file names no extra {source.sample}; all {source.extra} are taken as unlabelled")
    unlabelled = np.concatenate([split.unlabelled, np.arange(source.own, len(source))])
    found = split_hash(source, split.labelled, split.label, split.weight, unlabelled, split.test)
    return Split(split.labelled, split.label, split.weight, unlabelled, split.test, found)


def _warn_of_empty(source: AnySource, label: np.ndarray, warn: Callable[[str], None]) -> None:
    empty = [name for c, name in enumerate(source.classes) if c not in set(label.tolist())]
    if empty:
        warn(f"classes without a label in this split: {_named(empty, len(source.classes))}")
