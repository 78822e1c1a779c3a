"""What a run says before it begins: averages and statistics that would still be their start at its end."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from torch import nn

from fastssl.cli import main, parser
from fastssl.commands.train import configure
from fastssl.engine.announce import remembered
from fastssl.methods import METHODS

SMALL = ["train", "--method", "supervised", "--model", "wrn-10-1", "--labels-per-class", "2", "--set", "data.size=8"]


def configured(*words):
    return configure(parser().parse_args([*SMALL, *words]))


def parts(config, momentum=0.001, trains=True):
    layer = nn.BatchNorm1d(3, momentum=momentum).requires_grad_(trains)
    return SimpleNamespace(config=config, method=SimpleNamespace(network=nn.Sequential(layer)))


def test_what_moves_too_slowly_for_the_run_is_told():
    ema, norm = remembered(parts(configured("--steps", "200", "--ema", "0.999")))
    assert ema == "the averaged network, which is judged, is 82% its start after 200 steps at --ema 0.999; give --ema 0.95 or more steps"
    assert "batch-norm's running statistics" in norm and "are 82% their start" in norm and "model.batchnorm_momentum=0.1" in norm


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


@pytest.mark.parametrize("model", ["wrn-10-1", "glyph_clip"])
@pytest.mark.parametrize("name", METHODS)
def test_plain_commands_are_not_warned_of(name, model):
    config = configured("--method", name, "--model", model, *(("--set", "method.bank=own") if name == "sentaugment" else ()))
    momentum = (config.model.batchnorm_momentum or 0.001) if model == "wrn-10-1" else 0.1
    assert remembered(parts(config, momentum)) == []


def test_a_run_and_its_plan_say_so(tmp_path, capsys):
    words = [*SMALL, "--batch-size", "4", "--steps", "100", "--ema", "0.999", "--set", "model.batchnorm_momentum=0.1"]
    assert main([*words, "--dry-run"]) == 0
    assert "# warning: the averaged network, which is judged, is 90% its start" in capsys.readouterr().out
    assert main([*words, "--out", str(tmp_path / "run"), "--quiet", "--set", "train.stop_at=1"]) == 0
    assert "warning: the averaged network" in capsys.readouterr().err
