"""Stages within a run: lp_ft's linear probe and fine-tuning, and their resumption."""

import json

import pytest
import torch
from torch import nn

from fastssl.cli import main
from fastssl.config import ModelConfig, TrainConfig
from fastssl.engine import checkpoint
from fastssl.engine.update import Update, trainable
from fastssl.methods.base import Method, Terms
from fastssl.models import Network, peft


class Plain(Method):
    Config = object

    def loss(self, batch, clock):
        return Terms(self.network(batch).logits.square().mean())


def probing(share=0.5, ema=0.0):
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8))
    encoder[0].bias.requires_grad_(False)  # what never trained must not begin to
    encoder = peft.tune(encoder, ModelConfig(tune="lp_ft", lp_share=share), name="toy")
    method = Plain(None, Network(encoder, nn.Linear(8, 3)), None, ema=ema).train()
    method.extra = nn.Linear(2, 2)
    return method


@pytest.mark.parametrize(
    ("share", "steps", "lengths"), [(0.5, 10, [5, 5]), (0.3, 10, [3, 7]), (0.01, 10, [1, 9]), (0.99, 10, [9, 1]), (0.5, 1, [1])]
)
def test_lengths_of_the_two_stages(share, steps, lengths):
    method = probing(share)
    stages = [method.stage(k, steps) for k in range(len(lengths) + 1)]
    assert stages.pop() is None and [s.steps for s in stages] == lengths
    assert [s.frozen for s in stages[:-1]] == [("network.encoder",)] * (len(lengths) - 1) and stages[-1].frozen == ()


def test_other_tunings_have_one_stage():
    method = Plain(None, Network(peft.tune(nn.Linear(2, 2), ModelConfig(tune="full"), name="toy"), nn.Linear(2, 2)), None)
    assert method.stage(0, 7).steps == 7 and method.stage(1, 7) is None


def test_probe_holds_the_encoder_still_and_fine_tuning_lets_it_go():
    method = probing(ema=0.9)
    x = torch.randn(16, 6)
    for k, moving in enumerate([{"head", "extra"}, {"head", "extra", "encoder"}]):
        stage = method.stage(k, 10)
        update = Update(method, stage, TrainConfig())
        names = {n for n, _ in trainable(method, stage)}
        assert {"encoder" if "encoder" in n else n.split(".")[-2] for n in names} == moving
        assert "network.encoder.0.bias" not in names
        assert method.network.training and method.network.encoder.training == (k == 1)
        before = {n: v.clone() for n, v in method.state_dict().items()}
        update.begin(torch.tensor(0.1))
        update(method.loss(x, None).total)
        changed = {n for n, v in method.state_dict().items() if not torch.equal(v, before[n])}
        assert any(n.startswith("network.head") for n in changed) and any(n.startswith("ema.head") for n in changed)
        for start in ("network.encoder.0.weight", "network.encoder.1.running_mean", "ema.encoder.0.weight"):
            assert (start in changed) == (k == 1), start
    update = Update(method, method.stage(0, 10), TrainConfig())  # as a run that is resumed passes through the first stage's making
    assert not any("encoder" in n for n, _ in trainable(method, method.stage(0, 10))) and len(update.parameters) == 4


def run(folder, *more):
    args = ["--method", "finessl", "--tune", "lp_ft", "--set", "model.lp_share=0.5", "--labels-per-class", "2", "--batch-size", "8"]
    args += ["--ratio", "2", "--steps", "6", "--ema", "0.9", "--quiet", "--set", "train.report_every=1", "--set", "train.schedule=cosine"]
    args += ["--set", "train.eval_every=6", "--set", "method.strong_views=1"]
    assert main(["train", *args, "--out", str(folder), *more]) == 0
    return folder


def flat(value, prefix=""):
    if isinstance(value, dict):
        return {k: v for key, item in value.items() for k, v in flat(item, f"{prefix}/{key}").items()}
    return {prefix: value}


def test_resume_is_bitwise_inside_either_stage_and_between_them(tmp_path):
    whole = run(tmp_path / "whole")
    reference = flat(checkpoint.newest(whole / "checkpoints")[0])
    rates = [json.loads(line)["lr"] for line in (whole / "metrics.jsonl").read_text().splitlines() if '"train"' in line]
    assert rates[:3] == rates[3:] and rates[0] > rates[1], "the schedule starts afresh with the second stage"
    for stop in (2, 3, 5):
        broken = run(tmp_path / f"broken{stop}", "--set", f"train.stop_at={stop}")
        state = checkpoint.newest(broken / "checkpoints")[0]
        assert state["run"]["stage_index"] == (stop > 3)
        assert len(state["update"]["optimizer"]) == (4 if stop <= 3 else 4 + len(list(encoder_keys(state))))
        assert main(["train", "--resume", str(broken), "--quiet"]) == 0
        resumed = flat(checkpoint.newest(broken / "checkpoints")[0])
        assert resumed.keys() == reference.keys()
        for key, value in reference.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, resumed[key]), (stop, key)


def encoder_keys(state):
    return (key for key in state["method"] if key.startswith("network.encoder."))
