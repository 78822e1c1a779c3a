"""Tables of texts: every format gives the same set; what cannot be used is told of with its lines, all at once."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from fastssl.pipelines import choice, sources, splits
from fastssl.pipelines.errors import ConfigError, DataError, SetupError
from fastssl.pipelines.text_source import TextSource, content_of
from fastssl.pipelines.text_table import from_table, is_table, load_table, read_texts
from tests import text_set

ROWS = [
    ("a plain one", "x"),
    ("with, a comma; and\ttab", "y"),
    ('quotes "here"\nand a line break', "x"),
    ("🙂 emoji", ""),
    ("שלום עולם", "y"),
]


@pytest.fixture()
def write(tmp_path):
    def make(content: str | bytes, name: str = "data.csv") -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return make


def fields(source: TextSource) -> dict:
    return {f.name: getattr(source, f.name) for f in dataclasses.fields(source)}


def same(one: TextSource, other: TextSource, *without: str) -> None:
    for name, value in fields(one).items():
        if name not in without:
            assert np.array_equal(value, getattr(other, name)) if isinstance(value, np.ndarray) else value == getattr(other, name), name


def is_rows(source: TextSource, stem: str = "data") -> None:
    assert [(text, source.classes[c] if c >= 0 else "") for text, c in zip(source.texts, source.label, strict=True)] == ROWS
    assert source.ids == [f"{stem}/00000{n}" for n in range(1, 6)] and source.classes == ("x", "y")
    assert source.given.tolist() == [True, True, True, False, True] and not source.test.any() and not source.warnings
    assert source.label.dtype == np.int64 and source.content.dtype == np.uint64 and len(source) == source.own == 5


def quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


@pytest.mark.parametrize("mark", [",", ";", "\t"])
@pytest.mark.parametrize(("start", "ends"), [("", "\n"), ("\ufeff", "\r\n"), ("\n", "\n")])
def test_a_csv_as_people_write_it(write, mark, start, ends):
    lines = [f"TEXT{mark} Label", *(f"{quoted(text)}{mark}{label}" for text, label in ROWS)]
    path = write(start + ends.join(lines) + ends, "data.tsv" if mark == "\t" else "data.csv")
    is_rows(load_table(path))


def test_json_lines(write):
    lines = [json.dumps({"Text": text, "label": label or None}) for text, label in ROWS]
    is_rows(load_table(write("\ufeff" + "\r\n".join(lines), "data.jsonl")))


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow comes with the text extra")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "data.parquet"
    table = pyarrow.table({"text": [text for text, _ in ROWS], "label": [label or None for _, label in ROWS]})
    parquet.write_table(table, path)
    is_rows(load_table(path))
    is_rows(from_table(table, name="data"))
    broken = pyarrow.array([b"fine", b"\xff\xfe"], pyarrow.binary()).view(pyarrow.string())
    parquet.write_table(pyarrow.table({"text": broken, "label": ["x", "y"]}), path)
    with pytest.raises(DataError, match="data.parquet row 2: the text is not UTF-8 at byte 1"):
        load_table(path)
    path.write_bytes(b"PAR1 or not")
    with pytest.raises(DataError, match="cannot read .*data.parquet as Parquet"):
        load_table(path)


def test_parquet_without_pyarrow_names_the_command(write, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(SetupError, match="pip install pyarrow"):
        load_table(write("", "data.parquet"))


TEXTS, LABELS = [text for text, _ in ROWS], [label or None for _, label in ROWS]


class Column:
    """A column of a data frame: no list, but it makes one."""

    def __init__(self, values):
        self.values = values

    def to_list(self):
        return self.values


class Frame:
    """What pandas and polars have in common."""

    columns = ["Text", "label"]

    def __getitem__(self, name):
        return Column({"Text": TEXTS, "label": [float("nan") if label is None else label for label in LABELS]}[name])


class Dataset:
    """A split of Hugging Face's datasets, whose labels are positions in a list of names, -1 where unknown."""

    column_names = ["text", "label"]
    features = {"text": SimpleNamespace(), "label": SimpleNamespace(names=["x", "y"])}

    def __getitem__(self, name):
        return iter({"text": TEXTS, "label": ["xy".index(label) if label else -1 for label in LABELS]}[name])


TABLES = {
    "columns": {"text": TEXTS, "label": LABELS},
    "arrays": {"text": np.array(TEXTS, object), "label": np.array(LABELS, object)},
    "rows": [{"text": text, "label": label} if label else {"text": text} for text, label in zip(TEXTS, LABELS, strict=True)],
    "frame": Frame(),
    "dataset": Dataset(),
    "dict of datasets": {"train": Dataset()},
}


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_tables_in_memory(table):
    is_rows(from_table(table, name="data"))


@pytest.mark.parametrize("package", ["pandas", "polars"])
def test_real_data_frames(package):
    module = pytest.importorskip(package, reason=f"{package} is not among the extras; the duck-typed frame above stands for it")
    is_rows(from_table(module.DataFrame({"text": TEXTS, "label": LABELS}), name="data"))


def test_numbers_are_class_names():
    source = from_table({"text": list("abcde"), "label": [3.0, float("nan"), 10.0, 3.5, True]})
    assert source.classes == ("10", "3", "3.5", "True") and source.label.tolist() == [1, -1, 0, 2, 3]
    assert from_table([{"text": "a", "label": np.int64(2)}, {"text": "b", "label": np.float32(1)}]).classes == ("1", "2")


@pytest.mark.parametrize(
    ("table", "error", "told"),
    [
        (3, ConfigError, "table is a int; give a dict of columns"),
        ("data.csv", ConfigError, "table is a str; give"),
        ([("a", "x")], ConfigError, "a row of table is a tuple"),
        ({"text": ["a", "b"], "label": ["x"]}, DataError, "differ in length: text 2, label 1"),
        ({"text": [], "label": []}, DataError, "table has no rows"),
        (
            {"text": [1, "b"], "label": ["x", ["y"]]},
            DataError,
            r"row 1: the text is of the type int.*\n.*row 2: the label is of the type list",
        ),
        ({"text": ["a", "b"], "Text": ["a", "b"], "label": ["x", "y"]}, DataError, "column 'text' comes twice"),
    ],
)
def test_tables_in_memory_that_do_not_fit(table, error, told):
    with pytest.raises(error, match=told):
        from_table(table)


def test_parts_ids_wordings_and_other_columns(write):
    head = "ID,text,Label,part,text_aug_1,stars,text_aug_0,text_aug_x\n"
    body = "a,one,x,train,one b,5,one a,\nb,two,y,,,4,two a,\nc,three,y,TEST,,3,,\n"
    source = load_table(write(head + body))
    assert source.ids == ["a", "b", "c"] and source.test.tolist() == [False, False, True] and source.given.tolist() == [True, True, False]
    assert source.augmented == (["one a", "two a", ""], ["one b", "", ""])
    assert len(source.warnings) == 1 and source.warnings[0].endswith("not read: stars, text_aug_x")


def test_a_test_table_and_columns_by_other_names(write):
    data, test = write("Review,Stars\none,x\ntwo,y\n"), write("review,stars\nthree,y\n", "other.csv")
    source = load_table(data, test=test, text_column="REVIEW", label_column="stars")
    assert source.ids == ["data/000001", "data/000002", "other/000001"] and source.test.tolist() == [False, False, True]
    twin = write("review,stars\nthree,y\n", "deep/data.csv")
    source = load_table(data, test=twin, text_column="review", label_column="stars")
    assert source.ids[2] == "test:data/000001" and source.texts[2] == "three"


def test_extra_texts_come_last_and_those_of_the_test_part_are_left_out(write):
    data, test = write("text,label\none,x\ntwo,y\n"), write("text,label\nthree,y\n", "test.csv")
    more = write("label,text\nq,four\n,THREE \n,two\n", "more.csv")
    alone = load_table(data, test=test)
    source = load_table(data, test=test, extra=more)
    assert source.extra == 2 and source.own == 3 and source.ids[3:] == ["extra:more/000001", "extra:more/000003"]
    assert (
        source.texts[3:] == ["four", "two"] and (source.label[3:] == -1).all() and not source.given[3:].any() and not source.test[3:].any()
    )
    for name in ("ids", "label", "given", "test", "texts", "content"):
        assert list(getattr(source, name)[:3]) == list(getattr(alone, name)), name
    assert [w for w in source.warnings if "test texts, left out: 1 ('extra:more/000002')" in w]
    split = splits.make(source, per_class=1)
    assert split.unlabelled.tolist() == [0, 1, 3, 4]
    with pytest.raises(DataError, match="holds no text but those of the test part"):
        load_table(data, test=test, extra=write("text\nthree\n", "more.csv"))


def test_copies_are_told_of_by_content(write):
    assert len(set(content_of(["Cafe\u0301  au\nlait", "café AU lait ", "CAFÉ\u00a0au lait"]).tolist())) == 1
    assert len(set(content_of(["a b", "ab", "a. b", "å b"]).tolist())) == 4
    source = load_table(write("text,label\none,x\nOne ,x\ntwo,y\none,\n"))
    assert len(source) == 4 and len(source.warnings) == 1 and "2 ('data/000002', 'data/000004')" in source.warnings[0]


def test_labelled_texts_in_the_test_part_are_refused_by_the_split(write):
    source = load_table(write("text,label\none,x\ntwo,y\n"), test=write("text,label\nTWO,y\n", "test.csv"))
    with pytest.raises(DataError, match=r"labelled texts of data .* test part: 1(.|\n)*data/000002: is a copy of test text test/000001"):
        splits.make(source)


def test_a_megabyte_is_a_text(write):
    source = load_table(write("text,label\n" + "word " * 250_000 + ",x\nshort,y\n"))
    assert len(source.texts[0]) == 1_249_999 and source.label.tolist() == [0, 1]


def test_a_split_and_its_file(tmp_path):
    files = text_set.made(tmp_path, rows=80)
    source = sources.load(files.train, test=files.test)
    assert source.choice == choice.Choice("resident", "120 texts are held in memory as token ids")
    split = splits.make(source, per_class=3, seed=1)
    assert len(split.labelled) == 12 and len(split.unlabelled) == 80 and split.test.tolist() == list(range(80, 120))
    splits.save(split, source, tmp_path / "split.csv")
    again = splits.make(source, split_file=tmp_path / "split.csv")
    assert again.hash == split.hash and np.array_equal(again.labelled, split.labelled)


def test_texts_alone(write):
    rows = read_texts(write("text,stars\none,3\n,4\ntwo,5\n"), max_bad=0.5)
    assert rows.ids == ["data/000001", "data/000003"] and rows.texts == ["one", "two"] and rows.places == ["data.csv:2", "data.csv:4"]
    assert rows.quarantine == [("data/000002", "the text is empty (data.csv:3)")]


@pytest.mark.parametrize("name", ["a.csv", "A.TSV", "b.parquet", "c.jsonl"])
def test_a_table_is_known_by_its_suffix(tmp_path, name):
    assert is_table(tmp_path / name) and not is_table(tmp_path / f"{name}.png")
    (tmp_path / name).mkdir()
    assert not is_table(tmp_path / name)


def test_the_real_news_where_they_are():
    root = Path(os.environ.get("FASTSSL_DATA", "no such folder"))
    if not (root / "ag_news_train.csv").is_file():
        pytest.skip("FASTSSL_DATA names no folder with ag_news_train.csv")
    source = load_table(root / "ag_news_train.csv", test=root / "ag_news_test.csv")
    assert source.classes == ("Business", "Sci/Tech", "Sports", "World") and not source.warnings and not source.quarantine
    assert source.test.sum() == 1000 and len(source) == 6600
