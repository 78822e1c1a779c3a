"""What a run says before it begins: averages and statistics that would still be their start at its end."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from torch import nn

from fastssl.cli import main, parser
from fastssl.commands.train import configure
from fastssl.engine.announce import remembered
from fastssl.engine.assemble import assemble
from fastssl.methods import METHODS
from fastssl.methods.base import Stage
from fastssl.models import Network

SMALL = ["train", "--method", "supervised", "--model", "wrn-10-1", "--labels-per-class", "2", "--set", "data.size=8"]


def configured(*words):
    return configure(parser().parse_args([*SMALL, *words]))


def parts(config, momentum=0.001, trains=True):
    method = nn.Module()
    method.network = Network(nn.BatchNorm1d(3, momentum=momentum).requires_grad_(trains), nn.Identity())
    method.stage = lambda k, steps: Stage(steps) if k == 0 else None
    method.averages = lambda: []
    return SimpleNamespace(config=config, method=method)


def test_what_moves_too_slowly_for_the_run_is_told():
    ema, norm = remembered(parts(configured("--steps", "200", "--ema", "0.999")))
    assert ema == "the averaged network, which is judged, is 82% its start after 200 steps at --ema 0.999; give --ema 0.95 or more steps"
    assert "batch-norm's running statistics" in norm and "are 82% their start" in norm and "model.batchnorm_momentum=0.05" in norm


@pytest.mark.parametrize(
    ("words", "how", "count"),
    [
        (["--steps", "200", "--ema", "0.9"], {"momentum": 0.1}, 0),
        (["--steps", "200", "--ema", "0"], {}, 1),
        (["--steps", "200", "--ema", "0"], {"trains": False}, 0),  # a frozen encoder keeps its statistics
        (["--steps", "200", "--ema", "0"], {"momentum": None}, 0),  # a mean over all batches
        (["--steps", "4000", "--ema", "0.999"], {}, 0),
        (["--steps", "99", "--ema", "0.999"], {}, 0),  # a trial
    ],
)
def test_and_nothing_else(words, how, count):
    assert len(remembered(parts(configured(*words), **how))) == count


def test_the_decay_that_is_proposed_ends_the_warning():
    for steps in (100, 200, 400, 1000, 5000, 100_000):
        told = remembered(parts(configured("--steps", str(steps), "--ema", "0.99999"), momentum=0.1))
        decay = told[0].split("give --ema ")[1].split()[0]
        assert not remembered(parts(configured("--steps", str(steps), "--ema", decay), momentum=0.1))


@pytest.mark.parametrize("steps", [None, 100, 250, 1000])
@pytest.mark.parametrize("model", ["wrn-10-1", "glyph_clip"])
@pytest.mark.parametrize("name", METHODS)
def test_plain_commands_are_not_warned_of(name, model, steps):
    """Whatever number of steps is asked of them: what they average follows it."""
    words = ("--data", "photos") if steps else ()
    words += ("--steps", str(steps)) if steps else ()
    config = configured("--method", name, "--model", model, *words, *(("--set", "method.bank=own") if name == "sentaugment" else ()))
    momentum = (config.model.batchnorm_momentum or 0.001) if model == "wrn-10-1" else 0.1
    assert remembered(parts(config, momentum)) == []


@pytest.mark.parametrize(
    ("words", "left"),
    [
        # A network begins anew, or trains in a part of the steps alone.
        ("self_training --steps 300 --ema 0.99 --set method.rounds=3", "47%"),
        ("noisy_student --steps 800 --ema 0.99", "13%"),
        ("dividemix --steps 400 --ema 0.993", "25%"),
        ("fixmatch --steps 200 --ema 0.999", "82%"),
        # Decays that grow with the steps; plain commands.
        ("mean_teacher --steps 200 --ema 0.999", None),
        ("ict --steps 200 --ema 0.999", None),
        ("meta_pseudo_labels --steps 200 --ema 0.999", None),
        ("self_training --steps 800", None),
        ("noisy_student --steps 400", None),
        ("dividemix --steps 300", None),
        ("simclrv2 --steps 300", None),
    ],
)
def test_of_the_methods_themselves(words, left):
    found = remembered(assemble(configured("--set", "model.batchnorm_momentum=0.1", "--method", *words.split())))
    assert len(found) == (left is not None) and all(f"is {left} its start" in text for text in found)


def test_where_nothing_trains_nothing_is_averaged():
    config = configure(parser().parse_args(["train", "--method", "zero_shot", "--steps", "150", "--ema", "0.999"]))
    assert remembered(assemble(config)) == []


def test_a_run_and_its_plan_say_so(tmp_path, capsys):
    words = [*SMALL, "--batch-size", "4", "--steps", "100", "--ema", "0.999", "--set", "model.batchnorm_momentum=0.1"]
    assert main([*words, "--dry-run"]) == 0
    assert "# warning: the averaged network, which is judged, is 90% its start" in capsys.readouterr().out
    assert main([*words, "--dry-run", "--json"]) == 0
    body = json.loads(capsys.readouterr().out)
    assert "is 90% its start" in body["warnings"][0] and body["estimate"]["foreseen_bytes"] >= body["estimate"]["memory_bytes"]
    assert main([*words, "--out", str(tmp_path / "run"), "--quiet", "--set", "train.stop_at=1"]) == 0
    assert "warning: the averaged network" in capsys.readouterr().err
