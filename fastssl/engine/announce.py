"""What a run says before it begins."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..environment import compiler, mend_build_tools
from .update import trainable

LEAST, LEFT = 100, 0.1  # steps of a run whose figures are believed; share of the start in what it is judged by that is too much


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
    for warning in (*run.parts.warnings, *remembered(run.parts)):
        run.reporter.warn(warning)
    if compiler() is None:
        run.reporter.warn(mend_build_tools())


def remembered(parts: Any) -> list[str]:
    """Warnings of what moves so slowly that a run of so many steps is judged on its start. Runs of less than LEAST steps are trials."""
    steps, ema = parts.config.train.steps, parts.config.train.ema
    if steps < LEAST:
        return []
    found = []
    if ema and (left := ema**steps) > LEFT:
        found.append(
            f"the averaged network, which is judged, is {left:.0%} its start after {steps:,} steps at --ema {ema:g}; give --ema "
            f"{fitting(steps):g} or more steps"
        )
    slow = [
        layer.momentum
        for layer in parts.method.network.modules()
        if isinstance(layer, nn.modules.batchnorm._BatchNorm)
        and layer.momentum is not None
        and layer.track_running_stats
        and any(p.requires_grad for p in layer.parameters())
    ]
    if slow and (left := (1 - min(slow)) ** steps) > LEFT:
        found.append(
            f"batch-norm's running statistics, by which networks are judged, are {left:.0%} their start after {steps:,} steps at "
            f"{min(slow):g} a step; give --set model.batchnorm_momentum=0.1 or more steps"
        )
    return found


def fitting(steps: int) -> float:
    """An average's decay that remembers a twentieth of a run, in round figures."""
    return next(decay for decay in (0.999, 0.998, 0.995, 0.99, 0.98, 0.95) if decay == 0.95 or 1 / (1 - decay) <= steps / 20)


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
