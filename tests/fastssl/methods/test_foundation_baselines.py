"""ZeroMatch's baselines against float64 calculations: pseudo-supervision, the label as a feature, zero-shot."""

import dataclasses

import numpy as np
import pytest
import torch

from fastssl.methods import find
from fastssl.pipelines.errors import ConfigError
from tests.fastssl.methods import oracle
from tests.fastssl.methods.test_zeromatch import INNER, USB, given_rows


class Supervised(oracle.Step):
    weight = np.array([0.0, 1.0])  # there is no threshold

    def loss(self, batch):
        known, _ = self.forward(batch.labelled[0], batch.index)
        z, _ = self.forward(batch.unlabelled[0], batch.unlabelled_index)
        own = (batch.weight * oracle.cross_entropy(known, batch.label)).mean()
        return own + self.o.lambda_u * given_rows(self.given, z, batch.unlabelled_index).mean()


@pytest.mark.parametrize("lambda_u", [1.0, 0.3, 0.0])
def test_ten_steps_of_pseudo_supervision(toy, lambda_u):
    m = toy.method("pseudo_supervision", lambda_u=lambda_u)
    expected = Supervised(m, lambda_u=lambda_u)
    expected.given = toy.spec().foundation
    oracle.follow(m, toy, expected)


def featured(m, given, inner, **options):
    """The inner method's oracle on a linear head whose input is [features, one-hot foundation label]."""

    class Featured(INNER[inner]):
        def forward(self, x, index):
            f, v = oracle.encoder(self.values, x), self.values
            there = np.where(given.label < 0, oracle.CLASSES, given.label)[index.numpy()]  # a missing label has a place of its own
            wide = torch.cat([f, torch.from_numpy(oracle.onehot(there, oracle.CLASSES + 1))], dim=1)
            if "network.head.bias" in v:
                return wide @ torch.cat([v["network.head.weight"], v["embedding"].T], dim=1).T + v["network.head.bias"], f
            return oracle.head(v, f) + wide[:, f.shape[1] :] @ v["embedding"], f

        def state(self):
            return {f"inner.{key}": value for key, value in super().state().items()}

    return Featured(m, **{**(USB if inner == "adamatch" else {}), **options})


CASES = [
    ("linear", "adamatch", {}),
    ("cosine", "adamatch", {"threshold": 0.9, "align": "labelled"}),
    ("linear", "fixmatch", {"threshold": 0.45, "weighting": "smooth"}),
    ("linear", "flexmatch", {"threshold": 0.5}),
    ("cosine", "freematch", {"momentum": 0.7, "fairness_weight": 0.5, "least_threshold": 0.6}),
    ("linear", "softmatch", {"momentum": 0.5}),
]


@pytest.mark.parametrize(("head", "inner", "options"), CASES, ids=str)
def test_ten_steps_of_the_label_as_a_feature(toy, head, inner, options):
    text = ",".join(f"{key}={value}" for key, value in options.items())
    m = toy.method("pl_feature", head=head, inner=inner, inner_options=text)
    expected = featured(m, toy.spec().foundation, inner, **options)
    steps = 20 if inner == "flexmatch" else 10  # whose thresholds rise from 0
    oracle.follow(m, toy, expected, steps=steps, sharpen=12.0 if head == "linear" else 3.0, mixed=inner != "softmatch")
    assert m.embedding.abs().sum() > 0


def test_evaluation_adds_the_label_of_the_row(toy):
    m = toy.method("pl_feature")
    with torch.no_grad():
        m.embedding.normal_(generator=torch.Generator().manual_seed(0))
    given, index = toy.spec().foundation, torch.tensor([3, 0, 20, 39, 0])
    logits = torch.zeros(5, 5, dtype=torch.float64)
    label = [oracle.CLASSES if given.label[i] < 0 else given.label[i] for i in index.tolist()]
    assert m.judges_rows and torch.equal(m.finish(logits, index), m.embedding.detach()[label])
    assert torch.equal(m.finish(logits + 1, index), m.embedding.detach()[label] + 1)


def test_zero_shot_is_the_given_label_and_else_the_network(toy):
    m = toy.method("zero_shot")
    given, index = toy.spec().foundation, torch.tensor([3, 0, 20, 39])
    logits = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 50
    judged = m.finish(logits, index)
    assert torch.equal(judged[[0, 2]], logits[[0, 2]]), "rows without a label are left to the network"
    for row, i in ((1, 0), (3, 39)):
        assert judged[row].argmax() == given.label[i] and judged[row].softmax(0).max() > 1 - 1e-6
    assert m.stage(0, 100) is None and m.ema is None
    with pytest.raises(NotImplementedError, match="trains nothing"):
        m.loss(toy.batch(m.views)._replace(labelled=(torch.zeros(1, 3, 3, 3, dtype=torch.float64),)), toy.clock())
    kind = find("zero_shot")
    bare = kind(kind.Config(), toy.network(), dataclasses.replace(toy.spec(), foundation=None), ema=0.999).double()
    assert torch.equal(bare.finish(logits, index), logits) and bare.ema is None


@pytest.mark.parametrize("name", ["pseudo_supervision", "pl_feature"])
def test_foundation_labels_are_demanded(toy, name):
    kind = find(name)
    with pytest.raises(ConfigError, match="--foundation-labels FILE"):
        kind(kind.Config(), toy.network(), dataclasses.replace(toy.spec(), foundation=None))
