"""Noisy labels: who is hit and by what, exactly and again; a file of labels, and its faults with their lines."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from fastssl.pipelines import label_noise, split_file, splits
from fastssl.pipelines.errors import ConfigError, DataError
from fastssl.pipelines.label_noise import alike, by_chance
from tests.pipelines.test_foundation import made

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
STL10 = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")


def asked(**options):
    return SimpleNamespace(**{"noisy_labels": None, "label_noise": 0.0, "label_noise_kind": "symmetric", "split": None, **options})


def drawn(source, **options):
    return splits.make(source, **options)


@pytest.mark.parametrize("kind", label_noise.KINDS)
def test_the_share_is_exact_nested_and_independent_of_order(kind):
    source = made(rows=1000, test=200)
    split = drawn(source)
    small, large = (by_chance(split, source, share=share, kind=kind, seed=3) for share in (0.2, 0.41))
    again = by_chance(split, source, share=0.41, kind=kind, seed=3)
    assert np.array_equal(again.label, large.label) and again.hash == large.hash != split.hash
    assert not np.array_equal(by_chance(split, source, share=0.41, kind=kind, seed=4).label, large.label)
    hit, more = small.label != split.label, large.label != split.label
    assert (small.label[hit] == large.label[hit]).all() and (more[hit]).all(), "rows at 0.2 are among those at 0.4, with the same labels"
    if kind == "symmetric":  # a quarter of four classes is the true one
        assert 0.65 < more.sum() / 328 < 0.85 and 0.6 < hit.sum() / 160 < 0.9
    else:
        assert hit.sum() == 160 and more.sum() == 328
    turned = dataclasses.replace(
        source, ids=source.ids[::-1], label=source.label[::-1], test=source.test[::-1], content=source.content[::-1], given=source.given
    )
    other = by_chance(drawn(turned), turned, share=0.41, kind=kind, seed=3)
    by_id = {turned.ids[row]: c for row, c in zip(other.labelled, other.label, strict=True)}
    assert [by_id[source.ids[row]] for row in large.labelled] == large.label.tolist() and other.hash == large.hash
    for field in ("labelled", "weight", "unlabelled", "test"):
        assert np.array_equal(getattr(large, field), getattr(split, field))


def test_what_the_kinds_draw():
    source = made(rows=4000, test=0)
    split = drawn(source)
    table = np.zeros((3, 4, 4), int)
    for k, kind in enumerate(label_noise.KINDS):
        np.add.at(table[k], (split.label, by_chance(split, source, share=1.0, kind=kind, seed=0).label), 1)
    assert (np.abs(table[0] / 1000 - 0.25) < 0.05).all(), "any class, the true one among them"
    assert (table[1].diagonal() == 0).all() and (np.abs(table[1][~np.eye(4, dtype=bool)] / 1000 - 1 / 3) < 0.05).all()
    assert np.array_equal(table[2], 1000 * np.roll(np.eye(4, dtype=int), 1, axis=1)), "the next class, the first after the last"


def test_mistakes_by_name():
    found = alike(CIFAR10)
    pairs = {CIFAR10[a]: CIFAR10[b] for a, b in enumerate(found) if a != b}
    assert pairs == {"truck": "automobile", "bird": "airplane", "deer": "horse", "cat": "dog", "dog": "cat"}
    assert {STL10[a]: STL10[b] for a, b in enumerate(alike(STL10)) if a != b} == {**pairs, "truck": "car"}
    assert alike(tuple("abc")).tolist() == [1, 2, 0]
    groups = [group.split(", ") for group in label_noise.SUPERCLASSES]
    names = tuple(sorted(name for group in groups for name in group))
    assert len(set(names)) == 100 and all(len(group) == 5 for group in groups)
    found = alike(tuple(name.replace(" ", "_") for name in names))
    group_of = {name: k for k, group in enumerate(groups) for name in group}
    assert all(group_of[names[a]] == group_of[names[b]] and a != b for a, b in enumerate(found)) and len(set(found)) == 100


def test_the_split_holds_the_noise_and_the_source_the_truth(tmp_path):
    source = made(rows=100, test=20)
    truth, notes = source.label.copy(), []
    data = asked(label_noise=0.4, label_noise_kind="other")
    split = label_noise.configured(data, source, lambda s: drawn(s, per_class=5), seed=0, note=notes.append)
    assert notes == ["noisy labels: 8 drawn anew (other, 0.4); 8 of 20 labels differ from the truth"]
    assert (source.label == truth).all() and (split.label != source.label[split.labelled]).sum() == 8
    split_file.save(split, source, tmp_path / "split.csv")
    read = splits.make(source, split_file=tmp_path / "split.csv")
    assert read.hash == split.hash and np.array_equal(read.label, split.label)
    bare = label_noise.configured(asked(), source, lambda s: drawn(s, per_class=5), seed=0, note=notes.append)
    assert len(notes) == 1 and np.array_equal(bare.label, truth[bare.labelled]) and np.array_equal(bare.labelled, split.labelled)


def test_noise_that_leaves_a_class_empty_is_told():
    source = made(rows=8, test=4, classes=("ant", "bee", "cat", "dog"))
    for seed in range(20):
        split = by_chance(drawn(source), source, share=1.0, kind="symmetric", seed=seed)
        if len(set(split.label.tolist())) < 4:
            break
    assert any("classes without a label in this split" in text for text in source.warnings)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"label_noise": 0.2, "split": "s.csv"}, "data.label_noise replaces labels, and --split says which there are"),
        ({"noisy_labels": "n.csv", "split": "s.csv"}, "data.noisy_labels replaces labels"),
        ({"noisy_labels": "n.csv", "label_noise": 0.1}, "both replace labels; keep one"),
        ({"label_noise": 1.2}, "give a share from 0 to 1"),
        ({"label_noise": 0.2, "label_noise_kind": "symetric"}, "did you mean symmetric or asymmetric"),
    ],
)
def test_what_does_not_go_together(options, match):
    with pytest.raises(ConfigError, match=match):
        label_noise.configured(asked(**options), made(), drawn, seed=0, note=print)


@pytest.fixture
def file(tmp_path):
    def write(text):
        (tmp_path / "noisy.csv").write_text(text)
        return tmp_path / "noisy.csv"

    return write


def test_labels_of_a_file_take_the_place_of_the_sets_own(file):
    source = made(rows=40, test=8)
    source.label[5] = -1  # nobody knows it but the file
    source.given[5:7] = False
    notes = []
    path = file("label,id\ndog,000.png\nbee,001.png\n cat ,005.png\ncat,005.png\ndog,006.png\n")
    split = label_noise.configured(asked(noisy_labels=str(path)), source, drawn, seed=0, note=notes.append)
    label = dict(zip(split.labelled.tolist(), split.label.tolist(), strict=True))
    assert len(label) == 32 and [label[row] for row in (0, 1, 5, 6)] == [3, 1, 2, 3]
    assert all(label[row] == source.label[row] for row in label if row not in (0, 5, 6))
    assert notes == ["noisy labels: of noisy.csv; 2 of 31 labels whose truth is known (of 32) differ from the truth"]
    few = label_noise.configured(asked(noisy_labels=str(path)), source, lambda s: drawn(s, per_class=7), seed=0, note=print)
    assert np.bincount(few.label).tolist() == [7] * 4 and few.hash == split_file.split_hash(
        source, few.labelled, few.label, few.weight, few.unlabelled, few.test
    ), "drawn by the labels that are given"


def test_lines_that_do_not_fit_are_listed_together(file):
    path = file("id,label\nx.png,dog\n000.png,dgo\n001.png,\n002.png,ant\n002.png,bee\n039.png,ant\n")
    with pytest.raises(DataError) as caught:
        label_noise.by_file(path, made(), drawn)
    text = str(caught.value)
    for part in (
        "does not fit zoo; correct these lines:",
        "noisy.csv:2: no row 'x.png' in zoo",
        "noisy.csv:3: unknown class 'dgo'; did you mean dog?",
        "noisy.csv:4: '001.png' has no label",
        "noisy.csv:6: '002.png' is labelled 'bee' here and 'ant' in line 5; keep one",
        "noisy.csv:7: '039.png' belongs to the fixed test part of zoo",
    ):
        assert part in text
    with pytest.raises(DataError, match="no row below its header"):
        label_noise.by_file(file("id,label\n"), made(), drawn)
    with pytest.raises(DataError, match="cannot read"):
        label_noise.by_file("nowhere.csv", made(), drawn)


def test_held_out_rows_are_judged_by_the_truth(file):
    source = made(rows=40, test=0)
    text = "id,label\n" + "".join(f"{name},ant\n" if i % 4 == 1 and i < 20 else "" for i, name in enumerate(source.ids))
    split, held = label_noise.by_file(file(text), source, lambda s: drawn(s, holdout=0.25))
    assert held == sum(row % 4 == 1 and row < 20 for row in split.test) > 0
    assert len(split.test) and split.hash == split_file.split_hash(
        source, split.labelled, split.label, split.weight, split.unlabelled, split.test
    )
    source.label[:] = -1
    every = "id,label\n" + "".join(f"{name},{'ab'[i % 2]}\n" for i, name in enumerate(source.ids))
    with pytest.raises(DataError, match=r"have a label in .* alone, which may be wrong .* give --test instead of --holdout"):
        label_noise.by_file(file(every), dataclasses.replace(source, classes=("a", "b")), lambda s: drawn(s, holdout=0.25))
