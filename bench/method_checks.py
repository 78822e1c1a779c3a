"""Captured equals eager for every method of the registry, over 20 steps of whole runs on small networks: checks for bench.gpu_steps.

One check a case, `captured_equals_eager_CASE`, so that one that fails hides no other. Besides the weights (step_checks.alike) the method's
memory must agree: banks, thresholds, running means. On a CPU `compile` stands for `graph`.
"""

from __future__ import annotations

import csv
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastssl.engine import look
from fastssl.engine.assemble import assemble
from fastssl.engine.run import Run
from fastssl.presets import finessl as finessl_preset
from fastssl.presets import fixmatch as fixmatch_preset

from . import step_checks
from ._timing import Machine
from .bench_run import our_run
from .gpu_checks import Outcome
from .method_cases import TRAINED
from .step_checks import CLASSES, IMAGES, SMALL, VIT, Bench
from .step_rows import ieee

NETWORKS = ("network.", "ema.", "teacher.", "average.")  # what starts so is no memory of the method's own
FEW = {"threshold": 0.3}  # the networks are untrained: some rows are kept, some not
# case -> method, options
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in TRAINED},
    "uda": ("uda", {**FEW, "tsa": "linear"}),
    **{name: (name, FEW) for name in ("fixmatch", "spl", "flexmatch", "adamatch", "comatch", "simmatch", "debiaspl", "layermatch")},
    "comatch_momentum": ("comatch", {**FEW, "momentum_encoder": True}),
    "simmatch_teacher": ("simmatch", {**FEW, "teacher_by": "network"}),
    "mixmatch_interleaved": ("mixmatch", {"forward": "interleaved"}),
    "remixmatch_interleaved": ("remixmatch", {"ctaugment": False, "forward": "interleaved"}),
    "layermatch_teacher": ("layermatch", {**FEW, "averaging": "teacher"}),
    "layermatch_outputs": ("layermatch", {**FEW, "averaging": "outputs"}),
    "self_training": ("self_training", {"threshold": 0.0, "loss": "zoph", "joint": "rotation"}),
    "noisy_student": ("noisy_student", {"threshold": 0.0}),
    "dividemix_first": ("dividemix", {}),
    "simclr_contrast": ("simclr", {}),
    "sentaugment": ("sentaugment", {"bank": "own", "retrieved": 50}),
    "simclrv2": ("simclrv2", {"fine_tune_from": 0}),  # the recipe names a linear head
    "zeromatch_distil": ("zeromatch", {"inner_options": "threshold=0.3"}),
    "zeromatch": ("zeromatch", {"inner_options": "threshold=0.3", "distil_share": 0.0}),
    "pl_feature": ("pl_feature", {"inner_options": "threshold=0.3"}),
}
BY_TRANSFORMER = ("finessl", "semikd")  # the others train a wide residual network


# case -> its stage, where it is not the first of the last kind
STAGE = {"zeromatch_distil": 0, "simclr_contrast": 0, "meta_pseudo_labels": 0, "dividemix_first": 2}


def last_kind(run: Run) -> int:
    """Number of the first stage of a kind after which no further kind comes."""
    found, k = {}, 0
    while (stage := run.method.stage(k, run.total)) is not None:
        found.setdefault(stage.kind, k)
        k += 1
    return max(found.values())


class Registry(Bench):
    """Runs of any case on the folder of images, with a file of foundation labels and a teacher beside it. Keeps the runs that it made."""

    def __init__(self, device: torch.device, folder: Path, *, network: str = "wrn-28-2"):
        super().__init__(device, folder)
        self.network, self.labels, self.teacher = network, folder.parent / "foundation.csv", folder.parent / "teacher"
        self.made: list[Run] = []
        with self.labels.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(("id", "label"))
            drawn = np.random.default_rng(0).integers(0, CLASSES, IMAGES)
            writer.writerows((f"class_{i % CLASSES}/{i:05d}.png", f"class_{c}") for i, c in enumerate(drawn))

    def run(self, method: str, mode: str, **options: Any) -> Run:
        """A run of a case. `method`: one of CASES."""
        name, own = CASES[method]
        transformer = name in BY_TRANSFORMER
        recipe = finessl_preset.recipe("folder", 4) if transformer else fixmatch_preset.recipe("folder", 4 * CLASSES, network=self.network)
        given = {"train.step_mode": mode, **{f"method.{key}": value for key, value in own.items()}}
        given |= {key.replace("__", "."): value for key, value in options.items()}
        if name in ("zeromatch", "pseudo_supervision", "pl_feature"):
            given["data.foundation_labels"] = str(self.labels)
        if name == "remixmatch" and own.get("ctaugment", True):
            given["data.policy"] = "ctaugment"
        if name == "semikd":
            self.teach()
            given["method.teacher"] = str(self.teacher)
        plain = {key: value for key, value in recipe.items() if not key.startswith("method.")} | {"method.name": name}
        small = {**VIT, "model.weights": "random", "data.resize": 36} if transformer else {}
        run = our_run(name, plain, self.folder, str(self.device), {**SMALL, **small, **given})
        number = STAGE.get(method, last_kind(run))
        torch.manual_seed(0)  # as a run begins; heads may be drawn anew between stages
        for k in range(number + 1 if number else 0):  # a later stage's samples are chosen before it
            look.prepare(run, k)
        if number:
            run.set_up(run.method.stage(number, run.total))
        self.made = [*self.made[-1:], run]
        return run

    def teach(self) -> None:
        """Makes the finished run that teaches: FineSSL, two steps."""
        if self.teacher.exists():
            return
        given = {**SMALL, **VIT, "model.weights": "random", "data.resize": 36, "train.steps": 2, "train.step_mode": "eager"}
        parts = our_run("finessl", finessl_preset.recipe("folder", 4), self.folder, str(self.device), given).config
        Run(assemble(parts, quiet=True), self.teacher, quiet=True).train()


def memory(run: Run) -> dict[str, torch.Tensor]:
    """The method's own buffers: banks, thresholds, running means."""
    return {name: value.clone() for name, value in run.method.named_buffers() if not name.startswith(NETWORKS)}


def captured_equals_eager(bench: Registry, case: str) -> str:
    """Raises AssertionError unless weights and memory end alike after captured and eager steps."""
    told = step_checks.alike(bench, case)
    eager, captured = (memory(run) for run in bench.made)
    for name, value in eager.items():
        other = captured[name]
        if value.is_floating_point():
            assert torch.allclose(other, value, rtol=1e-3, atol=1e-5), f"{case}: {name} differs by up to {(other - value).abs().max():.1e}"
        else:
            # A confidence at the threshold may fall on either side of it.
            differing = int((other != value).sum())
            assert differing <= 0.02 * value.numel() + 1, f"{case}: {differing} of {value.numel()} entries of {name} differ"
    return f"{told}; memory of {len(eager)} buffers agrees"


CHECKS: dict[str, Callable[[Registry], str]] = {
    f"captured_equals_eager_{case}": partial(captured_equals_eager, case=case) for case in CASES
}


def run_checks(machine: Machine, wanted: Callable[[str], bool], left: Callable[[], bool]) -> Iterator[Outcome]:
    """Makes the checks whose names are wanted while there is time, one outcome after the other; none stops the next."""
    chosen = [name for name in CHECKS if wanted(name)]
    if not chosen:
        return
    with tempfile.TemporaryDirectory() as folder, ieee(machine):
        bench = Registry(machine.device, Path(folder) / "images")
        for name in chosen:
            if not left():
                yield Outcome(name, "not run", "the time was out", 0.0)
                continue
            start = time.perf_counter()
            try:
                status, detail = "ok", CHECKS[name](bench)
            except Exception as error:  # a broken capture may raise anything; the rest must still be checked
                status, detail = "failed", f"{type(error).__name__}: {error}"
            yield Outcome(name, status, detail[:2000], time.perf_counter() - start)
            bench.made.clear()
            torch._dynamo.reset()  # all methods share one base, of whose code the compiler keeps a few forms
