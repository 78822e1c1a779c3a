"""Long-tailed splits: the published counts, who is taken, what is refused, and a run that keeps its split."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import yaml

from fastssl.cli import main
from fastssl.pipelines import sources, splits
from fastssl.pipelines.errors import ConfigError, DataError
from fastssl.pipelines.imbalance import Imbalance, geometric
from fastssl.pipelines.source import Source


@pytest.fixture(scope="module")
def digits():
    return sources.load("digits")


def made(counts, unknown=0, test=6):
    """A source of 1-pixel images: `counts` candidates a class, shuffled, then rows of unknown class, then test rows."""
    known = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    label = np.concatenate([known, np.full(unknown, -1), np.arange(test) % len(counts)])
    n = len(label)
    is_test = np.arange(n) >= n - test
    return Source(
        name="made",
        classes=tuple(f"c{i}" for i in range(len(counts))),
        ids=[f"r{i:06d}" for i in range(n)],
        label=label.astype(np.int64),
        given=(label >= 0) & ~is_test,
        test=is_test,
        images=np.zeros((n, 3, 1, 1), np.uint8),
        content=np.arange(1, n + 1, dtype=np.uint64),
        flip=True,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
    )


def per_class(source, rows):
    return np.bincount(source.label[rows], minlength=len(source.classes)).tolist()


@pytest.mark.parametrize(
    ("head", "gamma", "classes", "total"),
    [
        (1500, 100, 10, 3720),
        (3000, 100, 10, 7443),
        (1500, 150, 10, 3496),
        (3000, 150, 10, 6996),
        (150, 10, 100, 5835),
        (300, 10, 100, 11720),
    ],
)
def test_totals_are_the_published_ones(head, gamma, classes, total):
    assert geometric(head, gamma, classes).sum() == geometric(head, -gamma, classes).sum() == total


def test_counts_are_the_published_ones():
    head = [1500, 899, 539, 323, 193, 116, 69, 41, 25, 15]
    assert geometric(1500, 100, 10).tolist() == head and geometric(1500, -100, 10).tolist() == head[::-1]
    assert geometric(3000, 100, 10).tolist() == [3000, 1798, 1078, 646, 387, 232, 139, 83, 50, 30]
    assert geometric(7, 1, 4).tolist() == [7] * 4 and geometric(7, 3, 1).tolist() == [7] and geometric(9, 3, 2).tolist() == [9, 3]
    # A power a hair below 1 / 5: alone it would leave the last class one short.
    assert int(20 * ((1 / 5) ** (1 / 2)) ** 2) == 3 and geometric(20, 5, 3).tolist() == [20, 8, 4]


def test_a_benchmark_cell():
    """CIFAR-10's (1500, 3000), 100 against reversed 100, on as many rows."""
    source = made([5000] * 10, test=20)
    split = splits.make(source, per_class=1500, imbalance=Imbalance(100, -100, 3000))
    assert per_class(source, split.labelled) == geometric(1500, 100, 10).tolist() and (len(split.labelled), len(split.unlabelled)) == (
        3720,
        7443,
    )
    assert per_class(source, split.unlabelled) == geometric(3000, 100, 10).tolist()[::-1]
    assert not set(split.labelled) & set(split.unlabelled) and not source.test[split.unlabelled].any() and len(split.test) == 20
    assert np.array_equal(split.label, source.label[split.labelled]) and (np.diff(split.unlabelled) > 0).all()


def test_the_keys_are_those_of_every_split(digits):
    """A profile takes the first of each class of the balanced split, and the unlabelled are the next: no row is skipped."""
    long = splits.make(digits, per_class=40, imbalance=Imbalance(10, 4, 60), seed=3)
    assert set(long.labelled) < set(splits.make(digits, per_class=40, seed=3).labelled)
    for c, (n, m) in enumerate(zip(geometric(40, 10, 10), geometric(60, 4, 10), strict=True)):
        both = np.concatenate([long.labelled, long.unlabelled])
        together = splits.make(digits, per_class=int(n + m), seed=3).labelled
        assert set(both[digits.label[both] == c]) == set(together[digits.label[together] == c])
    assert splits.make(digits, per_class=40, imbalance=Imbalance(10, 4, 60), seed=4).hash != long.hash
    flat = splits.make(digits, per_class=4, imbalance=Imbalance(1))
    assert np.array_equal(flat.labelled, splits.make(digits, per_class=4).labelled)


def test_first_sampling_takes_the_first_and_the_next():
    source = made([30, 30, 30])
    split = splits.make(source, per_class=8, sampling="first", imbalance=Imbalance(4, 1, 10))
    for c, n in enumerate((8, 4, 2)):
        rows = np.flatnonzero((source.label == c) & ~source.test)
        assert split.labelled[split.label == c].tolist() == rows[:n].tolist()
        assert split.unlabelled[source.label[split.unlabelled] == c].tolist() == rows[n : n + 10].tolist()


def test_without_an_unlabelled_profile_all_others_are_unlabelled():
    source = made([30, 30, 30], unknown=7)
    split = splits.make(source, per_class=10, imbalance=Imbalance(5))
    assert per_class(source, split.labelled) == [10, 4, 2]
    everyone = np.sort(np.concatenate([split.labelled, split.unlabelled]))
    assert np.array_equal(everyone, np.flatnonzero(~source.test)), "rows of unknown class too"


@pytest.mark.parametrize("options", [{"per_class": 5}, {"total": 12}, {"total": 12, "sampling": "uniform"}, {"fraction": 0.2}])
def test_unlabelled_rows_alone_may_be_long_tailed(options):
    source = made([30, 30, 30])
    split = splits.make(source, imbalance=Imbalance(None, 4, 12), **options)
    assert per_class(source, split.unlabelled) == [12, 6, 3] and not set(split.labelled) & set(split.unlabelled)
    assert np.array_equal(split.labelled, splits.make(source, **options).labelled)


def test_held_out_rows_are_in_neither():
    source = made([40, 40, 40], test=0)
    split = splits.make(source, per_class=10, holdout=0.25, imbalance=Imbalance(2, 2, 20))
    assert per_class(source, split.test) == [10, 10, 10] and per_class(source, split.unlabelled) == [20, 14, 10]
    assert not set(split.test) & (set(split.labelled) | set(split.unlabelled))


def test_rows_in_no_role_survive_the_file(tmp_path, digits):
    split = splits.make(digits, per_class=40, imbalance=Imbalance(10, -4, 60))
    splits.save(split, digits, tmp_path / "split.csv")
    back = splits.make(digits, split_file=tmp_path / "split.csv")
    assert back.hash == split.hash and len(split.labelled) + len(split.unlabelled) + len(split.test) < len(digits)
    for part in ("labelled", "label", "unlabelled", "test"):
        assert np.array_equal(getattr(back, part), getattr(split, part))


@pytest.mark.parametrize(
    ("options", "profile", "said"),
    [
        ({"per_class": 4}, Imbalance(10), "data.imbalance 10 leaves 4 of 10 classes without labels, as the largest has 4"),
        ({"per_class": 20}, Imbalance(10, -100, 50), "data.imbalance_unlabelled -100 leaves 2 of 10 classes without unlabelled samples"),
        ({"per_class": 20}, Imbalance(0.5), "at least 1"),
        ({"per_class": 20}, Imbalance(float("nan")), "at least 1"),
        ({"per_class": 0}, Imbalance(2), "--labels-per-class 0"),
        ({"total": 40}, Imbalance(10), "needs --labels-per-class N"),
        ({}, Imbalance(10), "needs --labels-per-class N"),
        ({"per_class": 20}, Imbalance(10, 0.5, 30), "from 1, or its negative"),
        ({"per_class": 20}, Imbalance(10, 5), "add --set data.head_unlabelled=M"),
        ({"per_class": 20}, Imbalance(10, None, 30), "add --set data.imbalance_unlabelled=G"),
        ({"per_class": 20}, Imbalance(10, 5, 0), "at least one sample"),
        ({"split_file": "split.csv"}, Imbalance(None, 5, 30), "leave out data.imbalance_unlabelled, data.head_unlabelled"),
    ],
)
def test_profiles_that_do_not_fit(digits, options, profile, said):
    with pytest.raises(ConfigError, match=said.replace("(", r"\(")) as error:
        splits.make(digits, imbalance=profile, **options)
    assert "\n" not in str(error.value)


def test_too_few_rows_are_named_by_class():
    source = made([30, 12, 30])
    with pytest.raises(DataError) as error:
        splits.make(source, per_class=8, imbalance=Imbalance(2, 1, 10))
    assert error.value.problems == [("c1", "5 labelled and 10 unlabelled asked for, 12 there")]
    with pytest.raises(DataError, match="c0: 31 asked for, 30 there"):
        splits.make(source, per_class=31, imbalance=Imbalance(10))


def test_rows_of_unknown_class_cannot_be_profiled():
    with pytest.raises(DataError, match=r"7 of made have none that is known \(r000090, .*leave out data.imbalance_unlabelled"):
        splits.make(made([30, 30, 30], unknown=7), per_class=8, imbalance=Imbalance(2, 2, 10))
    # A class that is known and not given to training picks and is not learned from.
    source = made([30, 30, 30])
    hidden = dataclasses.replace(source, given=source.given & (np.arange(len(source)) % 2 == 0))
    split = splits.make(hidden, per_class=4, imbalance=Imbalance(2, 2, 20))
    assert hidden.given[split.labelled].all() and per_class(hidden, split.unlabelled) == [20, 14, 10]


def test_a_run_draws_the_profile_keeps_it_and_tells_of_thirds(tmp_path, capsys):
    run = tmp_path / "run"
    tail = ["--set", "data.imbalance=10", "--set", "data.imbalance_unlabelled=-5", "--set", "data.head_unlabelled=50"]
    words = ["train", "--method", "fixmatch", "--labels-per-class", "20", "--steps", "3", "--quiet", "--json", *tail]
    small = ["--batch-size", "4", "--ratio", "1", "--set", "train.save_every=2", "--set", "train.stop_at=2"]
    assert main([*words, *small, "--out", str(run)]) == 0
    first = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert first["labels"] == geometric(20, 10, 10).sum() and yaml.safe_load((run / "config.yaml").read_text())["data"]["imbalance"] == 10
    before = (run / "split.csv").read_bytes()
    assert main(["train", "--resume", str(run), "--quiet", "--json"]) == 0
    second = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert second["steps"] == 3 and second["split_hash"] == first["split_hash"] and (run / "split.csv").read_bytes() == before
    assert main(["eval", str(run)]) == 0
    assert {"balanced accuracy", "geometric mean", "  many labels", "  few labels"} <= {
        line.rpartition("  ")[0] for line in capsys.readouterr().out.splitlines()
    }
    assert main(["train", "--resume", str(run), "--set", "data.imbalance=5"]) == 2
    assert "data.imbalance: 10.0 -> 5.0" in capsys.readouterr().err
    assert main(["train", "--method", "fixmatch", "--split", str(run / "split.csv"), *tail, "--out", str(tmp_path / "b")]) == 2
    assert "--split says who takes part" in capsys.readouterr().err and not (tmp_path / "b").exists()
