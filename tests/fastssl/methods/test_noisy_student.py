"""Noisy Student: targets, balancing and loss against a plain calculation in float64; teachers of their own; rounds that keep nothing."""

import dataclasses

import numpy as np
import pytest
import torch

from fastssl.methods import find
from fastssl.pipelines.errors import ConfigError
from tests.fastssl.methods import text_toy
from tests.fastssl.methods.oracle import Step, follow, softmax
from tests.fastssl.methods.rounds_toy import CLASSES, LABELLED, POOL, ROWS, SPLIT, looking, predictions


def made(toy, ema=0.0, **options):
    return toy.method("noisy_student", ema=ema, **{"rounds": 2, "threshold": 0.5, **options}).train()


def smooth(z, label, eps):
    """[N] cross-entropy towards (1 - eps) onehot + eps / C, as TensorFlow smooths labels."""
    q = (1 - eps) * np.eye(CLASSES)[np.asarray(label)] + eps / CLASSES
    return -(torch.from_numpy(q) * (z - torch.logsumexp(z, 1, keepdim=True))).sum(1)


class Oracle(Step):
    """Targets and loss once more."""

    def __init__(self, m, **options):
        super().__init__(m, **{"targets": "soft", "temperature": 1.0, "smoothing": 0.1, "rho": None, "balance": True, **options})
        self.begun = [p.detach().clone() for p in m.network.parameters()]
        self.place, self.label, self.copies = (np.full(ROWS, -1), np.full(ROWS, -1), np.zeros(ROWS, int))
        self.q, self.weight = np.zeros((m.spec.unlabelled, CLASSES)), np.zeros(1)

    def score(self):
        z = predictions(self.m.network)
        p = softmax(z)
        kept = []
        for c in range(CLASSES):
            mine = sorted((i for i in range(len(POOL)) if p[i].argmax() == c and p[i].max() >= 0.5), key=lambda i: -p[i].max())
            kept += mine[:6] if self.o.balance else mine  # 30 rows over 5 classes
        for k, i in enumerate(sorted(kept)):
            self.place[POOL[i]], self.label[POOL[i]], self.q[k] = k, p[i].argmax(), softmax(z[i : i + 1] / self.o.temperature)[0]

    def loss(self, batch):
        known, others = self.outputs(batch)
        supervised = (batch.weight * smooth(known[0][0], batch.label, self.o.smoothing)).mean()
        self.weight = np.zeros(1)
        if not others:
            return supervised
        place, label = self.place[batch.unlabelled_index.numpy()], self.label[batch.unlabelled_index.numpy()]
        self.weight = (place >= 0) * 1.0
        z = others[0][0]
        if self.o.targets == "hard":
            rows = smooth(z, np.maximum(label, 0), self.o.smoothing)
        else:
            rows = -(torch.from_numpy(self.q[np.maximum(place, 0)]) * (z - torch.logsumexp(z, 1, keepdim=True))).sum(1)
        rho = len(place) / len(batch.label) if self.o.rho is None else self.o.rho
        return supervised + rho * (torch.from_numpy(self.weight) * rows).mean()

    def state(self):
        found = {f"start.value_{i}": value for i, value in enumerate(self.begun)}
        found |= {"chosen.label": self.label, "chosen.copies": self.copies, "chosen.told": False}
        return found | ({"taught.place": self.place, "taught.q": self.q} if self.o.targets == "soft" else {})


@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 0.5, "lambda_u": 1.7, "balance": False}, {"targets": "hard", "smoothing": 0.2, "labelled_view": "weak"}],
    ids=["soft", "sharpened, unbalanced", "hard"],
)
def test_ten_steps_of_each_stage_against_the_equation(toy, options):
    m = made(toy, **options)
    same = {key: value for key, value in options.items() if key in ("temperature", "targets", "smoothing", "balance")}
    oracle = Oracle(m, rho=options.get("lambda_u"), **same)
    m.enter(m.stage(0, 30))
    assert not m.asked.unlabelled
    follow(m, toy, oracle, sharpen=1.0, rate=0.02, mixed=False)
    oracle.score()
    m.prepare(1, looking(m))
    assert 3 < (oracle.label >= 0).sum() < len(POOL)
    oracle.copies = m.chosen.copies.numpy()  # lots have a test of their own
    assert all(torch.equal(p, start) for p, start in zip(m.network.parameters(), oracle.begun, strict=True)), "a student starts afresh"
    m.enter(m.stage(1, 30))
    oracle.weights.clear()
    follow(m, toy, oracle, sharpen=1.0, rate=0.02)


def test_every_class_is_drawn_equally_often_and_the_surest_of_it(toy):
    m = made(toy, per_class=5, threshold=0.0)
    p = softmax(predictions(m.network))
    counts = np.bincount(p.argmax(1), minlength=CLASSES)
    said = m.prepare(1, looking(m))
    split = m.split_of(SPLIT)
    drawn = m.chosen.label.numpy()[split.unlabelled]
    assert np.bincount(drawn, minlength=CLASSES).tolist() == [5 * (n > 0) for n in counts] and 0 < (counts < 5).sum() < CLASSES
    copies = m.chosen.copies.numpy()[POOL]
    for c, n in enumerate(counts):
        mine = np.flatnonzero(p.argmax(1) == c)
        if n >= 5:
            assert set(mine[copies[mine] > 0]) == set(mine[np.argsort(-p[mine, c])[:5]])
        else:
            assert all(5 // n <= k <= -(-5 // n) for k in copies[mine])
    assert said.values == {
        "kept": (copies > 0).sum(),
        "drawn": len(drawn),
        "moved": (copies > 0).sum(),
        "changed": 0,
        "short": (counts < 5).sum(),
        "least_confidence": pytest.approx(p[copies > 0].max(1).min()),
    }
    assert split.labelled is SPLIT.labelled and len(split.unlabelled) <= ROWS and split.hash == ""
    assert f"{(counts < 5).sum()} classes have fewer and repeat" in said.notes[1]


def test_lots_are_keyed_by_seed_and_round(toy):
    found = []
    for seed, k in ((0, 1), (0, 1), (0, 2), (1, 1)):
        m = made(toy, per_class=8, threshold=0.0)
        m.prepare(k, looking(m, seed=seed))
        found.append(m.chosen.copies.clone())
        assert m.chosen.copies.sum() == found[0].sum()
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2]) and not torch.equal(found[0], found[3])


def test_unbalanced_keeps_each_once(toy):
    m = made(toy, balance=False)
    p = softmax(predictions(m.network))
    m.prepare(1, looking(m))
    assert m.split_of(SPLIT).unlabelled.tolist() == POOL[p.max(1) >= 0.5].tolist()


NO_POOL = dataclasses.replace(SPLIT, unlabelled=LABELLED)


@pytest.mark.parametrize("targets", ["soft", "hard"])
@pytest.mark.parametrize("case", ["unsure", "nan", "no pool"])
def test_a_round_that_keeps_nothing_is_one_warning_and_the_labels_alone(toy, case, targets):
    m = made(toy, threshold=1.0 if case == "unsure" else 0.3, targets=targets)
    split = NO_POOL if case == "no pool" else SPLIT
    m.chosen.write(POOL, np.zeros(len(POOL), np.int64))  # of the round before
    said = m.prepare(2, looking(m, split, spoil=tuple(range(ROWS)) if case == "nan" else ()))
    assert len(said.warnings) == 1 and "so that this student has the labels alone" in said.warnings[0] and said.values["kept"] == 0
    assert m.split_of(split) is split, "something must be drawn, and teaches nothing"
    m.enter(m.stage(2, 30))
    batch = toy.batch(m.asked)
    terms = m.loss(batch, toy.clock())
    terms.total.backward()
    torch.testing.assert_close(terms.total, smooth(m.network(batch.labelled[0]).logits, batch.label, 0.1).mean())
    assert terms.metrics["kept"] == 0 and all(p.grad.isfinite().all() for p in m.network.parameters())
    assert m.stage(3, 30) is None


def test_nan_and_lost_rows_are_never_kept(toy):
    m = made(toy, threshold=0.0, per_class=8)
    m.prepare(1, looking(m, lost=(12,), spoil=(15, 31)))
    assert not {12, 15, 31} & set(m.chosen.rows()) and len(m.chosen.rows()) > 15
    assert m.taught.q.isfinite().all() and not m.taught.q.requires_grad


def test_a_class_that_vanishes_is_one_warning(toy):
    m = toy.method("noisy_student", head="linear", threshold=0.0, rounds=3)
    with torch.no_grad():
        for bias in (m.network.head.bias, m.start.value_5):
            bias[[2, 4]] = -50
    said = m.prepare(1, looking(m))
    assert len(said.warnings) == 1 and "no image is taken for classes c, e; the labels alone teach them" in said.warnings[0]
    assert not m.prepare(2, looking(m)).warnings


SMALL = {"teacher_model": "toy"}


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_first_teacher_of_its_own(toy, ema):
    m = made(toy, ema=ema, **SMALL)
    first, second = m.stage(0, 30), m.stage(1, 30)
    assert (first.networks, second.networks) == (("first_teacher",), ("network",))
    m.enter(first)
    name = "first_average" if ema else "first_teacher"
    assert m.judges() == (name,) and m.judged() is m.get_submodule(name) and name not in ("network", "ema")
    m.loss(toy.batch(m.asked), toy.clock()).total.backward()
    assert m.first_teacher.head.weight.grad.abs().sum() > 0 and m.network.head.weight.grad is None
    pairs = {(id(one.average), id(one.source)) for one in m.averages()}
    assert not ema or (id(m.first_average), id(m.first_teacher)) in pairs and len(pairs) == 2
    m.train()
    assert not ema or not m.first_average.training
    look = looking(m)
    said = m.prepare(1, look)
    p = softmax(predictions(m.get_submodule(name)))
    assert look.asked == [m.get_submodule(name)] and said.values["least_confidence"] >= 0.5
    rows = m.chosen.rows()
    assert m.chosen.label[rows].tolist() == p.argmax(1)[np.isin(POOL, rows)].tolist()
    m.enter(second)
    assert m.judges() == (("ema",) if ema else ("network",)) and m.asked.unlabelled
    m.zero_grad()
    m.loss(toy.batch(m.asked), toy.clock()).total.backward()
    assert m.network.head.weight.grad.abs().sum() > 0 and m.first_teacher.head.weight.grad is None
    look = looking(m)
    m.prepare(2, look)
    assert look.asked == [None], "from then on the student before"


def test_a_student_smaller_than_its_teacher_is_refused_with_both_counts(toy):
    kind = find("noisy_student")
    assert kind.others(kind.Config()) == {} and kind.others(kind.Config(teacher_model="wrn-10-1")) == {"first_teacher": "wrn-10-1"}
    student, large = toy.network(), toy.network(seed=1)
    large.head = torch.nn.Linear(7, 200).double()
    mine, other = (sum(p.numel() for p in net.parameters()) for net in (student, large))
    made_by = lambda **more: kind(kind.Config(teacher_model="large", **more), student, toy.spec(), first_teacher=large, unlabelled_batch=6)  # noqa: E731
    with pytest.raises(ConfigError, match=f"student has {mine} parameters and its teacher large has {other:,};.*allow_smaller=true"):
        made_by()
    assert made_by(allow_smaller=True).first_teacher is large
    with pytest.raises(ValueError, match="pass it as first_teacher"):
        kind(kind.Config(teacher_model="large"), student, toy.spec(), unlabelled_batch=6)


def test_stages_and_what_cannot_be(toy, monkeypatch):
    m = made(toy, rounds=3, view="weak")
    stages = [m.stage(k, 42) for k in range(4)]
    assert [s.steps for s in stages] == [12, 10, 10, 10] and m.stage(4, 42) is None and stages[1].kind == stages[3].kind
    assert m.asked.labelled == ("strong",) and m.asked.unlabelled == ("weak",)
    with pytest.raises(ConfigError, match="--steps 4"):
        m.stage(0, 3)
    with pytest.raises(ConfigError, match="per_class=9 of 5 classes is more than the 40 images of toy; give at most 8"):
        made(toy, per_class=9)
    mixed = text_toy.method("noisy_student", mixup=0.5, **SMALL)
    with pytest.raises(ConfigError, match="method.mixup=0"):
        mixed.stage(0, 30)
    monkeypatch.setattr("fastssl.methods.bricks.rounds.probe_share", lambda encoder: 0.4)
    with pytest.raises(ConfigError, match="cannot be tuned by lp_ft"):
        made(toy)
