"""Dash against a float64 calculation over ten steps and more, its schedule, and what rho_hat is measured on."""

import numpy as np
import pytest
import torch

from fastssl.cli import main
from fastssl.methods import find
from tests.fastssl.engine.test_run import flat, state_of
from tests.fastssl.methods import oracle


class Oracle(oracle.Step):
    """Official code: everything counts in the warm-up, then what has -log conf <= rho; soft targets as long as rho > rho_min.

    `warm`, `measured` and `between` are steps, by hand.
    """

    own = {"gamma": 1.27, "excess": 1.0001, "rho_min": 0.05, "temperature": 0.5, "first_drops": 1, "selection": "weak", "reduction": "kept"}

    def __init__(self, m, warm, measured, between, **options):
        super().__init__(m, **options)
        self.warm, self.measured, self.between = warm, measured, between
        self.losses, self.rhos, self.now = [], [], -1

    def loss(self, batch):
        o, self.now = self.o, self.step
        (known,), (weak, strong) = self.outputs(batch)
        prior = np.log((oracle.COUNTS / oracle.COUNTS.sum()) ** o.logit_adjustment + 1e-12) if o.logit_adjustment else None
        supervised = (batch.weight * oracle.cross_entropy(known[0], batch.label, prior)).mean()
        self.p_known = oracle.softmax(known[0].detach().numpy())
        q = self.aligned(oracle.softmax(weak[0].detach().numpy()))
        soft, hard = oracle.normalised(q ** (1 / o.temperature)), oracle.onehot(q.argmax(axis=1))
        log_s = torch.log_softmax(strong[0], 1)
        if self.warm - self.measured <= self.step < self.warm:
            self.losses.append(float(-(torch.from_numpy(soft) * log_s.detach()).sum(1).mean()))
        if self.step < self.warm:
            rho = np.inf
        else:
            drops = o.first_drops + (self.step - self.warm) // self.between
            rho = max(o.rho_min, o.excess * o.gamma**-drops * np.mean(self.losses))
        self.rhos.append(rho)
        rows = -(torch.from_numpy(soft if rho > o.rho_min else hard) * log_s).sum(1)
        judged = -np.log(q.max(axis=1)) if o.selection == "weak" else rows.detach().numpy()
        self.weight = (judged <= rho) * 1.0
        kept = (torch.from_numpy(self.weight) * rows).sum()
        unsupervised = 0.9 * kept / max(self.weight.sum(), 1) if o.reduction == "kept" else kept / len(rows)
        return supervised + o.lambda_u * unsupervised

    def state(self):
        return super().state() | {"loss_sum": np.sum(self.losses), "loss_count": len(self.losses), "at": self.now}


TIMES = {"warmup_share": 0.15, "measured_share": 0.5, "drop_share": 0.1}  # of 20 steps: 3, of them 2 (1.5 to the even), and 2
CASES = [
    {"gamma": 1.5},
    {"gamma": 1.5, "selection": "strong", "reduction": "batch", "first_drops": 0, "lambda_u": 2.0},
    {"gamma": 3.0, "rho_min": 0.3, "excess": 0.9, "temperature": 0.4, "align": "uniform", "align_memory": "queue"},
    {"gamma": 2.0, "reduction": "batch", "logit_adjustment": 1.0, "align": "predicted"},
    {"gamma": 4.0, "rho_min": 1.0, "selection": "strong"},
]


@pytest.mark.parametrize("options", CASES, ids=str)
def test_twenty_steps_equal_the_float64_calculation(toy, options):
    m = toy.method("dash", **TIMES, **options)
    assert m.lengths(20) == (3, 2, 2)
    expected = Oracle(m, 3, 2, 2, **options)
    oracle.follow(m, toy, expected, steps=20, total=20, sharpen=6.0)
    assert all(w.all() for w in expected.weights[:3]), "every row counts in the warm-up"
    hard = np.array(expected.rhos) <= expected.o.rho_min
    assert hard.any() == (options["gamma"] >= 2) and not hard[:4].any(), "soft targets, and hard ones from rho_min on"


def test_schedule_of_the_official_code(toy):
    """epoch < 10: all rows; then rho_hat gamma^-floor((epoch - 1) / 9), which is divided once at its first use. 64 steps an epoch here."""
    m, epochs = toy.method("dash", excess=1.0), 1024
    m.loss_sum.fill_(6.0)
    m.loss_count.fill_(3.0)
    clock = toy.clock(total=64 * epochs)
    assert m.lengths(clock.total) == (640, 64, 576)
    for epoch in (0, 9, 10, 18, 19, 27, 28, 100, 170, 1023):
        for step in (64 * epoch, 64 * epoch + 63):
            clock.step.fill_(step)
            wanted = np.inf if epoch < 10 else max(0.05, 2.0 * 1.27 ** -((epoch - 1) // 9))
            assert float(m.rho(clock)) == pytest.approx(wanted, rel=1e-9), epoch


def test_schedule_of_the_paper(toy):
    """rho_t = max(rho_min, C0 gamma^-(t - 1) rho_hat), t counting drops from 1."""
    m = toy.method("dash", first_drops=0, warmup_share=0.1, drop_share=0.1)
    m.loss_sum.fill_(1.5)
    m.loss_count.fill_(1.0)
    for t in range(1, 10):
        assert float(m.rho(toy.clock(10 * t, 100))) == pytest.approx(max(0.05, 1.0001 * 1.27 ** -(t - 1) * 1.5), rel=1e-9)


def test_selection_of_the_specification(toy, monkeypatch):
    """Anchor: conf .951 has loss .0502 and is dropped at rho .05; conf .9513, .0499, is kept. At rho itself a row is kept."""
    m = toy.method("dash")
    for rho, confidence, kept in ((0.05, 0.951, 0), (0.05, 0.9513, 1), (-np.log(0.5), 0.5, 1)):
        monkeypatch.setattr(m, "rho", lambda clock, rho=rho: torch.tensor(rho, dtype=torch.float64))
        rest = (1 - confidence) if confidence == 0.5 else (1 - confidence) / 4
        p = torch.tensor([[confidence, rest, *([0.0] * 3 if confidence == 0.5 else [rest] * 3)]], dtype=torch.float64)
        options, _ = m.standard(p.log(), p.log(), None, toy.clock(50))
        found = m.pseudo_labels(torch.zeros(1, 5, dtype=torch.float64), p.log(), options)
        assert found.weight.tolist() == [kept]


def test_dash_with_hard_targets_is_fixmatch_at_its_threshold(toy):
    """At rho_min, with the mean over all rows: threshold exp(-rho_min)."""
    m = toy.method("dash", reduction="batch", rho_min=0.01)
    m.loss_count.fill_(1.0)  # rho_hat 0
    other = toy.method("fixmatch", threshold=float(np.exp(-0.01)))
    for method in (m, other):
        with torch.no_grad():
            method.network.encoder.layers[-1].weight.mul_(3)
    b = toy.batch(m.views)
    mine, theirs = m.loss(b, toy.clock(50)), other.loss(b, toy.clock(50))
    assert 0 < mine.metrics["kept"] < 1 and torch.equal(mine.metrics["kept"], theirs.metrics["kept"])
    assert torch.allclose(mine.total, theirs.total, rtol=1e-12)
    assert float(mine.metrics["threshold"]) == pytest.approx(np.exp(-0.01))


def test_nothing_kept_is_no_loss_and_no_nan(toy):
    """rho falls to rho_min at once and no row is that sure: 0 of a mean over no rows."""
    m = toy.method("dash", rho_min=1e-6, gamma=1e6)
    terms = m.loss(toy.batch(m.views), toy.clock(99))
    terms.total.backward()
    assert terms.metrics["kept"] == 0 == terms.metrics["loss_unlabelled"]
    assert all(torch.isfinite(p.grad).all() for p in m.parameters() if p.grad is not None)


def test_rho_hat_is_of_the_weights_that_train(toy):
    """USB measures it by an average of the weights that its warm-up does not move: the loss of untrained weights."""
    m = toy.method("dash", warmup_share=0.5, measured_share=0.04, ema=0.999)
    start = {k: v.clone() for k, v in m.network.state_dict().items()}

    def update(loss):
        loss.backward()
        for p in m.parameters():
            if p.grad is not None:
                p.data -= 0.5 * p.grad

    for step in range(50):
        m.zero_grad()
        b = toy.batch(m.views, seed=step)
        before = {k: v.clone() for k, v in m.network.state_dict().items()}
        m.step(b, toy.clock(step), update)
        assert m.loss_count == max(0, step - 47), "the last two of fifty steps"

    def loss(weights):
        values = {f"network.{k}": v for k, v in weights.items()}
        weak, strong = (oracle.head(values, oracle.encoder(values, x)) for x in b.unlabelled)
        soft = oracle.normalised(oracle.softmax(weak.numpy()) ** 2)
        return float(-(torch.from_numpy(soft) * torch.log_softmax(strong, 1)).sum(1).mean())

    single = toy.method("dash", warmup_share=0.5, measured_share=0.02)
    single.network.load_state_dict(before)
    single.step(b, toy.clock(49), lambda total: None)
    assert float(single.loss_sum) == pytest.approx(loss(before), rel=1e-6)
    assert abs(float(single.loss_sum) - loss(start)) > 0.05


def test_a_new_stage_measures_anew_and_pieces_of_a_step_all_count(toy):
    """Under lp_ft the clock starts again; under train.accumulate several pieces have one step."""
    m, update = toy.method("dash", warmup_share=0.02, measured_share=0.5), lambda total: None
    for step in (0, 0, 1, 1, 2):
        m.step(toy.batch(m.views, seed=step), toy.clock(step), update)
    assert m.lengths(100) == (2, 1, 1) and m.loss_count == 2
    measured = m.loss_sum.clone()
    m.step(toy.batch(m.views), toy.clock(3), update)
    assert torch.equal(m.loss_sum, measured), "held still after the warm-up"
    m.step(toy.batch(m.views), toy.clock(0), update)
    assert m.loss_count == 0 == m.loss_sum
    assert torch.isinf(m.rho(toy.clock(1)))


def test_where_every_measured_step_was_skipped_the_loss_of_chance_stands_in(toy):
    m = toy.method("dash", first_drops=0, excess=1.0)
    assert float(m.rho(toy.clock(1, 100))) == pytest.approx(np.log(5))


def test_evaluation_on_test_images_does_not_move_rho_hat(tmp_path):
    """USB takes rho_hat from the test set. Here a run that judges test images at every step is bit for bit one that judges at its end."""
    flags = ["--model", "wrn-10-1", "--set", "data.size=8", "--labels-per-class", "2", "--batch-size", "4", "--ratio", "2", "--quiet"]
    flags += ["--steps", "6", "--set", "method.warmup_share=0.5", "--set", "method.measured_share=1"]
    found = []
    for every in (1, 6):
        folder = tmp_path / str(every)
        assert main(["train", "--method", "dash", *flags, "--set", f"train.eval_every={every}", "--out", str(folder)]) == 0
        found.append(flat(state_of(folder)))
    assert found[0]["/method/loss_count"] == 3 and found[0]["/method/loss_sum"] > 0
    for key, value in found[0].items():
        if key.startswith("/method/"):
            assert torch.equal(value, found[1][key]), key


def test_defaults_are_the_papers(toy):
    c = find("dash").Config()
    assert (c.gamma, c.excess, c.rho_min, c.temperature) == (1.27, 1.0001, 0.05, 0.5)
    assert toy.method("dash").lengths(1024 * 1024) == (10240, 1024, 9216)
    assert toy.method("dash").lengths(60) == (1, 1, 1), "a step at least"


def test_bad_options(capsys, tmp_path):
    for option, says in (("warmup_share=0", "warmup_share"), ("selection=both", "weak"), ("gamma=0.5", "gamma")):
        code = main(["train", "--method", "dash", "--set", f"method.{option}", "--quiet", "--out", str(tmp_path / "run")])
        assert code == 2 and says in capsys.readouterr().err
