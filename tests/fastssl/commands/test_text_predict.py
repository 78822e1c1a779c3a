"""`fastssl predict` of a run on texts: the run's own accuracy again, rows in file order, and what it refuses."""

import csv
import io
import json
import sys

import pytest

from fastssl.cli import main
from tests.fastssl.text_runs import fails, result_of, rows_of, trained

CLASSES = ["business", "health", "music", "science"]


def predicted(run, paths, out, *flags):
    assert main(["predict", str(run), *map(str, paths), "--out", str(out), "--overwrite", *flags]) == 0
    return rows_of(out)


def test_the_test_rows_come_out_as_the_run_was_judged(tmp_path, run, texts):
    given, rows = rows_of(texts.files.test), predicted(run, [texts.files.test], tmp_path / "p.csv")
    assert list(rows[0]) == ["id", "label", "confidence", *CLASSES] and len(rows) == len(given) == 40
    assert [row["id"] for row in rows] == [f"test/{number:06d}" for number in range(1, 41)]
    right = sum(row["label"] == true["label"] for row, true in zip(rows, given, strict=True)) / len(rows)
    assert right == result_of(run)["accuracy"] and 0.25 < right
    for row in rows:
        shares = [float(row[name]) for name in CLASSES]
        assert sum(shares) == pytest.approx(1, abs=1e-5)
        assert float(row["confidence"]) == max(shares) == float(row[row["label"]])


def test_rows_keep_their_order_ids_and_empty_places(tmp_path, capsys, run, texts):
    """An id is guarded as spreadsheets need it, and what a row says does not hang on its neighbours."""
    own = rows_of(texts.files.test)[:3]
    table = tmp_path / "new.csv"
    with open(table, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(
            [("id", "note", "text"), ("b", "x", own[1]["text"]), ("=1+1", "", own[0]["text"]), ("c", "", "  "), ("a", "", own[2]["text"])]
        )
    rows = predicted(run, [table], tmp_path / "p.csv", "--json")
    said = capsys.readouterr()
    assert json.loads(said.out.splitlines()[-1]) == {"run_dir": str(run), "out": str(tmp_path / "p.csv"), "texts": 4, "empty": 1}
    assert "warning: c: the text is empty; so is its row" in said.err and "1 of 4 texts are empty" in said.err
    assert [row["id"] for row in rows] == ["b", "'=1+1", "c", "a"]
    assert set(rows[2].values()) == {"c", ""}
    alone = predicted(run, [texts.files.test], tmp_path / "q.csv")
    for row, at in ((0, 1), (1, 0), (3, 2)):
        assert rows[row]["label"] == alone[at]["label"]
        assert float(rows[row]["confidence"]) == pytest.approx(float(alone[at]["confidence"]), abs=2e-6)


def test_other_files_and_standard_input_say_the_same(tmp_path, capsys, monkeypatch, run, texts):
    given = [row["text"] for row in rows_of(texts.files.test)[:6]]
    whole = predicted(run, [texts.files.test], tmp_path / "whole.csv")[:6]
    (tmp_path / "lines.txt").write_text("\n".join(given) + "\n", encoding="utf-8")
    (tmp_path / "lines.jsonl").write_text("".join(json.dumps({"said": text}) + "\n" for text in given), encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\r\n".join(given).encode()), encoding="utf-8"))
    answers = {
        "lines": predicted(run, [tmp_path / "lines.txt"], tmp_path / "a.csv"),
        "json": predicted(run, [tmp_path / "lines.jsonl"], tmp_path / "b.csv", "--text-column", "said"),
        "stdin": predicted(run, ["-"], tmp_path / "c.csv"),
    }
    for name, rows in answers.items():
        assert [row["label"] for row in rows] == [row["label"] for row in whole], name
        assert [float(row["confidence"]) for row in rows] == pytest.approx([float(row["confidence"]) for row in whole], abs=2e-6)
    assert answers["stdin"][0]["id"] == "stdin/000001" and answers["lines"][5]["id"] == "lines/000006"
    both = predicted(run, [tmp_path / "lines.txt", texts.files.test], tmp_path / "d.csv")
    assert len(both) == 46 and both[6]["id"] == "test/000001"
    capsys.readouterr()
    assert main(["predict", str(run), str(tmp_path / "lines.txt")]) == 0
    assert list(csv.DictReader(io.StringIO(capsys.readouterr().out))) == answers["lines"]


def test_odd_texts_are_texts(tmp_path, run):
    """A megabyte, emoji, right to left, one word alone: each has its row."""
    odd = ["music " * 170_000, "🙂🚀", "שלום", "x", "‏", "a\tb"]
    (tmp_path / "odd.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in odd), encoding="utf-8")
    rows = predicted(run, [tmp_path / "odd.jsonl"], tmp_path / "p.csv")
    assert len(rows) == 6 and all(row["label"] in CLASSES for row in rows)


def test_chunks_change_nothing(tmp_path, monkeypatch, run, texts):
    whole = predicted(run, [texts.files.test], tmp_path / "a.csv")
    monkeypatch.setattr("fastssl.commands.predict_texts.CHUNK", 7)
    monkeypatch.setattr("fastssl.engine.text_inference.CHUNK", 3)
    pieces = predicted(run, [texts.files.test], tmp_path / "b.csv")
    assert [row["id"] for row in pieces] == [row["id"] for row in whole]
    for column in ("confidence", *CLASSES):
        assert [float(row[column]) for row in pieces] == pytest.approx([float(row[column]) for row in whole], abs=2e-6)


def test_what_it_refuses(tmp_path, capsys, run, texts, image_run):
    from PIL import Image

    photos, out = tmp_path / "photos", tmp_path / "p.csv"
    photos.mkdir()
    Image.new("RGB", (8, 8)).save(photos / "a.png")
    bad = tmp_path / "bad.csv"
    bad.write_bytes(b"text\nfine\n\xff\xfe\n")
    wide = tmp_path / "wide.csv"
    wide.write_text("text\nfine\none,two\n")
    blank = tmp_path / "blank.txt"
    blank.write_text("\n \n")
    none = tmp_path / "none.csv"
    none.write_text("words\nfine\n")
    for args, code, words in (
        ([run, photos], 2, ("reads texts", "photos is a folder", ".csv")),
        ([run, photos / "a.png"], 2, ("reads texts", "no file of texts")),
        ([run, tmp_path / "gone.csv"], 2, ("gone.csv: no such file",)),
        ([run, tmp_path / "gone.txt"], 2, ("gone.txt",)),
        ([image_run, texts.files.test], 2, ("reads images", "test.csv holds texts")),
        ([image_run, "-"], 2, ("reads images", "standard input holds texts")),
        ([image_run, photos, "--text-column", "said"], 2, ("--text-column", "reads images")),
        ([run, bad], 3, ("bad.csv is not UTF-8", "bad.csv:3")),
        ([run, wide], 3, ("wide.csv:3", "number of fields is 2")),
        ([run, blank], 3, ("there is no text in",)),
        ([run, none], 3, ("no column 'text'", "words", "--text-column NAME")),
    ):
        fails(capsys, ["predict", *args, "--out", out], code, *words)
        assert not out.exists() and not list(tmp_path.glob(".p.csv*"))


def test_an_encoder_that_went_away(tmp_path, capsys, run, texts):
    aside = texts.encoder.with_name("aside")
    texts.encoder.rename(aside)
    try:
        fails(capsys, ["predict", run, texts.files.test], 4, "there is no folder", str(texts.encoder))
    finally:
        aside.rename(texts.encoder)


def test_a_run_finds_its_encoder_from_anywhere(tmp_path, monkeypatch, texts):
    monkeypatch.chdir(texts.encoder.parent)
    near = texts._replace(flags=["--data", "train.csv", "--test", "test.csv", "--model", f"transformers:{texts.encoder.name}"])
    run = trained(tmp_path / "run", near, "--method", "supervised", "--steps", "1")
    monkeypatch.chdir(tmp_path)
    assert len(predicted(run, [texts.files.test], tmp_path / "p.csv")) == 40 and main(["eval", str(run)]) == 0
