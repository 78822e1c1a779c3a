"""ZeroMatch against a float64 calculation over ten steps: distillation, then every inner method with its auxiliary term."""

import dataclasses

import numpy as np
import pytest
import torch

from fastssl.config import resolve
from fastssl.methods import find
from fastssl.pipelines.errors import ConfigError
from tests.fastssl.methods import oracle
from tests.fastssl.methods.test_adamatch import Oracle as AdaMatch
from tests.fastssl.methods.test_flexmatch import Oracle as FlexMatch
from tests.fastssl.methods.test_freematch import Oracle as FreeMatch
from tests.fastssl.methods.test_softmatch import Oracle as SoftMatch

INNER = {"adamatch": AdaMatch, "fixmatch": oracle.Step, "flexmatch": FlexMatch, "freematch": FreeMatch, "softmatch": SoftMatch}
USB = {"align_memory": "ema", "threshold": 0.95, "ramp": False}  # of an inner AdaMatch


def given_rows(given, z, index):
    """[n] torch rows of the cross-entropy against a foundation model's labels: weighted, 0 where there is none."""
    label, weight = given.label[index.numpy()], given.weight[index.numpy()].astype(np.float64)
    return torch.from_numpy(np.where(label < 0, 0, weight)) * oracle.cross_entropy(z, np.maximum(label, 0))


def carried(m, given, *, auxiliary="linear", annealing="linear", lambda_p=1.0, inner="adamatch", **options):
    """The oracle of stage 2: the inner method's, and the auxiliary term."""

    class Carried(INNER[inner]):
        def extra(self):
            own = super().extra()
            if annealing == "off":
                return own
            features = torch.cat([self.known[0][1], self.others[0][1]])
            v = self.values
            if auxiliary == "mlp":
                h = features @ v["auxiliary.0.weight"].T + v["auxiliary.0.bias"]
                features = 0.5 * h * (1 + torch.erf(h / np.sqrt(2)))
                v = {"auxiliary.weight": v["auxiliary.2.weight"], "auxiliary.bias": v["auxiliary.2.bias"]}
            r = oracle.head(v, features, "auxiliary.")
            index = torch.cat([self.batch.index, self.batch.unlabelled_index])
            alpha = self.step / (self.total - 1) if annealing == "linear" else 1.0
            self.missing = getattr(self, "missing", 0) + int((given.label[index.numpy()] < 0).sum())
            return own + lambda_p * alpha * given_rows(given, r, index).mean()

        def state(self):
            return {f"inner.{key}": value for key, value in super().state().items()}

    return Carried(m, **{**(USB if inner == "adamatch" else {}), **options})


CASES = [
    ({}, {}),
    ({"auxiliary": "mlp", "annealing": "constant", "lambda_p": 0.5}, {"threshold": 0.8, "align": "uniform"}),
    ({"annealing": "off"}, {"ramp": True, "strong_labelled": True, "align_memory": "queue"}),
    ({"inner": "fixmatch"}, {"threshold": 0.6, "weighting": "smooth", "power": 2.0}),
    ({"inner": "fixmatch", "auxiliary": "mlp"}, {"threshold": 0.6, "logit_adjustment": 1.0}),
    ({"inner": "flexmatch", "annealing": "constant"}, {"threshold": 0.7, "mapping": "linear"}),
    ({"inner": "freematch", "lambda_p": 2.0}, {"momentum": 0.7, "fairness_weight": 0.5, "least_threshold": 0.6}),
    ({"inner": "softmatch"}, {"momentum": 0.5, "align": "predicted"}),
]


@pytest.mark.parametrize(("own", "inner"), CASES, ids=str)
def test_ten_steps_of_stage_2(toy, own, inner):
    text = ", ".join(f"{key} = {value}" for key, value in inner.items())
    m = toy.method("zeromatch", inner_options=text, **own)
    m.enter(m.stage(1, 20))
    expected = carried(m, toy.spec().foundation, **own, **inner)
    steps = 20 if own.get("inner") == "flexmatch" else 10  # whose thresholds rise from 0
    oracle.follow(m, toy, expected, steps=steps, total=steps, mixed=own.get("inner") != "softmatch")
    assert own.get("annealing") == "off" or expected.missing > 0, "a row without a foundation label must be among them"


class Distilled(oracle.Step):
    weight = np.array([0.0, 1.0])

    def loss(self, batch):
        z, _ = self.forward(batch.unlabelled[0], batch.unlabelled_index)
        return given_rows(self.given, z, batch.unlabelled_index).mean()


def test_ten_steps_of_stage_1_and_what_it_leaves(toy):
    m = toy.method("zeromatch", head="linear")
    first, second = m.stage(0, 20), m.stage(1, 20)
    m.enter(first)
    assert m.asked.labelled == () and m.asked.unlabelled == ("weak",)
    inner = {key: value.clone() for key, value in m.state_dict().items() if key.startswith("inner.")}
    auxiliary, begun = m.auxiliary.weight.clone(), m.network.head.weight.clone()
    expected = Distilled(m)
    expected.given = toy.spec().foundation
    expected.state = lambda: inner  # untouched
    oracle.follow(m, toy, expected)
    learned = {key: value.clone() for key, value in m.network.state_dict().items()}
    m.enter(second)
    for key, value in m.network.state_dict().items():
        assert torch.equal(value, learned[key]), "stage 2 begins with the network of stage 1, its main head too"
    assert torch.equal(m.auxiliary.weight, auxiliary) and not torch.equal(m.network.head.weight, begun)
    assert (m.auxiliary.weight - m.network.head.weight).abs().min() > 0, "the auxiliary head is a new one"


def test_annealing_runs_from_0_to_1(toy):
    """Anchor: alpha_0 = 0, alpha_{T-1} = 1."""
    m = toy.method("zeromatch")
    plain = toy.method("zeromatch", annealing="off")
    plain.network.load_state_dict(m.network.state_dict())
    b = toy.batch(m.views_of(m.config))
    for step, alpha in ((0, 0.0), (33, 1 / 3), (99, 1.0)):
        ours, bare = m.loss(b, toy.clock(step, 100)), plain.loss(b, toy.clock(step, 100))
        term = (ours.total - bare.total).item()
        assert term == pytest.approx(alpha * ours.metrics["loss_foundation"].item(), rel=1e-6, abs=1e-12)
    assert ours.metrics["loss_foundation"] > 0
    assert m.annealed(toy.clock(0, 1)) == 0, "a stage of one step divides by nothing"


def test_auxiliary_term_reaches_the_encoder_and_not_the_main_head(toy):
    silent = toy.method("zeromatch", inner="fixmatch", inner_options="lambda_u=0", annealing="constant")
    b = toy.batch(silent.views_of(silent.config))
    silent.loss(b._replace(weight=torch.zeros_like(b.weight)), toy.clock()).total.backward()
    assert silent.network.encoder.layers[1].weight.grad.abs().sum() > 0 and silent.auxiliary.weight.grad.abs().sum() > 0
    head = silent.network.head.weight.grad
    assert head is None or head.abs().sum() == 0


def test_stages(toy):
    def steps(total, **options):
        m = toy.method("zeromatch", **options)
        found = [m.stage(k, total) for k in range(3)]
        return [s and (s.name, s.steps) for s in found]

    assert steps(100) == [("distil", 50), ("semi_supervised", 50), None]
    assert steps(100, distil_share=0.0) == [("semi_supervised", 100), None, None]
    assert steps(10, distil_share=0.99) == [("distil", 9), ("semi_supervised", 1), None]
    assert steps(10, distil_share=0.01) == [("distil", 1), ("semi_supervised", 9), None]
    assert steps(1) == [("semi_supervised", 1), None, None]


def test_agreement_counts_rows_that_have_a_label(toy):
    m = toy.method("zeromatch")
    b = toy.batch(m.views_of(m.config))
    index = torch.tensor([3, 4, 5, 20, 6, 7])  # 3 and 20 have none
    given = toy.spec().foundation
    with torch.no_grad():
        guess = m.network(b.unlabelled[0]).logits.argmax(1).numpy()
    right, there = m.loss(b._replace(unlabelled_index=index), toy.clock()).metrics["foundation_agreement"]
    assert (right.item(), there.item()) == ((guess == given.label[index.numpy()]).sum(), 4)
    for k in range(oracle.CLASSES):  # whatever class is said of all: a missing label agrees with none
        same = 9.0 * torch.from_numpy(oracle.onehot(np.full(6, k)))
        right, there = m.given.agreement(same, index)
        assert (right.item(), there.item()) == ((given.label[index.numpy()] == k).sum(), 4)


def test_a_batch_without_any_foundation_label(toy):
    for distil in (True, False):
        m = toy.method("zeromatch")
        m.enter(m.stage(0 if distil else 1, 20))
        b = toy.batch(m.asked)
        rows = torch.tensor([3, 20, 3, 20, 3, 20])
        terms = m.loss(b._replace(unlabelled_index=rows, index=rows[:4]), toy.clock(5))
        terms.total.backward()
        assert terms.metrics["loss_foundation"] == 0 and torch.isfinite(terms.total)
        assert all(torch.isfinite(p.grad).all() for p in m.parameters() if p.grad is not None)


def test_errors_of_one_sentence(toy):
    kind = find("zeromatch")
    bare = dataclasses.replace(toy.spec(), foundation=None)
    with pytest.raises(ConfigError, match="--foundation-labels FILE"):
        kind(kind.Config(), toy.network(), bare)
    probed = toy.network()
    probed.encoder.probe_share = 0.3
    with pytest.raises(ConfigError, match="lp_ft"):
        kind(kind.Config(), probed, toy.spec())
    with pytest.raises(ConfigError, match="inner"):
        resolve("zeromatch", kind.Config, [("--set", {"method.inner": "debiaspl"})])
