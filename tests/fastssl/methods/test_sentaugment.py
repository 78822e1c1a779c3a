"""SentAugment: what is retrieved, kept and taught, against a plain calculation in float64; the ways in which nothing comes of it."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fastssl.methods import find
from fastssl.methods.sentaugment import apportioned, kept, originals, surest
from fastssl.models import Output
from fastssl.pipelines.batch import Split
from fastssl.pipelines.errors import ConfigError
from tests.fastssl.methods.oracle import Step, cross_entropy, encoder, follow, head, onehot, softmax

ROWS, CLASSES, EXTRA = 40, 5, 22  # rows 18 to 39 of the toy data are from elsewhere
LABELLED = np.array([0, 1, 2, 3, 4, 5, 6, 7])
LABEL = np.array([0, 0, 1, 1, 2, 3, 3, 2])  # class 4 has none
WEIGHTS = np.array([1, 1, 1, 1, 1, 1, 0, 0.5], np.float32)  # row 6 does not count
SPLIT = Split(LABELLED, LABEL, WEIGHTS, np.setdiff1d(np.arange(40), [8, 9, 33]), np.array([8, 9]), "drawn")
CONTENT = np.arange(40).astype(np.uint64)
CONTENT[[20, 21, 23]] = CONTENT[[8, 3, 22]]  # copies of a test row, of a labelled one, of an earlier one of the bank
CONTENT[[12, 13]] = CONTENT[[9, 11]]
IMAGES = torch.randn(ROWS, 3, 3, 3, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
IMAGES[24] = 1.3 * IMAGES[2] + 0.01  # nearly a labelled one


def looking(m, split=SPLIT, lost=(), spoil=()):
    """A Look that forwards the toy images, some of which are lost or come out as NaN."""

    def look(rows, reduce):
        assert not np.isin(rows, split.test).any() and len(rows)
        rows = np.setdiff1d(rows, lost, assume_unique=True)
        given = np.full(ROWS, -1)
        given[split.labelled] = split.label
        index = torch.from_numpy(rows)
        with torch.no_grad():
            out = m.judged().eval()(IMAGES[index])
        out = Output(*(torch.where(torch.isin(index, torch.tensor(spoil))[:, None], torch.nan, t) for t in out)) if spoil else out
        found = reduce(out, torch.from_numpy(given)[index], index)
        return index, *(found if isinstance(found, tuple) else (found,))

    look.split, look.pipeline = split, SimpleNamespace(source=SimpleNamespace(content=CONTENT))
    return look


def made(toy, ema=0.0, extra=EXTRA, **options):
    kind = find("sentaugment")
    spec = dataclasses.replace(toy.spec(), extra=extra, labelled_counts=(2, 2, 2, 2, 0))
    config = kind.Config(**{"retrieved": 4, "keep": 0.75, "teacher_share": 0.5, **options})
    return kind(config, toy.network(), spec, unlabelled_batch=6, ema=ema).double().train()


class Oracle(Step):
    """Retrieval, scoring and loss once more."""

    def __init__(self, m, **options):
        usual = {"bank": "extra", "query": "class", "retrieved": 4, "near": 1.0, "keep": 0.75, "least_confidence": 0.0, "targets": "soft"}
        super().__init__(m, **{**usual, **options})
        self.begun = {key: value.detach().clone() for key, value in m.network.named_parameters()}
        self.place, self.q, self.most = np.full(ROWS, -1), None, len(m.taught.q)
        self.retrieved = self.retrieve()
        self.place[self.retrieved] = 0
        self.q = np.zeros((self.most, CLASSES))

    def forwarded(self, rows):
        with torch.no_grad():
            values = {f"network.{key}": p for key, p in self.m.network.named_parameters()}
            features = encoder(values, IMAGES[rows])
            return head(values, features).numpy(), features.numpy()

    def retrieve(self):
        known = [(r, y) for r, y, w in zip(LABELLED, LABEL, WEIGHTS, strict=True) if w > 0]
        bank, seen = [], {int(CONTENT[r]) for r in [*LABELLED, *SPLIT.test]}
        for r in SPLIT.unlabelled:
            if (r >= ROWS - EXTRA) == (self.o.bank == "extra") and r not in LABELLED and int(CONTENT[r]) not in seen:
                seen.add(int(CONTENT[r]))
                bank.append(r)
        unit = lambda rows: (f := self.forwarded(np.array(rows))[1]) / np.sqrt((f**2).sum(1, keepdims=True))  # noqa: E731
        x, e = unit([r for r, _ in known]), unit(bank)
        if self.o.query == "class":
            queries = [np.mean([v for v, (_, y) in zip(x, known, strict=True) if y == c], axis=0) for c in range(4)]
        else:
            queries = [x.mean(0)] if self.o.query == "all" else list(x)
        chosen = set()
        for query in queries:
            chosen |= {bank[i] for i in np.argsort(-(e @ query) / np.linalg.norm(query), kind="stable")[: self.o.retrieved]}
        if self.o.near < 1:
            chosen = {r for r in chosen if (e[bank.index(r)] @ x.T).max() <= self.o.near}
        return sorted(chosen)

    def score(self):
        """By the teacher as it now stands."""
        p = softmax(self.forwarded(np.array(self.retrieved))[0])
        total = max(1, round(self.o.keep * len(self.retrieved))) if self.o.keep <= 1 else min(int(self.o.keep), len(self.retrieved))
        counts = np.array([2, 2, 2, 1, 0])  # of the labels that count
        exact = counts * total / counts.sum()
        quota = np.floor(exact + 1e-9).astype(int)
        for c in sorted(range(CLASSES), key=lambda c: (quota[c] - exact[c], c))[: total - quota.sum()]:
            quota[c] += 1
        kept = []
        for c in range(CLASSES):
            mine = [i for i in range(len(p)) if p[i].argmax() == c and p[i].max() >= self.o.least_confidence]
            kept += sorted(mine, key=lambda i: (-p[i].max(), i))[: quota[c]]
        kept.sort()
        self.place[:] = -1
        for k, i in enumerate(kept):
            self.place[self.retrieved[i]] = k
            self.q[k] = onehot(p[i].argmax()) if self.o.targets == "hard" else p[i]
        return [self.retrieved[i] for i in kept]

    def loss(self, batch):
        known, others = self.outputs(batch)
        supervised = (batch.weight * cross_entropy(known[0][0], batch.label)).mean()
        self.weight = np.zeros(len(batch.unlabelled_index))
        if not others:
            return supervised
        place = self.place[batch.unlabelled_index.numpy()]
        self.weight = (place >= 0) * 1.0
        q = torch.from_numpy(self.q[np.maximum(place, 0)])
        logp = others[0][0] - torch.logsumexp(others[0][0], 1, keepdim=True)
        rows = (torch.where(q > 0, q * q.clamp(min=1e-300).log(), 0.0) - q * logp).sum(1)
        return supervised + self.o.lambda_u * (torch.from_numpy(self.weight) * rows).mean()

    def state(self):
        start = {f"start.value_{i}": value for i, value in enumerate(self.begun.values())}
        return {"taught.place": self.place, "taught.q": self.q, **start}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"query": "all", "retrieved": 9, "targets": "hard", "lambda_u": 2.5},
        {"query": "each", "retrieved": 3, "near": 0.95, "keep": 6.0},
        {"bank": "own", "least_confidence": 0.22, "view": "strong"},
    ],
    ids=["class", "all, hard", "each, near copies out, a number kept", "own, sure ones"],
)
def test_ten_steps_of_each_stage_against_the_equation(toy, options):
    m = made(toy, **options)
    begun = {key: value.clone() for key, value in m.network.state_dict().items()}
    oracle = Oracle(m, **options)
    m.prepare(0, looking(m))
    assert m.split_of(SPLIT).unlabelled.tolist() == oracle.retrieved
    m.enter(m.stage(0, 20))
    assert not m.asked.unlabelled
    follow(m, toy, oracle, sharpen=1.0, rate=0.5, mixed=False)
    assert not torch.equal(m.network.head.weight, begun["head.weight"])
    chosen = oracle.score()
    m.prepare(1, looking(m))
    assert 1 < len(chosen) < len(oracle.retrieved) and m.split_of(SPLIT).unlabelled.tolist() == chosen
    assert all(torch.equal(value, begun[key]) for key, value in m.network.state_dict().items()), "the student starts afresh"
    m.enter(m.stage(1, 20))
    oracle.weights.clear()
    follow(m, toy, oracle, sharpen=1.0, rate=0.1)


def test_copies_of_test_labelled_and_earlier_samples_are_never_retrieved(toy):
    m = made(toy, retrieved=100)
    said = m.prepare(0, looking(m))
    wanted = np.setdiff1d(np.arange(18, 40), [20, 21, 23, 33])
    assert m.split_of(SPLIT).unlabelled.tolist() == wanted.tolist(), "K above the bank: all that there is"
    assert said.notes == ["sentaugment: 18 of 21 images of the bank retrieved, 3 copies left out"] and not said.warnings
    m = made(toy, bank="own", retrieved=100)
    m.prepare(0, looking(m))
    assert m.split_of(SPLIT).unlabelled.tolist() == [10, 11, 14, 15, 16, 17], "12 is a test row's copy, 13 one of 11; labels are none"
    m = made(toy, retrieved=100, near=0.9999)
    said = m.prepare(0, looking(m))
    gone = set(wanted) - set(m.split_of(SPLIT).unlabelled)
    with torch.no_grad():
        e = torch.nn.functional.normalize(m.network(IMAGES).features)
    assert gone == {r for r in wanted if (e[r] @ e[LABELLED[WEIGHTS > 0]].T).max() > 0.9999}
    rows = np.array([24, 5, 9])
    assert originals(rows, dataclasses.replace(SPLIT, labelled=LABELLED[:2]), np.zeros(40)).tolist() == []


def test_what_is_retrieved_is_judged_by_the_start_and_the_averaged_network_starts_afresh_too(toy):
    m, other = made(toy, ema=0.9), made(toy, ema=0.9)
    m.prepare(0, looking(m))
    with torch.no_grad():
        for p in [*other.network.parameters(), *other.ema.parameters()]:
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1), dtype=p.dtype))
    start = {key: value.clone() for key, value in m.ema.state_dict().items()}
    other.taught.load_state_dict(m.taught.state_dict())  # as a checkpoint brings it
    places = [p.data_ptr() for p in other.parameters()]
    other.prepare(1, looking(other))
    assert set(other.split_of(SPLIT).unlabelled) <= set(m.split_of(SPLIT).unlabelled)
    for network in (other.network, other.ema):
        assert all(torch.equal(value, start[key]) for key, value in network.state_dict().items())
    assert [p.data_ptr() for p in other.parameters()] == places, "in place: what was captured goes on to serve"
    assert not other.taught.q.requires_grad and (other.taught.q.sum(1) > 0).sum() == len(other.split_of(SPLIT).unlabelled)
    before = {key: value.clone() for key, value in other.state_dict().items()}
    other.prepare(2, None)  # of lp_ft's second stage: it would fail if it looked
    assert all(torch.equal(value, before[key]) for key, value in other.state_dict().items())


NONE = dataclasses.replace(SPLIT, unlabelled=np.arange(18))


@pytest.mark.parametrize("case", ["no row", "nan everywhere", "lost", "unsure", "nan teacher"])
def test_nothing_retrieved_or_kept_is_one_warning_and_the_labels_alone(toy, case):
    m = made(toy, least_confidence=1.0 if case == "unsure" else 0.0)
    split = NONE if case == "no row" else SPLIT
    everyone = tuple(range(ROWS))
    lost = tuple(range(18, 40)) if case == "lost" else ()
    said = m.prepare(0, looking(m, split, lost, everyone if case == "nan everywhere" else ()))
    early = case in ("no row", "nan everywhere", "lost")
    assert len(said.warnings) == early
    said = m.prepare(1, looking(m, split, (), everyone if case == "nan teacher" else ()))
    assert len(said.warnings) == (not early)
    assert m.split_of(split) is split, "something must be drawn, and teaches nothing"
    m.enter(m.stage(1, 20))
    batch = toy.batch(m.asked)
    terms = m.loss(batch, toy.clock(3))
    terms.total.backward()
    alone = torch.nn.functional.cross_entropy(m.network(batch.labelled[0]).logits, batch.label)
    torch.testing.assert_close(terms.total, alone)
    assert terms.metrics["loss_unlabelled"] == 0 and terms.metrics["kept"] == 0
    assert all(p.grad.isfinite().all() for p in m.network.parameters())


def test_some_lost_files_and_some_nan_are_passed_over(toy):
    m = made(toy, retrieved=100, keep=1.0)
    m.prepare(0, looking(m, lost=(18, 1), spoil=(19, 2)))
    first = m.split_of(SPLIT).unlabelled.tolist()
    assert 18 not in first and 19 not in first and len(first) == 16
    said = m.prepare(1, looking(m, lost=(22,), spoil=(25,)))
    last = m.split_of(SPLIT).unlabelled.tolist()
    assert set(last) < set(first) - {22, 25} and m.taught.q.isfinite().all()
    assert "classes have fewer than their share: " in said.notes[1]


def test_shares_places_and_numbers():
    assert apportioned(np.array([3, 2, 1, 1, 1]), 10).tolist() == [4, 3, 1, 1, 1]
    assert apportioned(np.array([1, 1, 1]), 2).tolist() == [1, 1, 0] and apportioned(np.array([5, 0]), 3).tolist() == [3, 0]
    assert [kept(10, x) for x in (0.5, 1, 0.01, 4, 40)] == [5, 10, 1, 4, 10]
    label, sure = np.array([0, 1, 0, 0, 1]), np.array([0.3, np.nan, 0.7, 0.7, 0.2])
    assert surest(label, sure, np.array([1, 3])).tolist() == [2, 4], "the earlier of equals; all where there are fewer; NaN never"
    assert surest(label, sure, np.array([0, 0])).tolist() == []


@pytest.mark.parametrize(("share", "steps", "lengths"), [(0.25, 20, [5, 15]), (0.01, 20, [1, 19]), (0.99, 2, [1, 1])])
def test_lengths_of_the_stages(toy, share, steps, lengths):
    m = made(toy, teacher_share=share)
    stages = [m.stage(k, steps) for k in range(3)]
    assert stages[2] is None and [stage.steps for stage in stages[:2]] == lengths and stages[0].name == "teacher"


def test_a_probe_of_lp_ft_is_the_students(toy, monkeypatch):
    m = made(toy)
    monkeypatch.setattr("fastssl.methods.base.probe_share", lambda encoder: 0.4)
    assert [m.stage(k, 20).name for k in range(3)] == ["teacher", "linear_probe", "train"] and m.stage(3, 20) is None


def test_what_cannot_be_is_one_sentence(toy, monkeypatch):
    with pytest.raises(ConfigError, match="give --extra-unlabelled, or --set method.bank=own"):
        made(toy, extra=0)
    with pytest.raises(ConfigError, match="--steps 2"):
        made(toy).stage(0, 1)
    monkeypatch.setattr("fastssl.methods.sentaugment.installed", lambda: False)
    with pytest.raises(ConfigError, match=r"pip install 'fastssl\[faiss\]'"):
        made(toy, search="faiss")
