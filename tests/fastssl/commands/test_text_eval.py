"""`fastssl eval` of a run on texts: the run's own figures again, other tables, moved embeddings, and what it refuses."""

import csv
import json

import pytest

from fastssl.cli import main
from tests.fastssl.text_runs import fails, result_of, rows_of


def evaluated(capsys, run, *flags):
    capsys.readouterr()
    assert main(["eval", str(run), "--json", *map(str, flags)]) == 0
    said = capsys.readouterr()
    return json.loads(said.out.splitlines()[-1]), said.err


def written(path, rows, header=("text", "label")):
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def test_own_rows_are_judged_as_in_the_run(capsys, run):
    found, then = evaluated(capsys, run)[0], result_of(run)
    assert found["accuracy"] == then["accuracy"] and found["rows"] == 40 and found["raw"]["accuracy"] == then["raw"]["accuracy"]
    assert found["ema"]["per_class"] == then["ema"]["per_class"] and found["ece"] == pytest.approx(then["ece"], abs=1e-5)


def test_the_table_counts_texts(capsys, run):
    capsys.readouterr()
    assert main(["eval", str(run), "--fgsm", "0.05"]) == 0
    said = capsys.readouterr().out
    assert " of 40 texts (step 20)" in said and "raw network" in said and "averaged network" in said
    assert "accuracy under FGSM, epsilon 0.05" in said and "images" not in said


def test_another_table_is_judged_by_its_labels(tmp_path, capsys, run, texts):
    own, given = evaluated(capsys, run)[0], rows_of(texts.files.test)
    assert evaluated(capsys, run, "--data", texts.files.test)[0]["accuracy"] == own["accuracy"]
    rows = [(row["label"], row["text"]) for row in given[:9]] + [("", "unlabelled"), ("music", " ")]
    table = written(tmp_path / "other.csv", rows, ("topic", "said"))
    found, warned = evaluated(capsys, run, "--data", table, "--text-column", "said", "--label-column", "topic")
    assert found["rows"] == 9 and "1 of 10 labelled texts" in warned and found["data"] == str(table)
    marked = [(row["text"], row["label"], "test" if k < 5 else "train") for k, row in enumerate(given[:12])]
    table = written(tmp_path / "parts.csv", marked, ("text", "label", "part"))
    assert evaluated(capsys, run, "--data", table)[0]["rows"] == 5
    one = written(tmp_path / "one.csv", [(row["text"], row["label"]) for row in given if row["label"] == "music"])
    assert evaluated(capsys, run, "--data", one)[0]["rows"] == 10


def test_moved_embeddings_are_harder(capsys, run):
    found = evaluated(capsys, run, "--fgsm", "0,0.02,0.2")[0]
    still, some, much = found["fgsm"]
    assert still["accuracy"] == found["accuracy"] == still["clean_accuracy"] and still["raw"] == found["raw"]["accuracy"]
    assert much["accuracy"] <= some["accuracy"] <= still["accuracy"] and much["raw"] < still["raw"]
    assert [one["epsilon"] for one in found["fgsm"]] == [0, 0.02, 0.2] and still["unmoved"] == 0
    assert evaluated(capsys, run, "--fgsm", "3")[0]["fgsm"][0]["epsilon"] == 3  # embeddings have no range as pixels have


def test_what_it_refuses(tmp_path, capsys, run, texts, image_run):
    photos = tmp_path / "photos"
    (photos / "music").mkdir(parents=True)
    strange = written(tmp_path / "strange.csv", [("fine", "music"), ("odd", "cooking"), ("odd", "muzic")])
    unlabelled = written(tmp_path / "unlabelled.csv", [("fine", "")])
    wide = written(tmp_path / "wide.csv", [("fine", "music"), ("a", "music", "c")])
    for args, code, words in (
        ([run, "--data", strange], 3, ("strange.csv:3: unknown class 'cooking'", "strange.csv:4", "did you mean music")),
        ([run, "--data", unlabelled], 3, ("no labelled test text",)),
        ([run, "--data", wide], 3, ("wide.csv:3", "number of fields is 3")),
        ([run, "--data", photos], 2, ("reads texts", "no table")),
        ([run, "--data", "digits"], 2, ("reads texts", "digits is no table")),
        ([image_run, "--data", texts.files.test], 2, ("reads images", "table of texts")),
        ([image_run, "--label-column", "topic"], 2, ("--label-column", "reads images")),
        ([run, "--data", texts.files.test, "--labels", "x.csv"], 2, ("--labels goes with images",)),
        ([run, "--data", texts.files.test, "--label-column", "topic"], 3, ("no column 'topic'", "--label-column NAME")),
        ([run, "--fgsm", "-1"], 2, ("units of word embeddings", "'-1'")),
        ([run, "--fgsm", "inf"], 2, ("'inf'",)),
    ):
        fails(capsys, ["eval", *args], code, *words)


def test_a_table_that_changed(tmp_path, capsys, run, texts):
    kept = texts.files.test.read_bytes()
    lines = texts.files.test.read_text(encoding="utf-8").splitlines(keepends=True)
    texts.files.test.write_text("".join(lines[:-1]), encoding="utf-8")
    try:
        capsys.readouterr()
        assert main(["eval", str(run)]) in (3, 6)
        assert "Traceback" not in capsys.readouterr().err
    finally:
        texts.files.test.write_bytes(kept)
