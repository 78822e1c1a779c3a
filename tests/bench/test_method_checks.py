"""The checks of the registry's captured steps, with eager ones for captured ones: each case runs, and what differs is seen."""

from __future__ import annotations

import pytest

from bench import gpu_steps, method_checks, step_checks
from bench._timing import Machine
from bench.method_checks import CASES, Registry
from fastssl.methods import METHODS

CPU = Machine("cpu")


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    made = Registry(CPU.device, tmp_path_factory.mktemp("checks") / "images", network="wrn-10-1")
    made.captured = "eager"  # compiled steps have tests of their own
    return made


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    monkeypatch.setattr(step_checks, "STEPS", 2)


def test_every_method_that_trains_has_a_case():
    assert {name for name, _ in CASES.values()} == set(METHODS) - {"zero_shot"}


@pytest.mark.parametrize("case", CASES)
def test_each_case_runs_and_repeats_itself(bench, case):
    assert "moved them" in method_checks.captured_equals_eager(bench, case)
    stages = {"simclr_contrast": "contrast", "simclr": "fine_tune", "simclrv2": "distil", "meta_pseudo_labels": "meta"}
    stages |= {"zeromatch_distil": "distil", "zeromatch": "semi_supervised", "dividemix_first": "epoch_first", "dividemix": "epoch_second"}
    stages |= dict.fromkeys(("self_training", "noisy_student"), "student")
    assert bench.made[0].stage.name == stages.get(case, "train")
    remembers = {"flexmatch": "learned", "freematch": "confidence", "softmatch": "variance", "semikd": "portion", "debiaspl": "marginal"}
    if case in remembers:
        assert any(name.startswith(remembers[case]) for name in method_checks.memory(bench.made[0]))


def test_memory_that_differs_is_seen(bench, monkeypatch):
    given, made = bench.run, []

    def forgetful(case: str, mode: str, **options):
        made.append(given(case, mode, **options))
        if len(made) == 2:
            monkeypatch.setattr(made[-1].method, "remember", lambda *a: None)
        return made[-1]

    monkeypatch.setattr(bench, "run", forgetful)
    monkeypatch.setattr(step_checks, "alike", lambda bench, case: [step_checks.weights_after(bench.run(case, "eager")) for _ in "ab"])
    with pytest.raises(AssertionError, match="freematch: .* differs by"):
        method_checks.captured_equals_eager(bench, "freematch")


def test_one_that_fails_hides_no_other(monkeypatch):
    def bad(bench) -> str:
        raise RuntimeError("no capture")

    monkeypatch.setattr(method_checks, "CHECKS", {"a": bad, "b": lambda bench: "well", "c": bad})
    outcomes = list(method_checks.run_checks(CPU, lambda name: name != "c", lambda: True))
    assert [(o.name, o.status) for o in outcomes] == [("a", "failed"), ("b", "ok")] and "no capture" in outcomes[0].detail
    assert [o.status for o in method_checks.run_checks(CPU, lambda name: name == "b", lambda: False)] == ["not run"]


def test_the_gpu_script_makes_them(tmp_path, monkeypatch):
    monkeypatch.setattr(
        method_checks, "CHECKS", {"captured_equals_eager_spl": lambda bench: "well", "captured_equals_eager_x": lambda bench: "no"}
    )
    args = ["--device", "cpu", "--check", "--only", "captured_equals_eager_spl", "--out", str(tmp_path)]
    assert gpu_steps.main(args) == 0
    text = next(tmp_path.glob("steps-*.md")).read_text()
    assert "| captured_equals_eager_spl | ok | well |" in text and "captured_equals_eager_x" not in text
