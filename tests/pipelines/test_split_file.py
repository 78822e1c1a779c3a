"""split.csv: written, read back to the same split and hash, and refused line by line where it does not fit."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from fastssl.pipelines import sources, splits
from fastssl.pipelines.errors import DataError


@pytest.fixture(scope="module")
def digits():
    return sources.load("digits")


def equal(a, b):
    return all(np.array_equal(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))


def test_round_trip(digits, tmp_path):
    split = splits.make(digits, per_class=3)
    split = dataclasses.replace(split, weight=np.linspace(0.1, 2, 30).astype(np.float32))
    split = dataclasses.replace(split, unlabelled=split.unlabelled[5:])
    splits.save(split, digits, tmp_path / "split.csv")
    back = splits.load(tmp_path / "split.csv", digits)
    assert back.hash != split.hash, "weights and roles are part of the identity"
    assert equal(dataclasses.replace(back, hash=split.hash), split)
    splits.save(back, digits, tmp_path / "again.csv")
    assert (tmp_path / "again.csv").read_bytes() == (tmp_path / "split.csv").read_bytes()
    assert splits.make(digits, split_file=tmp_path / "split.csv").hash == back.hash


def test_the_file_is_readable_and_sorted(digits, tmp_path):
    splits.save(splits.make(digits, per_class=1), digits, tmp_path / "split.csv")
    lines = (tmp_path / "split.csv").read_text().splitlines()
    assert lines[0] == "id,role,label,weight" and lines[1:] == sorted(lines[1:])
    assert "digits/0001,test,1," in lines and "digits/0000,unlabelled,," in lines
    assert sum(",labelled," in line and line.endswith(",1") for line in lines) == 10
    assert len(lines) == 1 + 1347 + 450 + 10


def test_the_hash_does_not_depend_on_the_order_of_lines(digits, tmp_path):
    split = splits.make(digits, per_class=1)
    splits.save(split, digits, tmp_path / "split.csv")
    head, *rest = (tmp_path / "split.csv").read_text().splitlines()
    (tmp_path / "split.csv").write_text("\n".join([head, *rest[::-1]]))
    assert equal(splits.load(tmp_path / "split.csv", digits), split)


def test_every_part_of_a_split_moves_its_hash(digits):
    split = splits.make(digits, per_class=1)
    parts = ("labelled", "label", "weight", "unlabelled", "test")

    def hashed(**changed):
        return splits.split_hash(digits, *[changed.get(part, getattr(split, part)) for part in parts])

    assert hashed() == split.hash
    changes = {
        "label": (split.label + 1) % 10,
        "weight": split.weight * 2,
        "unlabelled": split.unlabelled[1:],
        "test": split.test[1:],
        "labelled": split.labelled + 1,
    }
    assert len({hashed(**{part: value}) for part, value in changes.items()} | {split.hash}) == 6


def test_a_short_file_by_hand(digits, tmp_path):
    path = tmp_path / "split.csv"
    path.write_text("id;role;label\r\ndigits/0000;labelled;0\r\ndigits/0000;Unlabelled;\r\ndigits/0002;unlabelled;\r\n")
    split = splits.load(path, digits)
    assert split.labelled.tolist() == [0] and split.unlabelled.tolist() == [0, 2] and split.weight.tolist() == [1.0]
    assert np.array_equal(split.test, np.flatnonzero(digits.test)), "the fixed test part stays"
    assert "classes without a label" in str(heard(splits.make, digits, path))


def heard(make, source, path):
    said = []
    make(source, split_file=path, warn=said.append)
    return said


def test_faults_come_all_at_once_with_their_lines(digits, tmp_path):
    path = tmp_path / "split.csv"
    lines = [
        "id,role,label,weight",
        "digits/0000,labelled,0,1",
        "digits/9999,labelled,0,1",
        "digits/0002,labeled,2,1",
        "digits/0003,labelled,x,1",
        "digits/0004,labelled,,1",
        "digits/0005,labelled,5,much",
        "digits/0008,labelled,8,-1",
        "digits/0000,labelled,0,1",
        "digits/0001,labelled,1,1",
        "digits/0009,test,8,",
        "digits/0000,test,0,",
    ]
    path.write_text("\n".join(lines))
    with pytest.raises(DataError, match="does not fit digits; correct these lines") as caught:
        splits.load(path, digits)
    assert caught.value.problems == [
        ("split.csv:3", "no row 'digits/9999' in digits"),
        ("split.csv:4", "unknown role 'labeled'; did you mean labelled or unlabelled?"),
        ("split.csv:5", "unknown class 'x'; known: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9"),
        ("split.csv:6", "'digits/0004' is labelled and its label is blank"),
        ("split.csv:7", "weight 'much' is not a number from 0"),
        ("split.csv:8", "weight '-1' is not a number from 0"),
        ("split.csv:9", "'digits/0000' is labelled already in line 2"),
        ("split.csv:10", "'digits/0001' belongs to the fixed test part of digits"),
        ("split.csv:11", "'digits/0009' is a test row labelled '8', where digits says otherwise; leave the label blank"),
        ("split.csv:12", "'digits/0000' is test here and labelled in line 2"),
    ]


def test_a_file_without_labels_or_columns(digits, tmp_path):
    path = tmp_path / "split.csv"
    for text, what in [
        ("id,role\ndigits/0000,unlabelled\n", "names no labelled row"),
        ("id,part\ndigits/0000,labelled\n", "unknown column 'part'"),
        ("", "the file is empty"),
    ]:
        path.write_text(text)
        with pytest.raises(DataError) as caught:
            splits.load(path, digits)
        assert what in caught.value.problems[0][1]
    with pytest.raises(DataError, match="cannot read"):
        splits.load(tmp_path / "none.csv", digits)


def test_hostile_names_are_safe_in_a_spreadsheet_and_come_back(digits, tmp_path):
    ids = ["=cmd()|x", "@sum", "'quoted", "new\nline", "a,b", *digits.ids[5:]]
    classes = ("-1", "+2", "=3", *digits.classes[3:])
    source = dataclasses.replace(digits, ids=ids, classes=classes)
    split = splits.make(source, per_class=4)
    splits.save(split, source, tmp_path / "split.csv")
    assert equal(splits.load(tmp_path / "split.csv", source), split)
    import csv

    with (tmp_path / "split.csv").open(newline="") as file:
        assert not any(field.startswith(("=", "+", "-", "@")) for row in csv.reader(file) for field in row)
