"""Meta Pseudo Labels against a float64 calculation of both networks over ten steps; its stages; bad options."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fastssl.config import TrainConfig, resolve
from fastssl.engine import updates
from fastssl.engine.step import Step
from fastssl.methods import find
from fastssl.methods.bricks import noise
from fastssl.methods.meta_pseudo_labels import MetaPseudoLabels
from fastssl.pipelines import keyed
from fastssl.pipelines.errors import ConfigError
from fastssl.presets import defaults
from fastssl.schedules import Clock
from tests.fastssl.methods.oracle import CLASSES, WEIGHT, encoder, head

NAME = "meta_pseudo_labels"
TRAIN = {"lr": 0.0625, "momentum": 0.9, "weight_decay": 0.01, "decay_all": True, "schedule": "constant"}
TOTAL = 20  # with which rates and ramps are exact in fp32, as is the learning rate
SHARES = {"wait_share": 0.15, "warmup_share": 0.2, "ramp_share": 0.4, "finetune_share": 0.0, "threshold": 0.95, "baseline_decay": 0.9}


def logits(values, x, at):
    return head(values, encoder(values, x, f"{at}.encoder."), f"{at}.head.")


def soft(z, q):
    """[N] cross-entropy of logits against probabilities."""
    return -(q * z.log_softmax(1)).sum(1)


def hot(label):
    return torch.eye(CLASSES, dtype=torch.float64)[label]


class Oracle:
    """One step at a time of both networks, Nesterov momentum and weight decay written out."""

    def __init__(self, m, nesterov=True, **options):
        usual = {"feedback": "difference", "targets": "sampled", "lambda_m": 1.0, "lambda_u": 8.0, "temperature": 0.7, "smoothing": 0.15}
        self.o, self.nesterov = SimpleNamespace(**{**usual, **options}), nesterov
        self.values = {name: p.detach().clone() for name, p in m.named_parameters() if not name.startswith("ema.")}
        self.moments = {name: torch.zeros_like(p) for name, p in self.values.items()}
        self.ema = {name: p.clone() for name, p in self.values.items() if name.startswith("network.")}
        self.b, self.kept = 0.0, []

    def smoothed(self, q):
        return (1 - self.o.smoothing) * q + self.o.smoothing / CLASSES

    def known(self, values, batch):
        return (batch.weight * soft(logits(values, batch.labelled[0], "network"), hot(batch.label))).mean()

    def gradients(self, loss, values):
        found = torch.autograd.grad(loss, list(values.values()))
        return dict(zip(values, found, strict=True))

    def descend(self, gradients, rate):
        for name, g in gradients.items():
            g = g + TRAIN["weight_decay"] * self.values[name]
            self.moments[name] = TRAIN["momentum"] * self.moments[name] + g
            move = g + TRAIN["momentum"] * self.moments[name] if self.nesterov else self.moments[name]
            self.values[name] = self.values[name] - rate * move

    def part(self, at):
        return {name: v.clone().requires_grad_() for name, v in self.values.items() if name.startswith(at)}

    def __call__(self, batch, k, clock):
        o, (weak, strong) = self.o, batch.unlabelled
        teacher = self.part("teacher.")
        z_l, z_w, z_s = (logits(teacher, x, "teacher") for x in (batch.labelled[0], weak, strong))
        q = (z_w.detach() / o.temperature).softmax(1)
        mask = (q.amax(1) >= o.threshold).double()
        self.kept.append(mask.mean().item())
        ramp = min(1.0, k / (o.ramp_share * TOTAL))
        base = (batch.weight * soft(z_l, self.smoothed(hot(batch.label)))).mean() + o.lambda_u * ramp * (mask * soft(z_s, q)).mean()
        u = noise.uniform(noise.stream(keyed.key(0x4D504C), clock), batch.unlabelled_index, CLASSES)
        p = z_s.detach().softmax(1)
        target = hot((p.log() - torch.log(-torch.log(u))).argmax(1)) if o.targets == "sampled" else p

        student = self.part("network.")
        loss = soft(logits(student, strong, "network"), self.smoothed(target)).mean()
        g = self.gradients(loss, student)
        old = self.known(student, batch).item()
        wait, warm = round(o.wait_share * TOTAL), round(o.warmup_share * TOTAL)
        rate = min(1.0, max(0.0, (k - wait + 1) / warm))
        self.descend(g, rate * TRAIN["lr"])
        after = self.part("network.")
        new = self.known(after, batch)
        if o.feedback == "difference":
            self.h = (old - new.item()) if rate > 0 else 0.0
        else:
            g_new = self.gradients(new, after)
            self.h = rate * sum((g_new[name] * g[name]).sum().item() for name in g)
        self.b = 0.9 * self.b + 0.1 * self.h
        meta = o.lambda_m * (self.h - self.b) * soft(z_s, target).mean()
        self.slope = torch.autograd.grad(meta, z_s, retain_graph=True)[0].norm().item()
        self.descend(self.gradients(base + meta, teacher), TRAIN["lr"])
        decay = min(0.9, (k + 2) / (k + 11))
        self.ema = {name: decay * v + (1 - decay) * self.values[name] for name, v in self.ema.items()}
        return base.item() + loss.item()


def stepping(m, total=TOTAL, stage=0, **train):
    config = TrainConfig(**{**TRAIN, **train})
    stage = m.stage(stage, total)
    return Step(m, None, updates.made(m, stage, config, scaled=False), Clock(total, 0), config)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"feedback": "dot"},
        {"targets": "soft", "smoothing": 0.3},
        {"lambda_m": 3.0, "lambda_u": 1.0, "smoothing": 0.0, "nesterov": False},
    ],
    ids=str,
)
def test_ten_steps_of_both_networks(toy, options):
    options = {**SHARES, **options}
    nesterov = options.pop("nesterov", True)
    m = toy.method(NAME, ema=0.9, **options).train()
    oracle, step = Oracle(m, nesterov, **options), stepping(m, nesterov=nesterov)
    fed = []
    for k in range(10):
        batch = toy.batch(m.asked, seed=k)._replace(weight=WEIGHT)
        expected = oracle(batch, k, toy.clock(k, TOTAL))
        step.learn(lambda: batch)  # noqa: B023
        values = step.read()
        assert values["loss"] == pytest.approx(expected, rel=1e-6), k
        assert values["feedback"] == pytest.approx(oracle.h, rel=1e-5, abs=1e-7)
        assert values["mpl_gradient"] == pytest.approx(oracle.slope, rel=1e-5, abs=1e-7)
        assert m.baseline.item() == pytest.approx(oracle.b, rel=1e-5, abs=1e-8)
        for name, p in m.named_parameters():
            wanted = oracle.ema[f"network.{name[4:]}"] if name.startswith("ema.") else oracle.values[name]
            np.testing.assert_allclose(p.detach(), wanted, rtol=1e-6, atol=1e-6, err_msg=f"{k} {name}")
        fed.append(oracle.h)
    assert fed[:3] == [0, 0, 0] and all(fed[3:]) and 0 < np.mean(oracle.kept) < 1


def test_a_student_that_waits_stays_where_it_is_and_says_nothing(toy):
    m = toy.method(NAME, ema=0.9, wait_share=0.5, encoder=toy.Normed).train()
    step, layer = stepping(m), m.network.encoder.layers[2]
    start = {name: p.detach().clone() for name, p in m.named_parameters()}
    for k in range(TOTAL // 2):
        batch = toy.batch(m.asked, seed=k)
        step.learn(lambda: batch)  # noqa: B023
    values = step.read()
    assert m.baseline == 0 and values["feedback"] == 0 and values["mpl_gradient"] == 0
    for name, p in m.named_parameters():
        assert torch.equal(p, start[name]) != name.startswith("teacher."), name
    assert layer.num_batches_tracked == TOTAL // 2, "its running statistics are ready by then"
    batch = toy.batch(m.asked)
    step.learn(lambda: batch)
    assert m.baseline != 0 and not torch.equal(m.network.head.weight, start["network.head.weight"])


def test_the_student_sees_no_label_before_it_is_fine_tuned(toy):
    m = toy.method(NAME)
    b = toy.batch(m.asked)
    taught = m.taught(b, toy.clock(5))
    total = m.studied(b, taught.target, toy.clock(5)).total
    other = m.studied(b._replace(label=(b.label + 1) % CLASSES, weight=2 * b.weight), taught.target, toy.clock(5)).total
    assert torch.equal(total, other) and not taught.target.requires_grad


def test_mixed_images_are_labelled_by_the_teacher(toy):
    """MixUp's base loss is the mix of two; the labels are drawn for the mixed images, which both networks see alike."""
    m = toy.method(NAME, mixup=0.5, threshold=0.0)
    b, clock, seen = toy.batch(m.asked), toy.clock(5), []
    hooks = [net.register_forward_pre_hook(lambda _, given: seen.append(given[0])) for net in (m.teacher, m.network)]
    m.loss(b, clock)
    for hook in hooks:
        hook.remove()
    weak, teacher, student = seen[0], seen[1][-len(b.unlabelled[1]) :], seen[2]
    assert torch.equal(weak, b.unlabelled[0]) and torch.equal(teacher, student) and not torch.equal(student, b.unlabelled[1])


def test_a_student_that_never_reaches_its_rate_is_refused(toy):
    with pytest.raises(ConfigError, match="leave the student no step at its full rate"):
        toy.method(NAME, wait_share=0.5, warmup_share=0.6)


def test_fine_tuning_starts_from_the_average_and_uses_labels_alone(toy):
    m = toy.method(NAME, ema=0.9, finetune_share=0.25, finetune_rate=0.5).train()
    first, last, none = (m.stage(k, 40) for k in range(3))
    assert (first.steps, last.steps, none) == (30, 10, None) and last.rate == 0.5 and first.parts == (("network",), ("teacher",))
    assert toy.method(NAME).stage(1, 100) is None and toy.method(NAME).stage(1, 600).steps == 2
    assert toy.method(NAME, finetune_share=0.99).stage(0, 1).steps == 1
    step = stepping(m)
    for k in range(5):
        batch = toy.batch(m.asked, seed=k)
        step.learn(lambda: batch)  # noqa: B023
    report = m.prepare(1, None)
    assert "averaged student" in report.notes[0]
    assert all(torch.equal(a, b) for a, b in zip(m.network.state_dict().values(), m.ema.state_dict().values(), strict=True))
    step, before = stepping(m, 40, stage=1), {name: p.detach().clone() for name, p in m.named_parameters()}
    batch = toy.batch(m.asked)
    assert batch.unlabelled == ()
    step.learn(lambda: batch)
    wanted = soft(logits(before, batch.labelled[0], "network"), hot(batch.label)).mean()
    assert step.read()["loss"] == pytest.approx(wanted.item(), rel=1e-9)
    assert all(torch.equal(p, before[name]) for name, p in m.named_parameters() if name.startswith("teacher."))
    assert not torch.equal(m.network.head.weight, before["network.head.weight"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"wait_share": 1.0}, "wait_share"),
        ({"temperature": 0}, "temperature"),
        ({"smoothing": 1.0}, "smoothing"),
        ({"feedback": "sum"}, "feedback"),
        ({"targets": "hard"}, "targets"),
        ({"lambda_m": -1}, "lambda_m"),
        ({"finetune_rate": 0}, "finetune_rate"),
    ],
)
def test_bad_options(options, said):
    with pytest.raises(ConfigError, match=said):
        resolve(NAME, find(NAME).Config, [("--set", {f"method.{key}": value for key, value in options.items()})])


def test_it_needs_a_teacher_and_defaults_that_a_short_run_can_use(toy):
    with pytest.raises(ValueError, match="was given no teacher"):
        MetaPseudoLabels(MetaPseudoLabels.Config(), toy.network(), toy.spec())
    assert MetaPseudoLabels.others(MetaPseudoLabels.Config(teacher_model="wrn-28-8")) == {"teacher": "wrn-28-8"}
    assert defaults(NAME, model="wrn-10-1")["method.lambda_u"] < 8
