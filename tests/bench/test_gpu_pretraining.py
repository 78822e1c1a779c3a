"""The script of pre-training on CIFAR-10 (JPEG), with a tiny folder, a tiny network and a few steps on the CPU."""

from __future__ import annotations

import json

from bench import gpu_pretraining


def test_all_runs_follow_each_other_and_a_second_call_makes_none_again(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    place = ["--data", str(folder), "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    place += ["--steps", "2", "--fine", "2", "--model", "wrn-10-1", "--device", "cpu", "--amp", "off"]
    assert gpu_pretraining.main(place) == 0
    said = capsys.readouterr().out
    assert "6 of 6 runs done" in said
    config = (tmp_path / "runs" / "finessl_on_simclr" / "config.yaml").read_text()
    assert "encoder.safetensors" in config and "encoder.safetensors" not in (tmp_path / "runs" / "fixmatch" / "config.yaml").read_text()
    log = (tmp_path / "runs" / "finessl_on_simclr" / "log.txt").read_text()
    assert "encoder.safetensors" in log, "the log says what was taken of the file"
    (table,) = (tmp_path / "out").glob("pretraining-*.md")
    rows = [line for line in table.read_text().splitlines() if "`fastssl train" in line]
    assert len(rows) == 6 and "no labels" in rows[0] and all("| - |" not in row for row in rows)
    assert gpu_pretraining.main(place) == 0
    assert "fastssl train" not in capsys.readouterr().out.split("#")[0]


def test_a_run_that_was_stopped_goes_on(tmp_path):
    args = gpu_pretraining.parsed(["--runs", str(tmp_path)])
    job = gpu_pretraining.jobs(args)[1]
    assert gpu_pretraining.command(job, args, tmp_path)[:3] == ["train", "--method", "finessl"]
    (tmp_path / job.name).mkdir()
    (tmp_path / job.name / "STATUS.json").write_text(json.dumps({"state": "interrupted", "step": 1}))
    assert gpu_pretraining.command(job, args, tmp_path) == ["train", "--resume", str(tmp_path / job.name)]


def test_no_images_and_no_device_are_said(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("FASTSSL_DATA", raising=False)
    assert gpu_pretraining.main([]) == 4 and "give --data DIR" in capsys.readouterr().err
