"""Self-training: each round's selection and loss against a plain calculation in float64; every way in which a round comes to nothing."""

import dataclasses

import numpy as np
import pytest
import torch

from fastssl.methods import find
from fastssl.pipelines.errors import ConfigError
from tests.fastssl.methods import text_toy
from tests.fastssl.methods.oracle import Step, cross_entropy, encoder, follow, softmax
from tests.fastssl.methods.rounds_toy import CLASSES, LABEL, LABELLED, POOL, ROWS, SPLIT, WEIGHTS, looking, predictions

FEW = {"threshold": 0.6}


def made(toy, ema=0.0, **options):
    return toy.method("self_training", ema=ema, **{"rounds": 2, **FEW, **options}).train()


class Oracle(Step):
    """Loss and memory once more."""

    def __init__(self, m, **options):
        usual = {"loss": "union", "alpha": 1.0, "mean_decay": 0.99, "joint": "none", "joint_weight": 0.5, "contrast_temperature": 0.5}
        super().__init__(m, **{**usual, **options})
        self.begun_at = {key: value.detach().clone() for key, value in m.named_parameters() if not key.startswith("ema")}
        self.label, self.means, self.begun = np.full(ROWS, -1), np.zeros(2), False
        self.weight = np.zeros(1)

    def loss(self, batch):
        known, others = self.outputs(batch)
        own = (batch.weight * cross_entropy(known[0][0], batch.label)).mean()
        self.weight, total = np.zeros(1), own
        if self.o.loss == "zoph" and self.m.pseudo:
            label = self.label[batch.unlabelled_index.numpy()]
            self.weight = (label >= 0) * 1.0
            rows = torch.from_numpy(self.weight) * cross_entropy(others[0][0], np.maximum(label, 0))
            pseudo = rows.sum() / max(1, self.weight.sum())
            now, d = np.array([own.item(), pseudo.item()]), self.o.mean_decay
            if self.weight.sum():
                self.means = d * self.means + (1 - d) * now if self.begun else now
                self.begun = True
            total = (own + self.o.alpha * self.means[0] / self.means[1] * pseudo) / (1 + self.o.alpha)
        return total + self.joint(batch)

    def joint(self, batch):
        if self.o.joint == "rotation":
            x, u = batch.unlabelled[-1], len(batch.unlabelled_index)
            sizes = [u // 4 + (k < u % 4) for k in range(4)]
            turns = np.repeat(np.arange(4), sizes)
            turned = torch.stack([torch.rot90(image, int(k), (1, 2)) for image, k in zip(x, turns, strict=True)])
            z = encoder(self.values, turned) @ self.values["joint.head.weight"].T + self.values["joint.head.bias"]
            return self.o.joint_weight * cross_entropy(z, turns).mean()
        if self.o.joint == "contrast":
            w = [self.values[f"joint.projection.layers.{k}.{kind}"] for k in (0, 2) for kind in ("weight", "bias")]
            f = encoder(self.values, torch.cat(batch.unlabelled[-2:]))
            f = torch.relu(f @ w[0].T + w[1]) @ w[2].T + w[3]
            h, n = f / (f**2).sum(1, keepdim=True).sqrt(), len(f) // 2
            rows = []
            for i in range(2 * n):
                near = [torch.exp(h[i] @ h[k] / self.o.contrast_temperature) for k in range(2 * n) if k != i]
                rows.append(torch.log(sum(near)) - h[i] @ h[(i + n) % (2 * n)] / self.o.contrast_temperature)
            return self.o.joint_weight * sum(rows) / len(rows)
        return 0.0

    def state(self):
        found = {"chosen.label": self.label, "chosen.copies": (self.label >= 0) * 1, "chosen.told": False, "ended": 0}
        found |= {"means": self.means, "begun": self.begun}
        for place, start in (("network.", "start"), ("joint.", "joint_start")):
            values = [value for key, value in self.begun_at.items() if key.startswith(place)]
            if getattr(self.m, start) is not None:
                found |= {f"{start}.value_{i}": value for i, value in enumerate(values)}
        return found


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"loss": "zoph"},
        {"loss": "zoph", "alpha": 0.3, "mean_decay": 0.8, "joint": "rotation", "joint_weight": 0.7},
        {"joint": "contrast", "contrast_width": 6, "contrast_temperature": 0.4, "start": "warm"},
    ],
    ids=["union", "zoph", "zoph, rotation", "union, contrast, warm"],
)
def test_ten_steps_of_each_stage_against_the_equation(toy, options):
    m = made(toy, **options)
    oracle = Oracle(m, **options)
    m.enter(m.stage(0, 30))
    follow(m, toy, oracle, sharpen=1.0, rate=0.02, mixed=False)
    m.prepare(1, looking(m))
    p = softmax(predictions(m.network)) if options.get("start") == "warm" else None
    if p is not None:
        oracle.label[POOL] = np.where(p.max(1) >= 0.6, p.argmax(1), -1)
    else:
        oracle.label = m.chosen.label.numpy().copy()  # the network that chose is gone; what it chose has a test of its own
    oracle.means, oracle.begun = np.zeros(2), False
    assert 1 < (oracle.label >= 0).sum() < len(POOL)
    m.enter(m.stage(1, 30))
    oracle.weights.clear()
    follow(m, toy, oracle, sharpen=1.0, rate=0.02, mixed=options.get("loss") == "zoph")


def test_each_round_labels_anew_what_it_is_sure_of(toy):
    m = made(toy)
    for k in (1, 2):
        p, before = softmax(predictions(m.network)), m.chosen.label.clone()
        start = {key: value.clone() for key, value in m.network.state_dict().items()}
        said = m.prepare(k, looking(m))
        sure = p.max(1) >= 0.6
        assert m.chosen.rows().tolist() == POOL[sure].tolist() and 2 < sure.sum() < len(POOL)
        assert m.chosen.label[m.chosen.rows()].tolist() == p.argmax(1)[sure].tolist()
        changed = ((before >= 0) & (m.chosen.label >= 0) & (before != m.chosen.label)).sum().item()
        assert said.values["selected"] == sure.sum() and said.values["changed"] == changed
        assert said.values["moved"] == (before != m.chosen.label).sum().item() > 0
        assert said.notes[0].startswith(f"self_training, round {k} of 2: {sure.sum()} of 30 images selected, {changed} changed their label")
        split = m.split_of(SPLIT)
        n = len(LABELLED)
        assert split.labelled[:n].tolist() == LABELLED.tolist() and split.labelled[n:].tolist() == POOL[sure].tolist()
        assert split.label.tolist() == [*LABEL, *p.argmax(1)[sure]] and split.weight.tolist() == [*WEIGHTS, *np.ones(sure.sum())]
        assert split.unlabelled is SPLIT.unlabelled and split.hash == "" and split.weight.dtype == np.float32
        if k == 1:
            assert all(torch.equal(value, start[key]) for key, value in m.network.state_dict().items())
            with torch.no_grad():  # a student that judges otherwise
                m.network.head.weight.copy_(m.network.head.weight.roll(1, 0))
    m = made(toy, loss="zoph")
    m.prepare(1, looking(m))
    assert m.split_of(SPLIT).unlabelled.tolist() == m.chosen.rows().tolist() and m.split_of(SPLIT).labelled is SPLIT.labelled
    m = made(toy, loss="zoph", joint="rotation")
    m.prepare(1, looking(m))
    assert m.split_of(SPLIT) is SPLIT, "the joint task draws them all"


def test_labels_once_given_stay_where_they_are_kept(toy):
    m = made(toy, keep=True)
    m.prepare(1, looking(m))
    first = m.chosen.label.clone()
    with torch.no_grad():
        m.network.head.weight.copy_(m.network.head.weight.roll(1, 0))
    p = softmax(predictions(m.network))
    look = looking(m)
    said = m.prepare(2, look)
    # The same rows are as sure as before, of another class: nobody new.
    assert torch.equal(m.chosen.label, first) and m.ended == 2 and said.values["moved"] == 0 and not said.warnings
    assert "no label has moved" in said.notes[-1]
    m = made(toy, keep=True)
    m.prepare(1, looking(m))
    with torch.no_grad():
        m.network.encoder.layers[-1].weight.copy_(m.network.encoder.layers[-1].weight.roll(2, 0))
    p = softmax(predictions(m.network))
    m.prepare(2, looking(m))
    new = (p.max(1) >= 0.6) & (first.numpy()[POOL] < 0)
    expected = np.where(first.numpy()[POOL] >= 0, first.numpy()[POOL], np.where(new, p.argmax(1), -1))
    assert new.any() and m.chosen.label[POOL].tolist() == expected.tolist()


@pytest.mark.parametrize("keep", [False, True])
def test_the_surest_of_each_class_are_added(toy, keep):
    m = made(toy, criterion="k_best", k_best=2, keep=keep)
    for k in (1, 2):
        p, before = softmax(predictions(m.network)), m.chosen.label.numpy().copy()
        m.prepare(k, looking(m))
        wanted = set()
        for c in range(CLASSES):
            mine = [i for i in range(len(POOL)) if p[i].argmax() == c and not (keep and before[POOL[i]] >= 0)]
            wanted |= {POOL[i] for i in sorted(mine, key=lambda i: -p[i].max())[: 2 if keep else 2 * k]}
        wanted |= set(np.flatnonzero(before >= 0)) if keep else set()
        assert set(m.chosen.rows()) == wanted
    assert len(wanted) > 2 * CLASSES - 4


def test_where_a_student_starts(toy):
    for start in ("fresh", "warm"):
        m, other = (made(toy, ema=0.9, joint="rotation", start=start) for _ in range(2))
        with torch.no_grad():
            for p in other.parameters():
                p.add_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1), dtype=p.dtype))
        moved = {key: value.clone() for key, value in other.state_dict().items()}
        places = [p.data_ptr() for p in other.parameters()]
        other.start and other.start.load_state_dict(m.start.state_dict())
        other.joint_start and other.joint_start.load_state_dict(m.joint_start.state_dict())
        other.prepare(1, looking(other))
        wanted = m.state_dict() if start == "fresh" else moved
        for key, value in other.state_dict().items():
            if key.startswith(("network.", "ema.", "joint.")):
                assert torch.equal(value, wanted[key]), key
        assert [p.data_ptr() for p in other.parameters()] == places, "in place: what was captured goes on to serve"


@pytest.mark.parametrize("case", ["unsure", "nan everywhere", "no row", "only labelled rows", "lost but one"])
def test_a_round_that_selects_nothing_ends_the_run_with_one_warning(toy, case):
    m = made(toy, threshold=1.0 if case == "unsure" else 0.0)
    split = SPLIT
    if case in ("no row", "only labelled rows"):
        split = dataclasses.replace(SPLIT, unlabelled=LABELLED if case == "only labelled rows" else LABELLED[:0])
    spoil = range(ROWS) if case == "nan everywhere" else [10] if case == "lost but one" else ()
    before = {key: value.clone() for key, value in m.state_dict().items()}
    said = m.prepare(1, looking(m, split, POOL[1:] if case == "lost but one" else (), tuple(spoil)))
    assert len(said.warnings) == 1 and "nothing is selected" in said.warnings[0] and said.values["selected"] == 0
    assert [m.stage(k, 30) is None for k in range(4)] == [False, True, True, True] and m.split_of(split) is split
    assert all(torch.equal(value, before[key]) for key, value in m.state_dict().items() if key != "ended"), "the network stays"


def test_a_run_ends_where_nothing_moves_and_where_nothing_is_left(toy):
    m = made(toy, start="warm", rounds=3)
    m.prepare(1, looking(m))
    assert m.stage(1, 40) is not None and m.ended == 0
    said = m.prepare(2, looking(m))
    assert not said.warnings and said.values["moved"] == 0 and "no label has moved, so that training ends here" in said.notes[-1]
    assert m.stage(2, 40) is None and m.stage(1, 40) is not None and m.stage(3, 40) is None
    m = made(toy, keep=True, threshold=0.0)
    m.prepare(1, looking(m))
    assert len(m.chosen.rows()) == len(POOL)
    look = looking(m)
    said = m.prepare(2, look)
    assert not look.asked and m.stage(2, 30) is None and not said.warnings, "nothing is left to look at"


def test_a_class_that_vanishes_is_named_once(toy):
    m = toy.method("self_training", head="linear", rounds=3, threshold=0.0)
    start = m.start.value_5
    with torch.no_grad():
        for bias in (m.network.head.bias, start):  # where every student starts too
            bias[[2, 4]] = -50
    said = m.prepare(1, looking(m))
    assert len(said.warnings) == 1 and "no image is taken for classes c, e; the labels alone teach them" in said.warnings[0]
    assert said.values["classes"] == 3 and m.stage(1, 40) is not None, "and training goes on"
    with torch.no_grad():
        m.network.head.weight.copy_(m.network.head.weight.roll(1, 0))
    said = m.prepare(2, looking(m))
    assert said.values["moved"] and not said.warnings, "a class that was gone before has not vanished"


def test_nan_and_lost_rows_are_never_labels(toy):
    m = made(toy, threshold=0.0)
    m.prepare(1, looking(m, lost=(12,), spoil=(15, 31)))
    assert m.chosen.rows().tolist() == [r for r in POOL if r not in (12, 15, 31)]
    m = made(toy, criterion="k_best", k_best=40)
    m.prepare(1, looking(m, lost=(12,), spoil=(15, 31)))
    assert m.chosen.rows().tolist() == [r for r in POOL if r not in (12, 15, 31)]


def test_a_batch_without_a_pseudo_label_and_one_that_is_fitted(toy):
    m = made(toy, loss="zoph")
    m.chosen.write(POOL[:5], np.zeros(5, np.int64))
    m.enter(m.stage(1, 30))
    b = toy.batch(m.asked)
    none = b._replace(unlabelled_index=torch.full_like(b.unlabelled_index, 39))
    terms = m.step(none, toy.clock(), lambda total: total.backward())
    own = torch.nn.functional.cross_entropy(m.network(b.labelled[0]).logits, b.label)
    torch.testing.assert_close(terms.total, own / 2)
    assert terms.metrics["loss_unlabelled"] == 0 and not m.begun and not m.means.any()
    some = b._replace(unlabelled_index=torch.full_like(b.unlabelled_index, 10))
    terms = m.step(some, toy.clock(), lambda total: total.backward())
    torch.testing.assert_close(terms.total, own, rtol=1e-6, atol=1e-6)  # the first ratio makes both losses alike
    m.means.copy_(torch.tensor([1.0, 0.0]))
    m.network.zero_grad()
    m.step(some, toy.clock(), lambda total: total.backward())
    assert all(p.grad.isfinite().all() for p in m.network.parameters())


def test_stages_their_lengths_and_views(toy):
    m = made(toy, rounds=3)
    stages = [m.stage(k, 42) for k in range(4)]
    assert [s.steps for s in stages] == [12, 10, 10, 10] and m.stage(4, 42) is None
    assert [s.name for s in stages] == ["teacher", "student", "student", "student"]
    assert stages[1].kind == stages[3].kind, "one Step serves all rounds"
    assert [s.steps for s in (made(toy, teacher_share=0.6).stage(k, 20) for k in range(3))] == [12, 4, 4]
    m = made(toy, rounds=0, joint="rotation")
    assert m.stage(0, 5).steps == 5 and m.stage(1, 5) is None and m.start is None and m.asked.unlabelled == ("weak",)
    m = made(toy, loss="zoph", view="strong", joint="contrast")
    assert m.asked.labelled == ("strong",) and m.asked.unlabelled == ("strong", "simclr", "simclr")
    assert m.stage(0, 30).views.unlabelled == ("simclr", "simclr") and m.pseudo
    m.enter(m.stage(0, 30))
    assert not m.pseudo and m.asked.unlabelled == ("simclr", "simclr")
    m = made(toy, loss="zoph", entropy_min=0.1)
    assert m.stage(0, 30).views.unlabelled == ("weak",)
    m.enter(m.stage(0, 30))
    assert "loss_entropy" in m.loss(toy.batch(m.asked), toy.clock()).metrics


def test_what_cannot_be_is_one_sentence(toy, monkeypatch):
    with pytest.raises(ConfigError, match="--steps 3"):
        made(toy).stage(0, 2)
    kind = find("self_training")
    for options, word in (({"joint": "rotation"}, "cannot be turned"), ({"joint": "contrast"}, "method.contrast_view=weak")):
        with pytest.raises(ConfigError, match=word):
            kind(kind.Config(**options), text_toy.network(), text_toy.spec(), unlabelled_batch=6)
    oblong = dataclasses.replace(toy.spec(), shape=(3, 3, 4))
    with pytest.raises(ConfigError, match="images of 3 x 4 cannot be turned"):
        kind(kind.Config(joint="rotation"), toy.network(), oblong, unlabelled_batch=6)
    monkeypatch.setattr("fastssl.methods.bricks.rounds.probe_share", lambda encoder: 0.4)
    with pytest.raises(ConfigError, match="cannot be tuned by lp_ft"):
        made(toy)
