"""What must hold of the captured step before it is timed: checks on a device, each on whole runs of small networks.

On a CPU `compile` stands for `graph`, so that the checks themselves can be tested there.
"""

from __future__ import annotations

import importlib.util
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastssl.engine.run import Run
from fastssl.presets import finessl as finessl_preset
from fastssl.presets import fixmatch as fixmatch_preset

from ._timing import Machine
from .bench_pipelines import photographs
from .bench_run import our_run, write_folder
from .gpu_checks import Outcome, Skip
from .step_rows import ieee

STEPS, IMAGES, CLASSES = 20, 80, 4
# A rate at which 20 steps are no chaos: at 0.03 a difference in the last bit of a weight doubles with every step.
SMALL = {"train.batch_size": 8, "train.ratio": 1, "data.size": 32, "train.amp": "off", "train.lr": 1e-4}
VIT = {"model.name": "timm:vit_tiny_patch16_224", "model.img_size": 32, "model.patch_size": 8, "model.prompts": 4}


class Bench:
    """A folder of images, and runs on it."""

    def __init__(self, device: torch.device, folder: Path):
        self.device, self.folder = device, folder
        self.captured = "graph" if device.type == "cuda" else "compile"
        write_folder(folder, photographs(IMAGES, 32), np.arange(IMAGES) % CLASSES)

    def run(self, method: str, mode: str, **options: Any) -> Run:
        """A run of the method on a small network, its first step not yet taken; twice the same where it is asked for twice."""
        given = {**SMALL, "train.step_mode": mode, **{key.replace("__", "."): value for key, value in options.items()}}
        if method == "fixmatch":
            given = {"method.threshold": 0.3, **given}  # the network is untrained: some rows are kept, some not
            return our_run(method, fixmatch_preset.recipe("folder", 4 * CLASSES), self.folder, str(self.device), given)
        vit = {**VIT, "model.weights": "random", "data.resize": 36}
        return our_run(method, finessl_preset.recipe("folder", 4), self.folder, str(self.device), {**vit, **given})


def weights_after(run: Run, steps: int | None = None) -> list[torch.Tensor]:
    for _ in range(STEPS if steps is None else steps):
        run.step()
    assert (run.step.read().get("skipped") or 0.0) == 0.0, "a step was skipped: its loss or gradient was not finite"
    return [p.detach().clone() for p in run.method.parameters()]


def apart(a: list[torch.Tensor], b: list[torch.Tensor]) -> float:
    """Norm of the difference over the norm, of all weights together, in float64."""
    off = sum(float((x.double() - y.double()).square().sum()) for x, y in zip(a, b, strict=True))
    return (off / sum(float(y.double().square().sum()) for y in b)) ** 0.5


@contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def alike(bench: Bench, method: str, **options: Any) -> str:
    """20 captured and 20 eager steps from the same weights. Raises AssertionError unless they end alike."""
    first = bench.run(method, "eager", **options)
    start = [p.detach().clone() for p in first.method.parameters()]
    eager, captured = weights_after(first), weights_after(bench.run(method, bench.captured, **options))
    off, moved = apart(captured, eager), apart(eager, start)
    assert moved > 0, f"{method}: {STEPS} steps moved no weight"
    told = f"{method}: captured and eager weights differ by {off:.1e} of their norm after {STEPS} steps, which moved them by {moved:.1e}"
    assert off <= 1e-5 and off <= 0.01 * moved, told
    return told


def captured_equals_eager(bench: Bench) -> str:
    """In fp32 the same weights up to 1e-5 of their norm, and up to 1 % of what the steps moved them by."""
    return "; ".join(alike(bench, method) for method in ("fixmatch", "finessl"))


def captured_equals_compiled_bitwise(bench: Bench) -> str:
    """Under deterministic algorithms the graph replays to the last bit what the host launches: the same compiled step."""
    with deterministic(bench.device):
        for method in ("fixmatch", "finessl"):
            plain, captured = (weights_after(bench.run(method, mode)) for mode in ("compile", bench.captured))
            differing = sum(not torch.equal(x, y) for x, y in zip(captured, plain, strict=True))
            assert not differing, f"{method}: {differing} of {len(plain)} weights differ"
    return f"fixmatch and finessl, {STEPS} steps"


def replays_differ(bench: Bench) -> str:
    """Each replay draws other images: what was random is not frozen into the graph."""
    run = bench.run("fixmatch", bench.captured)
    losses = []
    for _ in range(5):
        run.step()
        losses.append(run.step.read()["loss"])
    assert len(set(losses)) == 5, f"losses of five steps: {losses}"
    return f"{min(losses):.3f} to {max(losses):.3f}"


def no_recompilation(bench: Bench) -> str:
    """After the first steps nothing is compiled any more."""
    for method in ("fixmatch", "finessl"):
        run = bench.run(method, "compile")
        with torch.compiler.set_stance("fail_on_recompile"):
            weights_after(run, 5)
    return "fixmatch and finessl, 5 steps"


def no_host_sync(bench: Bench) -> str:
    """No mode of the step waits for the device."""
    if bench.device.type != "cuda":
        raise Skip("torch watches for synchronisation on CUDA alone")
    for method in ("fixmatch", "finessl"):
        for mode in ("eager", "compile", "graph"):
            run = bench.run(method, mode)
            weights_after(run, 2)
            torch.cuda.set_sync_debug_mode("error")
            try:
                for _ in range(3):
                    run.step()
            finally:
                torch.cuda.set_sync_debug_mode("default")
    return "fixmatch and finessl: eager, compile, graph"


def dali_by_copy(bench: Bench) -> str:
    """Batches that DALI's threads decode reach the captured step through static buffers: the same weights as eagerly."""
    if importlib.util.find_spec("nvidia.dali") is None:
        raise Skip("NVIDIA DALI is not installed")
    return alike(bench, "fixmatch", data__pipeline="dali")


CHECKS: tuple[Callable[[Bench], str], ...] = (
    captured_equals_eager,
    captured_equals_compiled_bitwise,
    replays_differ,
    no_recompilation,
    no_host_sync,
    dali_by_copy,
)


def run_checks(machine: Machine, wanted: Callable[[str], bool], left: Callable[[], bool]) -> Iterator[Outcome]:
    """Makes the checks whose names are wanted while there is time, one outcome after the other; none stops the next."""
    with tempfile.TemporaryDirectory() as folder, ieee(machine):
        bench = Bench(machine.device, Path(folder) / "images")
        for check in CHECKS:
            if not wanted(check.__name__):
                continue
            if not left():
                yield Outcome(check.__name__, "not run", "the time was out", 0.0)
                continue
            start = time.perf_counter()
            try:
                status, detail = "ok", check(bench)
            except Skip as why:
                status, detail = "skipped", str(why)
            except Exception as error:  # a broken capture may raise anything; the rest must still be checked
                status, detail = "failed", f"{type(error).__name__}: {error}"
            yield Outcome(check.__name__, status, detail[:2000], time.perf_counter() - start)
