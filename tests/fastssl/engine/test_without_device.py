"""Every method's step, traced on a CUDA device that is not there: no value is asked for by the host, none is copied from it.

Either would break a capture. The backward pass is left out, as autograd itself asks for the device's streams: the gradients are made up,
those by an input (torch.func.grad) too. So are torch's fused optimisers, which have no form without values, and the casts of autocast,
which torch turns off where there is no device. Forward passes, loss, scaling, clipping, LARS, averages, memory and sums are all there.
"""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from fastssl.config import TrainConfig
from fastssl.engine import updates
from fastssl.engine.step import Step
from fastssl.schedules import Clock
from tests.fastssl.method_cases import LATER, TRAINED, crossed, kinds

BANK = {"sentaugment": {"bank": "own"}}


class Drawn:
    """A pipeline of one batch."""

    def __init__(self, batch):
        self.batch = batch

    def draw(self):
        return self.batch


def moved_to_cuda(module: torch.nn.Module) -> None:
    """`Module.to` for a device that is not there, which cannot swap tensors."""
    for part in module.modules():
        for name, parameter in list(part._parameters.items()):
            if parameter is not None:
                part._parameters[name] = torch.nn.Parameter(torch.empty_like(parameter, device="cuda"), parameter.requires_grad)
        for name, buffer in list(part._buffers.items()):
            if buffer is not None:
                part._buffers[name] = torch.empty_like(buffer, device="cuda")


@pytest.fixture
def on_cuda(toy, monkeypatch):
    """Builds a step, and from then on what is on CUDA has shapes and no values."""
    monkeypatch.setenv("FASTSSL_KERNELS", "reference")  # a kernel cannot be launched without a device

    with ExitStack() as stack:

        def build(name: str, *, number: int = 0, frozen: bool = False, options: dict | None = None, **train) -> Step:
            """The step of stage `number`, of a method with those options; `frozen`: its network's encoder is held still."""
            method = toy.method(name, **BANK.get(name, {}), **(options or {}))
            more = toy.given(type(method)) | {key: method.get_submodule(key) for key in method.others(method.config)}
            method = type(method)(method.config, method.network, toy.spec(), unlabelled_batch=method.unlabelled_batch, ema=0.9, **more)
            method = method.float().train()
            if frozen:
                method.network.encoder.requires_grad_(False)
            config = TrainConfig(lr=0.1, clip=1.0, **train)
            stage = method.stage(number, 100)
            batch = toy.batch(stage.views or method.asks(method.config))
            stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
            moved_to_cuda(method)
            moved = lambda t: torch.empty_like(t, device="cuda", dtype=torch.float32 if t.is_floating_point() else t.dtype)  # noqa: E731
            batch = type(batch)(*(tuple(map(moved, field)) if isinstance(field, tuple) else moved(field) for field in batch))
            update = updates.made(method, stage, config, scaled=config.amp == "fp16")

            def filled(loss: torch.Tensor, *args: object) -> None:
                assert loss.requires_grad and loss.device.type == "cuda"
                for parameter in update.parameters:
                    parameter.grad = torch.ones_like(parameter)

            def by_input(function):
                def gradient(at: torch.Tensor) -> torch.Tensor:
                    assert function(at).device.type == "cuda"
                    return torch.ones_like(at)

                return gradient

            monkeypatch.setattr(torch.Tensor, "backward", filled)
            monkeypatch.setattr(torch.func, "grad", by_input)
            if config.optimizer != "lars":
                for each in updates.each_of(update):
                    monkeypatch.setattr(each.optimizer, "step", lambda: None)
            return Step(method, Drawn(batch), update, Clock(100, 0, device="cuda"), config)

        yield build


@pytest.mark.parametrize(("name", "form"), crossed([("off", "lars"), ("off", "adamw"), ("fp16", "lars")]))
@pytest.mark.filterwarnings("ignore:CUDA is not available")
def test_a_step_needs_nothing_of_the_host(on_cuda, nothing_from_the_host, name, form):
    amp, optimizer = form
    step = on_cuda(name, amp=amp, optimizer=optimizer)
    step.body()  # makes the optimiser's state and the sums, as the trial steps before a capture do
    with nothing_from_the_host():
        step.body()
    assert {total.device.type for total in step.sums.values()} == {"cuda"}


def test_later_stages_are_all_listed(toy):
    found = {name: kinds(toy.method(name, **BANK.get(name, {}))) for name in TRAINED}
    assert sorted((name, k) for name, numbers in found.items() for k in numbers if k) == sorted(LATER)


TEACHER = {"teacher_model": "toy"}
STAGES = [(*case, None, False) for case in LATER] + [("simclrv2", k, TEACHER, False) for k in range(3)] + [("simclr", 1, None, True)]


@pytest.mark.parametrize(("name", "number", "options", "frozen"), STAGES)
@pytest.mark.filterwarnings("ignore:CUDA is not available")
def test_later_stages_need_nothing_of_the_host_either(on_cuda, nothing_from_the_host, name, number, options, frozen):
    """With networks of other sizes, and averages of networks that a stage holds still."""
    step = on_cuda(name, number=number, frozen=frozen, options=options, amp="off", optimizer="lars")
    step.body()
    with nothing_from_the_host():
        step.body()
    assert {total.device.type for total in step.sums.values()} == {"cuda"}


def test_the_trace_notices_what_a_capture_forbids(on_cuda, nothing_from_the_host):
    step = on_cuda("fixmatch")
    with pytest.raises(DataDependentOutputException):
        step.streak.item()
    with pytest.raises(AssertionError, match="copied from the host"), nothing_from_the_host():
        torch.tensor([1.0, 2.0], device="cuda") + step.streak
