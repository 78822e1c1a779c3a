"""A Step of a tiny method on batches that a stand-in pipeline makes up, for tests of the step itself."""

from types import SimpleNamespace

import pytest
import torch

from fastssl.config import TrainConfig
from fastssl.engine.putback import written
from fastssl.engine.step import Step
from fastssl.engine.update import Update
from fastssl.methods import find
from fastssl.methods.base import Method
from fastssl.pipelines.batch import Batch, DataSpec, Views
from fastssl.schedules import Clock

ACTIVE = {"fixmatch": {"threshold": 0.0}, "finessl": {"threshold": 0.0}}  # so that a made-up batch has pseudo-labels that count
IMAGE, CLASSES, ROWS, LABELLED, UNLABELLED = (3, 3, 3), 5, 40, 4, 6


class Made:
    """A pipeline of made-up batches: batch k is a function of k alone, copied into buffers that stay where they are."""

    capturable = True

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
        )

    def fill(self, k: int) -> None:
        """Batch k into the buffers, from outside a step."""
        for to, value in zip(tensors(self.batch), tensors(self.fresh(k)), strict=True):
            to.copy_(value)

    def draw(self) -> Batch:
        if self.options["device"] == "cpu":
            self.fill(int(self.place))
        self.place += 1
        return self.batch

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"place": self.place.clone()}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self.place.copy_(state["place"])


def tensors(batch: Batch) -> list[torch.Tensor]:
    return [t for field in batch for t in (field if isinstance(field, tuple) else (field,))]


def spec() -> DataSpec:
    return DataSpec("toy", tuple("abcde"), IMAGE, rows=ROWS, unlabelled=ROWS - 8)


def step_of(toy, name, *, network=None, device="cpu", dtype=torch.float64, ema=0.9, total=100, **train):
    """A Step of the method (by name, or one already made) with a tiny network, ready to run eagerly."""
    if isinstance(name, Method):
        method = name
    else:
        kind = find(name)
        network = toy.network() if network is None else network
        method = kind(kind.Config(**ACTIVE.get(name, {})), network, spec(), unlabelled_batch=UNLABELLED, ema=ema)
    method = method.to(device=device, dtype=dtype).train()
    config = TrainConfig(**{"lr": 0.1, **train})
    update = Update(method, method.stage(0, total), config, scaled=config.amp == "fp16")
    return Step(method, Made(method.views_of(method.config), device, dtype), update, Clock(total, 0, torch.device(device)), config)


def everything(step):
    """Copies of all that a step writes."""
    return [t.detach().clone() for t in written(step)]


@pytest.fixture
def steps():
    """The makers above, as one namespace."""
    return SimpleNamespace(step_of=step_of, everything=everything, tensors=tensors, Made=Made)
