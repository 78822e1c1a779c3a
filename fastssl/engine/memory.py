"""Memory: foreseen before a run, measured after it, and said in one sentence with a batch size that fits where it ran out.

Main memory is counted as what this process holds resident, a CUDA device's as what torch has allocated there.
"""

from __future__ import annotations

import contextlib
import os
import resource
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import environment
from ..config import TrainConfig
from ..methods.base import Method, Stage
from ..models import Network
from ..pipelines.batch import Views
from ..pipelines.errors import ResourceError
from .ledger import Shapes, evaluation_bytes, step_bytes
from .step import AMP_TYPES
from .update import trainable
from .updates import each_of

STATES = {"sgd": 1, "adamw": 2, "lars": 1}  # tensors of a weight's shape that an optimiser keeps (sgd: with momentum)
SPARE = 0.2  # share of memory left to what is not foreseen: libraries' workspaces, pieces too small to serve
EVALUATED = 512  # images at once, see sweep.logits_of


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak of an eager step, as a line over the labelled samples that one draw brings (with their unlabelled ones).

    The line goes through this draw and one twice as large. What makes the views, the loss's own rows and libraries' workspaces are
    not in it.
    """

    device: str
    rows: int  # labelled images (or texts) a draw
    fixed: int  # weights, gradients, optimiser, averages, samples held, what the process or device held before
    per_row: int  # a labelled sample and its unlabelled ones: their views, and what the backward pass keeps of them
    evaluation: int  # what evaluating takes beside weights
    after: int = 0  # gradients and the way of averages, at the end of a step, where they are more than what the fixed part has of them
    captured: bool = False  # a captured step's memory stays its own, and evaluation needs more beside it
    sample: str = "image"  # or "text", in words for people

    @property
    def peak(self) -> int:
        step = max(self.per_row * self.rows, self.after)
        return self.fixed + (step + self.evaluation if self.captured else max(step, self.evaluation))

    def rows_in(self, room: int, *, evaluating: bool = False) -> int:
        """Labelled samples a draw that `room` bytes hold, `SPARE` left over, rounded down; 0 where the fixed part alone is too much."""
        left = int(room * (1 - SPARE)) - self.fixed - (self.evaluation if evaluating or self.captured else 0)
        return max(0, left // max(1, self.per_row)) if left >= self.after else 0

    def evaluates(self, room: int) -> bool:
        """Whether evaluation fits, which no batch size changes."""
        return self.fixed + self.evaluation <= room * (1 - SPARE)

    def fits(self, room: int) -> bool:
        return self.peak <= room * (1 - SPARE)

    def said(self) -> str:
        what = "allocated" if self.device != "cpu" else "resident"
        return f"about {told(self.peak)} {what} at the peak ({told(self.fixed)} fixed, {told(self.per_row)} a labelled {self.sample})"


def foresee(
    method: Method, train: TrainConfig, *, views: Views, image: tuple[int, ...], rows: int, tested: int = EVALUATED, held: int = 0
) -> Memory:
    """The peak of a run's most demanding stage, with the optimisers of those before it, by following its networks with tensors that have
    shapes and no values.

    Args:
        method: on its device, which tells what is held already. It is left in its first stage.
        views: of a draw. image: [C, H, W] of one; of texts [L] of the longest.
        rows: labelled samples a draw.
        tested: samples of the test part.
        held: bytes of optimiser state that are allocated already.

    Raises:
        Exception: whatever a network raises that cannot be followed without values.
    """
    device = next(method.parameters()).device
    amp = AMP_TYPES.get(train.amp)
    base = allocated(device) - held + size_of(method.buffers())  # a step keeps a copy of buffers, to undo itself
    states = 0 if train.optimizer == "sgd" and train.momentum == 0 else STATES[train.optimizer]
    networks = [module for module in method.modules() if isinstance(module, Network)]
    found: list[Memory] = []
    taken: dict[tuple, list[int]] = {}  # what trains -> bytes of a step with the rows, and with twice as many
    kinds: set[tuple] = set()
    resting = 0  # optimiser state so far: each kind of stage keeps its own to the run's end
    sample = "text" if len(image) == 1 else "image"
    captured = device.type == "cuda" and train.step_mode in ("auto", "graph")
    evaluation = evaluation_bytes(method.judged(), min(EVALUATED, tested), image, device, amp) if tested else 0
    for stage in stages(method, train.steps):
        if stage.kind in kinds:
            continue
        kinds.add(stage.kind)
        method.enter(stage)
        named = trainable(method, stage)
        weights = size_of(p for _, p in named)
        resting += states * weights
        # On CUDA averages go by a copy of all differences; on the CPU each goes in place.
        pairs = [pair for one in method.averages() for pair in zip(one.average.parameters(), one.source.parameters(), strict=True)]
        moved = size_of(average for average, source in pairs if source.requires_grad) if device.type == "cuda" else 0
        key = (stage.views, *sorted(name for name, _ in named))
        if key not in taken:
            trained = [network for network in networks if any(p.requires_grad for p in network.parameters())]
            sizes = [
                Shapes(stage.views or views, count, train.ratio, image, device, amp, method.weak_pass == "separate")
                for count in (rows, 2 * rows)
            ]
            taken[key] = [sum(step_bytes(network, size) for network in trained) for size in sizes]
        per_row = (taken[key][1] - taken[key][0]) // rows
        still = max(0, taken[key][0] - per_row * rows)  # of a step whatever the batch
        fixed = max(0, base + resting + still)
        found.append(Memory(str(device), rows, fixed, per_row, evaluation, max(0, weights + moved - still), captured, sample))
    method.enter(next(stages(method, train.steps)))
    return max(found, key=lambda memory: (memory.peak, memory.per_row))  # where evaluation is the peak, stages are alike in it


def stages(method: Method, steps: int) -> Iterator[Stage]:
    k = 0
    while (stage := method.stage(k, steps)) is not None:
        yield stage
        k += 1


def begin(run: Any) -> Memory | None:
    """Says a Run's memory at its start, and starts measuring it. None where the network cannot be followed, which is said too."""
    device = run.parts.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    updates = [one for step in run.rounds.made.values() for one in each_of(step.update)]
    states = [state for one in updates for state in one.optimizer.state.values()]
    optimizer = [value for state in states for value in state.values() if isinstance(value, Tensor)]
    try:
        found = foresee(
            run.method,
            run.config.train,
            views=run.method.asks(run.method.config),
            image=tuple(run.pipeline.spec.shape),
            rows=run.pipeline.batch_size,
            tested=len(run.parts.split.test),
            held=size_of(optimizer),
        )
    except Exception as error:
        reason = str(error).strip().splitlines() or ["no reason given"]
        run.reporter.say(f"memory: not foreseen, as this network cannot be followed without values ({type(error).__name__}: {reason[0]})")
        return None
    finally:
        run.method.enter(run.stage)
    space = room(device)
    run.reporter.say(f"memory: {found.said()}" + (f" of {told(space)} that {device} has for it" if space is not None else ""))
    if space is not None and not found.fits(space):
        run.reporter.warn(f"this run will hardly fit into memory: {mend(found, run.config.train, space)}")
    return found


def end(run: Any) -> int:
    """The measured peak of a Run in bytes, said in its log."""
    size, kind = peak(run.parts.device)
    where = f"allocated on {run.parts.device}" if kind == "cuda" else "resident in this process, all that it did counted"
    run.reporter.say(f"memory: {told(size)} at the peak ({where})")
    return size


@contextlib.contextmanager
def guarded(run: Any, doing: str) -> Iterator[None]:
    """Turns running out of memory within it into one sentence (ResourceError). `doing`: "preparing", "training" or "evaluating"."""
    try:
        yield
    except Exception as error:
        if not out_of_memory(error):
            raise
        device, found = run.parts.device, run.memory
        where = f"out of memory on {device} while {doing}, after step {run.done}"
        space = room(device)
        if found is None or space is None:
            raise ResourceError(f"{where}; take a smaller --batch-size or --ratio, or --set train.accumulate=2") from error
        raise ResourceError(f"{where}: {mend(found, run.config.train, space, failed=True, evaluating=doing == 'evaluating')}") from error


def mend(found: Memory, train: TrainConfig, space: int, *, failed: bool = False, evaluating: bool = False) -> str:
    """What would fit into `space` bytes, in words.

    Args:
        failed: this batch size did not fit, whatever the estimate says.
        evaluating: it was evaluation that did not.
    """
    if evaluating or (not failed and found.fixed <= space * (1 - SPARE) and not found.evaluates(space)):
        takes = told(found.fixed + found.evaluation)
        return (
            f"evaluating up to {EVALUATED} {found.sample}s at once takes about {takes} of {told(space)}, whatever the batch; "
            f"take a smaller --model or {'data.max_length' if found.sample == 'text' else '--size'}, or --amp bf16"
        )
    parts = f"{told(found.fixed)} fixed and {told(found.per_row)} a labelled {found.sample}, of {told(space)}"
    fit = found.rows_in(space, evaluating=evaluating)
    if fit >= found.rows and failed:
        fit = found.rows // 2
    if fit < 1:
        return f"not even --batch-size 1 would fit ({parts}); take a smaller --model, a smaller --ratio or --amp bf16"
    pieces = max(1, train.batch_size // found.rows)  # draws of a step
    least = -(-train.batch_size // fit)
    split = next((k for k in range(least, train.batch_size + 1) if train.batch_size % k == 0), train.batch_size)
    keep = f"--set train.accumulate={split} keeps the batch of {train.batch_size}"
    return f"--batch-size {fit * pieces} would fit ({parts}), and {keep}"


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that main memory or a device's memory is full. torch's CPU allocator raises a bare RuntimeError."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(
        words in str(error) for words in ("can't allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
    )


def allocated(device: torch.device) -> int:
    """Bytes held now: by torch on a CUDA device, or resident in this process."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # no /proc: the most so far is the nearest that is known
        return peak(device)[0]


def peak(device: torch.device) -> tuple[int, str]:
    """The most bytes held, and where: ("cuda") allocated by torch since the run began, ("resident") in this process since it began."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device), "cuda"
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return (most if sys.platform == "darwin" else most * 1024), "resident"  # Linux counts in KiB


def room(device: torch.device) -> int | None:
    """Bytes that this process may hold in all, what it holds already counted in; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    host = environment.memory()
    return None if host is None else host[1] + allocated(device)


def size_of(tensors: Any) -> int:
    """Bytes of tensors, each counted once."""
    return sum(tensor.nbytes for tensor in {id(tensor): tensor for tensor in tensors}.values())


def told(size: float) -> str:
    """1610612736 -> "1.50 GiB", 3145728 -> "3.0 MiB"."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
