"""Tables of texts that cannot be used as they are: one sentence a fault, with its row, and all of them at once."""

from __future__ import annotations

import csv
from types import SimpleNamespace

import pytest

from fastssl.pipelines import foundation, sources, splits
from fastssl.pipelines.errors import ConfigError, DataError
from fastssl.pipelines.text_table import from_table, load_table, read_texts
from fastssl.sections import DataConfig

GOOD = "text,label\none,x\ntwo,y\n"


@pytest.fixture()
def write(tmp_path):
    def make(content: str | bytes, name: str = "data.csv"):
        path = tmp_path / name
        path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
        return path

    return make


def refused(path, **options) -> list[tuple[str, str]]:
    """What is told of a table, row by row; every fault is in the message too."""
    with pytest.raises(DataError) as caught:
        load_table(path, **options)
    assert caught.value.exit_code == 3
    for place, sentence in caught.value.problems[:20]:
        assert f"  {place}: {sentence}" in str(caught.value)
    return caught.value.problems


def test_every_fault_of_a_csv_in_the_order_of_its_rows(write):
    lines = ["text,label", "one,x", "two,y,z", "only", " ,x", "c\0d,x", "ONE ,y", '"a', 'b",x', "four,x"]
    told = refused(write("\n".join(lines)))
    assert [place for place, _ in told] == [f"data.csv:{n}" for n in (3, 4, 5, 6, 7)]
    assert [what for _, what in told] == [
        "number of fields is 3, the header has 2; quote fields that hold the delimiter",
        "number of fields is 1, the header has 2; quote fields that hold the delimiter",
        "the text is empty",
        "holds a NUL character",
        "is labelled 'y', and its copy data.csv:2 'x'; keep one",
    ]


def test_faults_of_three_tables_at_once(write):
    test = write("text,label\nthree,x\nfour,\nfive,z\n", "test.csv")
    more = write("text\nsix\nse\0ven\n", "more.csv")
    told = refused(write("text,label,part,id\none,x,,a\ntwo,y,dev,a\nthree,y,,\nfour,y,,extra:1\n"), test=test, extra=more)
    assert told == [
        ("data.csv:3", "id 'a' is taken by data.csv:2; ids must differ"),
        ("data.csv:3", "part 'dev' is neither train nor test"),
        ("data.csv:4", "the id is blank"),
        ("data.csv:5", "id 'extra:1' begins with 'extra:', which marks texts of --extra-unlabelled; rename it"),
        ("test.csv:3", "has no label, and a test text needs one"),
        ("test.csv:4", "unknown class 'z' in the training texts; known: x, y"),
        ("more.csv:3", "holds a NUL character"),
    ]


def test_twenty_are_shown_and_the_others_counted(write):
    path = write("text,label\n" + "a,b,c\n" * 30)
    with pytest.raises(DataError) as caught:
        load_table(path)
    assert str(caught.value).count("number of fields") == 20 and str(caught.value).endswith("... and 10 more")


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("data.csv", "txt,label\na,x\n", r"has no column 'text'; did you mean 'txt'\? --set data.text_column=NAME"),
        ("data.csv", "text,labels\na,x\n", r"has no column 'label'; did you mean 'labels'\? --set data.label_column=NAME"),
        ("data.csv", "path,label\na.png,x\n", "then --data takes their folder, and --labels this file"),
        ("data.csv", "text,label\na,x\n,y\nb,x\n", "has one class, 'x'"),
        ("data.csv", "a,b\n1,2\n", "its columns are a, b;"),
        ("data.csv", "text,text,label\na,b,c\n", "data.csv:1: column 'text' comes twice"),
        ("data.csv", "", "is empty; its first line names the columns"),
        ("data.csv", "text,label\n", "has no row below its header"),
        ("data.csv", "text,label\na,\nb,\n", "has no label at all in its column 'label'"),
        ("data.csv", "text,label\na,x\nb,x\nc,\n", "has one class, 'x'"),
        ("data.csv", 'text,label\na,x\n"b,y\n', "data.csv:3: not a CSV record"),
        ("data.csv", "text,label\na,x\nb,y\né,y\n".encode("latin-1"), r"not UTF-8 text(.|\n)*data.csv:4: byte 1 is not UTF-8"),
        ("data.jsonl", "\n", "is empty; each line holds one JSON object"),
        ("data.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n', "data.jsonl:2: byte 11 is not UTF-8"),
        ("data.jsonl", '{"text": "a", "label": "x"}\n{"text"\n[]\n', r"jsonl:2: is not JSON(.|\n)*jsonl:3: is no JSON object"),
        ("data.jsonl", '{"text": "\\ud83d", "label": "x"}\n', "jsonl:1: the text holds half of a surrogate pair"),
        ("data.jsonl", '{"text": "a\\u0000b", "label": "x"}\n', "jsonl:1: the text holds a NUL character"),
        ("data.jsonl", '{"text": 7, "label": {}}\n', r"text is of the type int(.|\n)*label is of the type dict"),
        ("data.jsonl", "[" * 100_000, "jsonl:1: is not JSON"),
    ],
)
def test_what_ends_the_reading(write, name, content, told):
    path = write(content, name)
    with pytest.raises(DataError, match=told):
        load_table(path, max_bad=0.5)


def test_one_bad_label_column_of_a_test_table(write):
    with pytest.raises(DataError, match="test.csv has no column 'label'"):
        load_table(write(GOOD), test=write("text,class\na,x\n", "test.csv"))


def test_empty_texts_are_quarantined_up_to_max_bad(write):
    rows = [f"text {n},{'xy'[n % 2]}" for n in range(99)]
    path = write("text,label\n" + "\n".join([*rows[:50], "   ,x", *rows[50:]]))
    source = load_table(path)
    assert len(source) == 99 and source.ids[50] == "data/000052"
    assert source.quarantine == [("data/000051", "the text is empty (data.csv:52)")]
    assert source.warnings == ["empty texts, left out of 100: 1 ('data/000051')", "labels lost with empty texts: 1 ('data/000051')"]
    with pytest.raises(
        DataError, match=r"1 of 100 texts in .* are empty, 1.0% where --max-bad allows 0.9%(.|\n)*data.csv:52: the text is empty"
    ):
        load_table(path, max_bad=0.009)
    with pytest.raises(DataError, match="1 of 2 texts in .*more.csv are empty"):
        load_table(path, extra=write('text\nmore\n""\n', "more.csv"))
    more = load_table(path, extra=write('text\nmore\n""\n', "more.csv"), max_bad=0.5)
    assert more.extra == 1 and more.quarantine[1] == ("extra:more/000002", "the text is empty (more.csv:3)")


def test_labels_that_differ_in_case_alone_are_told_of(write):
    assert load_table(write("text,label\na,Good\nb,good\nc,bad\n")).warnings == [
        "classes that differ in case alone: Good and good; correct the labels if they are meant as one"
    ]


def test_copies_of_two_labels_within_the_test_part(write):
    told = refused(write(GOOD), test=write("text,label\nthree,x\nThree,y\n", "test.csv"))
    assert told == [("test.csv:3", "is labelled 'y', and its copy test.csv:2 'x'; keep one")]


def test_the_csv_modules_own_limit_stays_as_it_was(write):
    before = csv.field_size_limit()
    load_table(write("text,label\n" + "a" * (before + 1) + ",x\nb,y\n"))
    assert csv.field_size_limit() == before
    with pytest.raises(DataError):
        load_table(write('text,label\n"a' + "b" * before))
    assert csv.field_size_limit() == before


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"labels": "labels.csv"}, "holds texts with their labels; leave out --labels"),
        ({"pipeline": "dali"}, "--pipeline dali reads image files"),
        ({"pipeline": "dall"}, "did you mean dali"),
        ({"extra": True}, "data.extra goes with svhn"),
        ({"size": 32}, "a size of 32 pixels is for images"),
        ({"root": "sets"}, "--root says where"),
        ({"max_bad": 1.5}, "--max-bad 1.5 is out of range"),
        ({"text_column": "Label"}, "texts and labels are two columns"),
        ({"test": "no.csv"}, "no.csv: no such file"),
        ({"test": "."}, r"\. is a folder; texts come from a file"),
        ({"extra_unlabelled": "bank.txt"}, "bank.txt is no table of texts; give a file that ends in .csv"),
    ],
)
def test_options_that_texts_do_not_take(write, options, told):
    with pytest.raises(ConfigError, match=told):
        sources.load(write(GOOD), **options)


def test_two_test_parts_and_one_table_twice(write):
    path = write("text,label,part\none,x,\ntwo,y,\nthree,y,test\n")
    with pytest.raises(ConfigError, match="has test rows of its own, by its column part; leave out --test"):
        load_table(path, test=write(GOOD, "test.csv"))
    for option, flag in (("test", "--test"), ("extra", "--extra-unlabelled")):
        with pytest.raises(ConfigError, match=f"{flag} .* is the table of --data itself"):
            load_table(path, **{option: path})


def test_files_that_are_no_tables(tmp_path, write):
    with pytest.raises(ConfigError, match="nothing.csv: no such file"):
        sources.load(tmp_path / "nothing.csv")
    with pytest.raises(ConfigError, match=r"--data takes a folder of images .* or a table of texts \(.csv, .tsv, .parquet, .jsonl\)"):
        sources.load(write("one\n", "notes.txt"))
    with pytest.raises(ConfigError, match="unknown data 'digit'; did you mean digits"):
        sources.load("digit")


def test_a_configuration_names_the_columns_and_a_networks_size_is_nothing(write):
    path = write("review,stars\none,x\ntwo,y\n")
    data = DataConfig(name=str(path), text_column="review", label_column="stars")
    assert sources.configured(data, size=224).texts == ["one", "two"]
    with pytest.raises(ConfigError, match="32 pixels"):
        sources.configured(DataConfig(name=str(path), size=32))


def test_ids_of_two_tables_that_still_clash():
    first = {"id": ["1", "test:1"], "text": ["one", "two"], "label": ["x", "y"]}
    with pytest.raises(DataError, match="table_test row 1: id 'test:1' is a training row's; rename it"):
        from_table(first, {"id": ["1"], "text": ["three"], "label": ["x"]})


def test_splits_and_foundation_labels_speak_of_texts(write):
    source = load_table(write("text,label\none,x\ntwo,y\nthree,y\nfour,\n"), extra=write("text\nfive\n", "more.csv"))
    with pytest.raises(DataError, match="finds no class of good with two labelled texts"):
        splits.make(load_table(write(GOOD, "good.csv")), holdout=0.5)
    split = splits.make(source, per_class=1)
    said = []
    labels = write("id,label\ndata/000001,x\ndata/000002,x\ndata/000004,y\n", "teacher.csv")
    foundation.read(labels, source, split, warn=said.append, note=said.append)
    assert any("training texts without a foundation label" in told for told in said) and not any("image" in told for told in said)
    held = write("id,role,label\ndata/000001,labelled,x\ndata/000002,labelled,y\n", "split.csv")
    warned = []
    splits.make(source, split_file=held, warn=warned.append)
    assert warned == ["the split file names no extra text; all 1 are taken as unlabelled"]
    with pytest.raises(DataError, match="'extra:more/000001' is an extra text, and those are unlabelled only"):
        splits.make(source, split_file=write("id,role,label\nextra:more/000001,labelled,x\n", "split.csv"))


def test_texts_alone_are_checked_too(write):
    with pytest.raises(DataError, match="data.csv:2: number of fields is 2"):
        read_texts(write("text\none,two\n"))
    with pytest.raises(ConfigError, match="give a dict of columns"):
        from_table(SimpleNamespace())
