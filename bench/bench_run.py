"""Whole runs, data included: steps a second of `fastssl train`'s own Run against the published practice with Pillow in worker processes.

`pytest bench/bench_run.py --benchmark-only`. Both train on the same images: ours reads them from a folder of PNG files once and draws its
views on the device; the peer holds them in memory and makes each view by Pillow, one image at a time. Turn by turn in one process: a peer
starts its workers, takes a few steps until they run steadily, is timed over the next ones, and ends its workers; then ours is timed.
Evaluation and checkpoints are left out of both. Before anything is timed the views of both must have the shapes, means and deviations of
one another.

| row | run | peers |
|---|---|---|
| fixmatch_wrn282_run_cpu | 16 + 112 + 112, bf16 | `published`, fp32, 2 workers a loader |
| fixmatch_wrn282_run_cuda | 64 + 448 + 448, bf16, joint | `published` in fp32, `published_bf16`, each with 8 workers a loader |
| fixmatch_wrn282_separate_run_cuda | the same with the weak views apart | the same |
| finessl_vitb16_run_cuda | 32 + 3 x 32 of 32 pixels shown at 224, bf16 | `shipped` in fp16: no workers; `repaired`: 8 workers, pinned |

Steps of one row are `steps_a_round`; `ours_ms` is a step's time with its data, `ours_steps_per_second` its inverse.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from bench import step_rows
from bench._timing import Machine
from bench.bench_pipelines import photographs
from bench.peers import finessl as finessl_peer
from bench.peers.fixmatch import Published
from bench.peers.loaders import Fed
from bench.view_peers import Work
from fastssl.config import resolve
from fastssl.engine.assemble import assemble
from fastssl.engine.run import Run
from fastssl.methods import find
from fastssl.pipelines.batch import Batch
from fastssl.presets import finessl as finessl_preset
from fastssl.presets import fixmatch as fixmatch_preset

CLASSES, LABELS = 10, 4


def write_folder(folder: Path, images: np.ndarray, labels: np.ndarray) -> None:
    """One PNG file an image, under its class."""
    from PIL import Image

    for c in sorted(set(labels.tolist())):
        (folder / f"class_{c}").mkdir(parents=True)
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        Image.fromarray(image.transpose(1, 2, 0)).save(folder / f"class_{label}" / f"{i:05d}.png")


def our_run(method: str, recipe: dict[str, Any], folder: Path, device: str, options: dict[str, Any]) -> Run:
    """A Run of a preset's recipe on the folder in bf16, ready for its first step."""
    given = {"data.name": str(folder), "data.labels_total": None, "data.labels_per_class": LABELS, "data.sampling": "balanced"}
    given |= {"train.device": device, "train.amp": "bf16", "train.steps": 100_000, "model.normalise": "data", **options}
    config = resolve(method, find(method).Config, [("preset", recipe), ("bench", given)])
    run = Run(assemble(config, quiet=True), None, quiet=True)
    run.method.train()
    run.prepare()
    return run


def steps_of(run: Run, count: int) -> Callable[[], None]:
    """`count` steps as Run takes them, its reports' readings among them."""
    every = run.config.train.report_every

    def call() -> None:
        for _ in range(count):
            run.step()
            run.done += 1
            if run.done % every == 0:
                run.step.read()

    return call


def check_views(ours: Callable[[], Batch], theirs: Callable[[], Batch], least: int = 64) -> None:
    """Raises AssertionError unless both draw the same shapes, and views of `least` unlabelled images alike in mean and deviation."""
    mine, other = ours(), theirs()
    for field, value in mine._asdict().items():
        pairs = zip(value, getattr(other, field), strict=True) if isinstance(value, tuple) else [(value, getattr(other, field))]
        assert all((a.shape, a.dtype) == (b.shape, b.dtype) for a, b in pairs), field
    more = -(-least // len(mine.unlabelled_index)) - 1
    drawn = [[first, *(draw() for _ in range(more))] for draw, first in ((ours, mine), (theirs, other))]
    for view in range(len(mine.unlabelled)):
        a, b = (torch.cat([batch.unlabelled[view] for batch in batches]).double() for batches in drawn)
        assert abs(float(a.mean() - b.mean())) < 0.5 * float(b.std()), f"view {view}: means {a.mean():.2f} and {b.mean():.2f}"
        assert 0.7 < float(a.std() / b.std()) < 1.4, f"view {view}: deviations {a.std():.2f} and {b.std():.2f}"


class Plan(NamedTuple):
    """How long a row is measured, and on what."""

    sizes: tuple[int, int]  # labelled and unlabelled samples a step
    workers: int  # processes of each of a peer's loaders
    rounds: int
    steps: int  # timed in each round
    skip: int  # a peer's steps before those, until its workers run steadily
    images: int = 2000


def take_turns(benchmark: Any, machine: Machine, run: Run, peers: dict[str, Fed], plan: Plan, goals: dict[str, float]) -> None:
    """Times steps of every peer and of ours in turns."""
    rounds, steps, skip = plan.rounds, plan.steps, plan.skip
    ours = steps_of(run, steps)
    times: dict[str, list[float]] = {"ours": [], **{name: [] for name in peers}}
    for peer in peers.values():
        peer.open()
        check_views(run.pipeline.draw, peer.draw)
        peer.close()
    steps_of(run, skip)()

    def before_ours() -> None:
        for name, peer in peers.items():
            peer.open()
            for _ in range(skip):
                peer()
            times[name].append(step_rows.seconds(machine, peer, steps))
            peer.close()

    def measured() -> None:
        times["ours"].append(step_rows.seconds(machine, ours) / steps)

    benchmark.pedantic(measured, setup=before_ours, rounds=rounds, iterations=1, warmup_rounds=0)
    assert run.step.read().get("skipped", 0.0) == 0.0, "our run skipped steps: loss or gradient was not finite"
    info = benchmark.extra_info
    step_rows.note(info, times, goals)
    for name in times:
        info[f"{name}_steps_per_second"] = 1e3 / info[f"{name}_ms"]
    info.update(rounds=rounds, steps_a_round=steps, threads=torch.get_num_threads(), tf32=step_rows.tf32(machine), mode=run.step.mode)


def data(folder: Path, size: int, resize: int, pad: int, images: int) -> tuple[Work, np.ndarray, np.ndarray]:
    """Images of 32 pixels, written to the folder too; the label of each; the labelled rows."""
    work = Work(photographs(images, 32), (), size, resize, pad, 16)
    labels = np.arange(images) % CLASSES
    write_folder(folder, work.images, labels)
    return work, labels, np.arange(CLASSES * LABELS)


def fixmatch(
    benchmark: Any,
    machine: Machine,
    folder: Path,
    plan: Plan,
    forms: dict[str, dict[str, Any]],
    *,
    network: str = "wrn-28-2",
    weak_pass: str = "joint",
    goals: dict[str, float],
) -> None:
    """FixMatch's whole run. `network`: a name of ours; `forms`: peer -> options of its step."""
    made = data(folder, 32, 32, 4, plan.images)
    recipe = fixmatch_preset.recipe("folder", CLASSES * LABELS, network=network)
    batch, ratio = plan.sizes[0], plan.sizes[1] // plan.sizes[0]
    options = {"train.batch_size": batch, "train.ratio": ratio, "train.weak_pass": weak_pass, "data.size": 32}
    run = our_run("fixmatch", recipe, folder, str(machine.device), options)
    first, source = run.pipeline.draw(), run.parts.source
    steps = {name: Published(run.method.network, first, threshold=0.95, lr=0.03, **form) for name, form in forms.items()}
    norm = (source.mean, source.std)
    peers = {name: Fed(step, *made, plan.sizes, norm, workers=plan.workers) for name, step in steps.items()}
    take_turns(benchmark, machine, run, peers, plan, goals)
    benchmark.extra_info.update(batch=f"{plan.sizes[0]}+{plan.sizes[1]}+{plan.sizes[1]}", weak_pass=weak_pass, workers=plan.workers)


def finessl(
    benchmark: Any,
    machine: Machine,
    folder: Path,
    plan: Plan,
    network: dict[str, Any],
    *,
    half: torch.dtype,
    size: int = 224,
    resize: int = 256,
    pad: int = 28,
    goals: dict[str, float],
) -> None:
    """FineSSL's whole run. `network`: model.* options of a timm vision transformer; `half`: dtype of the peers' weights."""
    made = data(folder, size, resize, pad, plan.images)
    recipe = finessl_preset.recipe("folder", LABELS, batch=plan.sizes[0])
    options = {"model.weights": "random", "data.size": size, "data.resize": resize, **network}
    run = our_run("finessl", recipe, folder, str(machine.device), options)
    first, source = run.pipeline.draw(), run.parts.source
    peers = {}
    for name, workers in (("shipped", 0), ("repaired", plan.workers)):
        step = finessl_peer.Published(run.method.network, first, classes=CLASSES, rows=plan.images, lr=0.03, half=half)
        pinned = machine.cuda and workers > 0
        norm = (source.mean, source.std)
        peers[name] = Fed(step, *made, plan.sizes, norm, strong=2, workers=workers, pinned=pinned, replay=True)
    take_turns(benchmark, machine, run, peers, plan, goals)
    benchmark.extra_info.update(batch=f"4 x {plan.sizes[0]}", workers=f"0 shipped, {plan.workers} repaired")


PUBLISHED: dict[str, dict[str, Any]] = {"published": {}}
BOTH = {**PUBLISHED, "published_bf16": {"amp": torch.bfloat16, "channels_last": True}}
VIT = {"model.name": "timm:vit_base_patch16_224"}
CPU = Plan((16, 112), workers=2, rounds=3, steps=3, skip=1)
CUDA = Plan((64, 448), workers=8, rounds=3, steps=100, skip=25)

Row = Callable[[Any, Machine, Path], None]
ROWS: dict[str, Row] = {
    "fixmatch_wrn282_run_cpu": partial(fixmatch, plan=CPU, forms=PUBLISHED, goals={}),
    "fixmatch_wrn282_run_cuda": partial(fixmatch, plan=CUDA, forms=BOTH, goals={"published": 5.0}),
    "fixmatch_wrn282_separate_run_cuda": partial(
        fixmatch, plan=CUDA, forms=BOTH, weak_pass="separate", goals={"published": 6.0, "published_bf16": 3.5}
    ),
    "finessl_vitb16_run_cuda": partial(
        finessl, plan=CUDA._replace(sizes=(32, 32), steps=40), network=VIT, half=torch.float16, goals={"shipped": 10.0, "repaired": 2.2}
    ),
}


@pytest.mark.parametrize("row", ROWS)
def bench_run(benchmark: Any, row: str, tmp_path: Path) -> None:
    device = row.rpartition("_")[2]
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip(f"{row} is a row for a GPU, and torch sees no CUDA device here")
    ROWS[row](benchmark, Machine(device), tmp_path / "images")
