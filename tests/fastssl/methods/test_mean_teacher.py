"""Mean Teacher against a float64 calculation over ten steps: both recipes, both costs, both reductions, with batch-norm and without."""

import pytest
import torch

from fastssl.cli import main
from fastssl.config import TrainConfig
from fastssl.engine.update import Update
from fastssl.methods.base import Stage
from fastssl.pipelines.errors import ConfigError
from tests.fastssl.methods import oracle
from tests.fastssl.methods.agreement import Agreement, encoders, rows_of_labels, squared


class Oracle(Agreement):
    own = {"ramp_share": 40 / 150, "cost": "mse", "early_decay": 0.0, "two_heads": False, "logit_distance": 0.01}

    def loss(self, batch):
        known, (theirs, own) = self.noised(batch.labelled, batch.index, 0), self.noised(batch.unlabelled, batch.unlabelled_index, 1)
        streams = self.o.reduction == "streams"
        with torch.no_grad():
            said = self.together([theirs] if streams else [known[1], theirs], net="ema", moves=True)
        target = torch.softmax(torch.cat([z for z, _ in said]), 1)
        if streams:
            (labelled,), (other,) = self.together(known, moves=True), self.together([own])
        else:
            labelled, other = self.together([known[0], own], moves=True)
        z, f = (torch.cat(pair) for pair in zip(labelled, other, strict=True))
        second = oracle.head(self.values, f, "second_head.") if self.o.two_heads else z
        judged = second[4:] if streams else second
        if self.o.cost == "mse":
            rows = squared(judged, target)
        else:
            rows = (target * (torch.log(target) - torch.log_softmax(judged, 1))).sum(1)
        total = self.sums(rows_of_labels(labelled[0], batch), rows)
        return total + self.o.logit_distance * ((z - second) ** 2).sum(1).mean() / 5 if self.o.two_heads else total

    def decay(self):
        """Of the step that is done, the `done`-th."""
        early = self.o.early_decay and self.done - 1 < self.o.ramp_share * self.total
        return self.o.early_decay if early else 0.999


TORCHSSL = {"reduction": "streams", "ramp": "linear", "ramp_share": 0.4, "lambda_u": 50.0, "labels_share": False}
CASES = [
    {},
    TORCHSSL,
    {"two_heads": True, "labels_share": False},
    {"cost": "kl", "lambda_u": 10.0, "ramp": "none"},
    {"early_decay": 0.5, "noise": 0.15, "labels_share": False},
    {**TORCHSSL, "two_heads": True, "cost": "kl", "logit_distance": 0.5},
]


@pytest.mark.parametrize("network", ["plain", "batch-norm"])
@pytest.mark.parametrize("options", CASES, ids=str)
def test_ten_steps_equal_the_float64_calculation(toy, options, network):
    m = toy.method("mean_teacher", **encoders(toy)[network], **options)
    m.train().enter(Stage(20))
    oracle.follow(m, toy, Oracle(m, toy, **options), total=20, mixed=False)


def unsupervised(toy, m, b=None):
    b = toy.batch(m.asked) if b is None else b
    m.zero_grad()
    terms = m.loss(b._replace(weight=torch.zeros(4)), toy.clock(50))
    terms.total.backward()
    return terms.metrics["loss_unlabelled"].item()


@pytest.mark.parametrize("reduction", ["batch", "streams"])
def test_usbs_defect_is_absent(toy, reduction):
    """There the student's logits are read off the teacher's output: a loss of exactly 0 without gradient. Ours is neither."""
    m = toy.method("mean_teacher", reduction=reduction)
    assert unsupervised(toy, m) > 1e-6, "two views of equal networks already differ"
    assert all(p.grad.abs().sum() > 0 for p in m.network.encoder.parameters())
    before = unsupervised(toy, m)
    with torch.no_grad():
        for p in m.ema.parameters():
            p.mul_(1.5)
    assert unsupervised(toy, m) != before and all(p.grad is None for p in m.ema.parameters())
    with torch.no_grad():
        for p in m.network.parameters():
            p.mul_(0.5)
    assert unsupervised(toy, m) != before


def test_the_teacher_sees_views_of_its_own(toy):
    """Which images reach which network: gradient comes to the student's alone, and the loss hangs on the teacher's."""
    m = toy.method("mean_teacher")
    b = toy.batch(m.asked)
    images = [x.clone().requires_grad_() for x in (*b.labelled, *b.unlabelled)]
    value = unsupervised(toy, m, b._replace(labelled=tuple(images[:2]), unlabelled=tuple(images[2:])))
    reached = [x.grad is not None and bool(x.grad.abs().sum() > 0) for x in images]
    assert reached == [True, False, False, True]
    other = b._replace(unlabelled=(torch.randn_like(b.unlabelled[0]), b.unlabelled[1]))
    assert unsupervised(toy, m, other) != value


def engine_step(toy, m, step):
    update = Update(m, Stage(50), TrainConfig(steps=50, ema=0.999, weight_decay=0.0))
    update.begin(torch.tensor(0.1), torch.tensor(step))
    old = {name: p.clone() for name, p in m.ema.named_parameters()}
    m.step(toy.batch(m.asked), toy.clock(step, 50), update)
    return old


@pytest.mark.parametrize(("step", "a"), [(0, 1 / 2), (1, 2 / 3), (9, 10 / 11)])
def test_the_average_moves_after_the_optimiser_by_a_decay_that_warms_up(toy, step, a):
    m = toy.method("mean_teacher").train()
    with torch.no_grad():
        for p in m.ema.parameters():
            p.add_(0.1)
    start = {name: p.detach().clone() for name, p in m.network.named_parameters()}
    old = engine_step(toy, m, step)
    for name, p in m.network.named_parameters():
        assert not torch.equal(p, start[name]), "the optimiser moved it"
        assert torch.allclose(dict(m.ema.named_parameters())[name], a * old[name] + (1 - a) * p, rtol=1e-6), name


@pytest.mark.parametrize(
    ("early", "step", "wanted"),
    [(0.9, 4, 5 / 6), (0.9, 12, 0.9), (0.9, 13, 0.9), (0.9, 14, 15 / 16), (0.9, 2000, 0.999), (0.0, 12, 13 / 14)],
)
def test_the_smaller_decay_of_the_ramp(toy, early, step, wanted):
    """A ramp of 40 / 150 of 50 steps lasts until step 13.3; without it the decay after step k, from 0 on, is 1 - 1 / (k + 2)."""
    m = toy.method("mean_teacher", early_decay=early)
    m.enter(Stage(50))
    (one,) = m.averages()
    assert float(one.decay(torch.tensor(step))) == pytest.approx(wanted, rel=1e-6) and one.buffers == "own"


def test_the_smaller_decay_needs_a_stage(toy):
    with pytest.raises(ValueError, match="none has begun"):
        toy.method("mean_teacher", early_decay=0.9).averages()


def test_the_teacher_fills_statistics_of_its_own_whatever_evaluation_left(toy):
    """Trap: networks are evaluated between steps, in evaluation mode, and put back by Network.train, which keeps frozen encoders still."""
    m = toy.method("mean_teacher", encoder=toy.Normed).train()
    norm, own = m.network.encoder.layers[2], m.ema.encoder.layers[2]
    assert not own.training, "outside its pass the average is in evaluation mode"
    for count in (1, 2, 3):
        m.loss(toy.batch(m.asked, seed=count), toy.clock(count))
        assert norm.num_batches_tracked == own.num_batches_tracked == count and not own.training
        mode = m.ema.training
        m.ema.eval()
        m.ema.train(mode)
    assert not torch.allclose(norm.running_mean, own.running_mean)


def test_a_frozen_encoders_teacher_is_frozen_too(toy):
    m = toy.method("mean_teacher", encoder=toy.Normed)
    m.network.encoder.requires_grad_(False)
    m.train()
    m.loss(toy.batch(m.asked), toy.clock(3))
    assert m.network.encoder.layers[2].num_batches_tracked == m.ema.encoder.layers[2].num_batches_tracked == 0


@pytest.mark.parametrize("where", ["encoder", "head"])
def test_dropout_is_noise_of_the_student_and_of_the_teacher_where_asked(toy, where):
    for teacher_dropout in (True, False):
        m = toy.method("mean_teacher", encoder=lambda: toy.Normed(0.5 if where == "encoder" else 0.0), teacher_dropout=teacher_dropout)
        if where == "head":
            m.network.dropout, m.ema.dropout = torch.nn.Dropout(0.5), torch.nn.Dropout(0.5)
        m.train()
        first, again = (m.outputs(toy.batch(m.asked), toy.clock(3)) for _ in range(2))
        (student, teacher), (theirs, own) = first
        assert not torch.equal(student.logits, again[0][0].logits) and not torch.equal(own.logits, again[1][1].logits)
        same = torch.equal(teacher.logits, again[0][1].logits) and torch.equal(theirs.logits, again[1][0].logits)
        assert same != teacher_dropout and not any(module.training for module in m.ema.modules())


def test_two_heads(toy):
    """Cross-entropy trains the class head alone, consistency the second alone, against the teacher's class head; the distance both."""
    m = toy.method("mean_teacher", two_heads=True, logit_distance=0.0)
    assert torch.equal(m.second_head.weight, m.network.head.weight)
    unsupervised(toy, m)
    assert m.network.head.weight.grad is None or not m.network.head.weight.grad.any()
    assert m.second_head.weight.grad.abs().sum() > 0
    m.zero_grad()
    m.loss(toy.batch(m.asked), toy.clock(50)).total.backward()
    assert m.network.head.weight.grad.abs().sum() > 0
    bound = toy.method("mean_teacher", two_heads=True, lambda_u=0.0)
    with torch.no_grad():
        bound.second_head.weight.add_(torch.randn_like(bound.second_head.weight))
    unsupervised(toy, bound)
    both = bound.network.head.weight.grad, bound.second_head.weight.grad
    assert all(gradient.abs().sum() > 0 for gradient in both)
    assert "second_head.weight" in dict(bound.named_parameters()) and bound.judged() is bound.ema


def test_without_an_average_there_is_no_teacher(toy, capsys, tmp_path):
    with pytest.raises(ConfigError, match="mean_teacher is taught by the averaged network, and train.ema=0 keeps none; give --ema 0.999"):
        toy.method("mean_teacher", ema=0.0)
    assert main(["train", "--method", "mean_teacher", "--ema", "0", "--out", str(tmp_path / "run")]) == 2
    assert "give --ema 0.999" in capsys.readouterr().err


def test_the_second_head_has_the_networks_dropout(toy):
    m = toy.method("mean_teacher", two_heads=True)
    m.network.dropout = torch.nn.Dropout(0.5)
    features = torch.randn(4, 7, dtype=torch.float64)
    assert not torch.equal(m.train().second(features), m.second(features))
    assert torch.equal(m.eval().second(features), m.second(features))
