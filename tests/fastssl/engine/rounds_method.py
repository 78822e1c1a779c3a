"""A method in rounds for the tests of the engine: two networks in turn, epochs that go on, two updates a step, an early end."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fastssl.config import option
from fastssl.kernels import cross_entropy
from fastssl.methods.base import Method, Stage, Terms
from fastssl.methods.bricks.options import MethodOptions
from fastssl.models import Report
from fastssl.pipelines.batch import Views


class InTurn(Method):
    """Epochs of three steps: the first network, then the second; or both in one step."""

    @dataclass(frozen=True)
    class Config(MethodOptions):
        ends: int = option(0, "the round whose preparation ends the run; 0: none")
        both: bool = option(False, "both networks in one step")
        poison: int = option(-1, "the step whose second loss is no number")
        alone: bool = option(False, "the first network in every epoch")
        model: str = option("", "model of the second network")

    summary = "two networks in turn"
    paper = "none"
    views = Views(labelled=("weak",))

    def __init__(self, config, network, spec, *, second=None, **options):
        super().__init__(config, network, spec, **options)
        self.second = second
        self.register_buffer("ended", torch.zeros((), dtype=torch.bool))
        self.now = "network"

    @classmethod
    def others(cls, config):
        return {"second": config.model}

    def judges(self):
        return ("network", "second")

    def stage(self, k, steps):
        if self.config.both:
            return Stage(steps, name="both", parts=(("network",), ("second",))) if k == 0 else None
        if k == 0:
            return Stage(2, networks=("network",), name="begin")
        if 3 * k > steps or (self.ended and k >= self.config.ends):
            return None
        name = ("second", "network")[k % 2] if not self.config.alone else "network"
        return Stage(3, networks=(name,), name=name, goes_on=k > 2, schedule=steps)

    def prepare(self, k, look):
        if k and k == self.config.ends:
            self.ended.fill_(True)
        return Report(notes=[f"round {k}"], values={"rows": float(len(look("labelled")[0]))} if k else {})

    def enter(self, stage):
        super().enter(stage)
        self.now = stage.name if stage.name in ("network", "second") else "network"

    def loss(self, batch, clock):
        network = self.second if self.now == "second" else self.network
        return Terms(cross_entropy(network(batch.labelled[0]).logits, batch.label).mean())

    def step(self, batch, clock, update):
        if not self.config.both:
            return super().step(batch, clock, update)
        first, second = (cross_entropy(n(batch.labelled[0]).logits, batch.label).mean() for n in (self.network, self.second))
        update(first, 0)
        second = torch.where(clock.step == self.config.poison, torch.nan, second)
        update(second, 1, torch.zeros(()))
        return Terms(first.detach() + second.detach())
