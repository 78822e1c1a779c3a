"""LayerMatch against a float64 calculation over ten steps, for every reading of Grad-ReLU with every reading of Avg-Clustering."""

import itertools

import numpy as np
import pytest
import torch

from fastssl.methods.layermatch import AVERAGES, GRAD_RELU
from fastssl.pipelines.errors import ConfigError
from tests.fastssl.methods import oracle


class Oracle(oracle.Step):
    """L_u = CE(label, W' f_s + b'); label and confidence by the reading of Avg-Clustering; averages move after the weights."""

    own = {"grad_relu": "full", "averaging": "classifier", "momentum": 0.999, "centre_weight": 1.0}

    def __init__(self, m, **options):
        super().__init__(m, **options)
        self.copy = {name: p.detach().clone() for name, p in m.network.named_parameters()}
        self.bank, self.centres, self.opposed = {}, {}, []

    def judged(self, z, p):
        if self.o.averaging == "teacher":
            f = oracle.encoder(self.copy, self.batch.unlabelled[0], "encoder.")
            p = oracle.softmax(oracle.head(self.copy, f, "head.").numpy())
        elif self.o.averaging == "outputs":
            m, rows = self.o.momentum, self.batch.unlabelled_index.tolist()
            p = np.stack([m * self.bank[r] + (1 - m) * q if r in self.bank else q for r, q in zip(rows, p, strict=True)])
            self.seen = dict(zip(rows, p, strict=True))
        return super().judged(z, p)

    def student(self):
        live = {name: v for name, v in self.values.items() if name.startswith("network.head.")}
        used = live
        if self.o.averaging == "classifier":
            used = {f"network.{name}": v for name, v in self.copy.items()}
        if self.o.grad_relu != "off":
            used = {name: used[name].detach() for name in live}
        elif used is not live:
            used = {name: used[name] + v - v.detach() for name, v in live.items()}  # the average's value, the live head's gradient
        return oracle.head(used, self.others[1][1])

    def extra(self):
        if self.o.averaging != "centres":
            return 0.0
        weak, strong = self.others[0][1].detach().numpy(), self.others[1][1]
        for k in range(oracle.CLASSES):
            rows = (self.label == k) & (self.weight > 0)
            if rows.any():
                mean, m = weak[rows].mean(axis=0), self.o.momentum
                self.centres[k] = m * self.centres[k] + (1 - m) * mean if k in self.centres else mean
        nothing = np.zeros(strong.shape[1])
        centre = torch.from_numpy(np.stack([self.centres.get(k, nothing) for k in self.label]))
        length = (strong**2).sum(1).sqrt() * (centre**2).sum(1).sqrt().clamp(min=1e-8)
        return self.o.centre_weight * (torch.from_numpy(self.weight) * (1 - (strong * centre).sum(1) / length)).mean()

    def after(self):
        if self.o.averaging == "outputs":
            self.bank |= self.seen
        if self.o.grad_relu.startswith("conflict"):
            self.let_through()

    def let_through(self):
        """The head has the labelled gradient alone so far; what the rule keeps of the closed form (p - e) f^T comes to it."""
        f, p = self.others[1][1].detach().numpy(), oracle.softmax(self.student().detach().numpy())
        residual = self.o.lambda_u * self.weight[:, None] * (p - oracle.onehot(self.label)) / len(p)
        own = {"network.head.weight": residual.T @ f, "network.head.bias": residual.sum(axis=0)}
        labelled = {name: self.gradients[name].numpy() for name in own}
        agrees = {name: own[name] * labelled[name] for name in own}
        if self.o.grad_relu == "conflict_global":
            keep = sum(product.sum() for product in agrees.values()) >= 0
            agrees = {name: np.full_like(product, keep * 2 - 1) for name, product in agrees.items()}
        self.opposed += [(product < 0).mean() for product in agrees.values()]
        for name, gradient in own.items():
            self.gradients[name] = torch.from_numpy(labelled[name] + np.where(agrees[name] >= 0, gradient, 0))

    def moved(self):
        for name, p in self.m.network.named_parameters():
            self.copy[name] = self.o.momentum * self.copy[name] + (1 - self.o.momentum) * p.detach()

    def state(self):
        own = {}
        if self.o.averaging == "classifier":
            own = {name.replace("head", "average"): v for name, v in self.copy.items() if name.startswith("head.")}
        elif self.o.averaging == "teacher":
            own = {f"teacher.{name}": v for name, v in self.copy.items()}
        elif self.o.averaging == "outputs":
            nothing = np.zeros(oracle.CLASSES)
            own = {"bank.mean": np.stack([self.bank.get(row, nothing) for row in range(oracle.ROWS)])}
        elif self.o.averaging == "centres":
            own = {"centres": np.stack([self.centres.get(k, np.zeros(7)) for k in range(oracle.CLASSES)])}
        return super().state() | own


@pytest.mark.parametrize(("grad_relu", "averaging"), list(itertools.product(GRAD_RELU, AVERAGES)))
def test_twenty_steps_of_every_reading(toy, grad_relu, averaging):
    options = {"grad_relu": grad_relu, "averaging": averaging, "threshold": 0.5, "momentum": 0.9, "centre_weight": 0.5}
    m = toy.method("layermatch", head="linear", **options)
    expected = Oracle(m, **options)
    oracle.follow(m, toy, expected, steps=20, sharpen=12.0)
    if grad_relu.startswith("conflict"):
        assert 0 < np.mean(expected.opposed) < 1, "gradients must agree here and oppose each other there"


SHARED = [
    {"grad_relu": "conflict_element", "averaging": "classifier", "logit_adjustment": 1.0, "lambda_u": 2.0, "weighting": "smooth"},
    {"grad_relu": "conflict_global", "averaging": "off", "logit_adjustment": 1.0, "align": "uniform", "align_memory": "queue"},
    {"grad_relu": "full", "averaging": "outputs", "align": "predicted", "weighting": "confidence"},
    {"grad_relu": "full", "averaging": "centres", "align": "labelled", "weighting": "sigmoid"},
    {"grad_relu": "off", "averaging": "teacher", "weighting": "smooth", "power": 2.0},
    {"grad_relu": "off", "averaging": "classifier", "weighting": "none"},
]


@pytest.mark.parametrize("options", SHARED, ids=str)
def test_ten_steps_with_the_shared_options(toy, options):
    options = {"threshold": 0.5, "momentum": 0.9, **options}
    m = toy.method("layermatch", head="linear", **options)
    oracle.follow(m, toy, Oracle(m, **options), sharpen=12.0, mixed=options.get("weighting") != "none")


@pytest.mark.parametrize(("grad_relu", "averaging"), list(itertools.product(("full", "off"), AVERAGES)))
def test_ten_steps_with_a_cosine_head(toy, grad_relu, averaging):
    options = {"grad_relu": grad_relu, "averaging": averaging, "threshold": 0.8, "momentum": 0.9}
    m = toy.method("layermatch", **options)
    oracle.follow(m, toy, Oracle(m, **options))


def test_unlabelled_term_gives_the_classifier_nothing_and_the_features_their_closed_form(toy):
    """Anchor: dL_u / dW = 0, dL_u / df = W^T (p - e) / U."""
    m = toy.method("layermatch", head="linear", averaging="off", threshold=0.0)
    b = toy.batch(m.views)
    with torch.no_grad():
        weak, strong = m.network(b.unlabelled[0]), m.network(b.unlabelled[1])
    f = strong.features.clone().requires_grad_()
    pseudo = m.pseudo_labels(m.student([strong._replace(features=f)]), weak.logits, {"threshold": 0.0})
    pseudo.loss.mean().backward()
    assert all(p.grad is None for p in m.network.head.parameters())
    residual = oracle.softmax(strong.logits.numpy()) - oracle.onehot(weak.logits.argmax(1).numpy())
    np.testing.assert_allclose(f.grad, residual @ m.network.head.weight.detach().numpy() / len(f), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("averaging", AVERAGES)
def test_averages_are_the_methods_own_and_start_equal(toy, averaging):
    m = toy.method("layermatch", averaging=averaging, momentum=0.9)
    wanted = {"classifier": [(m.average, m.network.head)], "teacher": [(m.teacher, m.network)]}.get(averaging, [])
    found = m.averages()
    assert [one[:2] for one in found] == wanted and all(one.decay == 0.9 for one in found)
    for own, source, *_ in found:
        for average, live in zip(own.parameters(), source.parameters(), strict=True):
            assert torch.equal(average, live) and not average.requires_grad and average is not live
    assert len(toy.method("layermatch", averaging=averaging).averages()) == len(wanted)


def test_a_conflict_rule_needs_a_linear_head(toy):
    for rule in ("conflict_global", "conflict_element"):
        with pytest.raises(ConfigError, match="linear head"):
            toy.method("layermatch", grad_relu=rule)


def test_a_teacher_is_never_in_training_mode(toy):
    m = toy.method("layermatch", averaging="teacher")
    m.train()
    assert m.network.training and not m.teacher.training


def test_a_class_without_a_centre_pulls_nothing(toy):
    """No row has passed the threshold: no centre, no pull, and no gradient of either."""
    m = toy.method("layermatch", averaging="centres", threshold=1.0)
    b = toy.batch(m.views)
    terms = m.step(b, toy.clock(), lambda total: total.backward())
    assert terms.metrics["loss_extra"] == 0 and m.centres.abs().sum() == 0
    assert all(torch.isfinite(p.grad).all() for p in m.parameters() if p.grad is not None)
