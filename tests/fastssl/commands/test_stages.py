"""Runs of several stages, and of none, by the command line."""

import json
import logging

import pytest

from fastssl.cli import main
from fastssl.pipelines import sources

SMALL = ["--model", "wrn-10-1", "--set", "data.size=8", "--batch-size", "4", "--ratio", "2", "--labels-per-class", "1", "--quiet"]


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A CSV with the true label of every row of the digits."""
    digits = sources.load("digits", size=8)
    path = tmp_path_factory.mktemp("given") / "given.csv"
    path.write_text("id,label\n" + "".join(f"{name},{digits.classes[c]}\n" for name, c in zip(digits.ids, digits.label, strict=True)))
    return str(path)


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_method_that_trains_nothing_has_no_steps_to_estimate(capsys):
    assert main(["train", "--method", "zero_shot", "--dry-run", "--quiet"]) == 0
    assert "nothing trains" in capsys.readouterr().out


@pytest.mark.parametrize("flags", [["--model", "wrn-10-1"], ["--set", "model.head_init=random"]])
def test_zero_shot_of_an_untrained_head_is_refused(tmp_path, capsys, flags):
    assert main(["train", "--method", "zero_shot", *flags, "--out", str(tmp_path / "run"), "--quiet"]) == 2
    assert "--foundation-labels FILE" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_a_run_that_diverges_across_its_stages_ends_with_5(tmp_path, given, capsys):
    """Six steps in either stage, fewer than the ten that end a run, and none of them finite."""
    flags = ["--foundation-labels", given, "--steps", "12", "--lr", "1e38", "--out", str(tmp_path / "run")]
    assert main(["train", "--method", "zeromatch", *SMALL, *flags]) == 5
    assert "11 steps running, up to step 12" in capsys.readouterr().err


def test_each_stage_is_named_and_reported_at_its_end(tmp_path, given):
    out = tmp_path / "run"
    assert main(["train", "--method", "zeromatch", *SMALL, "--foundation-labels", given, "--steps", "8", "--out", str(out)]) == 0
    records = [r for r in lines(out) if r["event"] == "train"]
    assert [r["step"] for r in records] == [4, 8]
    assert "kept" not in records[0] and "kept" in records[1] and records[1]["skipped"] == 0
    assert "stage 2, semi_supervised: 4 steps" in (out / "log.txt").read_text()


def test_the_estimate_counts_each_stage_by_its_images(given, capsys):
    assert main(["train", "--method", "zeromatch", *SMALL, "--foundation-labels", given, "--steps", "100", "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])["estimate"]
    # stage 1: 2 images a labelled one, stage 2: 1 + 2 x 2
    assert found["seconds"] == pytest.approx(found["seconds_per_step"] * (50 + 50 * 5 / 2), rel=1e-6)


def test_a_sweep_sees_that_a_label_file_has_changed(tmp_path, given, capsys):
    own = tmp_path / "own.csv"
    own.write_text(open(given).read())
    sweep = [
        "sweep",
        "--method",
        "pseudo_supervision",
        *SMALL,
        "--steps",
        "2",
        "--foundation-labels",
        str(own),
        "--out",
        str(tmp_path / "sweep"),
    ]
    assert main(sweep) == 0 and main(sweep) == 0
    own.write_text(own.read_text().replace(",3\n", ",4\n"))
    capsys.readouterr()
    assert main(sweep) == 2
    assert "data.foundation_labels" in capsys.readouterr().err


def test_a_checkpoint_of_an_older_version_is_refused_in_one_sentence(tmp_path, capsys, monkeypatch):
    from fastssl.engine import state

    out = tmp_path / "run"
    with monkeypatch.context() as older:
        older.setattr(state, "PROGRESS", tuple(name for name in state.PROGRESS if name != "images"))
        assert main(["train", "--method", "supervised", *SMALL, "--steps", "4", "--set", "train.stop_at=2", "--out", str(out)]) == 0
    capsys.readouterr()
    listening = list(logging.getLogger("fastssl").handlers)
    assert main(["train", "--resume", str(out), "--quiet"]) == 6
    assert logging.getLogger("fastssl").handlers == listening, "a run that is refused listens no more"
    assert "saved by an older version, without images" in capsys.readouterr().err


@pytest.mark.parametrize(("code", "resumed"), [(7, True), (5, False)])
def test_a_failed_run_of_a_sweep_goes_on_where_the_cause_may_be_gone(tmp_path, code, resumed):
    """A full disk may have been cleared: the run goes on from its checkpoint. A run that diverged is made anew."""
    sweep = ["sweep", "--method", "supervised", *SMALL, "--steps", "2", "--out", str(tmp_path / "sweep")]
    assert main(sweep) == 0
    (run,), (cell,) = (tmp_path / "sweep" / "runs").iterdir(), (tmp_path / "sweep" / "cells").iterdir()
    (run / "STATUS.json").write_text(json.dumps({"state": "failed", "step": 2}))
    cell.write_text(json.dumps(json.loads(cell.read_text()) | {"failure": {"exit_code": code, "reason": "made up"}}))
    assert main(sweep) == 0
    assert ("resumed at step 2 of 2" in (run / "log.txt").read_text()) == resumed
