"""MixMatch against a float64 calculation over ten steps, with and without batch-norm, in both forms of its passes."""

import numpy as np
import pytest
import torch

from fastssl.methods.bricks.guesses import Stack, sharpened, stacked, swapped
from fastssl.pipelines.errors import ConfigError
from tests.fastssl.methods import oracle
from tests.fastssl.methods.oracle_mixed import Mixed, sharpen


class Oracle(Mixed):
    own = {
        "guesses": 2,
        "temperature": 0.5,
        "mixup": 0.75,
        "share_by": "sample",
        "lambda_u": 75.0,
        "ramp_share": 0.4,
        "forward": "together",
    }

    def loss(self, batch):
        q = sharpen(np.mean([self.probability(view) for view in batch.unlabelled], axis=0), self.o.temperature)
        x, t = self.stack(batch, q)
        b = len(batch.label)
        z = self.logits(x, count=True) if self.o.forward == "together" else self.interleaved(x, b, 0)
        supervised = (batch.weight * self.cross_entropy(z[:b], t[:b])).mean()
        squares = (torch.softmax(z[b:], 1) - torch.from_numpy(t[b:])) ** 2
        return supervised + self.o.lambda_u * self.ramp() * squares.mean()


FORMS = [
    {},
    {"guesses": 1},
    {"guesses": 4, "share_by": "batch", "ramp_share": 1 / 64},
    {"temperature": 1.0, "lambda_u": 2.0},
    {"mixup": 0.0},
]


@pytest.mark.parametrize("options", FORMS, ids=str)
def test_ten_steps_equal_the_float64_calculation(toy, options):
    m = toy.method("mixmatch", head="linear", **options)
    oracle.follow(m, toy, Oracle(m, toy, **options), total=14, mixed=False)


@pytest.mark.parametrize("options", [{}, {"forward": "interleaved"}, {"forward": "interleaved", "guesses": 1, "mixup": 0.0}], ids=str)
def test_ten_steps_with_batchnorm(toy, options):
    m = toy.method("mixmatch", head="linear", encoder=toy.Normed, **options)
    oracle.follow(m, toy, Oracle(m, toy, **options), total=14, mixed=False)


def test_without_batchnorm_the_forms_of_the_passes_agree(toy):
    totals = []
    for form in ("together", "interleaved"):
        m = toy.method("mixmatch", forward=form)
        totals.append(m.loss(toy.batch(m.asked), toy.clock(30)).total)
    assert torch.allclose(*totals, rtol=1e-12)


def test_sub_batches_of_the_official_code():
    """Anchor: 7 rows in 3 batches are cut 2, 2, 3; part k of batch 0 changes places with part k of batch k."""
    rows = [torch.arange(7) + 10 * k for k in range(3)]
    first, second, third = swapped(rows)
    assert first.tolist() == [0, 1, 12, 13, 24, 25, 26]
    assert second.tolist() == [10, 11, 2, 3, 14, 15, 16] and third.tolist() == [20, 21, 22, 23, 4, 5, 6]
    assert all(torch.equal(a, b) for a, b in zip(swapped([first, second, third]), rows, strict=True))


def test_sharpening_of_the_specification():
    """Anchors: (0.6, 0.3, 0.1) at T = 1/2 is its squares over their sum, 0.46; T = 1 is off; a certain row stays certain."""
    p = torch.tensor([[0.6, 0.3, 0.1], [1.0, 0.0, 0.0]], dtype=torch.float64)
    np.testing.assert_allclose(sharpened(p, 0.5), [[0.36 / 0.46, 0.09 / 0.46, 0.01 / 0.46], [1, 0, 0]], atol=1e-12)
    assert sharpened(p, 1.0) is p
    tiny = sharpened(torch.tensor([[0.11, 0.1, 0.79]]), 0.001)
    assert tiny.tolist() == [[0, 0, 1]], "a power of 1,000 underflows; this does not"


def test_a_row_stays_mostly_itself(toy):
    """max(l, 1 - l): without it labelled and unlabelled rows would change sides. Shares differ by row, or are one for all."""
    b = toy.batch(toy.method("mixmatch").asked)
    guess = torch.full((6, 5), 0.2, dtype=torch.float64)
    for each in ("sample", "batch"):
        shares = []
        for step in range(40):
            target = stacked(b, guess, toy.clock(step), alpha=0.75, each=each).target
            known = target[:4][torch.arange(4), b.label]
            assert (known >= 0.5).all()
            shares.append(known)
        spread = torch.stack(shares)
        assert spread.max() > 0.9 and spread.min() < 0.8
        # Of one share for all a label keeps s, s + (1 - s) / 5 with an unlabelled partner, or 1 with one of its own class.
        most = max(len(row[row < 1 - 1e-9].round(decimals=9).unique()) for row in spread)
        assert most == (2 if each == "batch" else 4)


def test_no_gradient_goes_through_targets_and_all_of_the_encoder_trains_by_mixed_rows(toy):
    """USB mixes without gradient, which cuts an encoder off where features are mixed: here L_u alone reaches every weight."""
    m = toy.method("mixmatch")
    b = toy.batch(m.asked)
    guess = m.guessed(b)
    assert not guess.requires_grad
    stack = stacked(b, guess, toy.clock(30), alpha=0.75, each="sample")
    assert not stack.target.requires_grad
    alone = b._replace(weight=torch.zeros(4))
    m.loss(alone, toy.clock(30)).total.backward()
    reached = {name: p.grad.abs().sum() > 0 for name, p in m.network.named_parameters()}
    assert all(reached.values()), reached


def test_a_label_of_weight_zero_teaches_nothing(toy):
    """Neither its own row nor, as somebody's partner, its image and label enter."""
    m = toy.method("mixmatch")
    b = toy.batch(m.asked)._replace(weight=torch.tensor([1.0, 0.0, 1.0, 1.0]))
    other = b._replace(
        label=torch.where(torch.arange(4) == 1, (b.label + 1) % 5, b.label),
        labelled=(torch.where((torch.arange(4) == 1).view(4, 1, 1, 1), torch.randn_like(b.labelled[0]), b.labelled[0]),),
    )
    for step in range(30, 40):
        assert torch.allclose(m.loss(b, toy.clock(step)).total, m.loss(other, toy.clock(step)).total, rtol=1e-12)
        full = b._replace(weight=torch.ones(4))
        assert not torch.allclose(m.loss(full, toy.clock(step)).total, m.loss(other._replace(weight=torch.ones(4)), toy.clock(step)).total)


def test_labelled_loss_of_a_stack():
    logits = torch.tensor([[0.0, 0.0], [3.0, 1.0]], dtype=torch.float64)
    stack = Stack(torch.zeros(2), torch.tensor([[0.25, 0.75], [1.0, 0.0]], dtype=torch.float64), torch.tensor([2.0]))
    assert float(stack.labelled_loss(logits)) == pytest.approx(2 * np.log(2))


def test_ramps(toy):
    """TorchSSL's 0.4 of the run by default; the official code's 1/64."""
    b = None
    for options, step, value in (({}, 20, 0.5), ({}, 40, 1.0), ({"ramp_share": 1 / 64}, 1, 0.64), ({"ramp_share": 0.0}, 0, 1.0)):
        m = toy.method("mixmatch", **options)
        b = toy.batch(m.asked) if b is None else b
        terms = m.loss(b, toy.clock(step))
        weight = (terms.total - terms.metrics["loss_labelled"]) / terms.metrics["loss_unlabelled"]
        assert float(weight.detach()) == pytest.approx(75 * value, rel=1e-6)


def test_what_compares_a_prediction_with_itself_is_refused(toy):
    with pytest.raises(ConfigError, match="mixmatch with mixup=0, guesses=1 and temperature=1 compares each prediction with itself"):
        toy.method("mixmatch", mixup=0.0, guesses=1, temperature=1.0)
