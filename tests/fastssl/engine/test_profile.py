"""Profile: every moment of a step belongs to one phase, counts are right, and training is what it would have been."""

import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fastssl.cli import main
from fastssl.config import TrainConfig
from fastssl.engine import checkpoint, measure, modes
from fastssl.engine import profile as module
from fastssl.engine.measure import TIMED
from fastssl.engine.profile import PHASES, Phases, Profile, profile
from fastssl.engine.putback import written
from fastssl.engine.step import Step
from fastssl.engine.update import Update
from fastssl.schedules import Clock


class HandClock:
    """Moves when it is told to."""

    by = "hand"

    def __init__(self):
        self.now = 0.0

    def mark(self):
        return self.now

    def wait(self):
        pass

    def seconds(self, start, end):
        return end - start

    def takes(self, seconds, function):
        def slow(*args, **options):
            self.now += seconds
            return function(*args, **options)

        return slow


class Pipeline:
    """The same batch each time."""

    def __init__(self, toy, views):
        self.batch, self.views, self.capturable, self.drawn = toy.batch(views), views, True, torch.zeros(())

    def draw(self):
        self.drawn += 1
        return self.batch

    def state_dict(self):
        return {"drawn": self.drawn}

    def load_state_dict(self, state):
        self.drawn.copy_(state["drawn"])


def step_of(toy, name, **train):
    method = toy.method(name, **({} if name == "supervised" else {"threshold": 0.0})).train()
    method.network.encoder.layers.append(nn.Dropout(0.3))
    config = TrainConfig(lr=0.1, **train)
    clock = Clock(100, 0)
    pipeline = Pipeline(toy, method.views_of(method.config))
    return Step(method, pipeline, Update(method, method.stage(0, 100), config), clock, config)


class SlowBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, clock):
        ctx.clock = clock
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        ctx.clock.now += 100_000
        return grad, None


@pytest.mark.parametrize("pieces", [1, 3])
def test_each_part_of_a_step_goes_to_its_phase(toy, pieces):
    clock, step = HandClock(), step_of(toy, "fixmatch", accumulate=pieces)
    method, network = step.method, step.method.network
    step.pipeline.draw = clock.takes(1, step.pipeline.draw)
    network.encoder.forward = clock.takes(10, network.encoder.forward)
    loss = type(method).loss

    def slow_loss(batch, moment):
        clock.now += 100
        terms = loss(method, batch, moment)
        terms.total = SlowBackward.apply(terms.total, clock)
        clock.now += 900
        return terms

    method.loss = slow_loss
    step.update.optimizer.step = clock.takes(10_000, step.update.optimizer.step)
    method.remember = clock.takes(1_000_000, method.remember)
    step.clock.advance = clock.takes(10_000_000, step.clock.advance)
    phases = Phases(step, clock)
    with phases.watching():
        phases.run()
    found = phases.seconds()
    each = {"data": 1, "forward": 20, "loss": 1000, "backward": 100_000, "memory": 1_000_000}  # two forwards: weak views go apart
    assert found == {**{name: s * pieces for name, s in each.items()}, "update": 10_000, "rest": 10_000_000}
    assert sum(found.values()) == clock.now


@pytest.mark.parametrize("name", ["fixmatch", "finessl", "supervised"])
def test_phases_add_up_to_the_step_without_a_gap(toy, name):
    phases = Phases(step_of(toy, name), measure.HostClock())
    with phases.watching():
        phases.run()
    for (_, _, end), (_, start, _) in zip(phases.spans, phases.spans[1:], strict=False):
        assert start == end
    found = phases.seconds()
    assert list(found) == list(PHASES) and all(seconds > 0 for seconds in found.values())
    assert sum(found.values()) == pytest.approx(phases.spans[-1][2] - phases.spans[0][1])


def everything(step):
    return [t.detach().clone() for t in (*written(step), step.pipeline.drawn)]


def test_a_profiled_step_is_left_as_it_was(toy, tmp_path):
    step = step_of(toy, "finessl", optimizer="adamw")
    step()
    step()
    before, rng = everything(step), torch.get_rng_state()
    found = profile(step, tmp_path / "profile", sides=(16,))
    assert all(torch.equal(a, b) for a, b in zip(before, everything(step), strict=True)) and torch.equal(rng, torch.get_rng_state())
    assert step.update.watch is None and not {"loss", "remember"} & set(step.method.__dict__)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in step.method.modules())
    assert list(found.whole) == ["eager"] and found.launches["eager"] > 100 and found.by == "the host's clock"
    assert (tmp_path / "profile" / "table.txt").read_text() == found.table()
    trace = json.loads((tmp_path / "profile" / "trace.json").read_text())
    assert sum(event.get("name") == "step" and event.get("cat") == "user_annotation" for event in trace["traceEvents"]) == measure.TRACED


def test_a_compiled_step_is_measured_whole_beside_the_eager_one(toy, monkeypatch):
    step = step_of(toy, "fixmatch")
    modes.prepare(step, "compile", pytest.fail, backend="aot_eager")
    compiled, runs = dict(step.method.__dict__), []
    monkeypatch.setattr(module, "phases_of", lambda step, clock: runs.append("loss" in step.method.__dict__) or dict.fromkeys(PHASES, 1.0))
    found = profile(step, None, sides=(16,))
    assert list(found.whole) == ["eager", "compile"] and list(found.launches) == ["eager"]
    assert runs == [False], "phases are of the method's own code"
    assert step.method.__dict__["loss"] is compiled["loss"] and step.method.__dict__["remember"] is compiled["remember"]
    assert step.mode == "compile"


def test_the_table_says_shares_and_the_ceiling():
    found = Profile(
        phases={**dict.fromkeys(PHASES, 0.0), "forward": 0.003, "backward": 0.006, "data": 0.001},
        whole={"eager": 0.009, "graph": 0.004},
        launches={"eager": 1234, "graph": 700},
        unit="CUDA kernels",
        flops=2 * 10**12,
        ceiling=8e14,
        product="a 8192 x 8192 matrix product in bfloat16",
        by="CUDA events",
    )
    lines = found.table().splitlines()
    assert lines[0].endswith(f"(eager steps, mean of {TIMED}, by CUDA events)")
    assert lines[2].split() == ["forward", "3.000", "30.0%"] and lines[8].split() == ["step", "10.000", "100.0%"]
    assert "whole step, graph: 4.000 ms   (only the whole can be measured in this mode)" in lines
    assert "launches: 1,234 CUDA kernels (eager), 700 CUDA kernels (graph)" in lines
    assert "2000 GFLOP a step" in lines[-1] and "500 TFLOP/s (graph), 62.5% of the 800 TFLOP/s of a 8192 x 8192" in lines[-1]


def test_counts():
    a, b = torch.rand(3, 4), torch.rand(4, 5)
    assert measure.work(lambda: a @ b) == 2 * 3 * 4 * 5
    assert measure.operations(lambda: (a @ b).exp().sum()) == 3
    q = torch.rand(1, 2, 3, 4)
    assert measure.work(lambda: nn.functional.scaled_dot_product_attention(q, q, q)) == 2 * 2 * (2 * 3 * 4 * 3)


def test_the_ceiling_is_the_best_product():
    clock = HandClock()
    ticks = iter([9.0] * 3 + [4.0, 2.0, 5.0, 4.0, 4.0] + [9.0] * 3 + [100.0] * 5)
    clock.wait = lambda: None
    marks = []

    def mark():
        marks.append(clock.now)
        if len(marks) % 2:
            clock.now += next(ticks)
        return marks[-1]

    clock.mark = mark
    assert measure.ceiling(torch.device("cpu"), torch.float32, (4, 8), clock) == (2 * 4**3 / 2.0, 4)


SMALL = ["--method", "finessl", "--labels-per-class", "2", "--batch-size", "4", "--ratio", "1", "--steps", "4"]


def flat(value, prefix=""):
    if isinstance(value, dict):
        return {k: v for key, item in value.items() for k, v in flat(item, f"{prefix}/{key}").items()}
    return {prefix: value}


def test_a_profiled_run_trains_bit_for_bit_the_same(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(measure, "SIDES", {"cpu": (16,)})
    plain, watched = tmp_path / "plain", tmp_path / "watched"
    assert main(["train", *SMALL, "--quiet", "--out", str(plain)]) == 0
    capsys.readouterr()
    assert main(["train", *SMALL, "--profile", "--out", str(watched), "--set", "train.stop_at=2"]) == 0
    said = capsys.readouterr().err
    table = (watched / "profile" / "table.txt").read_text()
    assert table in said and table in (watched / "log.txt").read_text() and "GFLOP a step" in table
    made = (watched / "profile" / "trace.json").stat().st_mtime_ns
    assert main(["train", "--resume", str(watched), "--quiet"]) == 0
    assert (watched / "profile" / "trace.json").stat().st_mtime_ns == made, "a resumed run is profiled only when asked again"
    a, b = (flat(checkpoint.newest(folder / "checkpoints")[0]) for folder in (plain, watched))
    assert a.keys() == b.keys()
    tensors = [key for key, value in a.items() if isinstance(value, torch.Tensor)]
    assert len(tensors) > 20 and all(torch.equal(a[key], b[key]) for key in tensors)


def test_a_run_profiles_once_and_only_when_asked(toy):
    said = []
    run = SimpleNamespace(
        config=SimpleNamespace(train=TrainConfig()), step=step_of(toy, "supervised"), folder=None, reporter=SimpleNamespace(say=said.append)
    )
    module.when_asked(run)
    assert not said
    run.config.train = TrainConfig(profile=True)
    module.when_asked(run)
    lines = len(said)
    module.when_asked(run)
    assert lines > len(PHASES) and len(said) == lines
