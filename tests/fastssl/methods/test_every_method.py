"""Options of every method, by a float64 calculation: MixUp and entropy minimisation on FixMatch, and on labels alone."""

import dataclasses

import numpy as np
import pytest
import torch

from fastssl.cli import main
from fastssl.config import DataConfig, ModelConfig, RunConfig, TrainConfig
from fastssl.engine.assemble import fit_batches
from fastssl.methods.bricks.mixing import mixed_batch
from fastssl.pipelines.batch import Split
from tests.fastssl.methods.oracle import UNLABELLED, Step, cross_entropy, follow, softmax


class Whole(Step):
    """FixMatch's step with an entropy term and MixUp. Partners and lambda are fastssl's (bricks/noise.py has its own tests)."""

    own = {"threshold": 0.7, "entropy_min": 0.0, "mixup": 0.0}

    def __init__(self, m, toy, **options):
        super().__init__(m, **options)
        self.toy = toy

    def loss(self, batch):
        lam, mine, other = 1.0, np.arange(4), np.arange(len(batch.unlabelled_index))
        if self.o.mixup:
            mix = mixed_batch(batch, self.toy.clock(self.step, self.total), self.o.mixup, 1)
            lam, mine, other = float(mix.share), mix.labelled.partner.numpy(), mix.unlabelled.partner.numpy()
        between = lambda x, who: lam * x + (1 - lam) * x[who]  # noqa: E731
        known = self.forward(between(batch.labelled[0], mine), None)[0]
        weak = self.forward(batch.unlabelled[0], None)[0]
        strong = self.forward(between(batch.unlabelled[1], other), None)[0]
        self.label, self.confidence, self.weight = self.judged(weak.detach().numpy(), softmax(weak.detach().numpy()))
        total = 0.0
        for share, a, b in ((lam, np.arange(4), np.arange(len(other))), (1 - lam, mine, other)):
            labelled = (batch.weight[a] * cross_entropy(known, batch.label.numpy()[a])).mean()
            unlabelled = (torch.from_numpy(self.weight[b]) * cross_entropy(strong, self.label[b])).mean()
            total = total + share * (labelled + self.o.lambda_u * unlabelled)
        p = torch.softmax(weak, 1)
        return total - self.o.entropy_min * (p * torch.log(p)).sum(1).mean()


@pytest.mark.parametrize("options", [{"mixup": 0.75}, {"entropy_min": 0.3}, {"mixup": 2.0, "entropy_min": 0.3}], ids=str)
def test_ten_steps_agree_with_the_equations(toy, options):
    m = toy.method("fixmatch", threshold=0.7, lambda_u=0.7, **options)
    follow(m, toy, Whole(m, toy, lambda_u=0.7, **options))


def test_labels_alone_with_entropy_draw_the_unlabelled_images(toy):
    m = toy.method("supervised", entropy_min=0.2)
    assert m.asked.unlabelled == ("weak",) and m.asked.no_grad == 0
    batch = toy.batch(m.asked)
    p = torch.softmax(m.network(batch.unlabelled[0]).logits, 1)
    without = toy.method("supervised").loss(batch._replace(unlabelled=()), toy.clock()).total
    assert torch.allclose(m.loss(batch, toy.clock()).total, without - 0.2 * (p * p.log()).sum(1).mean(), rtol=1e-12)


def test_mixed_rows_are_partners_of_one_kind(toy):
    m = toy.method("fixmatch")
    batch = toy.batch(m.asked)
    mix = mixed_batch(batch, toy.clock(3), 0.75, 1)
    assert torch.equal(mix.batch.unlabelled[0], batch.unlabelled[0]), "what teaches is left whole"
    lam, who = float(mix.share), mix.unlabelled.partner
    assert sorted(who.tolist()) == list(range(len(who))) and len(who) != UNLABELLED
    torch.testing.assert_close(mix.batch.unlabelled[1], lam * batch.unlabelled[1] + (1 - lam) * batch.unlabelled[1][who])
    partners = mix.partners()
    assert torch.equal(partners.label, batch.label[mix.labelled.partner])
    assert torch.equal(partners.unlabelled_index, batch.unlabelled_index[who]) and torch.equal(
        partners.unlabelled[0], batch.unlabelled[0][who]
    )
    assert torch.equal(partners.unlabelled[1], mix.batch.unlabelled[1])


def test_command_line_takes_them_for_any_method(tmp_path, capsys):
    flags = ["--model", "wrn-10-1", "--set", "data.size=8", "--steps", "3", "--labels-per-class", "1", "--ratio", "3", "--quiet"]
    every = ["--set", "method.entropy_min=0.1", "--set", "method.mixup=0.75", "--set", "train.min_labelled=16"]
    for method in ("supervised", "freematch", "finessl"):
        out = tmp_path / method
        assert main(["train", "--method", method, *flags, *every, "--out", str(out)]) == 0
        text = (out / "log.txt").read_text()
        assert "16 labelled" in text, "ten labels repeat to sixteen"
    inner = ["--method", "zeromatch", "--set", "method.inner_options=mixup=1", "--foundation-labels", "nowhere.csv"]
    capsys.readouterr()
    assert main(["train", *inner, *flags]) == 2
    assert "--set method.mixup=1" in capsys.readouterr().err


def test_least_number_of_labelled_images_keeps_the_unlabelled_ones_as_many():
    split = Split(np.arange(4), np.zeros(4, np.int64), np.ones(4, np.float32), np.arange(1000), np.arange(0))
    train = TrainConfig(batch_size=32, ratio=7, min_labelled=16)
    config = RunConfig("fixmatch", None, ModelConfig(), DataConfig(), train)
    notes = []
    fitted = fit_batches(config, split, True, notes).train
    assert (fitted.batch_size, fitted.ratio) == (16, 14) and "at least 16 labelled (train.min_labelled)" in notes[0]
    assert fit_batches(config, split, False, []).train.batch_size == 16
    plenty = dataclasses.replace(config, train=dataclasses.replace(train, min_labelled=3))
    assert fit_batches(plenty, split, True, notes).train.batch_size == 4 and "fitted to the 4 labels" in notes[-1]
