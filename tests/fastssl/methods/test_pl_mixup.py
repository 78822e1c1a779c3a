"""Pseudo-labels with MixUp over everything (Arazo) against a float64 calculation; the bank of a pass; what can go wrong with it."""

import dataclasses

import numpy as np
import pytest
import torch

from fastssl.methods import find
from fastssl.methods.bricks.mixing import drawn
from fastssl.methods.pl_mixup import Predictions, uniformity
from fastssl.models import Output
from fastssl.pipelines.batch import Split
from fastssl.pipelines.errors import ConfigError
from tests.fastssl.methods import oracle
from tests.fastssl.methods.oracle_mixed import Mixed

ROWS, CLASSES = 40, 5
LABELLED, LABEL = np.array([0, 1, 2, 3, 12]), np.array([0, 1, 2, 3, 4])
WEIGHTS = np.array([1, 1, 0.5, 0, 1], np.float32)  # row 3 does not count
SPLIT = Split(LABELLED, LABEL, WEIGHTS, np.setdiff1d(np.arange(40), [8, 9]), np.array([8, 9]), "drawn")
POOL = np.setdiff1d(SPLIT.unlabelled, LABELLED)
IMAGES = torch.randn(ROWS, 3, 3, 3, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def looking(m, split=SPLIT, lost=(), spoil=()):
    """A Look that forwards the toy images, some of which are lost or come out as NaN."""

    def look(rows, reduce, view="plain", network=None):
        assert view == "plain" and network is None and not np.isin(rows, [*split.labelled, *split.test]).any()
        index = torch.from_numpy(np.setdiff1d(rows, lost, assume_unique=True)[::-1].copy())
        training = m.training
        with torch.no_grad():
            out = m.judged().eval()(IMAGES[index])
        m.train(training)
        out = Output(*(torch.where(torch.isin(index, torch.tensor(spoil, dtype=torch.int64))[:, None], torch.nan, t) for t in out))
        return index, reduce(out, None, index)

    look.split = split
    return look


def made(toy, ema=0.0, network=None, **options):
    kind = find("pl_mixup")
    spec = dataclasses.replace(toy.spec(), unlabelled=38, labelled_counts=(1, 1, 1, 1, 1))
    return kind(kind.Config(**options), network or toy.network(), spec, unlabelled_batch=6, ema=ema).double().train()


class Oracle(Mixed):
    own = {"mixup": 1.0, "lambda_prior": 0.8, "lambda_entropy": 0.4}

    def __init__(self, m, toy, **options):
        super().__init__(m, toy, **options)
        self.s, self.next, self.shares = np.zeros((ROWS, CLASSES)), np.zeros((ROWS, CLASSES)), []
        self.told = False

    def warned(self):
        """Whether this is the first time that a class is nobody's likeliest."""
        first = len(set(self.s[POOL].argmax(1))) < CLASSES and not self.told
        self.told |= first
        return first

    def begin(self):
        with torch.no_grad():
            self.s[POOL] = oracle.softmax(self.m.judged().eval()(IMAGES[POOL]).logits.numpy())
        self.m.train()
        self.s[LABELLED[WEIGHTS > 0]] = oracle.onehot(LABEL[WEIGHTS > 0])
        self.next = self.s.copy()

    def turn(self):
        """At the end of a pass, of rows without a label alone."""
        known = LABELLED[WEIGHTS > 0]
        self.next[known] = self.s[known]
        self.s = self.next.copy()

    def loss(self, batch):
        if not batch.unlabelled:
            return (batch.weight * oracle.cross_entropy(self.logits(batch.labelled[0], count=True), batch.label)).mean()
        plain, seen = batch.unlabelled
        prediction = self.probability(plain)
        x = torch.cat([batch.labelled[0], seen])
        t = np.concatenate([oracle.onehot(batch.label.numpy()), self.s[batch.unlabelled_index]])
        w = np.concatenate([batch.weight.numpy(), (self.s[batch.unlabelled_index].sum(1) > 0) * 1.0])
        n, lam, partner = len(x), 1.0, np.arange(len(x))
        if self.o.mixup:
            mix = drawn(self.toy.clock(self.step, self.total), n, self.o.mixup, device=x.device)
            lam, partner = float(mix.share), mix.partner.numpy()
            self.shares.append(lam)
            assert sorted(partner) == list(range(n)) and len(mix.share) == 1
        z = self.logits(torch.stack([lam * x[i] + (1 - lam) * x[j] for i, j in enumerate(partner)]), count=True)
        rows = self.cross_entropy(z, lam * w[:, None] * t + (1 - lam) * w[partner, None] * t[partner])  # linear in its targets
        total = rows.sum() / n
        p = torch.softmax(z, 1)
        mean = p.mean(0)
        total = total + self.o.lambda_prior * sum(0.2 * torch.log(0.2 / mean[c]) for c in range(CLASSES))
        total = total - self.o.lambda_entropy * (p * torch.log(p)).sum(1).mean()
        for i, row in enumerate(batch.unlabelled_index.tolist()):
            self.next[row] = prediction[i]  # the last row of a sample stays
        return total

    def state(self):
        return super().state() | {"bank.s": self.s, "bank.s_next": self.next, "bank.told": self.told}


@pytest.mark.parametrize("network", ["plain", "batch-norm"])
@pytest.mark.parametrize(
    "options",
    [{}, {"mixup": 0.3, "lambda_prior": 3.0, "view": "strong"}, {"mixup": 0.0, "lambda_prior": 0.0, "lambda_entropy": 0.0}],
    ids=str,
)
def test_ten_steps_of_each_stage_against_the_equations(toy, options, network):
    net = toy.network("linear", encoder=toy.Normed) if network == "batch-norm" else toy.network()
    m = made(toy, network=net, **options)
    both = Oracle(m, toy, **options)
    m.prepare(0, None)  # it would fail if it looked
    m.enter(m.stage(0, 40))
    assert not m.asked.unlabelled
    oracle.follow(m, toy, both, mixed=False, sharpen=1.0)
    both.begin()
    said = m.prepare(1, looking(m))
    assert said.values["labelled"] == len(POOL) and len(said.warnings) == both.warned()
    m.enter(m.stage(1, 40))
    oracle.follow(m, toy, both, sharpen=1.0, mixed=False)
    before = both.s[POOL].argmax(1)
    both.turn()
    said = m.prepare(2, looking(m))
    assert said.values["moved"] == (before != both.s[POOL].argmax(1)).sum() and len(said.warnings) == both.warned()
    m.enter(m.stage(2, 40))
    oracle.follow(m, toy, both, steps=3, sharpen=1.0, mixed=False)
    assert not options.get("mixup", 1) or min(both.shares) < 0.5 < max(both.shares), "a row need not be mostly itself"


def test_the_bank_teaches_what_it_held_at_the_passs_beginning(toy):
    """Within a pass it is written and not read; at its end labelled rows keep their labels, and rows that were not met what they had."""
    m = made(toy)
    m.prepare(1, looking(m))
    start = m.bank.s.clone()
    b = toy.batch(m.asked)
    b = b._replace(unlabelled_index=torch.tensor([10, 11, 12, 13, 10, 2]))  # two labelled ones, as a foreign split may have them
    m.step(b, toy.clock(3), lambda total: total.backward())
    assert torch.equal(m.bank.s, start)
    with torch.no_grad():
        wanted = m.network(b.unlabelled[0]).logits.softmax(1)
    torch.testing.assert_close(m.bank.s_next[[11, 13, 10]], wanted[[1, 3, 4]])
    m.prepare(2, looking(m))
    torch.testing.assert_close(m.bank.s[[11, 13, 10]], wanted[[1, 3, 4]])
    at = torch.from_numpy(LABELLED[WEIGHTS > 0])
    assert torch.equal(m.bank.s[at], start[at]) and m.bank.s[at].max(1).values.tolist() == [1.0] * 4
    others = np.setdiff1d(np.arange(ROWS), [10, 11, 13])
    assert torch.equal(m.bank.s[others], start[others]) and not m.bank.s[[8, 9, 3]].any(), "neither test rows nor a label of weight 0"


def test_the_labelling_pass_has_neither_dropout_nor_gradient_and_moves_no_statistics(toy):
    m = made(toy, network=toy.network("linear", encoder=lambda: toy.Normed(dropout=0.5)))
    m.bank.begin(torch.arange(ROWS), torch.full((ROWS, CLASSES), 0.2))
    b = toy.batch(m.asked)
    norm = m.network.encoder.layers[2]
    told = [m.loss(b, toy.clock(k)).memory["prediction"] for k in (1, 2)]
    assert torch.equal(*told) and not told[0].requires_grad and norm.num_batches_tracked == 2, "one pass a step moves them"
    h = m.network.encoder.layers[1](b.unlabelled[0].flatten(1))
    h = norm.weight * (h - h.mean(0)) / (h.var(0, unbiased=False) + norm.eps).sqrt() + norm.bias
    wanted = m.network.head(m.network.encoder.layers[-1](h.tanh())).softmax(1)
    torch.testing.assert_close(told[0], wanted.detach())
    assert m.network.encoder.layers[4].training


def test_uniformity_is_the_divergence_from_uniform_to_the_mean_prediction():
    assert uniformity(torch.zeros(7, 4)).abs() < 1e-6 and uniformity(torch.eye(4).repeat(2, 1) * 30).abs() < 1e-6
    p = torch.tensor([[0.7, 0.2, 0.1], [0.5, 0.1, 0.4]], dtype=torch.float64)
    mean = np.array([0.6, 0.15, 0.25])
    assert uniformity(p.log()).item() == pytest.approx((np.log(1 / 3 / mean) / 3).sum(), rel=1e-12)
    assert torch.isfinite(uniformity(torch.tensor([[500.0, 0, -500]]))), "a class of no probability at all"


def test_bank_by_rows():
    bank = Predictions(5, 2)
    yes, index = torch.tensor(True), torch.tensor([1, 3, 1])
    p = torch.tensor([[0.2, 0.8], [torch.nan, 0.5], [0.6, 0.4]])
    bank.write(index, p, yes)
    assert bank.s_next[1].tolist() == pytest.approx([0.6, 0.4]) and bank.s_next[3].tolist() == [0, 0], (
        "the last; never one that is no number"
    )
    kept = bank.s_next.clone()
    bank.write(index, 1 - p.nan_to_num(), torch.tensor(False))
    assert torch.equal(bank.s_next, kept) and not bank.s.any() and bank.guards_itself
    bank.turn(torch.tensor([1]))
    assert not bank.s.any() and not bank.s_next[1].any(), "a labelled row keeps what it has"


@pytest.mark.parametrize("case", ["some are no number", "nothing is a number", "a class vanishes", "lost"])
def test_what_can_go_wrong_is_one_warning_and_never_nan(toy, case):
    m = made(toy)
    everyone = tuple(range(ROWS))
    if case == "a class vanishes":
        with torch.no_grad():
            m.network.head.weight[1].copy_(m.network.head.weight[0])  # equal to another class, which comes first
    how = {"some are no number": {"spoil": (20, 21)}, "nothing is a number": {"spoil": everyone}, "lost": {"lost": (20,)}}.get(case, {})
    said = m.prepare(1, looking(m, **how))
    assert len(said.warnings) == 1 and m.bank.s.isfinite().all()
    count = {"some are no number": 2, "nothing is a number": len(POOL), "lost": 1}.get(case)
    assert (
        f"{count} of {len(POOL)} images have no pseudo-label" in said.warnings[0]
        if count
        else "no image is likeliest b" in said.warnings[0]
    )
    b = toy.batch(m.asked)._replace(unlabelled_index=torch.tensor([20, 21, 22, 23, 20, 24]))
    terms = m.step(b, toy.clock(3), lambda total: total.backward())
    assert torch.isfinite(terms.total) and all(p.grad.isfinite().all() for p in m.network.parameters())
    if case == "nothing is a number":
        assert terms.metrics["loss_unlabelled"] == 0 == terms.metrics["kept"]
    again = m.prepare(2, looking(m))
    assert not again.warnings, "said once"
    if case != "a class vanishes":
        assert m.bank.s[[20]].any(), "a sample that is met has one from then on"


def test_everything_is_labelled(toy):
    m = made(toy)
    split = dataclasses.replace(SPLIT, unlabelled=LABELLED)
    said = m.prepare(1, looking(m, split))
    assert (
        said.warnings == ["pl_mixup: every image has a label, so that there is none to label"]
        and m.split_of(split) is split
        and said.values["labelled"] == 0
    )
    assert m.split_of(SPLIT).unlabelled.tolist() == POOL.tolist()


@pytest.mark.parametrize(
    ("steps", "share", "every", "lengths"), [(40, 0.25, 0, [10, 7, 7, 7, 9]), (9, 0.5, 2, [4, 2, 2, 1]), (2, 0.5, 0, [1, 1])]
)
def test_lengths_of_the_stages(toy, steps, share, every, lengths):
    m = made(toy, warmup_share=share, every=every)
    stages = [m.stage(k, steps) for k in range(len(lengths) + 2)]
    assert [s.steps for s in stages[:-2]] == lengths and stages[-2:] == [None, None]
    assert [s.goes_on for s in stages[:-2]] == [False, False, *[True] * (len(lengths) - 2)]
    assert len({s.kind for s in stages[1:-2]}) == 1 and stages[1].schedule == steps - lengths[0]


def test_what_cannot_be_is_one_sentence(toy, monkeypatch):
    with pytest.raises(ConfigError, match="--steps 2"):
        made(toy).stage(0, 1)
    monkeypatch.setattr("fastssl.methods.bricks.rounds.probe_share", lambda encoder: 0.5)
    with pytest.raises(ConfigError, match="cannot be tuned by lp_ft"):
        made(toy)
