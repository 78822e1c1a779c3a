"""The methods' rows on a tiny scale: every method has one, images are counted as they are forwarded, and a wrong step is not timed."""

from __future__ import annotations

import dataclasses

import pytest

from bench import bench_methods, method_cases, our_steps, step_rows
from bench._timing import Machine
from bench.method_cases import CASES, TRAINED, Passes
from fastssl.methods import METHODS

CPU = Machine("cpu")
SIZES = (2, 3)


@pytest.fixture(scope="module")
def network():
    return our_steps.wide_network("wrn-10-1", 10, CPU.device)


def test_every_method_that_trains_has_a_row():
    assert {case.method for case in CASES.values()} == set(TRAINED) == set(METHODS) - {"zero_shot"}
    assert set(bench_methods.ROWS) == {f"method_{name}_{device}" for name in CASES for device in ("cpu", "cuda")}


@pytest.mark.parametrize("weak_pass", ["joint", "separate"])
@pytest.mark.parametrize("name", CASES)
def test_passes_are_counted_as_they_are_made(network, name, weak_pass):
    step = method_cases.method_step(name, network, SIZES, weak_pass=weak_pass)
    assert method_cases.seen(step.step.method, step) == step.passes
    assert step.loss() is not None


def test_what_the_counts_are(network):
    found = {name: method_cases.method_step(name, network, SIZES).passes for name in CASES}
    b, u = SIZES
    assert found["fixmatch"] == found["flexmatch"] == found["zeromatch"] == Passes(b + 2 * u, 0) and found["fixmatch"].work == 3 * (
        b + 2 * u
    )
    assert (found["supervised"], found["zeromatch_distil"], found["pseudo_supervision"]) == (Passes(b, 0), Passes(u, 0), Passes(b + u, 0))
    assert found["adamatch"] == Passes(2 * b + 2 * u + 2 * b, 0), "two labelled views, and both once more alone"
    assert found["semikd"] == Passes(b + 2 * u, 2 * u) and found["layermatch_teacher"] == Passes(b + 2 * u, u)
    assert found["finessl"] == Passes(b + 3 * u, 0)
    assert method_cases.method_step("fixmatch", network, SIZES, weak_pass="separate").passes == Passes(b + u, u)
    assert bench_methods.alike(176, (8, 56)) == (12, 82) and bench_methods.alike(8, (8, 56)) == (2, 3)


@pytest.mark.parametrize("name", ["semikd", "zeromatch_distil", "flexmatch"])
def test_a_row(name):
    recorder = step_rows.Recorder()
    bench_methods.row(recorder, CPU, name, network="wrn-10-1", sizes=SIZES, rounds=3)
    info = recorder.extra_info
    assert info["loss_off"] <= 1e-5 and info["moved"] > 0 and info["mark"] in ("within", "ABOVE")
    assert ("as_many_ms" in info) == (name == "zeromatch_distil")
    assert info["weighed"] == pytest.approx({"semikd": (24 + 6) / 24, "zeromatch_distil": 9 / 24, "flexmatch": 1.0}[name])
    assert any("weighed" in line and "over" in line for line in step_rows.table_lines(name, info))


def test_a_step_that_is_not_the_methods_is_not_timed(network, monkeypatch):
    step = method_cases.method_step("fixmatch", network, SIZES)
    before, expected = step_rows.weights(step), method_cases.method_step("fixmatch", network, SIZES).eager_loss()
    step()
    assert bench_methods.check("fixmatch", step, expected, before, 1e-5)["moved"] > 0
    with pytest.raises(AssertionError, match="off the eager one"):
        bench_methods.check("fixmatch", step, 1.01 * expected, before, 1e-5)
    with pytest.raises(AssertionError, match="moved the weights by 0"):
        bench_methods.check("fixmatch", step, expected, step_rows.weights(step), 1e-5)
    monkeypatch.setitem(CASES, "fixmatch", dataclasses.replace(CASES["fixmatch"], taught=1))
    with pytest.raises(AssertionError, match="its case counts"):
        bench_methods.row(step_rows.Recorder(), CPU, "fixmatch", network="wrn-10-1", sizes=SIZES, rounds=3)


def test_the_mark_is_of_cost_over_explained():
    fixmatch = [1.0, 2.0, 1.0]
    even = bench_methods.judged([1.1, 2.2, 1.1], fixmatch, fixmatch, 0.0)
    assert (even["mark"], even["over"], even["explained"]) == ("within", pytest.approx(1.1), 1.0)
    assert bench_methods.judged([1.2, 2.4, 1.2], fixmatch, fixmatch, 0.0)["mark"] == "ABOVE"
    taught = bench_methods.judged([1.2, 2.4, 1.2], fixmatch, fixmatch, 0.2)
    assert (taught["mark"], taught["explained"], taught["over"]) == ("within", pytest.approx(1.2), pytest.approx(1.0))
