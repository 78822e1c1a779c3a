"""What a run says before it begins."""

from __future__ import annotations

from typing import Any

import torch

from ..environment import compiler, mend_build_tools
from .update import trainable


def announce(run: Any) -> None:
    """The lines that open a run: data, network, what was decided, what to beware of."""
    c, split = run.config, run.parts.split
    run.reporter.say(
        f"{c.method_name} on {c.data.name}: {len(split.labelled)} labelled, {len(split.unlabelled)} unlabelled, "
        f"{len(split.test)} test {run.parts.source.samples}, {len(run.parts.source.classes)} classes"
    )
    run.reporter.say(f"{c.model.name}, {trained(run)}, {run.parts.device}, amp {c.train.amp}, {torch.get_num_threads()} threads")
    for note in run.parts.notes:
        run.reporter.say(note)
    for warning in run.parts.warnings:
        run.reporter.warn(warning)
    if compiler() is None:
        run.reporter.warn(mend_build_tools())


def trained(run: Any) -> str:
    """How many weights train; stage after stage where there are several."""
    counts: dict[tuple[str, int], list[int]] = {}  # stages alike are told of once, where the first of them stands
    k = 0
    while (stage := run.method.stage(k, run.total)) is not None:
        run.method.enter(stage)
        counts.setdefault((stage.name, sum(p.numel() for _, p in trainable(run.method, stage))), []).append(stage.steps)
        k += 1
    if not counts:
        return "nothing trains"
    run.method.enter(run.stage)
    if k == 1:
        return f"{next(iter(counts))[1]:,} trained weights"
    told = []
    for (name, count), steps in counts.items():
        times = f", {len(steps)} times" if len(steps) > 1 else ""
        told.append(f"{count:,}{'' if told else ' trained weights'} for {sum(steps):,} steps ({name}{times})")
    return ", then ".join(told)
