"""The script of accuracies on CIFAR-10 (JPEG), with a tiny folder, a tiny network and a few steps on the CPU."""

from __future__ import annotations

import shlex
import sys

import pytest

from bench import gpu_accuracy, gpu_runs
from bench.gpu_accuracy import LABELS, METHODS, Setting
from fastssl import presets
from fastssl.cli import parser
from fastssl.commands.train import configure

TINY = ["--device", "cpu", "--amp", "off", "--set", "model.name=wrn-10-1", "--set", "train.batch_size=4", "--set", "train.ratio=1"]


@pytest.fixture
def given(folder, tmp_path):
    return [
        "--data",
        str(folder),
        "--runs",
        str(tmp_path / "runs"),
        "--out",
        str(tmp_path / "out"),
        "--steps",
        "2",
        "--labels",
        "40",
        *TINY,
    ]


def test_every_setting_is_a_published_one(tmp_path):
    """Each command resolves to the network, the steps asked for, and the options of the preset that it names."""
    args = gpu_accuracy.parsed(["--steps", "77"])
    for setting in (Setting(method, labels) for method in METHODS for labels in LABELS):
        config = configure(parser().parse_args(["train", *setting.words(args, tmp_path)]))
        assert (config.model.name, config.train.steps, config.data.labels_total) == ("wrn-28-2", 77, setting.labels)
        assert (config.method_name, config.train.batch_size, config.train.ratio, config.train.ema) == (setting.method, 64, 7, 0.999)
        own = f"{setting.method}_cifar10_{setting.labels}" in presets.PRESETS
        assert own == (setting.method in setting.preset.published)
        if setting.method == "spl":
            assert config.method.lambda_u == 1.1
        if setting.method == "adamatch":
            assert not config.method.interpolate and config.data.policy == "usb"


def test_the_folder(folder, monkeypatch, tmp_path, capsys):
    monkeypatch.delenv("FASTSSL_DATA", raising=False)
    assert gpu_runs.images_folder(None) is None and gpu_runs.images_folder(folder) == folder
    monkeypatch.setenv("FASTSSL_DATA", str(tmp_path))
    assert gpu_runs.images_folder(None) is None
    folder.rename(tmp_path / "cifar10-jpeg")
    assert gpu_runs.images_folder(None) == tmp_path / "cifar10-jpeg"
    assert gpu_accuracy.main(["--data", str(tmp_path / "nowhere"), "--device", "cpu"]) == 4
    assert "give --data DIR" in capsys.readouterr().err
    monkeypatch.setattr(gpu_runs.torch.cuda, "is_available", lambda: False)
    assert gpu_accuracy.main([]) == 2 and "needs a CUDA device" in capsys.readouterr().err


def test_the_plan_runs_nothing(given, tmp_path, capsys):
    assert gpu_accuracy.main([*given, "--methods", "fixmatch", "layermatch", "--plan"]) == 0
    lines = capsys.readouterr().out.splitlines()
    commands = [line for line in lines if line.startswith("fastssl sweep ")]
    assert len(commands) == 2 and all("new: at most" in line for line in commands)
    for line in commands:
        parser().parse_args(shlex.split(line, comments=True)[1:])
    assert sum("ms a step" in line for line in lines) == 2 and "s of steps in all" in lines[-1]
    assert not (tmp_path / "runs").exists() and not (tmp_path / "out").exists()


def test_a_table_that_goes_on(given, tmp_path, capsys):
    """Nothing is begun without time; then one method; then both, the first kept as it was."""
    both = [*given, "--methods", "fixmatch", "layermatch"]
    assert gpu_accuracy.main([*both, "--seconds", "5"]) == 0
    assert "0 of 2 settings done; the same command goes on" in capsys.readouterr().out
    assert gpu_accuracy.main([*given, "--methods", "fixmatch"]) == 0
    status = tmp_path / "runs" / "fixmatch-40" / "runs" / "fixmatch-seed0" / "STATUS.json"
    before = status.stat().st_mtime_ns
    assert gpu_accuracy.main(both) == 0
    assert "2 of 2 settings done:" in capsys.readouterr().out and status.stat().st_mtime_ns == before
    text = next((tmp_path / "out").glob("accuracy-*.md")).read_text()
    assert "CIFAR-10 (JPEG)" in text and "amp off, model.name=wrn-10-1" in text
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith(("| fixmatch", "| layermatch"))
    ]
    assert [row[:4] for row in rows] == [["fixmatch", "40", "2", "1"], ["layermatch", "40", "2", "1"]]
    assert all(0 <= float(row[4]) <= 100 for row in rows)
    assert rows[0][7:] == ["86.19 +- 3.37", "1,048,576", "Sohn et al. 2020, arXiv 2001.07685, table 2, FixMatch (RA)"] and rows[1][7:9] == [
        "-",
        "-",
    ]


def test_a_setting_that_fails_is_named(given, tmp_path, capsys):
    assert gpu_accuracy.main([*given, "--methods", "fixmatch", "--set", "data.labels_total=610"]) == 1
    assert "fixmatch-40 failed with exit code 3" in capsys.readouterr().err
    assert "610" in (tmp_path / "runs" / "fixmatch-40.log").read_text()


def test_work_is_asked_to_save_itself_and_else_ended(tmp_path, monkeypatch):
    # Who is started in the background by a shell may have been told to ignore SIGINT, and tells its children so.
    heard = "import signal, time\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
    saves = heard + "try:\n    print('on', flush=True); time.sleep(60)\nexcept KeyboardInterrupt:\n    print('saved'); exit(130)"
    assert gpu_runs.work([sys.executable, "-c", saves], tmp_path / "a.log", 3.0) == 130
    assert (tmp_path / "a.log").read_text().split() == ["on", "saved"]
    monkeypatch.setattr(gpu_runs, "PATIENCE", 1.0)
    deaf = "import signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\ntime.sleep(60)"
    assert gpu_runs.work([sys.executable, "-c", deaf], tmp_path / "b.log", 3.0) < 0
