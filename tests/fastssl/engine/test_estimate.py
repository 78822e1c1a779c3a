"""The estimate of a dry run: real steps, counted and timed, nothing written, switches put back."""

import dataclasses

import pytest
import torch

from fastssl.cli import parser
from fastssl.commands.train import configure
from fastssl.engine import estimate as module
from fastssl.engine.assemble import assemble
from fastssl.engine.step import Step


def parts(*args):
    return assemble(configure(parser().parse_args(["train", "--method", "supervised", "--steps", "200", *args])))


def test_eight_steps_are_taken_and_the_last_five_timed(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    taken, step = [], Step.__call__

    def counted(self):
        taken.append(self)
        step(self)

    monkeypatch.setattr(Step, "__call__", counted)
    # The k-th reading of this clock is k seconds after the one before: the timed steps take 5, 7, 9, 11 and 13: preparing reads it twice.
    now = iter([sum(range(i)) for i in range(100)])
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(now))
    made = parts()
    before = {name: value.clone() for name, value in made.method.state_dict().items()}
    found = module.estimate(made)
    assert len(taken) == 8 and found.steps_measured == 5
    assert found.seconds_per_step == 9 and found.seconds == 9 * 200
    moved = [name for name, value in made.method.state_dict().items() if not torch.equal(value, before[name])]
    assert moved, "the real step, which trains"
    assert not list(tmp_path.iterdir())


def test_a_run_that_stops_early_is_shorter():
    found = module.estimate(parts("--set", "train.stop_at=10"))
    assert found.seconds == pytest.approx(10 * found.seconds_per_step)


def test_memory_of_this_process():
    found = module.estimate(parts("--device", "cpu"))
    assert found.memory == "resident" and 50e6 < found.memory_bytes < 1e12


def test_switches_are_put_back():
    assert not torch.are_deterministic_algorithms_enabled()
    tf32 = torch.backends.cudnn.allow_tf32
    module.estimate(parts("--deterministic", "--set", "train.tf32=true"))
    assert not torch.are_deterministic_algorithms_enabled() and torch.backends.cudnn.allow_tf32 == tf32


def test_stages_are_counted():
    found = module.estimate(parts("--tune", "lp_ft"))
    assert found.stages == 2
    assert dataclasses.asdict(found)["stages"] == 2
