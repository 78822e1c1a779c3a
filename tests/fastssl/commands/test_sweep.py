"""`fastssl sweep`: whole runs of a tiny network, their table, and what becomes of runs that are stopped, fail or die."""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import signal
import statistics
from pathlib import Path

import pytest
import torch

from fastssl.cli import main, parser
from fastssl.commands.sweep import lay_out
from fastssl.engine import checkpoint
from fastssl.engine.run import Run
from tests.fastssl.sweep_cases import SMALL, net, results, sweep, weights  # noqa: F401 - net is a fixture

ROOT = Path(__file__).resolve().parents[3]
pytestmark = pytest.mark.usefixtures("net")


def changed(out):
    return {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("*") if path.is_file()}


def test_a_grid_gives_ordinary_runs_and_one_table(tmp_path, capsys):
    out = tmp_path / "s"
    words = ["--method", "fixmatch,supervised", "--seeds", "0-1", "--set", "train.lr=0.05,0.5", "--set", "train.ema=0.5", "--json"]
    assert sweep(out, *words) == 0
    said = capsys.readouterr()
    table = json.loads(said.out.splitlines()[-1])
    found = results(out)
    names = [f"{method}-lr={lr}-seed{seed}" for method in ("fixmatch", "supervised") for lr in (0.05, 0.5) for seed in (0, 1)]
    assert sorted(found) == sorted(names) and table["runs"] == 8 and table["failed"] == 0
    for k, row in enumerate(table["rows"]):
        each = [100 * found[name]["accuracy"] for name in names[2 * k : 2 * k + 2]]
        assert row["accuracy"] == pytest.approx(statistics.mean(each)) and row["deviation"] == pytest.approx(statistics.stdev(each))
        assert row["settings"] == {"lr": ["0.05", "0.5"][k % 2]} and row["n"] == 2
    assert len({row["accuracy"] for row in table["rows"]}) > 1, "settings matter"
    assert "| fixmatch | 0.05 | 2 |" in said.out and "8 runs: 8 new" in said.err
    assert [line.split()[0] for line in said.err.splitlines() if "s left" not in line and "/8 " in line] == [f"{k}/8" for k in range(1, 9)]
    assert {"table.md", "table.csv", "table.png", "sweep.yaml"} <= {path.name for path in out.iterdir()}
    # The same run by `fastssl train`, in this process after eight others: the same bits.
    alone = ["--method", "fixmatch", "--lr", "0.5", "--seed", "1", "--ema", "0.5", "--quiet", "--out", str(tmp_path / "alone")]
    assert main(["train", *SMALL, *alone]) == 0
    ours, theirs = weights(out / "runs" / "fixmatch-lr=0.5-seed1"), weights(tmp_path / "alone")
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert len(checkpoint.listed(out / "runs" / names[0] / "checkpoints")) == 1
    capsys.readouterr()
    assert main(["eval", str(out / "runs" / names[0]), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] == pytest.approx(found[names[0]]["accuracy"])


def test_a_sweep_that_is_there_goes_on_and_grows(tmp_path, capsys):
    out = tmp_path / "s"
    assert sweep(out, "--method", "supervised", "--seeds", "0", "--no-checkpoints") == 0
    before = changed(out)
    assert not list((out / "runs").glob("*/checkpoints"))
    capsys.readouterr()
    assert sweep(out, "--method", "supervised", "--seeds", "0-1", "--variant", "a b: train.lr=1", "--variant", "c:", "--dry-run") == 0
    said = capsys.readouterr()
    assert said.out.splitlines()[:2] == ["supervised-a_b-seed0  new", "supervised-a_b-seed1  new"] and changed(out) == before
    assert sweep(out, "--method", "supervised,fixmatch", "--seeds", "0-1") == 0
    said = capsys.readouterr()
    assert "4 runs: 1 finished and kept, 3 new" in said.err and "2/4 supervised-seed1" in said.err
    assert {path: changed(out)[path] for path in before} == before
    commands = (out / "sweep.yaml").read_text()
    assert "--no-checkpoints" in commands and "supervised,fixmatch" in commands


@pytest.mark.parametrize(
    ("make", "words", "fragments"),
    [
        (None, ["--steps", "5"], ("supervised-seed0", "train.steps 4", "asks for 5", "--out")),
        (None, ["--set", "method.threshold=1"], ("method.threshold",)),
        (None, ["--method", "superwised"], ("superwised", "supervised")),
        (None, ["--variant", "a b:", "--variant", "a_b:"], ("two runs", "supervised-a_b-seed0")),
        (None, ["--jobs", "0"], ("--jobs", "at least 1")),
        ("runs/supervised-seed7/config.yaml", ["--seeds", "7"], ("supervised-seed7", "no run of this sweep")),
        ("cells/supervised-seed8.json", ["--seeds", "8"], ("supervised-seed8.json", "cannot be read")),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_done(tmp_path, capsys, make, words, fragments):
    out = tmp_path / "s"
    assert sweep(out, "--method", "supervised") == 0
    if make:
        (out / make).parent.mkdir(exist_ok=True)
        (out / make).write_text("{")
    before = changed(out), (out / "sweep.yaml").read_text(), sorted(out.iterdir())
    capsys.readouterr()
    base = [] if "--method" in words else ["--method", "supervised"]
    steps = [word for word in SMALL if "--steps" not in words or word not in ("--steps", "4")]
    assert main(["sweep", *steps, "--out", str(out), *base, *words]) == 2
    text = capsys.readouterr().err
    assert text.startswith("fastssl: ") and all(fragment in text for fragment in fragments), text
    assert (changed(out), (out / "sweep.yaml").read_text(), sorted(out.iterdir())) == before


def test_a_folder_of_something_else_is_left_alone(tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_text("mine")
    assert sweep(tmp_path / "photos", "--method", "supervised") == 2
    assert "holds no sweep" in capsys.readouterr().err and [p.name for p in (tmp_path / "photos").iterdir()] == ["a.jpg"]


def test_options_that_move_no_figure_may_change(tmp_path, capsys):
    assert sweep(tmp_path / "s", "--method", "supervised") == 0
    assert sweep(tmp_path / "s", "--method", "supervised", "--set", "train.keep=3") == 0
    assert "1 finished and kept" in capsys.readouterr().err


def test_a_run_that_fails_is_noted_and_run_again(tmp_path, capsys, monkeypatch):
    out = tmp_path / "s"
    words = [
        "--variant",
        "bad: train.lr=1e38 train.max_skipped=1",
        "--variant",
        "short: data.labels_total=5",
        "--variant",
        "good: train.lr=0.1",
    ]
    short = [word for word in SMALL if word not in ("--labels-per-class", "2")]
    assert main(["sweep", *short, "--method", "supervised", *words, "--out", str(out)]) == 5
    said = capsys.readouterr()
    assert re.search(r"^- supervised-bad-seed0 failed \(exit 5\): loss or gradient was not finite", said.out, flags=re.M)
    assert re.search(r"^- supervised-short-seed0 failed \(exit 2\): --labels-total 5", said.out, flags=re.M)
    assert re.search(r"^\| supervised \| good \| 1 \| \d", said.out, flags=re.M) and "| supervised | bad | 0 | - |" in said.out
    assert list(results(out)) == ["supervised-good-seed0"]

    def breaks(self):
        raise RuntimeError("a fault of ours")

    result = Run.result
    monkeypatch.setattr(Run, "result", breaks)
    assert main(["sweep", *short, "--method", "supervised", *words[:2], "--out", str(out)]) == 5
    assert "1 runs: 1 failed before, to run again" in capsys.readouterr().err
    assert sweep(out, "--method", "fixmatch") == 1
    assert "exit 1): unexpected RuntimeError: a fault of ours" in capsys.readouterr().out
    assert "in breaks" in (out / "cells" / "fixmatch-seed0.traceback.txt").read_text()
    monkeypatch.setattr(Run, "result", result)
    assert sweep(out, "--method", "fixmatch") == 0
    assert "fixmatch-seed0" in results(out)


def test_ctrl_c_saves_and_the_same_command_goes_on(tmp_path, capsys, monkeypatch):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    words = ["--method", "fixmatch", "--seeds", "0-2", "--set", "train.save_every=4"]
    small = [word for word in SMALL if word != "train.save_every=2"][:-1]
    assert main(["sweep", *small, *words, "--out", str(whole)]) == 0
    report = Run.report

    def pressed(self):
        report(self)
        if self.config.train.seed == 1 and self.done == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "report", pressed)
        capsys.readouterr()
        assert main(["sweep", *small, *words, "--out", str(broken)]) == 130
    said = capsys.readouterr()
    assert "stopped with 1 of 3 runs finished; the same command goes on: fastssl sweep --method fixmatch" in said.err and not said.out
    assert json.loads((broken / "runs" / "fixmatch-seed1" / "STATUS.json").read_text())["state"] == "interrupted"
    assert not (broken / "runs" / "fixmatch-seed2").exists()
    assert main(["sweep", *small, *words, "--out", str(broken)]) == 0
    assert "3 runs: 1 finished and kept, 1 to go on from a checkpoint, 1 new" in capsys.readouterr().err
    assert "resumed at step 2 of 4" in (broken / "runs" / "fixmatch-seed1" / "log.txt").read_text()
    for seed in range(3):
        ours, theirs = (weights(root / "runs" / f"fixmatch-seed{seed}") for root in (whole, broken))
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert [r["accuracy"] for r in results(whole).values()] == [r["accuracy"] for r in results(broken).values()]


def test_ctrl_c_between_two_runs_says_how_to_go_on(tmp_path, capsys, monkeypatch):
    def pressed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("fastssl.commands.sweep.progress", pressed)
    assert sweep(tmp_path / "s", "--method", "supervised", "--seeds", "0-1") == 130
    assert "stopped with 1 of 2 runs finished; the same command goes on: fastssl sweep" in capsys.readouterr().err
    assert "| supervised | 1 |" in (tmp_path / "s" / "table.md").read_text()


def test_a_run_that_could_not_be_made_hears_no_other(tmp_path, capsys, monkeypatch):
    set_up = Run.set_up

    def breaks(self, stage):
        if self.config.train.seed == 0:
            logging.getLogger("fastssl").warning("a card is odd")
            raise RuntimeError("not made")
        logging.getLogger("fastssl").warning("a file is lost")
        set_up(self, stage)

    monkeypatch.setattr(Run, "set_up", breaks)
    before = list(logging.getLogger("fastssl").handlers)
    assert sweep(tmp_path / "s", "--method", "supervised", "--seeds", "0-1") == 1
    logs = [tmp_path / "s" / "runs" / f"supervised-seed{seed}" / "log.txt" for seed in (0, 1)]
    assert not logs[0].exists() and "a file is lost" in logs[1].read_text()
    assert logging.getLogger("fastssl").handlers == before
    said = capsys.readouterr().err
    assert said.count("a card is odd") == 1 == said.count("a file is lost")


def test_a_run_that_was_killed_before_it_saved_begins_anew(tmp_path):
    out = tmp_path / "s"
    assert sweep(out, "--method", "supervised") == 0
    whole = results(out)
    folder = out / "runs" / "supervised-seed0"
    for name in ("STATUS.json", "config.yaml", "metrics.jsonl"):
        (folder / name).unlink()
    for path in checkpoint.listed(folder / "checkpoints"):
        (path / "MANIFEST.json").unlink()
    assert sweep(out, "--method", "supervised") == 0
    timeless = [{k: v for k, v in r["supervised-seed0"].items() if k in ("accuracy", "ece", "raw")} for r in (whole, results(out))]
    assert timeless[0] == timeless[1]


def test_warnings_are_said_once(tmp_path, capsys, monkeypatch):
    train = Run.train
    monkeypatch.setattr(Run, "train", lambda self: self.reporter.warn("the same words") or train(self))
    assert sweep(tmp_path / "s", "--method", "supervised", "--seeds", "0-2", "--quiet") == 0
    assert (
        capsys.readouterr().err
        == "3 runs: 3 new\nsupervised-seed0: warning: the same words\ntable: " + str(tmp_path / "s" / "table.md") + "\n"
    )


def test_peers_stand_in_the_table_on_the_same_splits(tmp_path, capsys):
    assert (
        sweep(tmp_path / "s", "--method", "supervised,sklearn:LabelSpreading,sklearn:SelfTraining", "--lr", "0.1,0.2", "--seeds", "3") == 0
    )
    found = results(tmp_path / "s")
    assert sorted(found) == [
        "sklearn_LabelSpreading-seed3",
        "sklearn_SelfTraining-seed3",
        "supervised-lr=0.1-seed3",
        "supervised-lr=0.2-seed3",
    ]
    assert len({r["split_hash"] for r in found.values()}) == 1
    assert "| sklearn:LabelSpreading | - | 1 | " in capsys.readouterr().out
    assert sweep(tmp_path / "s", "--method", "sklearn:LabelSpreading", "--seeds", "3") == 0
    assert "1 finished and kept" in capsys.readouterr().err


def test_the_pages_commands_are_understood():
    """Each command of docs/sweeps.md makes the number of runs that its comment says."""
    text = (ROOT / "docs" / "sweeps.md").read_text(encoding="utf-8")
    lines = [line for block in re.findall(r"^```sh\n(.*?)^```$", text, flags=re.M | re.S) for line in block.splitlines()]
    commands = [line for line in lines if line.startswith("fastssl sweep")]
    assert len(commands) > 3
    for line in commands:
        command, _, comment = line.partition("  # ")
        cells = lay_out(parser().parse_args(shlex.split(command)[1:]))
        assert f"{len(cells)} runs" in comment, line
