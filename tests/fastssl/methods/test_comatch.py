"""CoMatch against a float64 calculation over ten steps, and what its reference codes get wrong."""

import numpy as np
import pytest
import torch

from fastssl.methods.bricks.projection import log_affinity
from fastssl.methods.comatch import FeatureQueue, agreement_graph
from fastssl.pipelines.errors import ConfigError
from tests.fastssl.methods import oracle


def project(values, f, at="projection."):
    h = torch.relu(f @ values[f"{at}layers.0.weight"].T + values[f"{at}layers.0.bias"])
    g = h @ values[f"{at}layers.2.weight"].T + values[f"{at}layers.2.bias"]
    return g / (g**2).sum(1, keepdim=True).sqrt()


class Ring:
    """Rows in the order of their coming, the oldest overwritten; `size` of `capacity` places are used."""

    def __init__(self, size, capacity, width):
        self.size, self.written = size, 0
        self.rows, self.p = np.zeros((capacity, width)), np.zeros((capacity, oracle.CLASSES))

    def put(self, f, p):
        for row, q in zip(f, p, strict=True):
            self.rows[self.written % self.size], self.p[self.written % self.size] = row, q
            self.written += 1

    def there(self):
        n = min(self.written, self.size)
        return self.rows[:n], self.p[:n]

    def state(self, at):
        return {f"{at}.features": self.rows, f"{at}.probabilities": self.p, f"{at}.written": self.written}


class Oracle(oracle.Step):
    """The steps of the official code, in their order, row by row."""

    own = {"lambda_c": 1.0, "temperature": 0.2, "width": 64, "alpha": 0.9, "graph_threshold": 0.8, "queue_batch": 5, "align_batches": 32}
    own |= {"momentum_encoder": False, "contrast_batch": 47, "ema": 0.0}

    def __init__(self, m, labelled=4, unlabelled=6, **options):
        super().__init__(m, **options)
        o = self.o
        self.memory = Ring(o.queue_batch * (labelled + unlabelled), 2 * o.queue_batch * unlabelled, o.width)
        self.strong = Ring(o.contrast_batch * unlabelled, o.contrast_batch * unlabelled, o.width) if o.momentum_encoder else None
        self.means, self.steps, self.smooth, self.edges = np.zeros((o.align_batches, 5)), 0, [], []
        self.copy = {n: p.detach().clone() for n, p in m.named_parameters() if p.requires_grad}

    def seen(self, values, x):
        f = oracle.encoder(values, x)
        return oracle.head(values, f), project(values, f)

    def loss(self, batch):
        o = self.o
        teacher = self.copy if o.momentum_encoder else {n: v.detach() for n, v in self.values.items()}
        zl, _ = self.seen(self.values, batch.labelled[0])
        (zw, fw), (_, fl) = (tuple(t.numpy() for t in self.seen(teacher, x)) for x in (batch.unlabelled[0], batch.labelled[0]))
        p = oracle.softmax(zw)
        if o.align_batches:
            self.means[self.steps % o.align_batches] = p.mean(axis=0)
            p = oracle.normalised(p / self.means[: self.steps + 1].mean(axis=0))
        self.steps += 1
        q = p.copy()
        rows, theirs = self.memory.there()
        self.smooth.append(len(rows) == self.memory.size)
        if self.smooth[-1]:
            for b in range(len(q)):
                a = np.exp(rows @ fw[b] / o.temperature)
                q[b] = o.alpha * p[b] + (1 - o.alpha) * (a / a.sum()) @ theirs
        self.label, self.weight = q.argmax(axis=1), (q.max(axis=1) >= o.threshold) * 1.0
        self.to_write = np.concatenate([fw, fl]), np.concatenate([p, oracle.onehot(batch.label.numpy())])
        if o.momentum_encoder:
            keys = self.seen(self.copy, batch.unlabelled[1])[1]
            zs, f0 = self.seen(self.values, batch.unlabelled[2])
            past, past_q = self.strong.there()
            self.strong_write = keys.numpy(), q
            keys, graph_q = torch.cat([keys, torch.from_numpy(past)]), np.concatenate([q, past_q])
        else:
            zs, f0 = self.seen(self.values, batch.unlabelled[1])
            keys, graph_q = self.seen(self.values, batch.unlabelled[2])[1], q
        graph = np.zeros((len(q), len(graph_q)))
        for b in range(len(q)):
            for j in range(len(graph_q)):
                agree = 1.0 if b == j else float(q[b] @ graph_q[j])
                graph[b, j] = agree if agree >= o.graph_threshold else 0.0
            graph[b] /= graph[b].sum()
        self.edges.append((graph > 0).sum() - len(q))
        s = torch.exp(f0 @ keys.T / o.temperature)
        s = s / s.sum(1, keepdim=True)
        contrast = -(torch.from_numpy(graph) * torch.log(s + 1e-7)).sum() / len(q)
        rows = -(torch.from_numpy(q) * torch.log_softmax(zs, 1)).sum(1)
        unsupervised = (torch.from_numpy(self.weight) * rows).sum() / len(q)
        prior = np.log((oracle.COUNTS / oracle.COUNTS.sum()) ** o.logit_adjustment + 1e-12) if o.logit_adjustment else None
        supervised = (batch.weight * oracle.cross_entropy(zl, batch.label, prior)).mean()
        return supervised + o.lambda_u * unsupervised + o.lambda_c * contrast

    def after(self):
        self.memory.put(*self.to_write)
        if self.strong:
            self.strong.put(*self.strong_write)

    def moved(self):
        for name, p in self.m.named_parameters():
            if name in self.copy:
                self.copy[name] = self.o.ema * self.copy[name] + (1 - self.o.ema) * p.detach()

    def state(self):
        own = self.memory.state("memory") | {"marginal.queue": self.means, "marginal.place": self.steps % max(1, self.o.align_batches)}
        if not self.o.align_batches:
            own["marginal.place"] = 0
        if self.strong:
            own |= self.strong.state("strong_memory")
        if self.o.ema:
            own |= {n.replace("network.", "ema.", 1): v for n, v in self.copy.items() if n.startswith("network.")}
        if self.strong:
            own |= {n.replace("projection.", "average.", 1): v for n, v in self.copy.items() if n.startswith("projection.")}
        return own


LOW = {"threshold": 0.7, "graph_threshold": 0.35}  # on an untrained network some rows pass, and some are neighbours
CASES = [
    {**LOW},
    {
        **LOW,
        "threshold": 0.3,
        "queue_batch": 3,
        "temperature": 0.1,
        "alpha": 0.5,
        "lambda_u": 2.0,
        "lambda_c": 0.5,
        "width": 8,
        "logit_adjustment": 1.0,
    },
    {**LOW, "queue_batch": 1, "align_batches": 3},
    {**LOW, "queue_batch": 2, "align_batches": 0},
    {**LOW, "queue_batch": 2, "momentum_encoder": True, "contrast_batch": 3, "ema": 0.9},
]


@pytest.mark.parametrize("options", CASES, ids=str)
def test_ten_steps_equal_the_float64_calculation(toy, options):
    m = toy.method("comatch", **options)
    expected = Oracle(m, **options)
    oracle.follow(m, toy, expected, sharpen=8.0)
    assert 0 < sum(expected.smooth) < 10, "before and after the memory is full"
    assert sum(expected.edges) > 0, "rows must have neighbours"


def test_graph_of_the_specification():
    """Anchor: q = (.9,.1), (.8,.2), (.1,.9), tau_c .7. A row without neighbours keeps itself alone."""
    q = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9]], dtype=torch.float64)
    graph = agreement_graph(q, q, 0.7)
    np.testing.assert_allclose(graph[0], [0.5747, 0.4253, 0], atol=5e-5)
    assert graph[2].tolist() == [0, 0, 1]
    assert torch.equal(agreement_graph(q, q, 1.0), torch.eye(3, dtype=torch.float64))
    exact = agreement_graph(torch.tensor([[1.0, 0.0], [0.5, 0.5]]), torch.tensor([[1.0, 0.0], [0.5, 0.5]]), 0.5)
    np.testing.assert_allclose(exact, [[2 / 3, 1 / 3], [1 / 3, 2 / 3]], rtol=1e-6, err_msg=">=, at the threshold itself")


def test_contrastive_gradient_is_the_specifications_and_reaches_both_strong_views(toy):
    """d / d sim_bj = (S - Q) / (U T), the small number in the logarithm aside."""
    m = toy.method("comatch", graph_threshold=0.3)
    b = toy.batch(m.views)
    f, k = (torch.nn.functional.normalize(torch.randn(6, 64, dtype=torch.float64), dim=1).requires_grad_() for _ in range(2))
    q = oracle.softmax(2 * torch.randn(6, 5, dtype=torch.float64).numpy())
    m.contrast(f, k, torch.from_numpy(q), b).backward()
    agree = q @ q.T * (1 - np.eye(6)) + np.eye(6)
    graph = oracle.normalised(np.where(agree >= 0.3, agree, 0))
    slope = (oracle.softmax((f @ k.T / 0.2).detach().numpy()) - graph) / (6 * 0.2)
    np.testing.assert_allclose(f.grad, slope @ k.detach().numpy(), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(k.grad, slope.T @ f.detach().numpy(), rtol=1e-3, atol=1e-5)


def test_memory_holds_the_aligned_prediction_not_the_smoothed_one(toy):
    """What is smoothed must not feed the next smoothing."""
    m = toy.method("comatch", queue_batch=1, alpha=0.0)
    for step in range(3):
        b = toy.batch(m.views, seed=step)
        terms = m.step(b, toy.clock(step), lambda total: total.backward())
        with torch.no_grad():
            log_p = m.network(b.unlabelled[0]).logits.log_softmax(1)
        marginal = m.marginal.queue[: step + 1].mean(0)
        wanted = oracle.normalised((log_p.exp() / marginal).numpy())
        np.testing.assert_allclose(terms.memory["probabilities"][:6], wanted, rtol=1e-9)
        np.testing.assert_allclose(m.memory.probabilities[:6], wanted, rtol=1e-9)
        np.testing.assert_allclose(m.memory.probabilities[6:10], oracle.onehot(b.label.numpy()))
        assert not m.memory.probabilities[10:].any()


def test_until_the_memory_is_full_nothing_is_smoothed(toy):
    """Its zero rows would take weight exp(0) and shrink the sum of q; the mask would lose rows without a word."""
    m = toy.method("comatch", queue_batch=2)
    p = torch.full((6, 5), 0.2, dtype=torch.float64)
    b = toy.batch(m.views)
    f = torch.nn.functional.normalize(torch.randn(6, 64, dtype=torch.float64), dim=1)
    for step in range(2):
        assert torch.equal(m.smoothed(p, f, b), p)
        m.step(toy.batch(m.views, seed=step), toy.clock(step), lambda total: total.backward())
    q = m.smoothed(p, f, b)
    assert not torch.equal(q, p)
    np.testing.assert_allclose(q.sum(1), 1, rtol=1e-12)


def test_a_write_wraps_to_the_oldest_rows_and_skips_none():
    """USB's pointer moves by the whole batch when the tail was cut off: the first rows were then left out."""
    queue, ok = FeatureQueue(1, 2, 8), torch.ones((), dtype=torch.bool)
    for k in range(5):
        queue.write(torch.full((2, 1), float(k + 1)), torch.ones(2, 2), 6, ok)
    assert queue.features[:, 0].tolist() == [4, 4, 5, 5, 3, 3, 0, 0] and queue.written == 10
    rows, _, there = queue.read(6)
    assert len(rows) == 6 and there.all()


def test_a_skipped_step_leaves_no_trace():
    queue = FeatureQueue(1, 2, 4)
    queue.write(torch.ones(2, 1), torch.ones(2, 2), 4, torch.ones((), dtype=torch.bool))
    before = [b.clone() for b in queue.buffers()]
    queue.write(torch.full((2, 1), 7.0), torch.ones(2, 2), 4, torch.zeros((), dtype=torch.bool))
    queue.write(torch.full((2, 1), torch.nan), torch.ones(2, 2), 4, torch.ones((), dtype=torch.bool))
    assert all(torch.equal(a, b) for a, b in zip(queue.buffers(), before, strict=True))


@pytest.mark.parametrize("threshold", [0.95, 0.0, 1.0])
def test_degenerate_rows_stay_finite(toy, threshold):
    """All features equal, so that every similarity is 1; predictions uniform or certain; rows exactly at the threshold count."""
    m = toy.method("comatch", head="linear", queue_batch=1, threshold=threshold)
    with torch.no_grad():
        for p in m.network.parameters():
            p.zero_()
        m.network.head.bias[0] = 800.0  # certain
    for step in range(3):
        b = toy.batch(m.views, seed=step)
        m.zero_grad()
        terms = m.step(b._replace(label=torch.zeros_like(b.label)), toy.clock(step), lambda total: total.backward())
        assert torch.isfinite(terms.total) and all(torch.isfinite(p.grad).all() for p in m.parameters() if p.grad is not None)
    assert all(torch.isfinite(v).all() for v in m.state_dict().values())


def test_a_confidence_exactly_at_the_threshold_counts(toy):
    for threshold, kept in ((0.2, 1.0), (0.2 + 1e-6, 0.0)):
        m = toy.method("comatch", head="linear", threshold=threshold)
        with torch.no_grad():
            for p in m.network.parameters():
                p.zero_()
        assert m.loss(toy.batch(m.views), toy.clock()).metrics["kept"] == kept


def test_projection_and_memory_are_fp32_under_autocast(toy):
    m = toy.method("comatch", queue_batch=1).float()
    b = toy.batch(m.views)
    b = b._replace(labelled=tuple(v.float() for v in b.labelled), unlabelled=tuple(v.float() for v in b.unlabelled))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = m.projection(m.network(b.unlabelled[0]).features)
        affinity = log_affinity(out, out, 0.1)
        terms = m.step(b, toy.clock(), lambda total: total.backward())
    assert out.dtype == affinity.dtype == terms.memory["features"].dtype == terms.memory["probabilities"].dtype == torch.float32
    np.testing.assert_allclose(affinity.exp().sum(1).detach(), 1, rtol=1e-6)
    np.testing.assert_allclose(out.norm(dim=1).detach(), 1, rtol=1e-6)


def test_pieces_of_a_batch_fill_the_memory_of_the_whole(toy):
    """Under train.accumulate B and U of a piece are smaller, and the memory is as long as without."""
    m = toy.method("comatch", queue_batch=2)
    b = toy.batch(m.views)
    half = b._replace(
        labelled=tuple(v[:2] for v in b.labelled),
        label=b.label[:2],
        weight=b.weight[:2],
        index=b.index[:2],
        unlabelled=tuple(v[:3] for v in b.unlabelled),
        unlabelled_index=b.unlabelled_index[:3],
        hidden_label=b.hidden_label[:3],
    )
    for piece in range(4):
        rows, _, there = m.memory.read(m._rows(half))
        assert len(rows) == 20 == m._rows(b) and there.sum() == 5 * piece
        m.step(half, toy.clock(piece // 2), lambda total: total.backward())
    assert m.memory.read(20)[2].all()


def test_targets_of_the_momentum_encoder_get_no_gradient(toy):
    m = toy.method("comatch", momentum_encoder=True, contrast_batch=2, ema=0.9, threshold=0.0)
    b = toy.batch(m.views)
    views = tuple(v.clone().requires_grad_() for v in b.unlabelled)
    m.loss(b._replace(unlabelled=views), toy.clock()).total.backward()
    assert views[0].grad is None and views[1].grad is None and views[2].grad.abs().sum() > 0
    assert all(p.grad is None for p in [*m.ema.parameters(), *m.average.parameters()])


def test_bad_options(toy):
    with pytest.raises(ConfigError, match="train.ema=0 keeps none; give --ema 0.999"):
        toy.method("comatch", momentum_encoder=True, ema=0.0)
