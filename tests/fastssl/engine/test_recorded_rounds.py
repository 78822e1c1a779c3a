"""Whole runs in stages, each kind of stage on a Tape: recorded once, and equal to eager steps bit for bit, whatever lies between."""

from __future__ import annotations

import pytest
import torch

from fastssl.cli import parser
from fastssl.commands.train import configure
from fastssl.engine import modes
from fastssl.engine.assemble import assemble
from fastssl.engine.run import Run
from fastssl.engine.step import Step
from tests.fastssl.method_cases import ROUNDS

RUN = ["train", "--labels-per-class", "4", "--batch-size", "8", "--ratio", "2", "--steps", "16", "--device", "cpu", "--lr", "0.05"]
RUN += ["--model", "wrn-10-1", "--seed", "1", "--set", "data.size=8", "--set", "train.report_every=5", "--set", "train.ema=0.9"]


def made(name, options):
    """The run, its batches in buffers that stay where they are, as the streams of a device have them."""
    words = [*RUN, "--method", name, *(word for option in options for word in ("--set", f"method.{option}"))]
    run = Run(assemble(configure(parser().parse_args(words))), None, quiet=True)
    draw, held = run.pipeline.draw, {}

    def drawn():
        batch = draw()
        old = held.setdefault(run.pipeline.views, batch)
        for to, value in zip(flat(old), flat(batch), strict=True):
            if to is not value:
                to.copy_(value)
        return old

    run.pipeline.draw = drawn
    return run


def flat(batch):
    return [t for field in batch for t in (field if isinstance(field, tuple) else (field,))]


@pytest.mark.parametrize("name", ROUNDS)
def test_a_run_on_tapes_equals_an_eager_one(steps, monkeypatch, name):
    kinds, options = ROUNDS[name]
    monkeypatch.setattr(modes, "compile_method", lambda method, backend: None)  # which cannot trace under a Tape
    with monkeypatch.context() as patch:
        patch.setattr(Step, "__call__", lambda step: steps.eagerly(step.body))
        eager = made(name, options)
        wanted = eager.train()
    tapes, prepare = [], modes.prepare

    def taped(step, asked, warn, *, recorder=None):
        assert (recorder is None) == (not tapes), "a further stage records in the memory of the first"
        tapes.append(recorder or steps.Tape())
        return prepare(step, "graph", warn, backend="eager", recorder=tapes[-1])

    with monkeypatch.context() as patch:
        patch.setattr(modes, "wanted", lambda asked, device: ["graph"])
        patch.setattr(modes, "prepare", taped)
        run = made(name, options)
        found = run.train()
    assert len(tapes) == kinds and all(tape.replays for tape in tapes) and sum(tape.replays for tape in tapes) == run.done
    assert found["rounds"] == wanted["rounds"] and found["accuracy"] == wanted["accuracy"]
    ours, theirs = run.method.state_dict(), eager.method.state_dict()
    assert [key for key in theirs if not torch.equal(ours[key], theirs[key])] == []
