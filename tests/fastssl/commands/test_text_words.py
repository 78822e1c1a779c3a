"""What commands say of a run on texts: texts and tokens, and nothing of images."""

from __future__ import annotations

import json
import re

import pytest

from fastssl.cli import main
from tests.fastssl.text_runs import STEPS, fails

pytestmark = pytest.mark.usefixtures("cache")
DOCTOR = ["doctor", "--method", "fixmatch", "--batch", "4"]


def test_a_run_says_nothing_of_images(texts, tmp_path, capsys):
    loud = [word for word in STEPS if word != "--quiet"]
    assert main(["train", "--method", "fixmatch", *texts.flags, *loud, "--out", str(tmp_path / "run")]) == 0
    said = capsys.readouterr()
    assert re.search(r"^test texts +40$", said.out, re.M) and re.search(r"^training time +[\d.]+ s, \d+ tokens/s$", said.out, re.M)
    assert " MiB a labelled text) of " in said.err and "image" not in said.out
    told = [line for line in said.err.splitlines() if "image" in line]
    assert not told, told


def test_a_dry_run_says_nothing_of_images(texts, capsys):
    assert main(["train", "--method", "fixmatch", *texts.flags, *STEPS, "--dry-run"]) == 0
    comments = [line for line in capsys.readouterr().out.splitlines() if line.startswith("#")]
    assert comments[0] == "# 20 labelled, 80 unlabelled, 40 test texts"
    assert not [line for line in comments if "image" in line]


def test_doctor_foresees_texts(texts, capsys):
    name = f"transformers:{texts.encoder}"
    whole, half = [], []
    for found, more in ((whole, []), (half, ["--max-length", "32"])):
        assert main([*DOCTOR, "--model", name, *more, "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out)["run"])
    assert (whole[0]["max_length"], half[0]["max_length"], whole[0]["size"]) == (64, 32, None)
    assert half[0]["per_row"] < 0.7 * whole[0]["per_row"]
    assert "unlabelled texts of 64 tokens a step" in whole[0]["said"][0] and "image" not in " ".join(whole[0]["said"])


def test_doctor_refuses_what_does_not_go_together(texts, capsys):
    name = f"transformers:{texts.encoder}"
    fails(capsys, [*DOCTOR, "--model", name, "--max-length", "65"], 2, "--max-length 65", "64 tokens at most")
    fails(capsys, [*DOCTOR, "--model", name, "--size", "32"], 2, "reads texts")
    fails(capsys, [*DOCTOR, "--model", "wrn-10-1", "--max-length", "9"], 2, "--max-length counts tokens", "wrn-10-1 reads images")
