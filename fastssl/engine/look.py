"""Between stages: a method looks at the data once, and the split that its memory then asks for is drawn from."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..models import Output, fp8
from ..pipelines.batch import Pipeline, Split
from ..pipelines.errors import DataError
from . import memory
from .step import AMP_TYPES

Reduce = Callable[[Output, Tensor, Tensor], Tensor | tuple[Tensor, ...]]


class Look:
    """What `Method.prepare` looks at the data with: a network in evaluation on one view of each of many rows, a piece at a time.

    Args:
        pipeline: whose rows are looked at.
        split: the run's own, as it was drawn. The rows of its test part are nobody's to look at.
        network: the judged network.
        amp: mixed precision, as evaluation has it.
    """

    def __init__(self, pipeline: Pipeline, split: Split, network: nn.Module, amp: torch.dtype | None = None):
        self.pipeline, self.split, self.network, self.amp = pipeline, split, network, amp

    def __call__(
        self,
        part: str | np.ndarray,
        network: nn.Module | None = None,
        view: str = "plain",
        reduce: Reduce | None = None,
        batch_size: int = 512,
    ) -> tuple[Tensor, ...]:
        """What `reduce` makes of each row, in the order of `part`. No [n, C] table is held unless `reduce` asks for it.

        Nothing is left behind: modes, gradients and random numbers are as they were. Hidden labels are not shown.

        Args:
            part: "labelled", "unlabelled" or "train" of the split that is in use, or [n] int64 rows in the order that is wanted.
            network: [n, ...] inputs -> Output; the judged one if None.
            view: a random one is keyed by the row: every look sees the same.
            reduce: (Output of [n, ...], at least fp32; [n] int64 labels, those that the split gives and -1 elsewhere; [n] int64 rows) -> a
                tensor [n, ...] or several; the logits if None.
            batch_size: rows at a time.

        Returns:
            [n] int64 rows, then what `reduce` gave, all on the run's device. Rows whose file is lost meanwhile are left out.

        Raises:
            ValueError: test rows, or no row. DataError: none of the rows can be read.
        """
        rows = part if isinstance(part, str) else np.asarray(part, np.int64)
        if isinstance(rows, str) and rows == "test" or not isinstance(rows, str) and np.isin(rows, self.split.test).any():
            raise ValueError("a method may not look at test rows; ask for labelled, unlabelled or train, or for other rows")
        network = self.network if network is None else network
        given = np.full(self.pipeline.spec.rows, -1, np.int64)
        given[self.split.labelled] = self.split.label
        pieces: list[tuple[Tensor, ...]] = []
        with _undisturbed(network), torch.no_grad(), fp8.plain(network):
            for inputs, _, index in self.pipeline.sweep(rows, batch_size, view):
                with torch.autocast(inputs.device.type, dtype=self.amp, enabled=self.amp is not None, cache_enabled=False):
                    out = network(inputs)
                out = Output(*(t.float() if t.dtype in (torch.bfloat16, torch.float16) else t for t in out))
                label = torch.from_numpy(given[index.cpu().numpy()]).to(index.device)
                found = out.logits if reduce is None else reduce(out, label, index)
                pieces.append((index, *(found if isinstance(found, tuple) else (found,))))
        if not pieces:
            count = len(getattr(self.pipeline.split, rows, ()) if isinstance(rows, str) else rows)
            if not count:
                raise ValueError("there is no row to look at")
            raise DataError(f"none of the {count} images that the method looks at can be read; bring their files back and resume")
        return tuple(torch.cat(column) for column in zip(*pieces, strict=True))


@contextlib.contextmanager
def _undisturbed(network: nn.Module) -> Iterator[None]:
    """The network in evaluation for a while; every module's own mode, and all random numbers, are put back."""
    modes = [(module, module.training) for module in network.modules()]
    devices = {p.device.index for p in network.parameters() if p.is_cuda}
    with torch.random.fork_rng(devices=sorted(devices)):
        try:
            network.eval()
            yield
        finally:
            for module, mode in modes:
                module.training = mode


def begin(run: Any, k: int) -> None:
    """`prepare` in a run that trains: its time is training time."""
    start = time.perf_counter()
    prepare(run, k)
    run.seconds += time.perf_counter() - start


def prepare(run: Any, k: int) -> None:
    """What happens once before stage k of a Run: the method prepares, what it has to say is said, and the split is its memory's."""
    look = Look(run.pipeline, run.parts.split, run.method.judged(), AMP_TYPES.get(run.config.train.amp))
    with memory.guarded(run, "evaluating"):
        said = run.method.prepare(k, look)
    run.rounds.begin(k, run.method.stage(k, run.total), said)
    for text in said.notes:
        run.reporter.say(text)
    for text in said.warnings:
        run.reporter.warn(text)
    take_split(run)


def take_split(run: Any) -> None:
    """The pipeline draws from the split that the method's memory asks for, in place: a captured step goes on to serve."""
    split = run.method.split_of(run.parts.split)
    if split is not run.pipeline.split:
        run.pipeline.use(split)
