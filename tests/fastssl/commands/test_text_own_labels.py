"""Foundation labels that a run on texts makes for itself: what is in them, that a resumed run reads the same, and who may have them."""

import json

import numpy as np
import pytest
import torch

from fastssl.cli import main
from fastssl.commands.train import saved_config
from fastssl.engine import checkpoint
from fastssl.engine.own_labels import FILE, with_own_labels
from tests import text_set
from tests.fastssl.text_runs import STEPS, fails, result_of, rows_of, trained

SHORT = [*STEPS[:-1], "--steps", "6"]


def begun(capsys, out, texts, *flags):
    """A short run, and what it logged."""
    assert main(["train", *texts.flags, *SHORT, *flags, "--out", str(out)]) == 0
    return (out / "log.txt").read_text()


def test_zeromatch_labels_the_training_texts_as_pseudolabel_does(tmp_path, capsys, texts):
    said = begun(capsys, tmp_path / "run", texts, "--method", "zeromatch")
    own = tmp_path / "own.csv"
    assert main(["pseudolabel", "--data", str(texts.files.train), "--model", texts.flags[-1], "--out", str(own)]) == 0
    rows = rows_of(tmp_path / "run" / FILE)
    assert [(row["id"], row["label"]) for row in rows] == [(row["id"], row["label"]) for row in rows_of(own)] and len(rows) == 80
    confidence = [float(row["confidence"]) for row in rows]
    assert confidence == pytest.approx([float(row["confidence"]) for row in rows_of(own)], abs=2e-6)
    assert f"as it starts labels 80 texts by the names of the classes (mean confidence {np.mean(confidence):.3f})" in said
    assert f"foundation labels: {FILE} labels 80 of 80 training texts and agrees with" in said and "of 20 labelled ones" in said
    assert saved_config(tmp_path / "run").data.foundation_labels is None  # the configuration can be run again elsewhere


def test_the_labels_move_no_other_random_number(tmp_path, capsys, texts):
    """A run with the same labels from a file begins with the same weights, and ends with the same."""
    begun(capsys, tmp_path / "a", texts, "--method", "pseudo_supervision")
    begun(capsys, tmp_path / "b", texts, "--method", "pseudo_supervision", "--foundation-labels", str(tmp_path / "a" / FILE))
    one, other = (checkpoint.newest(tmp_path / name / "checkpoints")[0]["method"] for name in "ab")
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    assert not (tmp_path / "b" / FILE).exists()


def test_a_resumed_run_reads_the_same(tmp_path, capsys, texts):
    """Noise is drawn on them afresh: the file is without it."""
    flags = ("--method", "zeromatch", "--set", "data.foundation_noise=0.3")
    said = begun(capsys, tmp_path / "whole", texts, *flags)
    assert "24 of the training texts' were replaced by another class" in said
    begun(capsys, tmp_path / "half", texts, *flags, "--set", "train.stop_at=3")
    kept = (tmp_path / "half" / FILE).read_bytes()
    assert kept == (tmp_path / "whole" / FILE).read_bytes()
    assert main(["train", "--resume", str(tmp_path / "half"), "--quiet"]) == 0
    one, other = (checkpoint.newest(tmp_path / name / "checkpoints")[0]["method"] for name in ("whole", "half"))
    assert all(torch.equal(one[key], other[key]) for key in one)
    begun(capsys, tmp_path / "torn", texts, *flags, "--set", "train.stop_at=3")
    lines = kept.decode().splitlines(keepends=True)
    (tmp_path / "torn" / FILE).write_text("".join(lines[:-5]))
    fails(capsys, ["train", "--resume", tmp_path / "torn", "--quiet"], 6, FILE, "is not what it was")


def test_descriptions_stand_for_the_names(tmp_path, capsys, texts):
    topics, file = text_set.words()[0], tmp_path / "descriptions.csv"
    turned = zip(text_set.CLASSES, (topics[1], topics[0], topics[2], topics[3]), strict=False)
    file.write_text("label,description\n" + "".join(f"{name},{' '.join(words[1:4])}\n" for name, words in turned))
    said = begun(capsys, tmp_path / "run", texts, "--method", "pseudo_supervision", "--set", f"data.descriptions={file}")
    assert "by the descriptions in descriptions.csv" in said
    true = [row["label"] for row in rows_of(texts.files.train)]
    right = {name: [] for name in ("business", "health", "music", "science")}
    for row, label in zip(rows_of(tmp_path / "run" / FILE), true, strict=True):
        right[label].append(row["label"] == label)
    assert np.mean(right["business"] + right["health"]) < 0.3 and np.mean(right["music"] + right["science"]) > 0.6
    assert main(["train", "--resume", str(tmp_path / "run"), "--quiet"]) == 0
    assert with_own_labels(saved_config(tmp_path / "run"), tmp_path / "run").data.descriptions is None
    args = ["train", *texts.flags, *SHORT, "--set", f"data.descriptions={file}", "--out", tmp_path / "none"]
    fails(capsys, [*args, "--method", "fixmatch"], 2, "data.descriptions", "makes none")
    fails(capsys, [*args, "--method", "zeromatch", "--foundation-labels", tmp_path / "run" / FILE], 2, "makes none")
    strange = tmp_path / "strange.csv"
    strange.write_text("label,description\ncooking,meals\n")
    args[-3] = f"data.descriptions={strange}"
    fails(capsys, [*args, "--method", "zeromatch"], 3, "strange.csv:2", "unknown class 'cooking'")


@pytest.mark.parametrize("method", ["pl_feature", "zero_shot"])
def test_who_judges_rows_labels_test_texts_too(tmp_path, capsys, texts, method):
    begun(capsys, tmp_path / "run", texts, "--method", method)
    rows = rows_of(tmp_path / "run" / FILE)
    assert len(rows) == 120 and rows[-1]["id"] == "test/000040"
    given = [row["label"] for row in rows_of(texts.files.test)]
    share = np.mean([row["label"] == label for row, label in zip(rows[80:], given, strict=True)])
    if method == "zero_shot":
        assert result_of(tmp_path / "run")["accuracy"] == share > 0.9
    for command in (["eval"], ["predict", texts.files.test], ["pseudolabel", "--out", tmp_path / "p.csv"]):
        place = ["--run", tmp_path / "run"] if command[0] == "pseudolabel" else [tmp_path / "run"]
        fails(capsys, [command[0], *place, *command[1:]], 2, "foundation label", "metrics.jsonl")


def test_images_and_encoders_without_weights_make_none(tmp_path, capsys, texts):
    net = ["--model", "wrn-10-1", "--set", "data.size=8", "--labels-per-class", "2", "--steps", "1", "--quiet"]
    fails(capsys, ["train", "--method", "zeromatch", *net, "--out", tmp_path / "a"], 2, "give --foundation-labels FILE")
    fails(capsys, ["train", "--method", "zero_shot", *net, "--out", tmp_path / "b"], 2, "trains nothing")
    args = ["train", "--method", "zeromatch", *texts.flags, *SHORT, "--weights", "random", "--out", tmp_path / "c"]
    fails(capsys, args, 2, "--weights random")
    assert not [name for name in "abc" if (tmp_path / name).exists()]


def test_a_dry_run_and_json(tmp_path, capsys, texts):
    capsys.readouterr()
    assert main(["train", *texts.flags, *SHORT, "--method", "zeromatch", "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])


def test_semikd_learns_from_a_run_on_texts(tmp_path, capsys, texts, run, image_run):
    teacher = trained(tmp_path / "teacher", texts, "--method", "finessl", "--tune", "full", "--steps", "4")
    flags = [*texts.flags, *SHORT, "--tune", "full"]
    assert main(["train", *flags, "--method", "semikd", "--set", f"method.teacher={teacher}", "--out", str(tmp_path / "kd")]) == 0
    assert result_of(tmp_path / "kd")["steps"] == 6
    semikd = ["train", *flags, "--method", "semikd", "--out", tmp_path / "none", "--set"]
    fails(capsys, [*semikd, f"method.teacher={run}"], 6, "no auxiliary head")
    fails(capsys, [*semikd, f"method.teacher={image_run}"], 2, "others")
    other = text_set.encoder(tmp_path / "other", classes=5)
    semikd[semikd.index("--model") + 1] = f"transformers:{other}"
    fails(capsys, [*semikd, f"method.teacher={teacher}"], 2, "another tokenizer")
    semikd[semikd.index("--model") + 1] = texts.flags[-1]
    fails(capsys, [*semikd, f"method.teacher={teacher}", "--set", "method.mixup=0.5"], 2, "method.mixup", "leave it at 0")
