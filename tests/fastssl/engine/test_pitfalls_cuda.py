"""On a CUDA device: captured steps against eager ones, bit for bit or to rounding, and what only a device can show."""

import pytest
import torch

from fastssl.cli import main, parser
from fastssl.commands.train import configure
from fastssl.engine import modes
from fastssl.engine.assemble import assemble
from fastssl.engine.run import Run
from fastssl.models import fp8
from tests.fastssl.method_cases import ROUNDS, TRAINED

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
STEPS = 20
RUN = ["train", "--device", "cuda", "--labels-per-class", "2", "--batch-size", "8", "--ratio", "2", "--steps", str(STEPS)]


@pytest.fixture
def deterministic(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def run_of(name, mode, *args):
    run = Run(assemble(configure(parser().parse_args([*RUN, "--method", name, *args]))), None, quiet=True)
    run.method.train()
    torch.manual_seed(0)
    said = modes.prepare(run.step, mode, pytest.fail)
    return run.step, said


def distance(steps, one, other):
    """Largest difference of two states, each tensor's over its own largest value."""
    pairs = [(a.double(), b.double()) for a, b in zip(steps.everything(one), steps.everything(other), strict=True)]
    return max(float((a - b).abs().max() / a.abs().max().clamp_min(1e-6)) for a, b in pairs if a.numel())


@pytest.mark.compiler
@pytest.mark.parametrize("name", TRAINED)
def test_captured_steps_equal_compiled_ones_bit_for_bit(steps, deterministic, name):
    compiled, captured = (run_of(name, mode, "--deterministic")[0] for mode in ("compile", "graph"))
    for step in (compiled, captured):
        torch.manual_seed(1)
        for _ in range(STEPS):
            step()
    for a, b in zip(steps.everything(compiled), steps.everything(captured), strict=True):
        assert torch.equal(a, b)


@pytest.mark.compiler
@pytest.mark.parametrize("name", ROUNDS)
def test_whole_runs_in_stages_captured_equal_compiled_ones_bit_for_bit(name):
    """Every kind of stage, each captured in the memory of the first; stages that come back replay what they had."""
    kinds, options = ROUNDS[name]
    words = [*RUN[:-1], "16", "--method", name, "--model", "wrn-10-1", "--deterministic", "--set", "train.ema=0.9"]
    words += [word for option in options for word in ("--set", f"method.{option}")]
    runs = {}
    for mode in ("compile", "graph"):
        runs[mode] = Run(assemble(configure(parser().parse_args([*words, "--step-mode", mode]))), None, quiet=True)
        runs[mode].train()
        assert [step.mode for step in runs[mode].rounds.made.values()] == [mode] * kinds
    compiled, captured = (run.method.state_dict() for run in runs.values())
    assert [key for key in compiled if not torch.equal(compiled[key], captured[key])] == []


@pytest.mark.compiler
@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "lars"])
@pytest.mark.parametrize("name", TRAINED)
def test_captured_steps_equal_eager_ones(steps, name, optimizer):
    eager, captured = (run_of(name, mode, "--set", f"train.optimizer={optimizer}")[0] for mode in ("eager", "graph"))
    for step in (eager, captured):
        torch.manual_seed(1)
        for _ in range(STEPS):
            step()
    assert distance(steps, eager, captured) <= 1e-5


@pytest.mark.compiler
@pytest.mark.parametrize("mode", modes.MODES)
@pytest.mark.parametrize("name", TRAINED)
def test_no_step_waits_for_the_device(name, mode):
    """The draw included; and nothing is compiled again."""
    step, _ = run_of(name, mode)
    step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.compiler.set_stance("fail_on_recompile"):
            for _ in range(3):
                step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert step.read()["skipped"] == 0


@pytest.mark.compiler
def test_replays_draw_anew_and_a_seed_brings_them_back():
    """Order, augmentation and dropout move from replay to replay."""
    step, _ = run_of("fixmatch", "graph", "--lr", "0")
    assert step.run.inside
    start = {name: value.clone() for name, value in step.pipeline.state_dict().items()}
    losses = []
    for _ in range(2):
        step.pipeline.load_state_dict(start)
        step.clock.step.fill_(-1)
        torch.manual_seed(5)
        for _ in range(3):
            step()
            losses.append(step.read()["loss"])
    assert len(set(losses[:3])) == 3 and losses[:3] == losses[3:]


@pytest.mark.compiler
def test_other_threads_may_use_the_device_meanwhile():
    import threading

    stop, done = threading.Event(), []

    def busy():
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            while not stop.is_set():
                done.append(int(torch.ones(64, device="cuda").cpu().sum()))

    thread = threading.Thread(target=busy)
    thread.start()
    try:
        step, said = run_of("supervised", "graph")
    finally:
        stop.set()
        thread.join()
    assert step.mode == "graph" and "captured" in said and set(done) == {64}


@pytest.mark.skipif(torch.cuda.is_available() and torch.cuda.get_device_capability() < fp8.CAPABILITY, reason="needs float8 (sm_89)")
@pytest.mark.compiler
@pytest.mark.parametrize("mode", ["eager", "graph"])
def test_float8_on_the_device_trains(tmp_path, capsys, mode):
    pytest.importorskip("torchao", reason="torchao comes with the test extra: pip install '.[test]'")
    asked = [*RUN, "--method", "finessl", "--amp", "bf16", "--set", "train.fp8=backward", "--step-mode", mode]
    assert main([*asked, "--out", str(tmp_path / "run")]) == 0
    assert "the gradient's cosine against bf16 is 0.999" in capsys.readouterr().err
