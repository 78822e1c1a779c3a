"""Who is labelled: nested, keyed, independent of order and of global generators; saved and read back."""

from __future__ import annotations

import dataclasses
import random

import numpy as np
import pytest
import torch

from fastssl.pipelines import sources, splits
from fastssl.pipelines.errors import ConfigError, DataError
from fastssl.pipelines.source import Source


@pytest.fixture(scope="module")
def digits():
    return sources.load("digits")


def made(counts=(30, 20, 10), unlabelled=15, test=6):
    """A source of 1-pixel images: `counts` labelled candidates a class, then unlabelled, then test rows."""
    label = np.concatenate([np.repeat(np.arange(len(counts)), counts), np.full(unlabelled, -1), np.arange(test) % len(counts)])
    n = len(label)
    is_test = np.arange(n) >= n - test
    return Source(
        name="made",
        classes=tuple("abcdefgh"[: len(counts)]),
        ids=[f"r{i:03d}" for i in range(n)],
        label=label.astype(np.int64),
        given=(label >= 0) & ~is_test,
        test=is_test,
        images=np.zeros((n, 3, 1, 1), np.uint8),
        content=np.arange(1, n + 1, dtype=np.uint64),
        flip=True,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
    )


def ids(source, rows):
    return {source.ids[r] for r in rows}


def test_balanced_per_class(digits):
    split = splits.make(digits, per_class=4)
    assert np.bincount(split.label).tolist() == [4] * 10 and np.array_equal(split.label, digits.label[split.labelled])
    assert np.array_equal(split.test, np.flatnonzero(digits.test)) and np.array_equal(split.unlabelled, np.flatnonzero(~digits.test))
    assert set(split.labelled) <= set(split.unlabelled) and (np.diff(split.labelled) > 0).all()
    assert split.weight.dtype == np.float32 and (split.weight == 1).all() and len(split.hash) == 16


def test_the_choice_is_pinned(digits):
    """Numbers in the README are means over these very splits."""
    assert splits.make(digits, per_class=4, seed=0).hash == "e1ebe4dcdcf34407"


@pytest.mark.parametrize("kind", ["per_class", "total", "uniform", "fraction"])
def test_more_labels_contain_the_fewer(digits, kind):
    steps = {"per_class": [1, 2, 4, 25, 100], "total": range(10, 40), "uniform": [1, 2, 5, 40, 300], "fraction": [0.01, 0.05, 0.3, 1.0]}[
        kind
    ]
    before: set[int] = set()
    for step in steps:
        options = {"total": step, "sampling": "uniform"} if kind == "uniform" else {kind: step}
        rows = set(splits.make(digits, **options, warn=lambda _: None).labelled.tolist())
        assert before < rows
        before = rows


def test_totals(digits):
    split = splits.make(digits, total=47)
    counts = np.bincount(split.label, minlength=10)
    assert counts.sum() == 47 and set(counts) == {4, 5}
    assert len(splits.make(digits, total=40, sampling="uniform").labelled) == 40
    assert np.array_equal(splits.make(digits, total=40).labelled, splits.make(digits, per_class=4).labelled)


def test_fraction_takes_a_share_of_each_class():
    source = made((100, 51, 4))
    assert np.bincount(splits.make(source, fraction=0.1).label).tolist() == [10, 5, 1]
    assert len(splits.make(source, fraction=1.0).labelled) == 155


def test_nothing_asked_takes_every_label():
    source = made()
    split = splits.make(source)
    assert np.array_equal(split.labelled, np.flatnonzero(source.given)) and len(split.unlabelled) == 75 and len(split.test) == 6


def test_known_labels_that_are_not_given_stay_hidden():
    source = made()
    source.given[:25] = False
    assert ids(source, splits.make(source).labelled) == {f"r{i:03d}" for i in range(25, 60)}
    with pytest.raises(DataError, match="more labels asked for") as caught:
        splits.make(source, per_class=6)
    assert caught.value.problems == [("a", "6 asked for, 5 there")]


def test_seeds_differ_and_each_row_is_as_likely():
    source = made((20, 20), test=0)
    chosen = np.zeros(40)
    for seed in range(600):
        chosen[splits.make(source, per_class=5, seed=seed).labelled] += 1
    assert abs(chosen.mean() - 150) < 1e-9 and chosen.min() > 105 and chosen.max() < 200


def test_the_order_of_rows_does_not_decide(digits):
    """Rows in another order, as another file system might list them: the same ids are chosen, and the hash is the same."""
    order = np.random.default_rng(0).permutation(len(digits))
    arrays = {name: getattr(digits, name)[order] for name in ("label", "given", "test", "images", "content")}
    other = dataclasses.replace(digits, ids=[digits.ids[i] for i in order], **arrays)
    for options in ({"per_class": 4}, {"total": 33}, {"total": 33, "sampling": "uniform"}, {"fraction": 0.07}):
        a, b = splits.make(digits, **options), splits.make(other, **options)
        assert ids(digits, a.labelled) == ids(other, b.labelled) and a.hash == b.hash


def test_no_global_generator_is_read_or_moved(digits):
    def state():
        return torch.random.get_rng_state().numpy().tobytes(), str(np.random.get_state()), random.getstate()

    torch.manual_seed(1)
    first, before = splits.make(digits, per_class=2), state()
    again = splits.make(digits, per_class=2)
    assert state() == before
    torch.manual_seed(2)
    np.random.seed(3)
    assert first.hash == again.hash == splits.make(digits, per_class=2).hash


def test_holdout():
    source = made((30, 20, 2), test=0)
    split = splits.make(source, holdout=0.2)
    assert np.bincount(source.label[split.test]).tolist() == [6, 4, 1]
    parts = [ids(source, split.labelled), ids(source, split.test)]
    assert not parts[0] & parts[1] and not ids(source, split.unlabelled) & parts[1] and len(parts[0]) == 41
    assert not ids(source, splits.make(source, per_class=1, holdout=0.2).labelled) & parts[1], "the same rows for any number of labels"
    assert ids(source, splits.make(source, per_class=1, holdout=0.2).test) == parts[1]


def test_copies_of_held_out_images_leave_training():
    source = made((30, 20), unlabelled=4, test=0)
    source.content[:25] = 7  # 25 copies of one image, of which some are held out
    split = splits.make(source, holdout=0.5)
    held = int((source.content[split.test] == 7).sum())
    assert 0 < held < 15 and source.warnings == [f"copies of held-out images, left out of training: {25 - held}"]
    trained = set(source.content[split.unlabelled]) | set(source.content[split.labelled])
    assert not trained & set(source.content[split.test])


def test_uniform_may_leave_a_class_empty_with_a_warning():
    source = made((50, 1, 1))
    split = splits.make(source, total=2, sampling="uniform")
    assert len(split.labelled) == 2
    assert len(source.warnings) == 1 and source.warnings[0].startswith("classes without a label in this split: ")
    heard = []
    splits.make(source, total=2, sampling="uniform", warn=heard.append)
    assert len(heard) == 1 and len(source.warnings) == 1


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"per_class": 4, "total": 8}, ConfigError, "--labels-per-class and --labels-total both say who is labelled; keep one"),
        ({"fraction": 0.5, "split_file": "x.csv"}, ConfigError, "--label-fraction and --split both say"),
        ({"per_class": 0}, ConfigError, "ask for at least one label a class"),
        ({"fraction": 0.0}, ConfigError, "--label-fraction 0.0 is out of range"),
        ({"fraction": 1.1}, ConfigError, "--label-fraction 1.1 is out of range"),
        ({"total": 2}, ConfigError, "--labels-total 2 is fewer than the 3 classes of made; ask for at least 3, or take --sampling uniform"),
        ({"total": 0, "sampling": "uniform"}, ConfigError, "--labels-total 0: made has 60 labels; ask for 1 to 60"),
        ({"total": 61, "sampling": "uniform"}, DataError, "--labels-total 61: made has 60 labels"),
        ({"sampling": "unifrom", "total": 9}, ConfigError, "unknown sampling 'unifrom'; did you mean uniform"),
        ({"sampling": "uniform", "per_class": 1}, ConfigError, "--sampling uniform needs --labels-total"),
        ({"holdout": 0.0}, ConfigError, "--holdout 0.0 is out of range"),
        ({"holdout": 1.0}, ConfigError, "--holdout 1.0 is out of range"),
        ({"holdout": 0.5}, ConfigError, "made has a test part; leave out --holdout"),
        ({"split_file": "x.csv", "holdout": 0.5}, ConfigError, "--split says which rows are test; leave out --holdout"),
        ({"per_class": 11}, DataError, "more labels asked for than made has: 33 asked for, 60 there, 10 in the smallest class"),
    ],
)
def test_refused(options, kind, message):
    with pytest.raises(kind, match=message):
        splits.make(made(), **options)


def test_more_labels_than_there_are_names_each_class():
    with pytest.raises(DataError) as caught:
        splits.make(made(), per_class=25)
    assert caught.value.problems == [("b", "25 asked for, 20 there"), ("c", "25 asked for, 10 there")]


@pytest.mark.parametrize("options", [{}, {"per_class": 1}, {"fraction": 0.5}, {"total": 4}])
def test_a_class_without_a_label(options):
    source = made((5, 0, 5))
    with pytest.raises(DataError, match=r"classes of made without a labelled image: 1 of 3 \(b\); label some, or leave the class out"):
        splits.make(source, **options)


def test_a_class_folder_without_a_readable_image(folder, digit_files):
    source = sources.load(folder({**digit_files, "4/broken.jpg": b""}), max_bad=0.1)
    assert source.classes == ("0", "1", "2", "3", "4")
    with pytest.raises(DataError, match=r"without a labelled image: 1 of 5 \(4\)"):
        splits.make(source)


def test_holdout_needs_a_class_with_two_labels():
    with pytest.raises(DataError, match="finds no class of made with two labelled images"):
        splits.make(made((1, 1), test=0), holdout=0.5)


def test_copies_of_test_images(folder, digit_files):
    first, second = sorted(digit_files)[0], sorted(digit_files)[20]
    held = folder({"0/x.jpg": digit_files[first], "1/y.jpg": digit_files[second]}, root="held")
    source = sources.load(folder(), test=held)
    with pytest.raises(DataError, match="labelled images of data that are also in its test part: 2; remove one") as caught:
        splits.make(source)
    assert caught.value.problems == [(first, "is a copy of test image test:0/x.jpg"), (second, "is a copy of test image test:1/y.jpg")]
    source.given[[source.ids.index(first), source.ids.index(second)]] = False
    splits.make(source)
    assert source.warnings == [f"copies of test images among the unlabelled: 2 of 48 ({first}, {second}); accuracy may flatter"]


def test_first_takes_the_first_of_each_class_for_every_seed():
    """FineSSL's code: idxs[:n] of each class in file order."""
    source = made((30, 20, 10))
    wanted = [*range(4), *range(30, 34), *range(50, 54)]
    for seed in (0, 1, 17):
        assert splits.make(source, per_class=4, sampling="first", seed=seed).labelled.tolist() == wanted
    assert splits.make(source, total=12, sampling="first", seed=5).labelled.tolist() == wanted
    assert splits.make(source, total=14, sampling="first", seed=5).labelled.tolist() == [*range(5), *range(30, 35), *range(50, 54)]
    assert splits.make(source, fraction=0.1, sampling="first").labelled.tolist() == [0, 1, 2, 30, 31, 50]
    assert len(splits.make(source, sampling="first").labelled) == 60
    drawn = splits.make(source, per_class=4)
    assert drawn.labelled.tolist() != wanted and np.array_equal(
        drawn.unlabelled, splits.make(source, per_class=4, sampling="first").unlabelled
    )


def test_first_passes_over_what_may_not_be_labelled():
    source = made((5, 5))
    source.given[[0, 5]] = False
    assert splits.make(source, per_class=2, sampling="first").labelled.tolist() == [1, 2, 6, 7]
    with pytest.raises(DataError, match="more labels asked for"):
        splits.make(source, per_class=5, sampling="first")
