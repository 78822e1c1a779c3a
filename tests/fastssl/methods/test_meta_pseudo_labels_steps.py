"""The two updates of a step of Meta Pseudo Labels: compiled and captured as one, skipped as a whole, and worth their while on digits."""

import json

import pytest
import torch

from fastssl.cli import main
from fastssl.config import TrainConfig
from fastssl.engine import modes, updates
from fastssl.engine.putback import written
from fastssl.engine.step import Step
from fastssl.pipelines.errors import ConfigError
from fastssl.schedules import Clock
from tests.fastssl.engine.conftest import Made, captured, eagerly, everything

NAME = "meta_pseudo_labels"
FORMS = {
    "difference": {},
    "dot": {"feedback": "dot"},
    "soft, running statistics": {"targets": "soft", "feedback_statistics": "eval"},
    "mixed, with entropy": {"mixup": 0.5, "entropy_min": 0.2},
}
MOVING = {"wait_share": 0.1, "warmup_share": 0.2, "finetune_share": 0.0, "threshold": 0.5}


def noisy(toy):
    return lambda: toy.Normed(dropout=0.3)


def stepping(toy, form, *, total=20, dtype=torch.float64, device="cpu", **train):
    """A Step of both networks, which have batch-norm and dropout, on made-up batches."""
    m = toy.method(NAME, ema=0.9, encoder=noisy(toy), weak_pass="joint", **{**MOVING, **FORMS[form]}).to(device, dtype).train()
    config = TrainConfig(**{"lr": 0.1, "schedule": "cosine", **train})
    update = updates.made(m, m.stage(0, total), config, scaled=config.amp == "fp16")
    return Step(m, Made(m.asked, device, dtype), update, Clock(total, 0, torch.device(device)), config)


def run(step, times):
    torch.manual_seed(5)
    for _ in range(times):
        step()
    return step


@pytest.mark.parametrize("form", ["difference", "dot"])
def test_compiled_steps_equal_eager_ones(toy, form):
    torch.compiler.reset()
    eager, compiled = stepping(toy, form), stepping(toy, form)
    modes.prepare(compiled, "compile", pytest.fail, backend="aot_eager")
    assert compiled.mode == "compile"
    run(eager, 6)
    with torch.compiler.set_stance("fail_on_recompile"):
        run(compiled, 6)
    for a, b in zip(everything(eager), everything(compiled), strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-11)
    one, other = eager.read(), compiled.read()
    assert one == pytest.approx(other, rel=1e-6) and one["skipped"] == 0


@pytest.mark.parametrize(("form", "train"), [*((form, {}) for form in FORMS), ("difference", {"amp": "bf16", "clip": 0.5})])
def test_a_recorded_step_of_two_updates_equals_eager_ones_bit_for_bit(toy, form, train):
    """Twenty steps, in which the student's rate, the ramp and the learning rate move."""
    dtype = torch.float32 if "amp" in train else torch.float64
    eager, taped = stepping(toy, form, dtype=dtype, **train), captured(stepping(toy, form, dtype=dtype, **train))
    torch.manual_seed(5)
    eagerly(eager, 20)
    run(taped, 20)
    assert taped.run.recorder.replays == 20
    assert all(torch.equal(a, b) for a, b in zip(everything(eager), everything(taped), strict=True))
    assert (found := eager.read()) == taped.read() and found["skipped"] == 0 and found["feedback"] != 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.compiler
@pytest.mark.parametrize("form", FORMS)
def test_a_captured_step_of_two_updates_equals_eager_ones_on_a_device(toy, form):
    """One graph with both optimisers' steps in it, over 20 steps in fp32."""
    eager, graph = (stepping(toy, form, dtype=torch.float32, device="cuda") for _ in range(2))
    modes.prepare(graph, "graph", pytest.fail)
    assert graph.mode == "graph"
    for step in (eager, graph):
        step.method.network.encoder.layers[4].p = step.method.teacher.encoder.layers[4].p = 0.0  # else masks would be compared
        run(step, 20)
    for a, b in zip(everything(eager), everything(graph), strict=True):
        assert torch.allclose(a.double(), b.double(), rtol=1e-4, atol=1e-5)
    assert graph.read()["skipped"] == 0


@pytest.mark.parametrize("form", FORMS)
def test_one_pass_a_step_moves_each_networks_statistics(toy, form):
    step = run(stepping(toy, form), 3)
    for network in (step.method.network, step.method.teacher):
        layer = network.encoder.layers[2]
        assert layer.num_batches_tracked == 3 and layer.training and layer.track_running_stats and network.training


def poison_weak(step, batch):
    """Seen by the teacher alone; the student has moved by the time when it shows."""
    return batch._replace(unlabelled=(torch.full_like(batch.unlabelled[0], torch.nan), batch.unlabelled[1]))


def poison_strong(step, batch):
    return batch._replace(unlabelled=(batch.unlabelled[0], torch.full_like(batch.unlabelled[1], torch.nan)))


def poison_feedback(step, batch):
    """The student's finite step leads where its labelled loss is no number."""
    known = step.method.known
    losses = iter([1.0, torch.nan])
    step.method.known = lambda batch: known(batch) * next(losses)
    return batch


def poison_student(step, batch):
    """The teacher's loss is a number, the student's is not."""
    studied = step.method.studied

    def broken(*given):
        terms = studied(*given)
        return type(terms)(terms.total * torch.nan, terms.metrics, terms.memory)

    step.method.studied = broken
    return batch


@pytest.mark.parametrize("poison", [poison_weak, poison_strong, poison_feedback, poison_student])
def test_a_step_that_is_not_finite_leaves_both_networks_as_they_were(toy, poison):
    """Weights, batch-norm statistics, both optimisers' momentum, the average and b; and training goes on."""
    step = run(stepping(toy, "difference"), 8)
    before = {name: value.clone() for name, value in step.method.state_dict().items()}
    momenta = [t.clone() for one in updates.each_of(step.update) for s in one.optimizer.state.values() for t in s.values()]
    batch = step.pipeline.draw()
    step.learn(lambda: poison(step, batch))
    for name in ("known", "studied"):
        step.method.__dict__.pop(name, None)
    assert not step.update.ok and step.streak == 1 and before["baseline"] != 0
    assert all(torch.equal(value, before[name]) for name, value in step.method.state_dict().items())
    after = [t for one in updates.each_of(step.update) for s in one.optimizer.state.values() for t in s.values()]
    assert len(momenta) > 10 and all(torch.equal(a, b) for a, b in zip(momenta, after, strict=True))
    step()
    assert step.update.ok and step.streak == 0
    moved = {name.split(".")[0] for name, value in step.method.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"network", "teacher", "ema", "baseline"}


@pytest.mark.parametrize("form", ["difference", "dot"])
def test_a_loss_that_is_scaled_gives_the_same_feedback(toy, form):
    """As fp16 has it: neither the difference nor the product knows of the scale."""
    found = []
    for scaled in (False, True):
        step = stepping(toy, form)
        step.update = updates.made(step.method, step.method.stage(0, 20), step.config, scaled=scaled)
        step.clock.ok = step.update.ok
        found.append(run(step, 5).read()["feedback"])
    assert found[0] == pytest.approx(found[1], rel=1e-6) and found[0] != 0


def test_both_optimisers_are_put_back_after_a_trial(toy):
    step = run(stepping(toy, "difference"), 3)
    before = everything(step)
    modes.prepare(step, "compile", pytest.fail, backend="aot_eager")
    assert all(torch.equal(a, b) for a, b in zip(before, written(step), strict=True))


RUN = ["train", "--method", NAME, "--model", "wrn-10-1", "--set", "data.size=8", "--set", "model.batchnorm_momentum=0.1", "--ema", "0.9"]
DIGITS = ["--labels-per-class", "4", "--batch-size", "20", "--ratio", "3", "--lr", "0.1", "--quiet"]


def test_accumulated_gradients_are_refused(toy):
    with pytest.raises(ConfigError, match="accumulate"):
        stepping(toy, "difference", accumulate=2)


def test_the_student_learns_digits_without_a_label(tmp_path, capsys):
    """By the teacher's labels alone: 0.77, 0.86 and 0.77 over seeds 0, 1 and 2, the labels' accuracy 0.47 in the last steps."""
    options = {"lambda_u": 1.0, "ramp_share": 0.5, "smoothing": 0.0, "finetune_share": 0.0}
    words = [word for key, value in options.items() for word in ("--set", f"method.{key}={value}")]
    capsys.readouterr()
    more = ["--steps", "200", "--set", "train.eval_every=200", "--json", "--out", str(tmp_path / "run")]
    assert main([*RUN, *DIGITS, *words, *more]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["accuracy"] > 0.6 and result["pseudo_accuracy"] > 0.4
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(row["mpl_gradient"] > 0 for row in rows if row["event"] == "train")
