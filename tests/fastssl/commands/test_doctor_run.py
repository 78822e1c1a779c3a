"""doctor on a run that is only asked about: its memory, whether this machine has it, and the step mode that `auto` takes."""

import json

import pytest
import torch

from fastssl import environment
from fastssl.cli import main
from fastssl.commands import doctor
from fastssl.engine import memory


def asked(capsys, *args):
    assert main(["doctor", *args, "--json"]) == 0
    return json.loads(capsys.readouterr().out)["run"]


def test_a_batch_that_fits_and_one_that_does_not(capsys, monkeypatch):
    monkeypatch.setattr(memory, "allocated", lambda device: 300 * 2**20)
    monkeypatch.setattr(memory, "room", lambda device: 2 * 2**30)
    run = asked(capsys, "--model", "wrn-28-2", "--batch", "4", "--method", "fixmatch")
    assert run["fits"] and (run["model"], run["method"], run["batch_size"], run["ratio"], run["size"]) == ("wrn-28-2", "fixmatch", 4, 7, 32)
    assert run["peak_bytes"] == run["fixed"] + 4 * run["per_row"] > 300 * 2**20
    most = run["batch_size_that_fits"]
    assert asked(capsys, "--model", "wrn-28-2", "--batch", str(most), "--method", "fixmatch")["fits"]
    over = asked(capsys, "--model", "wrn-28-2", "--batch", str(most + 2), "--method", "fixmatch")
    assert not over["fits"] and over["batch_size_that_fits"] in (most, most + 1)
    assert f"it does not fit: --batch-size {over['batch_size_that_fits']} would fit" in over["said"][-1]
    assert f"keeps the batch of {most + 2}" in over["said"][-1]


def test_precision_and_size_count(capsys):
    plain, half, large = (
        asked(capsys, "--model", "wrn-28-2", "--batch", "4", "--method", "supervised", *more)["per_row"]
        for more in ((), ("--amp", "bf16"), ("--size", "64"))
    )
    assert half < 0.6 * plain and 3.5 * plain < large < 4.5 * plain


def test_the_answer_is_in_the_text(capsys):
    assert main(["doctor", "--batch", "8"]) == 0
    text = capsys.readouterr().out
    assert "the run asked about\n  glyph_clip by finessl: 8 labelled and " in text and "32 x 32 pixels a step, amp off, on c" in text
    assert "memory: about " in text and "are free for it here: it fits" in text


def test_bad_questions_end_in_one_sentence(capsys):
    for args, code, words in (
        (["--model", "wrn-28-0"], 2, "wrn-28-2"),
        (["--method", "fixmach"], 2, "fixmatch"),
        (["--batch", "0"], 2, "train.batch_size"),
    ):
        assert main(["doctor", *args]) == code
        error = capsys.readouterr().err
        assert error.startswith("fastssl: ") and words in error and "Traceback" not in error


@pytest.mark.parametrize(
    ("cuda", "compiler", "wanted"),
    [(True, "g++", "graph: on CUDA"), (False, "g++", "eager: there are no CUDA graphs"), (True, None, "eager: without build tools")],
)
def test_the_step_mode_and_why(monkeypatch, cuda, compiler, wanted):
    monkeypatch.setattr(environment, "missing_build_tools", lambda: () if compiler else ("g++",))
    monkeypatch.setattr(environment, "compiler", lambda: compiler)
    device = {"name": "x", "capability": "9.0", "memory": 1 << 36, "bf16": True}
    monkeypatch.setattr(doctor, "_torch", lambda: {"cuda": "13.0", "driver": None, "threads": 1, "devices": [device] if cuda else []})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    assert doctor.examine()["serves"]["step"].startswith(wanted)
