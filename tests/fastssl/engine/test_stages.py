"""Stages within a run: lp_ft's linear probe and fine-tuning, and their resumption."""

import json

import pytest
import torch
from torch import nn

from fastssl.cli import main
from fastssl.config import ModelConfig, TrainConfig
from fastssl.engine import checkpoint
from fastssl.engine.update import Update, trainable
from fastssl.methods.base import Method, Stage, Terms
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
    rates = [json.loads(line)["lr"] for line in (whole / "metrics.jsonl").read_text().splitlines() if '"event": "train"' in line]
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


def test_the_announcement_counts_the_weights_of_each_stage(tmp_path):
    for how, wanted in (
        ("lp_ft", "1,290 trained weights for 3 steps (linear_probe), then 889,610 for 3 steps (train)"),
        ("full", "889,610 trained weights"),
    ):
        args = ["--method", "supervised", "--tune", how, "--steps", "6", "--batch-size", "8", "--out", str(tmp_path / how)]
        assert main(["train", *args]) == 0
        assert f"glyph_clip, {wanted}, cpu, amp off" in (tmp_path / how / "log.txt").read_text()
    state = checkpoint.newest(tmp_path / "lp_ft" / "checkpoints")[0]
    assert len(state["update"]["optimizer"]) == 2 + len(list(encoder_keys(state))), "counting left the stages as they were"


def encoder_keys(state):
    return (key for key in state["method"] if key.startswith("network.encoder."))


class Returning(Method):
    """Two stages in turn, the first of which comes back."""

    Config = object

    def loss(self, batch, clock):
        return Terms(self.network(batch.labelled[0]).logits.square().mean())

    def stage(self, k, steps):
        return Stage(3, frozen=("network.encoder",) if k % 2 else ()) if k < 4 else None


def test_a_stage_that_comes_back_takes_its_step_and_starts_afresh(toy):
    from types import SimpleNamespace

    from fastssl.engine.rounds import Rounds

    method = Returning(None, toy.network(), toy.spec())
    views = toy.method("supervised").views
    batches = iter([toy.batch(views, seed=i) for i in range(100)])
    pipeline = SimpleNamespace(draw=lambda: next(batches), capturable=True, views=views, show=lambda views: None)
    run = SimpleNamespace(
        config=SimpleNamespace(train=TrainConfig(optimizer="adamw")),
        parts=SimpleNamespace(device=torch.device("cpu")),
        method=method,
        pipeline=pipeline,
    )
    rounds, steps = Rounds(run), []
    for k in range(4):
        steps.append(rounds.set_up(method.stage(k, 12)))
        clock, optimizer = steps[-1].clock, steps[-1].update.optimizer
        assert int(clock.step) == -1 and all(not v.any() for s in optimizer.state.values() for v in s.values())
        trains = [n for n, p in method.named_parameters() if p.requires_grad]
        assert any("encoder" in n for n in trains) == (k % 2 == 0)
        weights = [p.clone() for p in method.parameters()]
        for _ in range(3):
            steps[-1]()
        moved = {n for (n, p), w in zip(method.named_parameters(), weights, strict=True) if not torch.equal(p, w)}
        assert moved == set(trains)
    assert steps[0] is steps[2] and steps[1] is steps[3] and steps[0] is not steps[1]
