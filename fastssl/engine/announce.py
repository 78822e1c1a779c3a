"""What a run says before it begins."""

from __future__ import annotations

from typing import Any

import torch

from ..environment import compiler, mend_build_tools
from ..methods.base import Stage
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
    counts: list[tuple[Stage, int]] = []
    while (stage := run.method.stage(len(counts), run.total)) is not None:
        run.method.enter(stage)
        counts.append((stage, sum(p.numel() for _, p in trainable(run.method, stage))))
    if not counts:
        return "nothing trains"
    run.method.enter(run.stage)
    if len(counts) == 1:
        return f"{counts[0][1]:,} trained weights"
    each = [f"for {stage.steps:,} steps ({stage.name})" for stage, _ in counts]
    later = [f", then {count:,} {words}" for (_, count), words in zip(counts[1:], each[1:], strict=True)]
    return f"{counts[0][1]:,} trained weights {each[0]}" + "".join(later)
