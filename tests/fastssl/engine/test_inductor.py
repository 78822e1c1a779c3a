"""Steps compiled by inductor, torch's own compiler, against eager ones: a few methods always, all of them by `pytest -m exhaustive`.

That every method compiles whole, and agrees, is held by test_modes.py without a code generator (aot_eager); here the generated C++ runs.
"""

import pytest
import torch

from fastssl.engine import modes
from tests.fastssl.method_cases import TRAINED

ALWAYS = ("supervised", "finessl")
STEPS = 3
TOLERANCE = 1e-12  # in fp64, relative to the largest of a tensor; generated code sums in another order (measured: below 1e-15)


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def difference(eager, compiled):
    """Largest difference of two tensors over the largest of the first."""
    if not eager.is_floating_point():
        return float((eager != compiled).any())
    size = eager.abs().max().item() if eager.numel() else 0.0
    return (eager - compiled).abs().max().item() / (size or 1.0) if eager.numel() else 0.0


@pytest.mark.compiler
@pytest.mark.slow
@pytest.mark.parametrize("name", [name if name in ALWAYS else pytest.param(name, marks=pytest.mark.exhaustive) for name in TRAINED])
def test_generated_code_trains_as_eager_code(toy, steps, name, record_property):
    ends, sums = {}, {}
    for mode in ("eager", "compile"):
        step = steps.step_of(toy, name)
        modes.prepare(step, mode, pytest.fail, backend="inductor")
        assert step.mode == mode
        with torch.compiler.set_stance("fail_on_recompile"):
            for _ in range(STEPS):
                step()
        ends[mode], sums[mode] = steps.everything(step), step.read()
    worst = max(difference(a, b) for a, b in zip(ends["eager"], ends["compile"], strict=True))
    loss = abs(sums["eager"]["loss"] - sums["compile"]["loss"]) / abs(sums["eager"]["loss"])
    record_property("largest_difference_of_state", worst)
    record_property("largest_difference_of_loss", loss)
    print(f"{name}: state {worst:.1e}, loss {loss:.1e}")
    assert sums["eager"]["skipped"] == sums["compile"]["skipped"] == 0
    assert worst <= TOLERANCE and loss <= TOLERANCE
    start = steps.everything(steps.step_of(toy, name))
    assert any(difference(a, b) > 1e-3 for a, b in zip(start, ends["eager"], strict=True)), "the steps trained nothing"


def test_a_difference_is_seen():
    a = torch.tensor([1.0, -4.0], dtype=torch.float64)
    assert (
        difference(a, a + 4e-6) == pytest.approx(1e-6) and difference(a.long(), a.long()) == 0 and difference(a.long(), a.long() + 1) == 1
    )
