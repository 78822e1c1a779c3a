"""SimMatch against a float64 calculation over ten steps, and what its reference codes get wrong."""

import dataclasses

import numpy as np
import pytest
import torch

from fastssl.methods.simmatch import LabelledMemory, corrected
from fastssl.pipelines.errors import ConfigError, DataError
from tests.fastssl.methods import oracle
from tests.fastssl.methods.test_comatch import project

SIZE = int(oracle.COUNTS.sum())  # labelled rows: 0 to 7 of the toy data


class Oracle(oracle.Step):
    """The steps of the official code, in their order, row by row; a dictionary for the memory."""

    own = {"teacher_by": "ensemble", "momentum": 0.7, "lambda_in": 1.0, "temperature": 0.1, "width": 128, "alpha": 0.9, "align_batches": 32}
    own |= {"ema": 0.0}

    def __init__(self, m, **options):
        super().__init__(m, **options)
        self.bank, self.order = {}, []  # row -> (embedding, label); rows in the order of their first visits
        self.means, self.steps, self.corrects = np.zeros((self.o.align_batches, 5)), 0, []
        self.copy = {n: p.detach().clone() for n, p in m.named_parameters() if p.requires_grad}

    def seen(self, values, x):
        f = oracle.encoder(values, x)
        return oracle.head(values, f), project(values, f)

    def loss(self, batch):
        o = self.o
        teacher = self.copy if o.teacher_by == "network" else {n: v.detach() for n, v in self.values.items()}
        zl, _ = self.seen(self.values, batch.labelled[0])
        zs, fs = self.seen(self.values, batch.unlabelled[1])
        (zw, fw), (_, fl) = (tuple(t.numpy() for t in self.seen(teacher, x)) for x in (batch.unlabelled[0], batch.labelled[0]))
        p = oracle.softmax(zw)
        if o.align_batches:
            self.means[self.steps % o.align_batches] = p.mean(axis=0)
            p = oracle.normalised(p / self.means[: self.steps + 1].mean(axis=0))
        self.steps += 1
        q, instance = p.copy(), 0.0
        self.corrects.append(len(self.bank) == SIZE)
        if self.corrects[-1]:
            rows = np.stack([self.bank[r][0] for r in self.order])
            labels = [self.bank[r][1] for r in self.order]
            for b in range(len(p)):
                a = np.exp(rows @ fw[b] / o.temperature)
                a = a / a.sum()
                h = oracle.normalised(np.array([a[k] * p[b, c] for k, c in enumerate(labels)]))
                g = np.array([sum(a[k] for k in range(SIZE) if labels[k] == c) for c in range(5)])
                q[b] = o.alpha * p[b] + (1 - o.alpha) * g
                s = torch.softmax(torch.from_numpy(rows) @ fs[b] / o.temperature, 0)
                instance = instance - (torch.from_numpy(h) * s.log()).sum() / len(p)
        self.label, self.weight = q.argmax(axis=1), (q.max(axis=1) >= o.threshold) * 1.0
        self.to_write = {r: (f, c) for r, f, c in zip(batch.index.tolist(), fl, batch.label.tolist(), strict=True)}
        self.places = list(dict.fromkeys(batch.index.tolist()[::-1]))[::-1]  # in the order of their last rows
        rows = -(torch.from_numpy(q) * torch.log_softmax(zs, 1)).sum(1)
        unsupervised = (torch.from_numpy(self.weight) * rows).sum() / len(q)
        prior = np.log((oracle.COUNTS / oracle.COUNTS.sum()) ** o.logit_adjustment + 1e-12) if o.logit_adjustment else None
        supervised = (batch.weight * oracle.cross_entropy(zl, batch.label, prior)).mean()
        return supervised + o.lambda_u * unsupervised + o.lambda_in * instance

    def after(self):
        for row in self.places:
            f, c = self.to_write[row]
            if row not in self.bank:
                self.order.append(row)
            elif self.o.teacher_by == "ensemble":
                f = self.o.momentum * self.bank[row][0] + (1 - self.o.momentum) * f
            self.bank[row] = f / np.sqrt((f**2).sum()), c

    def moved(self):
        for name, p in self.m.named_parameters():
            if name in self.copy:
                self.copy[name] = self.o.ema * self.copy[name] + (1 - self.o.ema) * p.detach()

    def state(self):
        o, place = self.o, np.full(oracle.ROWS, -1)
        features, label = np.zeros((SIZE, o.width)), np.zeros(SIZE)
        for k, row in enumerate(self.order):
            place[row], (features[k], label[k]) = k, self.bank[row]
        own = {"memory.features": features, "memory.label": label, "memory.place": place, "memory.count": len(self.order)}
        own |= {"marginal.queue": self.means, "marginal.place": self.steps % o.align_batches if o.align_batches else 0}
        if o.ema:
            own |= {n.replace("network.", "ema.", 1): v for n, v in self.copy.items() if n.startswith("network.")}
        if o.teacher_by == "network":
            own |= {n.replace("projection.", "average.", 1): v for n, v in self.copy.items() if n.startswith("projection.")}
        return own


class Toy:
    """The toy data, whose batches here are of all eight labelled rows: some come twice in one batch, and 7 first comes in the fifth."""

    def __init__(self, toy):
        self.clock, self.made = toy.clock, toy.batch

    def batch(self, views, seed=0):
        drawn = [[5, 0, 1, 5], [2, 3, 0, 0], [4, 6, 2, 1], [5, 3, 3, 3], [7, 0, 4, 6]]
        index = torch.tensor(drawn[seed % 5])
        return self.made(views, seed)._replace(index=index, label=index % 5)


CASES = [
    {"threshold": 0.7},
    {"threshold": 0.6, "alpha": 0.5, "momentum": 0.3, "temperature": 0.2, "width": 8, "lambda_u": 2.0, "lambda_in": 0.5},
    {"threshold": 0.7, "alpha": 1.0, "align_batches": 3, "logit_adjustment": 1.0},
    {"threshold": 0.7, "align_batches": 0},
    {"threshold": 0.7, "teacher_by": "network", "ema": 0.9},
]


@pytest.mark.parametrize("options", CASES, ids=str)
def test_ten_steps_equal_the_float64_calculation(toy, options):
    m = toy.method("simmatch", **options)
    expected = Oracle(m, **options)
    oracle.follow(m, Toy(toy), expected, sharpen=8.0)
    assert expected.corrects == [False] * 5 + [True] * 5, "the row 7 comes in the fifth batch"


def test_correction_of_the_specification():
    """Anchor: similarities (.9,.1,.5), T .1, labels (0,0,1), p (.3,.7)."""
    log_a = torch.tensor([[9.0, 1.0, 5.0]], dtype=torch.float64).log_softmax(1)
    log_p, label = torch.tensor([[0.3, 0.7]], dtype=torch.float64).log(), torch.tensor([0, 0, 1])
    log_h, q = corrected(log_p, log_a, label, 0.9)
    np.testing.assert_allclose(log_a.exp(), [[0.98169, 0.00033, 0.01798]], atol=5e-6)
    np.testing.assert_allclose(log_h.exp(), [[0.95871, 0.00032, 0.04097]], atol=5e-6)
    np.testing.assert_allclose(q, [[0.36820, 0.63180]], atol=5e-6)
    _, g = corrected(log_p, log_a, label, 0.0)
    np.testing.assert_allclose(g, [[0.98202, 0.01798]], atol=5e-6)
    assert torch.equal(corrected(log_p, log_a, label, 1.0)[1], log_p.exp()), "alpha = 1 disables aggregation"


def test_correction_where_probabilities_underflow():
    """The reference divides by a sum that is then 0, and takes the logarithm of a softmax."""
    label = torch.tensor([0, 0, 1])
    log_p = torch.tensor([[-500.0, 0.0]])  # nothing of class 0 in fp32
    log_a = torch.tensor([[300.0, 0.0, -300.0]]).log_softmax(1)  # and nothing of the images of class 1
    log_h, q = corrected(log_p, log_a, label, 0.9)
    assert (log_p.exp()[:, label] * log_a.exp()).sum() == 0, "the reference would divide by it"
    assert torch.isfinite(log_h).all() and torch.isfinite(q).all()
    np.testing.assert_allclose(log_h.exp().sum(1), 1, rtol=1e-6)


def test_gradient_of_the_instance_term_is_the_specifications(toy):
    """d L_in / d f_s = (1 / (U T)) sum_k (s_k - h_k) F_k, and none for what is compared with."""
    m = toy.method("simmatch", threshold=1.0, width=6)
    data, found = Toy(toy), {}
    for step in range(5):
        m.step(data.batch(m.views, step), toy.clock(step), lambda total: None)
    hook = m.projection.register_forward_hook(lambda _, x, out: found.update(f=out) if out.requires_grad else None)
    b = data.batch(m.views, 9)
    terms = m.loss(b, toy.clock(5))
    hook.remove()
    (slope,) = torch.autograd.grad(terms.total, found["f"])
    with torch.no_grad():
        log_p, _ = m.marginal.read(m.network(b.unlabelled[0]).logits)
        log_a = m.memory.log_affinity(m.projection(m.network(b.unlabelled[0]).features), 0.1)
        h = corrected(log_p, log_a, m.memory.label, 0.9)[0].exp()
    bank = m.memory.features.numpy()
    s = oracle.softmax(found["f"].detach().numpy() @ bank.T / 0.1)
    np.testing.assert_allclose(slope, (s - h.numpy()) @ bank / (6 * 0.1), rtol=1e-9, atol=1e-12)
    assert terms.metrics["loss_unlabelled"] == 0 and terms.metrics["loss_instance"] > 0, "no confidence mask in the instance term"


def memory_of(toy, counts=(3, 2, 1, 1, 1), width=4, momentum=0.7):
    return LabelledMemory(dataclasses.replace(toy.spec(), labelled_counts=counts), width, momentum)


YES = torch.ones((), dtype=torch.bool)


@pytest.mark.parametrize("n", [8, 64])
def test_each_embedding_is_normalised_by_its_own_length(toy, n):
    """USB normalises a [D, B] slice across the batch: lengths of about sqrt(D / B), which divides the temperature."""
    rows = torch.arange(n) % 8
    memory = memory_of(toy, width=128)
    for k in range(2):
        f = torch.nn.functional.normalize(torch.randn(n, 128, generator=torch.Generator().manual_seed(k)), dim=1)
        memory.write(rows, f, rows % 5, YES)
        np.testing.assert_allclose(memory.features.norm(dim=1), 1, rtol=1e-5)
    across = torch.nn.functional.normalize(torch.randn(128, 8), dim=1)  # what the wrong axis makes of eight columns
    assert across.norm(dim=0).min() > 3


def test_memory_begins_with_the_first_visit_itself(toy):
    """USB mixes it into 0.7 of a random vector."""
    memory, f = memory_of(toy), torch.nn.functional.normalize(torch.randn(2, 4), dim=1)
    memory.write(torch.tensor([6, 2]), f, torch.tensor([1, 3]), YES)
    np.testing.assert_allclose(memory.features[:2], f, rtol=1e-6)
    assert memory.place[[6, 2]].tolist() == [0, 1] and memory.label[:2].tolist() == [1, 3] and memory.count == 2


def test_an_image_that_comes_twice_takes_its_last_row_and_one_place(toy):
    memory, f = memory_of(toy, momentum=0.0), torch.eye(4)
    memory.write(torch.tensor([3, 9, 3, 3]), f, torch.tensor([0, 1, 0, 0]), YES)
    assert memory.count == 2 and memory.place[[9, 3]].tolist() == [0, 1]
    assert torch.equal(memory.features[1], f[3])


def test_a_skipped_step_leaves_no_trace(toy):
    memory = memory_of(toy)
    memory.write(torch.tensor([1, 2]), torch.eye(4)[:2], torch.tensor([1, 2]), YES)
    before = [b.clone() for b in memory.buffers()]
    memory.write(torch.tensor([1, 5]), torch.eye(4)[2:], torch.tensor([1, 4]), ~YES)
    memory.write(torch.tensor([1, 5]), torch.full((2, 4), torch.nan), torch.tensor([1, 4]), YES)
    assert all(torch.equal(a, b) for a, b in zip(memory.buffers(), before, strict=True))


def test_until_every_labelled_image_came_nothing_is_corrected(toy):
    """Places that nobody took would be images of class 0."""
    m, data = toy.method("simmatch", alpha=0.5), Toy(toy)
    for step in range(6):
        terms = m.loss(data.batch(m.views, step), toy.clock(step))
        assert (terms.metrics["loss_instance"] == 0) == (step < 5) == (not m.memory.full)
        m.step(data.batch(m.views, step), toy.clock(step), lambda total: total.backward())


def test_ensemble_needs_no_further_pass_and_its_memory_is_of_the_students_labelled_view(toy):
    m, data = toy.method("simmatch"), Toy(toy)
    b = data.batch(m.views, 4)
    calls = []
    hook = m.network.register_forward_pre_hook(lambda _, x: calls.append(len(x[0])))
    terms = m.loss(b, toy.clock())
    hook.remove()
    assert sum(calls) == 4 + 6 + 6 and m.averages() == []
    np.testing.assert_allclose(terms.memory["known"], m.projection(m.network(b.labelled[0]).features).detach(), rtol=1e-12)


def test_with_a_teacher_weak_logits_and_embeddings_are_its_own(toy):
    """USB takes the weak view's from the student and has the teacher make the memory alone."""
    m = toy.method("simmatch", teacher_by="network", ema=0.9, align_batches=0, threshold=0.0)
    with torch.no_grad():
        m.ema.head.weight.neg_()
        m.average.layers[2].bias.add_(1.0)
    b = toy.batch(m.views)
    views = tuple(v.clone().requires_grad_() for v in b.unlabelled)
    terms = m.loss(b._replace(unlabelled=views), toy.clock())
    weak = m.ema(b.unlabelled[0])
    known = m.ema(b.labelled[0])
    np.testing.assert_allclose(terms.memory["known"], m.average(known.features).detach(), rtol=1e-12)
    right = (weak.logits.argmax(1) == b.hidden_label).sum()
    assert terms.metrics["pseudo_accuracy_all"][0] == right
    terms.total.backward()
    assert views[0].grad is None and views[1].grad.abs().sum() > 0
    assert {type(one.average).__name__ for one in m.averages()} == {"Network", "Projection"}


def test_degenerate_rows_stay_finite(toy):
    """All features equal, certain predictions, a label of which no image is near; a confidence exactly at the threshold counts."""
    m, data = toy.method("simmatch", head="linear", threshold=1.0), Toy(toy)
    with torch.no_grad():
        for p in m.network.parameters():
            p.zero_()
        m.network.head.bias[0] = 800.0
    for step in range(7):
        m.zero_grad()
        terms = m.step(data.batch(m.views, step)._replace(weight=torch.zeros(4)), toy.clock(step), lambda total: total.backward())
        assert torch.isfinite(terms.total) and all(torch.isfinite(p.grad).all() for p in m.parameters() if p.grad is not None)
    even = toy.method("simmatch", head="linear", threshold=0.2)
    with torch.no_grad():
        for p in even.network.parameters():
            p.zero_()
    assert even.loss(toy.batch(even.views), toy.clock()).metrics["kept"] == 1


def test_bad_options(toy):
    with pytest.raises(ConfigError, match="train.ema=0 keeps none; give --ema 0.999"):
        toy.method("simmatch", teacher_by="network", ema=0.0)
    with pytest.raises(DataError, match="does not say how many labels"):
        memory_of(toy, counts=())


def test_an_image_that_comes_twice_takes_its_last_row_whatever_order_a_device_writes_in(toy, monkeypatch):
    memories = []
    plain = torch.Tensor.index_copy_
    for write in (plain, lambda self, dim, index, source: plain(self, dim, index.flip(0), source.flip(0))):
        memory = LabelledMemory(toy.spec(), 3, 0.7)
        monkeypatch.setattr(torch.Tensor, "index_copy_", write)
        for seed in range(3):
            features = torch.nn.functional.normalize(torch.randn(5, 3, generator=torch.Generator().manual_seed(seed)), dim=1)
            memory.write(torch.tensor([4, 9, 4, 2, 9]), features, torch.tensor([1, 2, 1, 0, 2]), torch.tensor(True))
        monkeypatch.undo()
        memories.append(memory.state_dict())
    assert all(torch.equal(value, memories[1][key]) for key, value in memories[0].items())


def test_momentum_of_one_keeps_the_first_embedding(toy):
    memory = LabelledMemory(toy.spec(), 3, 1.0)
    for row in (torch.tensor([[1.0, 0, 0]]), torch.tensor([[0.0, 1, 0]])):
        memory.write(torch.tensor([4]), row, torch.tensor([1]), torch.tensor(True))
    assert torch.equal(memory.features[0], torch.tensor([1.0, 0, 0]))
