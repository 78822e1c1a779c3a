"""labels.csv against the disk: what it means, and every fault at once with its line."""

from __future__ import annotations

import numpy as np
import pytest

from fastssl.pipelines import sources
from fastssl.pipelines.errors import DataError


@pytest.fixture()
def flat(folder, digit_files):
    """The digit files in folders that are no classes, and a function that writes labels.csv."""
    names = sorted(digit_files)
    data = folder({f"day{i % 2}/{n.replace('/', '-')}": digit_files[n] for i, n in enumerate(names)})

    def write(text, name="labels.csv"):
        path = data.parent / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return data, write


def some(data, count):
    return sorted(p.relative_to(data).as_posix() for p in data.rglob("*.jpg"))[:count]


def test_named_images_are_labelled_and_all_others_are_not(flat):
    data, write = flat
    a, b, c, d = some(data, 4)
    source = sources.load(data, labels=write(f"path,label\n{a},cat\n{b},ant\n./{c},cat\n{data.resolve() / d},\n"))
    assert source.classes == ("ant", "cat") and len(source) == 48
    assert [source.label[source.ids.index(n)] for n in (a, b, c, d)] == [1, 0, 1, -1]
    assert (source.label >= 0).sum() == 3 and np.array_equal(source.given, source.label >= 0)


def test_windows_paths_and_files_of_other_suffix(flat, digit_files):
    data, write = flat
    a, b = some(data, 2)
    (data / "raw").write_bytes(next(iter(digit_files.values())))
    source = sources.load(data, labels=write("path;label\r\n" + a.replace("/", "\\") + ";x\r\n" + b + ";y\r\nraw;y\r\n"))
    assert len(source) == 49 and source.given.sum() == 3


def test_class_folders_keep_the_other_labels_hidden(folder, tmp_path, digit_files):
    data, names = folder(), sorted(digit_files)
    table = tmp_path / "labels.csv"
    table.write_text("path,label\n" + "".join(f"{n},{n[0]}\n" for n in names[::6]))
    source = sources.load(data, labels=table)
    assert source.classes == ("0", "1", "2", "3")
    assert [n for n, g in zip(source.ids, source.given, strict=True) if g] == names[::6]
    assert (source.label >= 0).all(), "known for measuring, not given for training"


def test_faults_come_all_at_once_with_their_lines(flat):
    data, write = flat
    a, b, c = some(data, 3)
    outside = write("not for training", "outside.jpg")
    (data / "out.jpg").symlink_to(outside)
    lines = [
        "path,label",
        f"{a},cat",
        "gone.jpg,cat",
        f"{a},dog",
        "../outside.jpg,dog",
        f"{outside},dog",
        f"{b},dog",
        "out.jpg,cat",
        ",cat",
        f"{c}",
    ]
    with pytest.raises(DataError) as caught:
        sources.load(data, labels=write("\n".join(lines)))
    places = dict(caught.value.problems)
    assert list(places) == [f"labels.csv:{n}" for n in (3, 4, 5, 6, 8, 9, 10)]
    assert places["labels.csv:3"] == f"no file 'gone.jpg' in {data}; paths are relative to that folder"
    assert places["labels.csv:4"] == f"'{a}' is labelled 'dog' here and 'cat' in line 2; keep one"
    assert "leaves the data folder" in places["labels.csv:5"] and "lies outside the data folder" in places["labels.csv:6"]
    assert "is a link that leaves" in places["labels.csv:8"] and places["labels.csv:9"] == "the path is blank"
    assert "labels.csv:3: no file 'gone.jpg'" in str(caught.value) and caught.value.exit_code == 3


def test_the_message_stops_at_twenty(flat):
    data, write = flat
    with pytest.raises(DataError) as caught:
        sources.load(data, labels=write("path,label\n" + "".join(f"{i}.jpg,x\n" for i in range(30))))
    assert len(caught.value.problems) == 30 and str(caught.value).endswith("... and 10 more")
    assert str(caught.value).count("no file") == 20


@pytest.mark.parametrize(
    ("text", "place", "what"),
    [
        ("path,label\n", "labels.csv:1", "has no row below its header"),
        ("", "labels.csv:1", "the file is empty"),
        ("path,klass\nA,x\n", "labels.csv:1", "unknown column 'klass'; known: label, path"),
        ("path\nA\n", "labels.csv:1", "column 'label' is missing"),
        ("path,label\nA,\n", "labels.csv:1", "no row has a label"),
    ],
)
def test_files_that_say_nothing(flat, text, place, what):
    data, write = flat
    with pytest.raises(DataError) as caught:
        sources.load(data, labels=write(text.replace("A", some(data, 1)[0])))
    assert caught.value.problems[0][0] == place and what in caught.value.problems[0][1]


def test_not_utf8(flat):
    data, write = flat
    with pytest.raises(DataError, match="is not UTF-8 text") as caught:
        sources.load(data, labels=write("path,label\nx,é\n".encode("latin-1")))
    assert caught.value.problems == [("labels.csv:2", "byte 3 is not UTF-8")]


def test_a_label_that_no_class_folder_has(folder, digit_files, tmp_path):
    data, names = folder(), sorted(digit_files)
    table = tmp_path / "labels.csv"
    table.write_text(f"path,label\n{names[0]},0\n{names[13]},1\n{names[26]},22\n")
    with pytest.raises(DataError) as caught:
        sources.load(data, labels=table)
    assert caught.value.problems == [("labels.csv:4", "unknown class '22'; did you mean 2?")]


def test_the_same_row_twice_is_a_warning(flat):
    data, write = flat
    a, b = some(data, 2)
    source = sources.load(data, labels=write(f"path,label\n{a},x\n{b},y\n{a},x\n"))
    assert source.given.sum() == 2 and source.warnings == ["labels.csv repeats rows that it already has, in line 4"]


def test_one_class_is_not_enough(flat):
    data, write = flat
    with pytest.raises(DataError, match="has 1 class; a classifier needs at least two"):
        sources.load(data, labels=write(f"path,label\n{some(data, 1)[0]},x\n"))


def test_labelled_and_test_at_once(flat):
    data, write = flat
    a, b, c = some(data, 3)
    labels = write(f"path,label\n{a},x\n{b},y\n")
    with pytest.raises(DataError) as caught:
        sources.load(data, labels=labels, test=write(f"path,label\n{c},x\n{a},x\n{b},\n", "test.csv"))
    assert caught.value.problems == [
        ("test.csv:3", f"'{a}' is a test image and labelled for training; keep it in one part"),
        ("test.csv:4", f"'{b}' has no label, and a test image needs one"),
    ]


def test_labels_within_the_train_and_test_layout(folder, digit_files, tmp_path):
    files = {f"{'test' if i % 4 == 0 else 'train'}/{name}": data for i, (name, data) in enumerate(sorted(digit_files.items()))}
    data = folder(files)
    train = [n for n in sorted(files) if n.startswith("train/")]
    table = tmp_path / "labels.csv"
    table.write_text("path,label\n" + "".join(f"{n},{n.split('/')[1]}\n" for n in train[::5]))
    source = sources.load(data, labels=table)
    assert source.given.sum() == len(train[::5]) and source.test.sum() == 12
    bad = tmp_path / "bad.csv"
    bad.write_text(f"path,label\n{train[0]},0\n{train[10]},1\n{sorted(files)[0]},0\n")
    with pytest.raises(DataError, match="is a test image and labelled for training"):
        sources.load(data, labels=bad)
