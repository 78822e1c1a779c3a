"""`fastssl pseudolabel` of a table of texts: by names, descriptions, entailment and runs; its file and an API's taken by `train`."""

import csv
import json

import pytest
import torch
import transformers

from fastssl.cli import main
from tests import text_set
from tests.fastssl.text_runs import STEPS, fails, rows_of


def labelled(capsys, out, *flags):
    capsys.readouterr()
    assert main(["pseudolabel", *map(str, flags), "--out", str(out), "--overwrite", "--json"]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1]), rows_of(out)


def told(rows):
    return [(row["id"], row["label"]) for row in rows]


def right(rows, files):
    """Share of rows with their own label: a table's ids are its rows' numbers."""
    true = {f"{path.stem}/{n:06d}": row["label"] for path in files for n, row in enumerate(rows_of(path), 1)}
    return sum(true[row["id"]] == row["label"] for row in rows) / len(rows)


@pytest.fixture(scope="module")
def model(texts):
    return f"transformers:{texts.encoder}"


@pytest.fixture(scope="module")
def judge(texts, tmp_path_factory):
    """A network for natural-language inference, of random weights."""
    place = text_set.encoder(tmp_path_factory.mktemp("judge") / "judge")
    about = transformers.BertConfig.from_pretrained(place)
    about.id2label = {0: "contradiction", 1: "neutral", 2: "entailment"}
    about.label2id = {label: index for index, label in about.id2label.items()}
    torch.manual_seed(0)
    network = transformers.BertForSequenceClassification(about)
    for p in network.parameters():
        p.data += 0.2 * torch.randn_like(p)
    network.save_pretrained(place)
    return place


def test_names_label_the_training_rows(tmp_path, capsys, texts, model):
    data = ("--data", texts.files.train, "--test", texts.files.test, "--model", model)
    found, rows = labelled(capsys, tmp_path / "pl.csv", *data)
    assert list(rows[0]) == ["id", "label", "confidence"] and len(rows) == found["rows"] == found["known"] == 80
    assert found["agreement"] == right(rows, texts.files) > 0.9 and found["model"] == model
    assert all(0.25 <= float(row["confidence"]) <= 1 for row in rows)
    whole, more = labelled(capsys, tmp_path / "all.csv", *data, "--test-rows")
    assert whole["rows"] == 120 and told(more[:80]) == told(rows) and right(more[80:], texts.files) > 0.9
    capsys.readouterr()
    assert main(["pseudolabel", *map(str, data), "--out", str(tmp_path / "t.csv")]) == 0
    said = capsys.readouterr().out
    assert "80 texts of train labelled" in said and f"{100 * found['agreement']:.2f} % of 80" in said and "images" not in said


def test_what_a_class_is_may_be_said(tmp_path, capsys, texts, model):
    """By templates, by descriptions, and by several of them in a file: those of another class turn its labels."""
    data = ("--data", texts.files.train, "--model", model)
    topics = text_set.words()[0]
    plain = labelled(capsys, tmp_path / "a.csv", *data)
    prompted = labelled(capsys, tmp_path / "b.csv", *data, "--prompt", "news of {}")
    assert prompted[0]["confidence"] != plain[0]["confidence"] and prompted[0]["agreement"] > 0.9
    swapped = ["--describe", f"business={topics[1][1]} {topics[1][2]}", "--describe", f"health={topics[0][1]} {topics[0][2]}"]
    found, rows = labelled(capsys, tmp_path / "c.csv", *data, *swapped)
    assert found["agreement"] < 0.6
    turned = {"business": "health", "health": "business"}
    assert right([row | {"label": turned.get(row["label"], row["label"])} for row in rows], texts.files) > 0.75
    lines = [(name, " ".join(words[k : k + 3])) for name, words in zip(text_set.CLASSES, topics, strict=False) for k in (1, 4)]
    file = tmp_path / "descriptions.csv"
    with open(file, "w", newline="") as stream:
        csv.writer(stream).writerows([("label", "description"), *lines])
    assert labelled(capsys, tmp_path / "d.csv", *data, "--descriptions", file)[0]["agreement"] > 0.85


def test_entailment_labels_by_one_hypothesis_a_class(tmp_path, capsys, texts, judge):
    from fastssl.models.entailment import entailment_probabilities

    data = ("--data", texts.files.train, "--entailment", judge)
    found, rows = labelled(capsys, tmp_path / "a.csv", *data)
    given, classes = [row["text"] for row in rows_of(texts.files.train)], ("business", "health", "music", "science")
    p = entailment_probabilities(str(judge), given, classes)
    assert [row["label"] for row in rows] == [classes[c] for c in p.argmax(1)] and found["entailment"] == str(judge)
    assert [float(row["confidence"]) for row in rows] == pytest.approx(p.max(1).tolist(), abs=2e-6)
    prompted = labelled(capsys, tmp_path / "b.csv", *data, "--prompt", "news of {}", "--describe", "music=songs")[1]
    assert prompted != rows
    out = ["--out", tmp_path / "c.csv"]
    fails(capsys, ["pseudolabel", *data, "--prompt", "a {}", "--prompt", "the {}", *out], 2, "one hypothesis a class", "has several")
    fails(capsys, ["pseudolabel", "--data", texts.files.train, "--entailment", texts.encoder, *out], 2, "does not tell entailment")


def test_a_run_labels_as_it_predicts(tmp_path, capsys, run, texts):
    rows = labelled(capsys, tmp_path / "a.csv", "--run", run, "--test-rows")[1]
    assert main(["predict", str(run), str(texts.files.train), str(texts.files.test), "--out", str(tmp_path / "p.csv")]) == 0
    predicted = rows_of(tmp_path / "p.csv")
    assert told(rows) == told(predicted)
    other = labelled(capsys, tmp_path / "b.csv", "--run", run, "--data", texts.files.train)[1]
    assert told(other) == told(rows[:80]) == told(labelled(capsys, tmp_path / "c.csv", "--run", run)[1])


def test_train_takes_the_file_and_an_apis(tmp_path, capsys, texts, model):
    """An API's file has ids as the table has them, rows in any order, and perhaps no confidence."""
    api = tmp_path / "api.csv"
    lines = [(f"train/{n:06d}", row["label"]) for n, row in enumerate(rows_of(texts.files.train), 1)]
    with open(api, "w", newline="") as stream:
        csv.writer(stream).writerows([("id", "label"), *lines[::-1]])
    own = tmp_path / "own.csv"
    assert main(["pseudolabel", "--data", str(texts.files.train), "--model", model, "--out", str(own)]) == 0
    for file, agreed in ((api, "agrees with 20 of 20"), (own, "agrees with")):
        out = tmp_path / file.stem
        flags = [*texts.flags, *STEPS[:-1], "--steps", "2", "--method", "pseudo_supervision", "--foundation-labels", str(file)]
        capsys.readouterr()
        assert main(["train", *flags, "--out", str(out)]) == 0
        assert f"{file.name} labels 80 of 80 training texts and {agreed}" in capsys.readouterr().err
        assert not (out / "foundation_labels.csv").exists()
    named = tmp_path / "named.csv"
    with open(named, "w", newline="") as stream:
        given = [(f"n{k}", row["text"], row["label"]) for k, row in enumerate(rows_of(texts.files.train))]
        csv.writer(stream).writerows([("id", "text", "label"), *given])
    assert labelled(capsys, tmp_path / "n.csv", "--data", named, "--model", model)[1][3]["id"] == "n3"


def test_what_it_refuses(tmp_path, capsys, run, texts, model, image_run):
    train, photos = texts.files.train, tmp_path / "photos"
    (photos / "a").mkdir(parents=True)
    strange, blank = tmp_path / "strange.csv", tmp_path / "blank.csv"
    strange.write_text("label,description\nmusic,songs\ncooking,meals\n")
    blank.write_text("label,description\nmusic,\n")
    other = text_set.made(tmp_path / "other", 20, classes=3).train
    for args, code, words in (
        (["--data", train], 2, ("who labels?", "--entailment")),
        (["--data", train, "--model", model, "--run", run], 2, ("who labels?",)),
        (["--data", train, "--model", "glyph_clip"], 2, ("glyph_clip reads images", "transformers:")),
        (["--data", "digits", "--model", model], 2, ("reads texts", "digits holds images")),
        (["--data", photos, "--model", "glyph_clip", "--describe", "a=b"], 2, ("--describe", "table of texts")),
        (["--data", "digits", "--entailment", "x"], 2, ("--entailment goes with a table of texts",)),
        (["--run", image_run, "--text-column", "said"], 2, ("--text-column", "images")),
        (["--run", image_run, "--data", train], 2, ("reads images", "table of texts")),
        (["--run", run, "--data", photos], 2, ("reads texts", "no table")),
        (["--run", run, "--describe", "music=songs"], 2, ("a run knows its own",)),
        (["--run", run, "--data", other], 3, ("differ in their classes", "science")),
        (["--data", train, "--model", model, "--describe", "music"], 2, ("CLASS=TEXT",)),
        (["--data", train, "--model", model, "--describe", "muzic=songs"], 2, ("unknown class 'muzic'", "music")),
        (["--data", train, "--model", model, "--descriptions", strange], 3, ("strange.csv:3", "unknown class 'cooking'")),
        (["--data", train, "--model", model, "--descriptions", blank], 3, ("blank.csv:2", "is blank")),
        (["--data", train, "--model", model, "--weights", "random"], 2, ("--weights random",)),
        (["--data", train, "--model", model, "--labels", "x.csv"], 2, ("--labels, --root and --download go with images",)),
        (["--data", train, "--model", model, "--text-column", "said"], 3, ("no column 'said'", "text_column")),
        (["--data", train, "--model", f"transformers:{tmp_path}/gone"], 4, ("there is no folder",)),
    ):
        fails(capsys, ["pseudolabel", *args, "--out", tmp_path / "p.csv"], code, *words)
        assert not (tmp_path / "p.csv").exists()
