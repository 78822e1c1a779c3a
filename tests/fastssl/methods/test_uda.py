"""UDA against a float64 calculation over ten steps; training signal annealing; what references get wrong; what is bad."""

import dataclasses

import numpy as np
import pytest
import torch

from fastssl.config import resolve
from fastssl.methods import find
from fastssl.pipelines.errors import ConfigError
from tests.fastssl.methods import oracle


def annealed(kind, t):
    """eta of ten classes after the share t of the steps."""
    a = {"linear": t, "exp": np.e ** (5 * t - 5), "log": 1 - np.e ** (-5 * t)}[kind]
    return 0.1 + 0.9 * a


class Oracle(oracle.Step):
    """Soft targets, sharpened after alignment; judged before sharpening; labels that are predicted well are left out."""

    own = {"threshold": 0.8, "temperature": 0.4, "tsa": "none", "tsa_form": "official"}

    def __init__(self, m, **options):
        super().__init__(m, **options)
        self.left_in = []

    def loss(self, batch):
        self.known, self.others = self.outputs(batch)
        z, label = self.known[0][0], batch.label.numpy()
        self.p_known, weak = softmax(z), softmax(self.others[0][0])
        prior = np.log((oracle.COUNTS / oracle.COUNTS.sum()) ** self.o.logit_adjustment + 1e-12) if self.o.logit_adjustment else None
        rows = batch.weight * oracle.cross_entropy(z, label, prior)
        if self.o.tsa == "none":
            supervised = rows.mean()
        else:
            judged = self.p_known[np.arange(len(label)), label] if self.o.tsa_form == "official" else self.p_known.max(axis=1)
            a = (annealed(self.o.tsa, self.step / self.total) - 0.1) / 0.9
            mask = judged <= a * (1 - 1 / oracle.CLASSES) + 1 / oracle.CLASSES
            self.left_in.append(mask.mean())
            kept = (torch.from_numpy(mask * 1.0) * rows).sum()
            supervised = kept / (max(mask.sum(), 1) if self.o.tsa_form == "official" else len(label))
        self.label, self.confidence, self.weight = self.judged(None, weak)
        target = oracle.normalised(self.last ** (1 / self.o.temperature))
        rows = -(torch.from_numpy(target) * torch.log_softmax(self.student(), 1)).sum(1)
        return supervised + self.o.lambda_u * (torch.from_numpy(self.weight) * rows).mean()

    def aligned(self, p):
        self.last = super().aligned(p)
        return self.last


def softmax(z):
    return oracle.softmax(z.detach().numpy())


CASES = [
    {},
    {"threshold": 0.6, "tsa": "exp"},
    {"threshold": 0.6, "tsa": "linear", "temperature": 1.0},
    {"threshold": 0.6, "tsa": "log", "tsa_form": "usb", "lambda_u": 0.5},
    {"threshold": 0.5, "tsa": "linear", "align": "predicted", "weighting": "smooth", "power": 2.0, "logit_adjustment": 1.0},
]


@pytest.mark.parametrize("options", CASES, ids=str)
def test_ten_steps_equal_the_float64_calculation(toy, options):
    m = toy.method("uda", **options)
    expected = Oracle(m, **options)
    oracle.follow(m, toy, expected, total=10)
    assert options.get("tsa", "none") == "none" or 0 < np.mean(expected.left_in) < 1, "labels are left out, and not all of them"


@pytest.mark.parametrize(("kind", "half"), [("linear", 0.55), ("exp", 0.1739), ("log", 0.9261)])
def test_annealing_of_the_specification(toy, kind, half):
    """Ten classes, half of the steps."""
    m = toy.method("uda", tsa=kind)
    m.spec = dataclasses.replace(m.spec, classes=tuple("abcdefghij"))
    assert m.eta(toy.clock(50, 100)).item() == pytest.approx(half, abs=5e-5)
    etas = [m.eta(toy.clock(step, 100)).item() for step in range(100)]
    np.testing.assert_allclose(etas, [annealed(kind, step / 100) for step in range(100)], rtol=1e-12)
    assert etas == sorted(etas) and etas[0] >= 0.1 and etas[-1] < 1


def logits(*rows):
    return torch.tensor(rows, dtype=torch.float64).log()


def objective(toy, known, label, weak=None, strong=None, step=0, **options):
    """(Terms, logits as leaves) of made-up predictions: rows of probabilities of five classes."""
    from fastssl.models import Output

    m = toy.method("uda", **options)
    weak = logits([0.2] * 5) if weak is None else weak
    strong = logits([0.2] * 5) if strong is None else strong
    z = [t.clone().requires_grad_() for t in (known, weak, strong)]
    batch = toy.batch(m.asked)._replace(label=torch.tensor(label), weight=torch.ones(len(label)), hidden_label=torch.full((len(weak),), -1))
    terms = m.objective([Output(z[0], z[0])], [Output(t, t) for t in z[1:]], batch, toy.clock(step, 100))
    terms.total.backward()
    return terms, z


SURE, FLAT, MISTAKEN = [0.9, 0.025, 0.025, 0.025, 0.025], [0.2] * 5, [0.05, 0.8, 0.05, 0.05, 0.05]


def test_a_confident_mistake_is_no_reason_to_leave_a_label_out(toy):
    """USB tests the largest probability, which leaves out the row that needs its label most. Here it stays; divided is by what stays."""
    known = logits(SURE, MISTAKEN, [0.3, 0.1, 0.2, 0.2, 0.2])
    for form, wanted, denominator in (("official", [0, 1, 1], 2), ("usb", [0, 0, 1], 3)):
        terms, (z, _, _) = objective(toy, known, [0, 0, 0], step=20, tsa="linear", tsa_form=form)  # eta = 0.2 * 0.8 + 0.2 = 0.36
        kept = -np.log([0.9, 0.05, 0.3]) * wanted
        assert terms.metrics["loss_labelled"].item() == pytest.approx(kept.sum() / denominator, rel=1e-12)
        assert terms.metrics["labels_released"].item() == pytest.approx(np.mean(wanted))
        gradient = (known.exp() - torch.eye(5)[[0, 0, 0]]) * torch.tensor(wanted)[:, None] / denominator
        torch.testing.assert_close(z.grad, gradient, rtol=1e-12, atol=1e-15)  # and none through the mask


def test_all_labels_left_out_is_a_loss_of_zero(toy):
    terms, (z, _, _) = objective(toy, logits(SURE, SURE), [0, 0], tsa="exp")
    assert terms.metrics["loss_labelled"].item() == 0 and not z.grad.any() and terms.metrics["labels_released"].item() == 0


def test_the_first_step_lets_a_label_in_that_is_at_chance(toy):
    terms, _ = objective(toy, logits(FLAT, SURE), [0, 0], tsa="linear")
    assert terms.metrics["loss_labelled"].item() == pytest.approx(np.log(5)), "p(y) = 1 / C = eta_0, and the comparison is <="


def test_the_temperature_is_applied_to_the_target_and_not_to_the_confidence(toy):
    """USB asks for T and never applies it; kekmodel's code judges the sharpened confidence."""
    weak = logits([0.6, 0.3, 0.05, 0.03, 0.02], [0.85, 0.1, 0.02, 0.02, 0.01])
    strong = logits([0.1, 0.3, 0.2, 0.2, 0.2], [0.4, 0.3, 0.1, 0.1, 0.1])
    sharp = oracle.normalised(weak.exp().numpy() ** 2.5)
    assert sharp[0].max() > 0.8 > weak.exp()[0].max(), "sharpened, the first row would pass"
    terms, (_, w, s) = objective(toy, logits(FLAT), [0], weak, strong)
    assert terms.metrics["kept"].item() == 0.5
    expected = -(sharp[1] * strong[1].numpy()).sum() / 2
    assert terms.metrics["loss_unlabelled"].item() == pytest.approx(expected, rel=1e-12)
    gradient = torch.zeros(2, 5, dtype=torch.float64)
    gradient[1] = (strong[1].exp() - torch.from_numpy(sharp[1])) / 2
    torch.testing.assert_close(s.grad, gradient, rtol=1e-12, atol=1e-15)
    assert w.grad is None or not w.grad.any(), "none reaches the teacher's logits"
    q = torch.from_numpy(sharp[1])
    kl = (q * (q.log() - s.detach().log_softmax(1)[1])).sum() / 2
    entropy = -(q * q.log()).sum() / 2
    assert terms.metrics["loss_unlabelled"].item() == pytest.approx(float(kl + entropy)), "the paper's KL, and a constant"


def test_threshold_and_temperature_can_be_switched_off(toy):
    weak, strong = logits(FLAT, SURE), logits([0.4, 0.3, 0.1, 0.1, 0.1], FLAT)
    terms, _ = objective(toy, logits(FLAT), [0], weak, strong, threshold=0.0, temperature=1.0)
    assert terms.metrics["kept"].item() == 1
    assert terms.metrics["loss_unlabelled"].item() == pytest.approx(-(weak.exp() * strong).sum().item() / 2)


def test_entropy_minimisation_reaches_the_weak_view(toy):
    """The code's ent_min_coeff, by the option that all methods have."""
    m = toy.method("uda", entropy_min=0.1, threshold=1.0)
    assert m.asked.no_grad == 0
    batch = toy.batch(m.asked)
    weak = batch.unlabelled[0].clone().requires_grad_()
    m.loss(batch._replace(unlabelled=(weak, batch.unlabelled[1])), toy.clock()).total.backward()
    assert weak.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("temperature", 0, "must be above 0"),
        ("threshold", 1.1, "at most 1"),
        ("tsa", "cosine", "unknown value of method.tsa 'cosine'"),
        ("tsa_form", "torchssl", "official, usb"),
        ("in_domain", -1, "at least 0"),
        ("base_share", 1, "at most 0.99"),
        ("base", "new", "apart, same"),
    ],
)
def test_options_that_make_no_sense_are_refused(key, value, said):
    with pytest.raises(ConfigError, match=said):
        resolve("uda", find("uda").Config, [("--set", {f"method.{key}": value})])
