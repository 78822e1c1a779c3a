"""A Step of a tiny method on batches that a stand-in pipeline makes up, for tests of the step itself."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastssl.config import TrainConfig
from fastssl.engine import updates
from fastssl.engine.capture import WARM_UPS, Captured
from fastssl.engine.putback import put_back, written
from fastssl.engine.step import Step
from fastssl.methods import find
from fastssl.methods.base import Method
from fastssl.pipelines.batch import Batch, Views
from fastssl.schedules import Clock
from tests.fastssl.method_cases import ACTIVE

IMAGE, CLASSES, ROWS, LABELLED, UNLABELLED = (3, 3, 3), 5, 40, 4, 6


class Made:
    """A pipeline of made-up batches: batch k is a function of k alone, copied into buffers that stay where they are."""

    capturable = False

    def __init__(self, views: Views, device: str = "cpu", dtype: torch.dtype = torch.float64):
        self.views, self.place = views, torch.zeros((), dtype=torch.int64)
        self.options = {"device": device, "dtype": dtype}
        self.batch = self.fresh(0)

    def fresh(self, k: int) -> Batch:
        g = torch.Generator().manual_seed(k)

        def images(rows: int) -> torch.Tensor:
            return torch.randn(rows, *IMAGE, generator=g, dtype=torch.float64).to(**self.options)

        device = self.options["device"]
        return Batch(
            labelled=tuple(images(LABELLED) for _ in self.views.labelled),
            label=torch.randint(CLASSES, (LABELLED,), generator=g).to(device),
            weight=torch.ones(LABELLED, device=device),
            index=torch.arange(LABELLED, device=device),
            unlabelled=tuple(images(UNLABELLED) for _ in self.views.unlabelled),
            unlabelled_index=torch.randint(8, ROWS, (UNLABELLED,), generator=g).to(device),
            hidden_label=torch.randint(-1, CLASSES, (UNLABELLED,), generator=g).to(device),
            probe=(images(LABELLED), *self.operations(g)) if self.views.probe else (),
        )

    def operations(self, g: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Of a probe view: two of CTAugment's an image, and their levels."""
        op, level = torch.randint(19, (LABELLED, 2), generator=g), torch.rand(LABELLED, 2, 2, generator=g, dtype=torch.float64)
        return op.to(self.options["device"]), level.to(self.options["device"])

    def fill(self, k: int) -> None:
        """Batch k into the buffers, from outside a step."""
        for to, value in zip(tensors(self.batch), tensors(self.fresh(k)), strict=True):
            to.copy_(value)

    def draw(self) -> Batch:
        self.fill(int(self.place))
        self.place += 1
        return self.batch

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"place": self.place.clone()}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self.place.copy_(state["place"])


class Tape(TorchDispatchMode):
    """A recorder that freezes what a CUDA graph freezes, on any device: operations, addresses, and every number that Python handed over.

    A replay runs the recorded operations again on the tensors that they had, and writes their results where they lay. No line of the
    step's own code runs again. Passed to `Captured`, it stands for CudaRecorder.
    """

    def __init__(self, warm_ups: int = WARM_UPS):
        super().__init__()
        self.calls, self.replays, self.warm_ups = [], 0, warm_ups

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, out))
        return out

    def another(self):
        return Tape(self.warm_ups)

    def warm_up(self, run):
        for _ in range(self.warm_ups):
            run()

    def record(self, run):
        with self:
            run()

    @torch.no_grad()
    def replay(self):
        self.replays += 1
        for func, args, kwargs, out in self.calls:
            again = func(*args, **kwargs)
            for to, value in zip(tree_leaves(out), tree_leaves(again), strict=True):
                if isinstance(to, torch.Tensor) and to.data_ptr() != value.data_ptr():
                    to.copy_(value)


def eagerly(step, times=1):
    """Steps by their own code, under a Tape that nobody replays: what is on a tape takes the same ways through torch, to the last bit."""
    for _ in range(times):
        with Tape():
            step()


def captured(step, **options):
    """The Step, running by a Tape of itself; its state is as it was."""
    with put_back(step):
        run = Captured(step, Tape(**options))
    step.run = run
    return step


def tensors(batch: Batch) -> list[torch.Tensor]:
    return [t for field in batch for t in (field if isinstance(field, tuple) else (field,))]


def step_of(toy, name, *, network=None, device="cpu", dtype=torch.float64, ema=0.9, total=100, weak_pass="separate", **train):
    """A Step of the method (by name, or one already made) with a tiny network, ready to run eagerly."""
    if isinstance(name, Method):
        method = name
    else:
        kind = find(name)
        config = kind.Config(**ACTIVE.get(name, {}))
        network = toy.network() if network is None else network
        others = {key: copy.deepcopy(network) for key in kind.others(config)}
        method = kind(
            config,
            network,
            toy.spec(),
            unlabelled_batch=UNLABELLED,
            ema=ema,
            weak_pass=weak_pass,
            **toy.given(kind),
            **others,
        )
    method = method.to(device=device, dtype=dtype).train()
    config = TrainConfig(**{"lr": 0.1, **train})
    update = updates.made(method, method.stage(0, total), config, scaled=config.amp == "fp16")
    return Step(method, Made(method.asks(method.config), device, dtype), update, Clock(total, 0, torch.device(device)), config)


def everything(step):
    """Copies of all that a step writes."""
    return [t.detach().clone() for t in written(step)]


@pytest.fixture
def steps():
    """The makers above, as one namespace."""
    return SimpleNamespace(
        step_of=step_of, everything=everything, captured=captured, eagerly=eagerly, tensors=tensors, Made=Made, Tape=Tape
    )
