"""`fastssl data check` on a table of texts: counts, lengths, copies, and what is wrong with it."""

from __future__ import annotations

import json

import pytest

from fastssl import cli
from tests import text_set


def checked(capsys, *args: str) -> tuple[int, str, str]:
    code = cli.main(["data", "check", *args])
    told = capsys.readouterr()
    return code, told.out, told.err


def test_counts_of_a_made_set(tmp_path, capsys):
    files = text_set.made(tmp_path, rows=80, labelled=0.5)
    code, out, _ = checked(capsys, "--data", str(files.train), "--test", str(files.test), "--json")
    report = json.loads(out)
    assert code == 0 and report["texts"] == 120 and report["unknown"] == 40 and report["extra"] == 0 and report["unusable"] == []
    assert report["classes"] == [{"name": name, "texts": 20, "labelled": 10, "test": 10} for name in text_set.CLASSES[:4]]
    lengths = sorted(len(row.text) for row in text_set.sentences(120))
    marks = report["characters"]
    assert (
        (marks["least"], marks["most"]) == (lengths[0], lengths[-1])
        and marks["median"] in lengths[59:61]
        and marks["p99"] in lengths[117:120]
    )
    assert report["copies"] == {"training": 0, "labelled_in_test": 0, "unlabelled_in_test": 0} and report["wordings"] == []


def test_copies_wordings_and_empty_texts_for_people(tmp_path, capsys):
    data, test = tmp_path / "a.csv", tmp_path / "b.csv"
    data.write_text("review,Stars,text_aug_0\none,x,eins\ntwo,y,\nONE,x,\nthree,,drei\n  ,y,\n", encoding="utf-8")
    test.write_text("review,Stars\nTwo,y\nThree,x\n", encoding="utf-8")
    columns = ["--text-column", "review", "--label-column", "stars"]
    code, out, _ = checked(capsys, "--data", str(data), "--test", str(test), *columns, "--max-bad", "0.2")
    assert code == 0
    assert out.splitlines() == [
        "a: 6 texts in 2 classes; 3 to 5 characters, median 3, 99 of 100 at most 5",
        "  x  3 texts, 2 with a label for training, 1 for testing",
        "  y  2 texts, 1 with a label for training, 1 for testing",
        "  without a known label: 1",
        "  text_aug_0: 2 other wordings",
        "  copies: 1 within training; of test texts 1 labelled and 1 unlabelled",
        "cannot be used: a/000005: the text is empty (a.csv:6)",
        "warning: training texts that repeat an earlier one, case and white space aside: 1 ('a/000003'); they are kept",
        "warning: empty texts, left out of 7: 1 ('a/000005')",
        "warning: labels lost with empty texts: 1 ('a/000005')",
    ]


def test_bad_rows_end_with_exit_3(tmp_path, capsys):
    data = tmp_path / "a.csv"
    data.write_text("text,label\none,x,\ntwo,y\n", encoding="utf-8")
    code, out, err = checked(capsys, "--data", str(data))
    assert code == 3 and not out and "a.csv:2: number of fields is 3, the header has 2" in err and "Traceback" not in err
    code, _, err = checked(capsys, "--data", str(data), "--text-column", "txt")
    assert code == 3 and "has no column 'txt'; did you mean 'text'?" in err and "data check --text-column NAME" in err


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["preview", "--data", "a.csv", "--out", "a.png"], "data preview draws images, and a.csv holds texts"),
        (["check", "--data", "digits", "--text-column", "x"], "--text-column names a column of a table of texts, and digits is none"),
        (["check", "--data", "a.csv", "--labels", "b.csv"], "leave out --labels"),
        (["check", "--data", "a.csv", "--size", "8"], "a size of 8 pixels is for images"),
        (["check", "--data", "a.csv"], "a.csv: no such file"),
    ],
)
def test_what_texts_do_not_take(tmp_path, monkeypatch, capsys, args, told):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["data", *args]) == 2 and told in capsys.readouterr().err
