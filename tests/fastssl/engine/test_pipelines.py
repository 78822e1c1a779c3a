"""Runs on a folder of JPEGs that DALI decodes: train, resume bit for bit, eval, predict, and the words about the choice."""

from __future__ import annotations

import json

import pytest
import torch
import yaml

from fastssl.cli import main
from fastssl.engine import assemble, checkpoint, indexing
from fastssl.pipelines.choice import Room

pytest.importorskip("nvidia.dali", reason="DALI comes with the dali extra: pip install nvidia-dali-cuda120")

FAST = ["--model", "wrn-28-2", "--method", "fixmatch", "--steps", "6", "--batch-size", "8", "--ratio", "2", "--quiet", "--ema", "0.9"]
FAST += ["--labels-per-class", "4", "--holdout", "0.2", "--set", "train.report_every=2", "--set", "method.threshold=0.2"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """120 JPEGs of digits in class folders."""
    from PIL import Image
    from sklearn.datasets import load_digits

    root = tmp_path_factory.mktemp("photos") / "data"
    digits = load_digits()
    for i, (image, label) in enumerate(zip(digits.images[:120], digits.target[:120], strict=True)):
        path = root / f"is{label}" / f"{i:03d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 255 / 16).round().astype("uint8")).resize((16, 16)).convert("RGB").save(path, quality=95)
    return root


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("FASTSSL_CACHE", str(tmp_path_factory.mktemp("cache")))


def train(photos, out, *more):
    assert main(["train", *FAST, "--data", str(photos), "--out", str(out), *more]) == 0
    return out


def state_of(folder):
    return checkpoint.newest(folder / "checkpoints")[0]["method"]


def same(a, b):
    a, b = state_of(a), state_of(b)
    return a.keys() == b.keys() and all(torch.equal(value, b[key]) for key, value in a.items())


def result_of(folder):
    return json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])


@pytest.fixture(scope="module")
def streamed(photos):
    return train(photos, photos.parent / "dali", "--set", "data.pipeline=dali")


def test_a_run_trains_and_says_why_it_streams(streamed):
    assert result_of(streamed)["steps"] == 6 and result_of(streamed)["accuracy"] is not None
    assert "pipeline: dali (asked for; 120 images of 16 x 16 pixels take 90.0 KiB decoded; DALI" in (streamed / "log.txt").read_text()
    assert yaml.safe_load((streamed / "config.yaml").read_text())["data"]["pipeline"] == "dali"


def test_a_resident_run_ends_with_the_same_weights(photos, streamed, tmp_path):
    """JPEGs of the stored size are decoded to the same bits by libjpeg-turbo, whoever calls it."""
    other = train(photos, tmp_path / "run")
    assert yaml.safe_load((other / "config.yaml").read_text())["data"]["pipeline"] == "resident", "auto is resolved"
    assert same(streamed, other) and result_of(streamed)["accuracy"] == result_of(other)["accuracy"]


def test_stop_and_resume_equals_an_unbroken_run_bit_for_bit(photos, streamed, tmp_path):
    broken = train(photos, tmp_path / "run", "--set", "data.pipeline=dali", "--set", "train.stop_at=3")
    assert main(["train", "--resume", str(broken), "--quiet"]) == 0
    assert same(streamed, broken)


def test_eval_and_predict_read_the_files(photos, streamed, tmp_path, capsys):
    assert main(["eval", str(streamed), "--json"]) == 0
    judged = json.loads(capsys.readouterr().out)
    assert judged["accuracy"] == result_of(streamed)["accuracy"] and judged["rows"] == result_of(streamed)["ema"]["rows"]
    assert main(["predict", str(streamed), str(photos), "--out", str(tmp_path / "p.csv")]) == 0
    assert len((tmp_path / "p.csv").read_text().splitlines()) == 121


def test_eval_needs_no_dali_and_train_does(photos, streamed, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("fastssl.pipelines.choice.dali_version", lambda: None)
    monkeypatch.setattr("fastssl.pipelines.file_set.dali_version", lambda: None)
    assert main(["eval", str(streamed), "--json"]) == 0
    capsys.readouterr()
    assert main(["train", *FAST, "--data", str(photos), "--set", "data.pipeline=dali", "--out", str(tmp_path / "run")]) == 4
    assert "--pipeline dali needs NVIDIA DALI" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_auto_streams_what_does_not_fit(photos, streamed, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(assemble, "room", lambda device: Room("cpu", 1 << 16, 1 << 16))
    run = train(photos, tmp_path / "run")
    assert same(streamed, run)
    assert "take 90.0 KiB decoded, over 50% of the 64.0 KiB free in main memory" in (run / "log.txt").read_text()
    monkeypatch.setattr("fastssl.pipelines.file_set.dali_version", lambda: None)
    assert main(["train", *FAST, "--data", str(photos), "--out", str(tmp_path / "other")]) == 4
    assert "pip install nvidia-dali-cuda120" in capsys.readouterr().err and not (tmp_path / "other").exists()


def test_shards_train(photos, tmp_path):
    import tarfile

    shards = tmp_path / "shards"
    shards.mkdir()
    with tarfile.open(shards / "a.tar", "w") as archive:
        archive.add(photos, arcname=".")
    run = train(shards, tmp_path / "run", "--set", "data.pipeline=dali")
    assert result_of(run)["steps"] == 6 and result_of(run)["ema"]["rows"] > 10


def test_images_that_are_lost_in_mid_run_end_it_with_exit_3(photos, tmp_path, capsys, monkeypatch):
    import shutil

    from fastssl.engine.run import Run

    data = tmp_path / "data"
    shutil.copytree(photos, data)
    before = Run._walk

    def walk(run):
        for path in sorted(data.rglob("*.jpg"))[::2]:
            path.unlink()
        before(run)

    monkeypatch.setattr(Run, "_walk", walk)
    assert main(["train", *FAST, "--data", str(data), "--set", "data.pipeline=dali", "--out", str(tmp_path / "run")]) == 3
    told = capsys.readouterr().err
    assert "of 120 images are lost" in told and "raise --max-bad" in told and "Traceback" not in told and "DALI" not in told
    assert json.loads((tmp_path / "run" / "STATUS.json").read_text())["state"] == "failed"


def test_named_sets_are_not_streamed(tmp_path, capsys):
    assert main(["train", "--set", "data.pipeline=dali", "--steps", "2", "--out", str(tmp_path / "run")]) == 2
    assert "digits fits into memory, so take --pipeline resident" in capsys.readouterr().err


def test_a_bar_counts_files_on_a_terminal_alone(monkeypatch):
    with indexing.indexing(False) as progress:
        assert progress is None
    monkeypatch.setattr(indexing.sys.stderr, "isatty", lambda: True, raising=False)
    with indexing.indexing(True) as progress:
        assert progress is None
    with indexing.indexing(False) as progress:
        progress(3, 10)
