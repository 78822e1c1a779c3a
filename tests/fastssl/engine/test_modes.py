"""Step modes: eager, compiled and captured steps agree, trying a mode out leaves no trace, and none is fallen back from in silence."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fastssl.config import TrainConfig
from fastssl.engine import capture, modes, updates
from fastssl.engine.putback import put_back, written
from fastssl.engine.step import Step
from fastssl.engine.update import Update
from fastssl.kernels import _check
from fastssl.methods.base import Method, Terms
from fastssl.pipelines.errors import ConfigError, SetupError
from fastssl.schedules import Clock
from tests.fastssl import method_cases
from tests.fastssl.method_cases import TRAINED

ACTIVE = method_cases.ACTIVE | {"finessl": {"threshold": 0.0, "pace_reset": 4}}
BACKEND = "aot_eager"


class ToyPipeline:
    """Batches made up of the step's number, copied into static buffers."""

    def __init__(self, toy, views, capturable=True, moving=False):
        self.toy, self.views, self.capturable, self.moving = toy, views, capturable, moving
        self.step = torch.zeros((), dtype=torch.int64)
        self.batch = toy.batch(views)

    def draw(self):
        fresh = self.toy.batch(self.views, seed=int(self.step))
        self.step += 1
        if self.moving:
            return fresh
        for to, value in zip(self.tensors(self.batch), self.tensors(fresh), strict=True):
            to.copy_(value)
        return self.batch

    @staticmethod
    def tensors(batch):
        return [t for field in batch for t in (field if isinstance(field, tuple) else (field,))]

    def state_dict(self):
        return {"step": self.step.clone()}

    def load_state_dict(self, state):
        self.step.copy_(state["step"])


class Recorder:
    """Stands in for a CUDA graph: a replay runs again what was recorded, and recording runs nothing."""

    def __init__(self):
        self.runs = 0

    def warm_up(self, run):
        for _ in range(capture.WARM_UPS):
            run()

    def record(self, run):
        self.recorded = run

    def replay(self):
        self.runs += 1
        self.recorded()


class Dropping(nn.Module):
    """An encoder with dropout and batch-norm: randomness and buffers."""

    num_features = 7

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(27, 9), nn.BatchNorm1d(9), nn.Dropout(0.3), nn.Linear(9, 7))

    def forward(self, x):
        return self.layers(x)


def step_of(toy, name, *, ema=0.9, optimizer="sgd", dropping=False, pipeline=None, **train):
    method = toy.method(name, **ACTIVE.get(name, {}))
    if dropping:
        torch.manual_seed(0)
        method.network.encoder = Dropping().double()
    if ema:
        more = toy.given(type(method)) | {key: method.get_submodule(key) for key in method.others(method.config)}
        twin = type(method)(method.config, method.network, toy.spec(), unlabelled_batch=method.unlabelled_batch, ema=ema, **more)
        method = twin.double()
    method_cases.lived(name, method).train()
    config = TrainConfig(lr=0.1, optimizer=optimizer, **train)
    clock = Clock(100, 0)
    pipeline = pipeline or ToyPipeline(toy, method.views_of(method.config))
    return Step(method, pipeline, updates.made(method, method.stage(0, 100), config, scaled=False), clock, config)


def everything(step):
    return [t.detach().clone() for t in written(step)] + [step.pipeline.state_dict()["step"]]


def prepared(step, mode):
    warned = []
    said = modes.prepare(step, "auto" if mode == "graph" else mode, warned.append, backend=BACKEND, recorder=Recorder())
    return said, warned


@pytest.fixture
def as_if_cuda(monkeypatch):
    """`auto` tries all modes, as on CUDA."""
    monkeypatch.setattr(modes, "wanted", lambda asked, device: ["graph", "compile", "eager"] if asked == "auto" else [asked])


@pytest.mark.parametrize(("name", "optimizer"), method_cases.crossed(["sgd", "adamw"]))
def test_compiled_and_captured_steps_equal_eager_ones(toy, as_if_cuda, name, optimizer):
    outcomes = {}
    for mode in modes.MODES:
        step = step_of(toy, name, optimizer=optimizer)
        said, warned = prepared(step, mode)
        assert step.mode == mode and not warned, (said, warned)
        with torch.compiler.set_stance("fail_on_recompile"):
            for _ in range(10):
                step()
        outcomes[mode] = everything(step), step.read()
        if mode == "graph":
            assert step.run.recorder.runs == 10
    for mode in ("compile", "graph"):
        for a, b in zip(outcomes["eager"][0], outcomes[mode][0], strict=True):
            assert torch.allclose(a, b, rtol=1e-9, atol=1e-11), mode
        for key, value in outcomes["eager"][1].items():
            assert outcomes[mode][1][key] == pytest.approx(value, rel=1e-6), (mode, key)
    assert outcomes["eager"][1]["skipped"] == 0


@pytest.mark.parametrize("name", method_cases.SAMPLED)
def test_trying_a_mode_out_leaves_no_trace(toy, as_if_cuda, name):
    for mode in modes.MODES:
        step = step_of(toy, name, dropping=True)
        step()
        step()
        before, rng = everything(step), torch.get_rng_state()
        places = [t.data_ptr() for t in written(step)]
        prepared(step, mode)
        assert step.mode == mode
        assert all(torch.equal(a, b) for a, b in zip(before, everything(step), strict=True)), mode
        assert torch.equal(rng, torch.get_rng_state()) and places == [t.data_ptr() for t in written(step)]
        assert all(p.grad is None for p in step.update.parameters) or mode == "eager"


def test_a_mode_tried_before_the_first_step_leaves_zero_sums(toy, as_if_cuda):
    step = step_of(toy, "fixmatch")
    prepared(step, "compile")
    assert step.sums and all(total.eq(0).all() for total in step.sums.values())
    step()
    assert step.read()["skipped"] == 0


def test_dropout_draws_the_same_in_each_mode(toy, as_if_cuda):
    ends = []
    for mode in modes.MODES:
        step = step_of(toy, "fixmatch", dropping=True)
        prepared(step, mode)
        torch.manual_seed(5)
        for _ in range(4):
            step()
        ends.append(everything(step))
    for other in ends[1:]:
        assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-11) for a, b in zip(ends[0], other, strict=True))


def test_state_is_put_back_after_an_error_too(toy):
    step = step_of(toy, "finessl")
    step()
    before = everything(step)
    with pytest.raises(RuntimeError, match="boom"), put_back(step):
        step()
        raise RuntimeError("boom")
    assert all(torch.equal(a, b) for a, b in zip(before, everything(step), strict=True))


class Asking(Method):
    """A method whose loss asks the device, which no compiler can follow in one graph."""

    Config = object

    def loss(self, batch, clock):
        out = self.network(batch.labelled[0]).logits.square().mean()
        return Terms(out * 2 if out.item() > 1e9 else out)


def asking_step(toy):
    method = Asking(None, toy.network(), toy.spec())
    views = toy.method("supervised").views
    return Step(method, ToyPipeline(toy, views), Update(method, method.stage(0, 9), TrainConfig()), Clock(9, 0), TrainConfig())


def test_falls_back_one_mode_at_a_time_with_a_reason_each(toy, as_if_cuda):
    step = asking_step(toy)
    said, warned = prepared(step, "graph")
    assert step.mode == "eager" and said == "eager steps" and len(warned) == 2
    assert "step mode graph does not work here, going on with compile" in warned[0] and "going on with eager" in warned[1]
    assert all("item" in text or "data-dependent" in text.lower() or "Unsupported" in text for text in warned)
    step()
    assert step.read()["skipped"] == 0


def test_a_mode_asked_for_by_name_is_not_fallen_back_from(toy):
    step = asking_step(toy)
    with pytest.raises(ConfigError, match=r"--step-mode compile: Asking cannot run so: .*; use auto or eager"):
        modes.prepare(step, "compile", pytest.fail, backend=BACKEND)
    assert "loss" not in step.method.__dict__
    step()


def test_graph_needs_cuda():
    with pytest.raises(SetupError, match="--step-mode graph captures CUDA graphs, and this run is on cpu"):
        modes.wanted("graph", torch.device("cpu"))
    assert modes.wanted("auto", torch.device("cpu")) == ["eager"]
    assert modes.wanted("auto", torch.device("cuda")) == ["graph", "compile", "eager"]


def test_a_pipeline_outside_the_graph_draws_before_each_replay(toy, as_if_cuda):
    views = toy.method("fixmatch").views
    inside, outside = step_of(toy, "fixmatch"), step_of(toy, "fixmatch", pipeline=ToyPipeline(toy, views, capturable=False))
    for step in (inside, outside):
        _, warned = prepared(step, "graph")
        assert step.mode == "graph" and not warned
        for _ in range(3):
            step()
    assert int(outside.pipeline.step) == 3
    assert all(torch.equal(a, b) for a, b in zip(everything(inside), everything(outside), strict=True))


def test_batches_that_move_are_not_captured(toy, as_if_cuda):
    views = toy.method("fixmatch").views
    step = step_of(toy, "fixmatch", pipeline=ToyPipeline(toy, views, capturable=False, moving=True))
    _, warned = prepared(step, "graph")
    assert step.mode == "compile" and "at other addresses each time" in warned[0]


class NoHostReads(TorchDispatchMode):
    """Fails at any operation by which the host learns a value of a device."""

    ASKING = ("_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "unique", "equal", "bincount")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().split("::")[1].split(".")[0]
        assert name not in self.ASKING, f"the host asks: {func}"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("name", TRAINED)
def test_a_step_asks_the_device_for_nothing(toy, monkeypatch, name, optimizer):
    monkeypatch.setenv("FASTSSL_KERNELS", "reference")  # the closed forms are for host memory, where asking is free
    monkeypatch.setattr(_check, "labels_in_range", lambda *args: None)  # so is looking at labels
    step = step_of(toy, name, optimizer=optimizer, clip=1.0)
    batch = step.pipeline.draw()
    with NoHostReads():
        step.learn(lambda: batch)
        step.learn(lambda: batch)
    with pytest.raises(AssertionError, match="the host asks"), NoHostReads():
        torch.ones(2)[torch.tensor([True, False])].sum().item()
