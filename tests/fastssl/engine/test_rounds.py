"""Stages that go on, further networks, several judges, updates in parts, and a run that ends early: by commands, as users run them."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

from fastssl.cli import main
from fastssl.config import TrainConfig
from fastssl.engine import checkpoint, modes
from fastssl.engine.inference import load_trained
from fastssl.engine.saved import saved_config
from fastssl.engine.step import Step
from fastssl.engine.updates import Updates
from fastssl.models import Together
from fastssl.schedules import Clock

SMALL = ["--method", "rounds_method:InTurn", "--model", "wrn-10-1", "--labels-per-class", "2", "--batch-size", "4", "--set", "data.size=8"]
SMALL += ["--steps", "14", "--quiet", "--json", "--set", "train.report_every=1", "--set", "train.eval_every=100", "--ema", "0"]


@pytest.fixture(autouse=True)
def known(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    yield
    sys.modules.pop("rounds_method", None)


@pytest.fixture
def run(tmp_path, capsys):
    def run(name, *more, resume=False):
        capsys.readouterr()
        folder = tmp_path / name
        words = ["--resume", str(folder), "--quiet", "--json"] if resume else [*SMALL, "--out", str(folder), *more]
        assert main(["train", *words]) == 0
        return folder, json.loads(capsys.readouterr().out.splitlines()[-1])

    return run


def records(folder, event):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["event"] == event]


def state(folder):
    return checkpoint.newest(folder / "checkpoints")[0]


def flat(value, prefix=""):
    if isinstance(value, dict):
        return {k: v for key, item in value.items() for k, v in flat(item, f"{prefix}/{key}").items()}
    return {prefix: value}


def test_stages_that_go_on_keep_optimiser_and_schedule_of_their_own(run):
    folder, result = run("whole", "--set", "train.schedule=cosine")
    names = [row["name"] for row in result["rounds"]]
    assert names == ["begin", "network", "second", "network", "second"]
    assert [row["steps"] for row in result["rounds"]] == [2, 5, 8, 11, 14]
    rates = [line["lr"] for line in records(folder, "train")]
    # A kind's clock counts its own steps: the second network begins where the first began, and each goes on where it was left.
    assert rates[2:5] == rates[5:8] and rates[8:11] == rates[11:14] and rates[4] > rates[8] == pytest.approx(rates[11])
    kept = state(folder)["rounds"]["resting"]
    assert len(kept) == 1 and "'network'" in next(iter(kept)), "what the network at rest would go on with"
    assert state(folder)["step"]["clock"] == 5
    assert all(bool(v["momentum_buffer"].any()) for v in next(iter(kept.values()))["update"]["optimizer"].values())


def test_each_round_says_what_it_changed_and_what_it_reached(run):
    folder, result = run("whole")
    rounds = result["rounds"]
    assert [row.get("rows") for row in rounds] == [None, 20.0, 20.0, 20.0, 20.0]
    assert [row["accuracy"] is None for row in rounds] == [False, False, True, True, False], "judged where the next does not go on"
    assert rounds[-1]["accuracy"] == result["accuracy"]
    assert [line["stage"] for line in records(folder, "round")] == [1, 2, 3, 4, 5]
    assert "round 3" in (folder / "log.txt").read_text()


@pytest.mark.parametrize("stop", [1, 2, 4, 8, 9, 13])
def test_resume_is_bitwise_inside_any_round_and_between_them(run, stop):
    whole, result = run("whole")
    broken, _ = run(f"broken{stop}", "--set", f"train.stop_at={stop}")
    _, resumed = run(f"broken{stop}", resume=True)
    first, second = flat(state(whole)), flat(state(broken))
    assert first.keys() == second.keys()
    for key, value in first.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, second[key]), key
    assert resumed["rounds"] == result["rounds"] and resumed["accuracy"] == result["accuracy"]


def test_a_run_may_end_early_and_has_finished_then(run):
    folder, result = run("early", "--set", "method.ends=3")
    assert result["steps"] == 8 and [row["name"] for row in result["rounds"]] == ["begin", "network", "second"]
    assert result["accuracy"] is not None and json.loads((folder / "STATUS.json").read_text())["state"] == "finished"
    before = (folder / "metrics.jsonl").read_bytes()
    _, again = run("early", resume=True)
    assert (folder / "metrics.jsonl").read_bytes() == before, "nothing is judged anew"
    assert result["to_90_percent"] is None, "the curve is of several networks"
    assert again["steps"] == 8 and again["accuracy"] == result["accuracy"]
    assert main(["eval", str(folder)]) == 0


def test_a_refused_stage_makes_no_run_and_replaces_none(run, tmp_path, capsys):
    words = [word for word in SMALL if word not in ("--steps", "14")] + [
        "--set",
        "method.both=true",
        "--set",
        "train.accumulate=2",
        "--steps",
        "4",
    ]
    assert main(["train", *words, "--out", str(tmp_path / "new")]) == 2 and not (tmp_path / "new").exists()
    folder, _ = run("old")
    before = sorted(path.name for path in folder.rglob("*"))
    assert main(["train", *words, "--out", str(folder), "--overwrite"]) == 2
    assert sorted(path.name for path in folder.rglob("*")) == before


def test_a_run_that_diverges_does_not_recover_by_a_stage_of_the_same_kind(tmp_path, capsys):
    words = [*SMALL, "--out", str(tmp_path / "x"), "--lr", "3e38", "--set", "train.max_skipped=7", "--set", "method.alone=true"]
    assert main(["train", *words]) == 5
    assert json.loads((tmp_path / "x" / "STATUS.json").read_text())["step"] <= 10


def test_a_resume_between_two_rounds_leaves_each_record_once(run):
    folder, _ = run("whole", "--set", "train.save_every=5", "--set", "train.keep=10")
    lines = (folder / "metrics.jsonl").read_text()
    for path in (folder / "checkpoints").iterdir():
        if path.name not in ("step-5", "step-000005"):
            shutil.rmtree(path)
    run("whole", resume=True)
    again = (folder / "metrics.jsonl").read_text()
    assert [json.loads(x)["event"] for x in again.splitlines()] == [json.loads(x)["event"] for x in lines.splitlines()]


def test_two_judges_are_one_network_to_eval_and_export(run, capsys, tmp_path):
    folder, result = run("whole")
    trained = load_trained(folder, saved_config(folder))
    assert isinstance(trained.network, Together) and list(trained.networks) == ["raw", "second", "together"]
    assert result["together"]["accuracy"] == result["accuracy"] and result["ema"] is None
    x = torch.randn(3, 3, 8, 8)
    members = trained.network.networks
    assert torch.equal(trained.network(x).logits, members[0](x).logits + members[1](x).logits)
    assert not torch.equal(members[0].head.weight, members[1].head.weight)
    capsys.readouterr()
    assert main(["eval", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["accuracy"] == pytest.approx(result["accuracy"])
    assert main(["eval", str(folder), "--fgsm", "0.05"]) == 0
    for name, code in (("judged", 2), ("raw", 0), ("second", 0), ("ema", 2)):
        assert main(["export", str(folder), "--out", str(tmp_path / f"{name}.safetensors"), "--network", name]) == code
    assert "export each: --network raw, then --network second" in capsys.readouterr().err


def test_another_network_may_be_of_another_model(run):
    folder, result = run("other", "--set", "method.model=wrn-10-2")
    first, second = (sum(p.numel() for p in n.parameters()) for n in load_trained(folder, saved_config(folder)).network.networks)
    assert first < second and result["accuracy"] is not None


def test_another_network_must_read_what_the_run_s_own_reads(run, tmp_path, capsys):
    words = [w.replace("data.size=8", "data.size=224") for w in SMALL] + [
        "--out",
        str(tmp_path / "x"),
        "--model",
        "timm:vit_tiny_patch16_224",
    ]
    assert main(["train", *words, "--weights", "random", "--set", "method.model=timm:vit_base_patch16_384"]) == 2
    assert "the second timm:vit_base_patch16_384" in capsys.readouterr().err
    assert main(["train", *SMALL, "--out", str(tmp_path / "x"), "--set", "method.model=wrm-10-2"]) == 2
    assert "wrn" in capsys.readouterr().err


def both(toy, **options):
    import rounds_method

    kind = rounds_method.InTurn
    method = kind(
        kind.Config(both=True, **options), toy.network(encoder=toy.Normed), toy.spec(), second=toy.network(seed=1, encoder=toy.Normed)
    )
    config, stage = TrainConfig(lr=0.1, schedule="constant"), method.double().stage(0, 6)
    batches = [toy.batch(method.views, seed=i) for i in range(40)]
    pipeline = Held(batches)
    step = Step(method, pipeline, Updates(method, stage, config), Clock(6, 0), config)
    return step


class Held:
    """Batches in turn; its state is the place among them."""

    capturable = True

    def __init__(self, batches):
        self.batches, self.step = batches, torch.zeros((), dtype=torch.int64)

    def draw(self):
        batch = self.batches[int(self.step)]
        self.step += 1
        return batch

    def state_dict(self):
        return {"step": self.step.clone()}

    def load_state_dict(self, state):
        self.step.copy_(state["step"])


def test_parts_have_an_optimiser_each_and_their_own_rate(toy):
    step = both(toy)
    first, second = ([p.detach().clone() for p in n.parameters()] for n in (step.method.network, step.method.second))
    step()
    assert any(not torch.equal(a, b) for a, b in zip(first, step.method.network.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(second, step.method.second.parameters(), strict=True)), "its rate was 0"
    one, other = step.update.each
    assert not {id(p) for p in one.parameters} & {id(p) for p in other.parameters}
    assert len(step.update.parameters) == len(one.parameters) + len(other.parameters)


@pytest.mark.parametrize("mode", ["eager", "compile"])
def test_a_step_whose_second_part_fails_leaves_the_first_as_it_was(toy, mode):
    step = both(toy, poison=1)
    modes.prepare(step, mode, print, backend="aot_eager")
    step()
    before = {k: v.clone() for k, v in step.method.state_dict().items()}
    moments = {k: v.clone() for k, v in flat(step.update.state_dict()).items() if "momentum" in k}
    step()
    assert not step.update.ok and int(step.streak) == 1
    assert all(torch.equal(v, before[k]) for k, v in step.method.state_dict().items())
    assert all(torch.equal(v, moments[k]) for k, v in flat(step.update.state_dict()).items() if k in moments)
    step()
    assert step.update.ok and any(not torch.equal(v, before[k]) for k, v in step.method.state_dict().items())


def test_gradients_are_not_accumulated_over_several_updates(tmp_path, capsys):
    words = [*SMALL, "--out", str(tmp_path / "x"), "--set", "method.both=true", "--set", "train.accumulate=2"]
    assert main(["train", *words]) == 2
    assert "cannot accumulate gradients; leave it at 1" in capsys.readouterr().err
