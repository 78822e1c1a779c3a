"""ReMixMatch against a float64 calculation over ten steps: both orders of alignment, both forms of passes, the rotation task, CTAugment."""

import numpy as np
import pytest
import torch

from fastssl.methods.bricks import noise
from fastssl.methods.remixmatch import _TURNS
from fastssl.pipelines.ctaugment import BINS, OPS, CTAugment
from fastssl.pipelines.errors import ConfigError
from tests.fastssl.methods import oracle
from tests.fastssl.methods.oracle_mixed import Mixed, sharpen


class Oracle(Mixed):
    own = {"ctaugment": True, "temperature": 0.5, "mixup": 0.75, "share_by": "sample", "align": "labelled", "align_memory": "queue"}
    own |= {"lambda_u": 1.5, "lambda_strong": 0.5, "lambda_rotation": 0.5, "rotation": "quarters", "ramp_share": 1 / 64}
    own |= {"forward": "together"}

    def __init__(self, m, toy, **options):
        super().__init__(m, toy, **options)
        fifth = np.full(5, 0.2)
        self.queue, self.model, self.data, self.steps = [fifth] * 128, fifth, fifth, 0
        self.rates = {op: [np.ones(count) for count in counts] for op, counts in BINS.items()}

    def loss(self, batch):
        q = self.guess(batch)
        x, t = self.stack(batch, q)
        b, strong, (turned, turns) = len(batch.label), batch.unlabelled[1], self.turned(batch)
        extra = [strong] * (self.o.lambda_strong > 0) + [turned] * (self.o.lambda_rotation > 0)
        if self.o.forward == "together":
            f = self.features(torch.cat([x, *extra]), count=True)
            z, f = oracle.head(self.values, f[: len(x)]), f[len(x) :].split(6) if extra else []
        else:
            f = [self.features(view) for view in extra]
            z = self.interleaved(x, b, -1)
        total = (batch.weight * self.cross_entropy(z[:b], t[:b])).mean()
        unlabelled = self.o.lambda_u * self.cross_entropy(z[b:], t[b:]).mean()
        if self.o.lambda_strong:
            unlabelled = unlabelled + self.o.lambda_strong * self.cross_entropy(oracle.head(self.values, f[0]), q).mean()
        if self.o.lambda_rotation:
            r = f[-1] @ self.values["rotation.weight"].T + self.values["rotation.bias"]
            total = total + self.o.lambda_rotation * oracle.cross_entropy(r, turns).mean()
        return total + self.ramp() * unlabelled

    def guess(self, batch):
        """The official order: the mean of the last 128 batches before this one; USB's: this one's in it."""
        p = self.probability(batch.unlabelled[0])
        counts = np.clip(batch.weight.numpy(), 0, 1).astype(float)
        labels = counts @ oracle.onehot(batch.label.numpy()) / counts.sum()
        if self.o.align == "none":
            return sharpen(p, self.o.temperature)
        official = self.o.align_memory == "queue"
        old = self.model, self.data
        self.queue = [*self.queue[1:], p.mean(axis=0)]
        if official:
            self.model = np.mean(self.queue, axis=0)
        else:
            self.model = p.mean(axis=0) if self.steps == 0 else 0.999 * self.model + 0.001 * p.mean(axis=0)
        if self.o.align == "running":
            self.data = 0.999 * self.data + 0.001 * labels
        self.steps += 1
        model, data = old if official else (self.model, self.data)
        if self.o.align == "labelled":
            data = oracle.COUNTS / oracle.COUNTS.sum()
        return sharpen(oracle.normalised(p * (data + 1e-6) / (model + 1e-6)), self.o.temperature)

    def turned(self, batch):
        x = batch.unlabelled[1].numpy()
        if self.o.rotation == "quarters":
            turns = np.array([0, 0, 1, 1, 2, 3])  # of six images
        else:
            key = noise.stream(_TURNS, self.toy.clock(self.step, self.total))
            turns = np.floor(4 * noise.uniform(key, torch.arange(6), 1)[:, 0].numpy()).astype(int)
        return torch.from_numpy(np.stack([np.rot90(image, k, (1, 2)) for image, k in zip(x, turns, strict=True)])), turns

    def moved(self):
        super().moved()
        if not self.o.ctaugment:
            return
        at = "encoder.layers."
        now = self.ema or {name: p.detach() for name, p in self.m.network.named_parameters()}
        images, ops, levels = self.batch.probe
        h = torch.tanh(images.flatten(1) @ now[f"{at}1.weight"].T + now[f"{at}1.bias"]) @ now[f"{at}3.weight"].T + now[f"{at}3.bias"]
        p = oracle.softmax((h @ now["head.weight"].T + now["head.bias"]).numpy())
        for row, label in enumerate(self.batch.label.tolist()):
            match = 1 - np.abs(p[row] - oracle.onehot(label)).sum() / 2
            for op, level in zip(ops[row].tolist(), levels[row].numpy(), strict=True):
                for rates, part in zip(self.rates[OPS[op]], level, strict=False):
                    place = int(part * len(rates) * 0.999)
                    rates[place] = 0.99 * rates[place] + 0.01 * match

    def state(self):
        own = super().state()
        if self.o.ctaugment:
            own["augmentation.weight"] = np.zeros((19, 2, 17))
            for k, op in enumerate(OPS):
                for number, rates in enumerate(self.rates[op]):
                    own["augmentation.weight"][k, number, : len(rates)] = rates
        if self.o.align == "none":
            return own
        official = self.o.align_memory == "queue"
        ring = np.full((128, 5), 0.2)
        ring[: self.steps] = self.queue[-self.steps :]
        held = {"queue": ring if official else np.zeros((0, 5)), "place": self.steps if official else 0, "begun": True}
        held |= {"marginal": self.model, "target_marginal": self.data}
        return own | {f"alignment.{key}": value for key, value in held.items()}


USB = {"ctaugment": False, "strong_labelled": False, "align_memory": "ema", "share_by": "batch", "rotation": "drawn"}
FORMS = [
    {},
    {"strong_views": 1, "align": "running"},
    {"strong_views": 4, "align": "uniform", "lambda_rotation": 0.0},
    {"align": "none", "mixup": 0.0, "lambda_strong": 0.0, "temperature": 1.0, "ramp_share": 0.4},
    {**USB, "lambda_strong": 0.0, "lambda_rotation": 0.0},
    {**USB, "align": "running"},
]


@pytest.mark.parametrize("options", FORMS, ids=str)
def test_ten_steps_equal_the_float64_calculation(toy, options):
    m = toy.method("remixmatch", head="linear", **options)
    oracle.follow(m, toy, Oracle(m, toy, **options), total=14, mixed=False)


@pytest.mark.parametrize("options", [{}, {"forward": "interleaved"}, {**USB, "forward": "interleaved", "lambda_strong": 0.0}], ids=str)
def test_ten_steps_with_batchnorm(toy, options):
    options = {"ctaugment": False, **options}
    m = toy.method("remixmatch", head="linear", encoder=toy.Normed, **options)
    oracle.follow(m, toy, Oracle(m, toy, **options), total=14, mixed=False)


def test_rates_follow_the_averaged_network(toy):
    """Matches are those of the average, where there is one, after it has moved."""
    m = toy.method("remixmatch", head="linear", ema=0.5)
    oracle.follow(m, toy, Oracle(m, toy), total=14, mixed=False)
    assert ((m.augmentation.weight < 1) & (m.augmentation.weight > 0)).sum() > 40


def test_probes_are_judged_in_evaluation(toy):
    """Of a network with batch-norm and dropout: by running statistics, without dropout, and both are as they were."""
    m = toy.method("remixmatch", encoder=lambda: toy.Normed(0.5)).train()
    with torch.no_grad():
        m.network.encoder.layers[2].running_mean.fill_(0.3)
    b, kept = toy.batch(m.asked), {k: v.clone() for k, v in m.network.state_dict().items()}
    expected = CTAugment()
    m.network.eval()
    with torch.no_grad():
        expected.update(m.network(b.probe[0]).logits.softmax(1)[torch.arange(4), b.label], *b.probe[1:])
    m.network.train()
    m.recognise(b)
    np.testing.assert_allclose(m.augmentation.weight, expected.weight, rtol=1e-6)
    assert all(torch.equal(v, kept[k]) for k, v in m.network.state_dict().items())
    assert all(part.training for part in m.network.modules())


def test_a_label_of_weight_zero_moves_no_rate(toy):
    m = toy.method("remixmatch")
    b = toy.batch(m.asked)
    m.recognise(b._replace(weight=torch.zeros(4)))
    assert torch.equal(m.augmentation.weight, CTAugment().weight)
    m.recognise(b._replace(weight=torch.tensor([0.0, 1.0, 0.0, 0.0])))
    moved = {OPS[k] for k in (m.augmentation.weight != CTAugment().weight).any(2).any(1).nonzero()[:, 0].tolist()}
    assert moved == {OPS[k] for k in b.probe[1][1].tolist()} - {"identity"}


def test_alignment_of_the_official_code_lags(toy):
    """Step 0 divides by the uniform marginal whatever the batch says, and so does every step until the queue has moved."""
    m = toy.method("remixmatch", align="uniform", temperature=1.0)
    b = toy.batch(m.asked)
    with torch.no_grad():
        p = m.network(b.unlabelled[0]).logits.softmax(1)
    guess, memory = m.guessed(b)
    assert torch.allclose(guess, p, rtol=1e-12), "uniform over uniform"
    m.alignment.write(memory)
    later, _ = m.guessed(b)
    marginal = (127 * 0.2 + p.mean(0)) / 128
    expected = p * (0.2 + 1e-6) / (marginal + 1e-6)
    assert torch.allclose(later, expected / expected.sum(1, keepdim=True), rtol=1e-6)


def test_aligned_first_and_sharpened_then(toy):
    """Anchor: p (0.5, 0.5) against a model's (0.75, 0.25) and a uniform target is (1, 3) / 4, its squares (1, 9) / 10."""
    m = toy.method("remixmatch", head="linear", align="uniform")
    with torch.no_grad():
        m.network.head.weight.zero_()
        m.network.head.bias.zero_()  # all logits are 0
        m.alignment.marginal.copy_(torch.tensor([0.75, 0.25, 0.75, 0.25, 0.75]))
    guess, _ = m.guessed(toy.batch(m.asked))
    np.testing.assert_allclose(guess[0], np.array([1, 9, 1, 9, 1]) / 21, atol=1e-5)


@pytest.mark.parametrize("rows", [4, 5, 6, 7, 8])
def test_quarters_of_any_batch(toy, rows):
    m = toy.method("remixmatch")
    b = toy.batch(m.asked)
    image = torch.arange(9.0).view(1, 1, 3, 3).expand(rows, 3, 3, 3)
    turned, turns = m.turned(b._replace(unlabelled=(image, image, image)), toy.clock())
    counts = torch.bincount(turns, minlength=4)
    assert counts.sum() == rows and counts.max() - counts.min() <= 1 and turns.tolist() == sorted(turns.tolist())
    corner = {0: 0.0, 1: 2.0, 2: 8.0, 3: 6.0}  # what lies at the upper left after that many quarters counter-clockwise
    assert [float(x[0, 0, 0]) for x in turned] == [corner[k] for k in turns.tolist()]


def test_drawn_turns_are_even_and_a_steps_own(toy):
    m = toy.method("remixmatch", rotation="drawn")
    x = torch.randn(400, 3, 3, 3)
    b = toy.batch(m.asked)._replace(unlabelled=(x, x, x))
    turned, turns = m.turned(b, toy.clock(1))
    assert all(torch.equal(torch.rot90(a, int(k), (1, 2)), t) for a, k, t in zip(x, turns, turned, strict=True))
    assert (torch.bincount(turns) - 100).abs().max() < 40 and not torch.equal(turns, m.turned(b, toy.clock(2))[1])


def test_every_term_trains(toy):
    """Weights 1.5, 0.5 and 0.5; the first two by the ramp, the rotation from the start."""
    m = toy.method("remixmatch", ramp_share=0.5)
    b = toy.batch(m.asked)
    for step, rise in ((0, 0.0), (25, 0.5), (50, 1.0)):
        terms = m.loss(b, toy.clock(step))
        parts = {k: float(v) for k, v in terms.metrics.items() if k.startswith("loss_")}
        expected = (
            parts["loss_labelled"] + rise * (1.5 * parts["loss_unlabelled"] + 0.5 * parts["loss_strong"]) + 0.5 * parts["loss_rotation"]
        )
        assert float(terms.total.detach()) == pytest.approx(expected, rel=1e-6)
    for key in ("lambda_u", "lambda_strong", "lambda_rotation"):
        found = []
        for value in (0.0, 1.0):
            one = toy.method("remixmatch", **{key: value})
            one.loss(b, toy.clock(50)).total.backward()
            found.append(one.network.encoder.layers[1].weight.grad.clone())
        assert not torch.allclose(*found), key


def test_images_that_cannot_be_turned_are_refused(toy, monkeypatch):
    import dataclasses

    wide = dataclasses.replace(toy.spec(), shape=(3, 3, 4))
    monkeypatch.setattr("tests.fastssl.conftest.spec", lambda: wide)
    with pytest.raises(ConfigError, match="images of 3 x 4 cannot be turned by quarters; give method.lambda_rotation=0"):
        toy.method("remixmatch")
    toy.method("remixmatch", lambda_rotation=0.0)
