"""The practice of USB (semilearn 0.3) around FixMatch's step, as its hooks have it: what it waits for, how it keeps averaged weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastssl.pipelines.batch import Batch

from .fixmatch import EMA, Published


class Practice(Published):
    """Views concatenated as they are, two waits for the device and four values asked of it a step, and averaged weights as a dictionary
    of shadows, loaded into a model after every step behind the trained ones. Its SGD runs by torch's default settings."""

    foreach = None

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self.shadow = {name: p.detach().clone() for name, p in self.network.named_parameters()}

    def __call__(self) -> None:
        self._wait()
        super().__call__()
        self._wait()

    def logits(self, batch: Batch) -> tuple[Tensor, ...]:
        (labelled,), (weak, strong) = batch.labelled, batch.unlabelled
        rows = self.network(torch.cat([labelled, weak, strong]).contiguous(memory_format=self.format)).logits
        return tuple(rows.split([len(labelled), len(weak), len(strong)]))

    @torch.no_grad()
    def average(self) -> None:
        for name, p in self.network.named_parameters():
            self.shadow[name] = ((1.0 - EMA) * p.detach() + EMA * self.shadow[name]).clone()
        self.ema.load_state_dict(self.network.state_dict())
        self.ema.load_state_dict(self.shadow, strict=False)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
