"""Ramps and the warm start of an average, by hand."""

import math

import pytest
import torch

from fastssl.methods.bricks.ramps import RAMPS, ramp, warm_decay


def value(toy, kind, share, step, total=100, **more):
    return float(ramp(toy.clock(step, total), kind, share, **more))


@pytest.mark.parametrize(
    ("step", "gauss", "linear"), [(0, math.exp(-5), 0.0), (10, math.exp(-2.8125), 0.25), (20, math.exp(-1.25), 0.5), (40, 1, 1), (99, 1, 1)]
)
def test_values(toy, step, gauss, linear):
    assert value(toy, "gauss", 0.4, step) == pytest.approx(gauss, rel=1e-6)
    assert value(toy, "linear", 0.4, step) == pytest.approx(linear, abs=1e-7)
    assert value(toy, "none", 0.4, step) == 1


def test_a_later_start(toy):
    assert [value(toy, "linear", 0.5, step, start=0.25) for step in (0, 25, 50, 75, 99)] == pytest.approx([0, 0, 0.5, 1, 1])


def test_no_stretch_is_no_ramp(toy):
    assert all(value(toy, kind, 0.0, 0) == 1 for kind in RAMPS)


def test_the_present_is_read_in_a_traced_step(toy):
    torch.compiler.reset()
    time = toy.clock(0)
    traced = torch.compile(lambda: ramp(time, "gauss", 0.5), backend="aot_eager", fullgraph=True)
    before = float(traced())
    time.step.fill_(30)
    assert before == pytest.approx(math.exp(-5)) and float(traced()) == pytest.approx(math.exp(-5 * 0.16), rel=1e-6)


def test_warm_decay():
    """After the first step half, after the second two thirds, and so on up to the most."""
    assert [float(warm_decay(torch.tensor(k), 0.9)) for k in (0, 1, 2, 8, 9, 50)] == pytest.approx([1 / 2, 2 / 3, 3 / 4, 0.9, 0.9, 0.9])
