"""`--extra-unlabelled` by command: what is said before a run, in it, on its resumption and by the other commands; what is refused."""

import csv
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from fastssl.cli import main

DIGITS = ["--model", "wrn-10-1", "--set", "data.size=8", "--labels-per-class", "2", "--batch-size", "4", "--ratio", "2", "--quiet"]
RUN = ["--method", "fixmatch", *DIGITS, "--steps", "4", "--set", "train.eval_every=4"]


@pytest.fixture
def others(tmp_path):
    """Nine images of noise, 8 pixels wide, in sub-folders."""
    rng, folder = np.random.default_rng(0), tmp_path / "others"
    for i in range(9):
        (folder / str(i % 2)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / str(i % 2) / f"{i}.png")
    return folder


def stopped(folder, others, *more):
    assert main(["train", *RUN, *more, "--extra-unlabelled", str(others), "--set", "train.stop_at=2", "--out", str(folder)]) == 0
    return folder


def test_a_dry_run_counts_them(others, capsys):
    assert main(["train", *RUN, "--extra-unlabelled", str(others), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert (
        "# 20 labelled, 1356 unlabelled (9 of them extra), 450 test images" in said and f"# extra images, unlabelled: 9 of {others}" in said
    )
    assert main(["train", *RUN, "--extra-unlabelled", str(others), "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (found["extra"], found["unlabelled"]) == (9, 1356)
    assert main(["train", *RUN, "--dry-run"]) == 0
    assert "extra" not in "".join(line for line in capsys.readouterr().out.splitlines() if line.startswith("#"))


def test_a_run_keeps_the_whole_path_and_is_judged_by_its_own_test_images(others, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *RUN, "--extra-unlabelled", "others", "--out", "run"]) == 0
    assert f"extra_unlabelled: {others}" in (tmp_path / "run" / "config.yaml").read_text()
    rows = list(csv.DictReader((tmp_path / "run" / "split.csv").open()))
    extra = [row for row in rows if row["id"].startswith("extra:")]
    assert len(extra) == 9 and {(row["role"], row["label"]) for row in extra} == {("unlabelled", "")}
    monkeypatch.chdir("/")
    capsys.readouterr()
    assert main(["eval", str(tmp_path / "run"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 450


def test_a_resumed_run_wants_the_same_images(others, tmp_path, capsys):
    run, kept = stopped(tmp_path / "run", others), tmp_path / "kept"
    shutil.copytree(others, kept)

    def resumed(code, said):
        capsys.readouterr()
        assert main(["train", "--resume", str(run), "--quiet"]) == code
        assert said in capsys.readouterr().err
        shutil.rmtree(others)
        shutil.copytree(kept, others)

    (others / "0" / "4.png").unlink()
    resumed(3, "'extra:0/4.png' is not among the images of --extra-unlabelled; bring it back")
    (others / "0" / "4.png").write_bytes((others / "0" / "2.png").read_bytes())
    resumed(6, "are not what they were when")
    (others / "new.png").write_bytes((others / "0" / "2.png").read_bytes())
    resumed(6, "are not what they were when")
    (others / "0" / "4.png").write_bytes(b"broken")
    resumed(3, "1 of 9 images in")
    shutil.rmtree(others)
    others.mkdir()
    resumed(3, "holds no images")
    assert main(["train", "--resume", str(run), "--quiet"]) == 0


def test_a_resumed_run_keeps_its_flag(others, tmp_path, capsys):
    run = stopped(tmp_path / "run", others)
    assert main(["train", "--resume", str(run), "--extra-unlabelled", str(tmp_path), "--quiet"]) == 2
    assert "data.extra_unlabelled" in capsys.readouterr().err


def test_data_check_opens_them(others, capsys):
    (others / "bad.png").write_bytes(b"")
    assert main(["data", "check", "--data", "digits", "--extra-unlabelled", str(others)]) == 3
    assert "1 of 10 images in" in capsys.readouterr().err
    assert main(["data", "check", "--data", "digits", "--extra-unlabelled", str(others), "--max-bad", "0.2"]) == 0
    said = capsys.readouterr().out
    assert "extra, from elsewhere and unlabelled: 9" in said and "cannot be decoded: extra:bad.png: empty file" in said
    assert "without a known label" not in said
    assert main(["data", "check", "--data", "digits", "--extra-unlabelled", str(others), "--max-bad", "0.2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["extra"] == 9


def test_bad_images_are_listed_in_the_run(others, tmp_path):
    (others / "bad.png").write_bytes(b"")
    run = stopped(tmp_path / "run", others, "--max-bad", "0.2")
    assert "extra:bad.png,empty file" in (run / "quarantine.csv").read_text()
    assert "undecodable images, left out of 10: 1 ('extra:bad.png')" in (run / "log.txt").read_text()


@pytest.mark.parametrize("place", ["nowhere", "empty", "table.csv"])
def test_what_is_no_place_for_images_is_one_error(tmp_path, place, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "table.csv").write_text("name\nx.png\n")
    assert main(["train", *RUN, "--extra-unlabelled", str(tmp_path / place), "--out", str(tmp_path / "run")]) == 3
    said = capsys.readouterr().err
    assert "--extra-unlabelled" in said and "Traceback" not in said and not (tmp_path / "run").exists()


def test_in_domain_without_them_names_the_flag(tmp_path, capsys):
    flags = ["--method", "uda", *DIGITS, "--set", "method.in_domain=5", "--out", str(tmp_path / "run")]
    assert main(["train", *flags]) == 2
    assert "give --extra-unlabelled DIR|CSV" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_a_sweep_sees_that_the_csv_has_changed_and_peers_take_the_images(others, tmp_path, capsys):
    table = others / "list.csv"
    table.write_text("path\n0/0.png\n0/2.png\n")
    sweep = ["sweep", "--method", "supervised,sklearn:LabelSpreading", *DIGITS, "--steps", "2", "--extra-unlabelled", str(table)]
    sweep += ["--out", str(tmp_path / "sweep")]
    assert main(sweep) == 0 and main(sweep) == 0
    for split in (tmp_path / "sweep" / "runs").glob("*/split.csv"):
        assert split.read_text().count("extra:") == 2
    table.write_text("path\n0/0.png\n0/4.png\n")
    capsys.readouterr()
    assert main(sweep) == 2
    assert "data.extra_unlabelled" in capsys.readouterr().err
