"""What a run says before it begins."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import nn

from ..averages import LEAST, fitting, lags
from ..environment import compiler, mend_build_tools
from ..methods.bricks.start import Start
from ..models import Network
from .memory import stages
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
    for warning in (*run.parts.warnings, *remembered(run.parts)):
        run.reporter.warn(warning)
    if compiler() is None:
        run.reporter.warn(mend_build_tools())


def remembered(parts: Any) -> list[str]:
    """Warnings of what moves so slowly that a run of so many steps is judged on its start."""
    method, ema = parts.method, parts.config.train.ema
    steps = lasting(method, parts.config.train.steps)
    if parts.config.train.steps < LEAST or not steps:
        return []
    found = []
    steady = not any(callable(one.decay) for one in method.averages())  # a decay that grows with the steps has let go of its start soon
    if ema and steady and lags(ema, steps):
        found.append(
            f"the averaged network, which is judged, is {ema**steps:.0%} its start after {steps:,} steps at --ema {ema:g}; give --ema "
            f"{fitting(steps):g} or more steps"
        )
    slow = [
        layer.momentum
        for layer in method.network.modules()
        if isinstance(layer, nn.modules.batchnorm._BatchNorm)
        and layer.momentum is not None
        and layer.track_running_stats
        and any(p.requires_grad for p in layer.parameters())
    ]
    if slow and lags(1 - min(slow), steps):
        found.append(
            f"batch-norm's running statistics, by which networks are judged, are {(1 - min(slow)) ** steps:.0%} their start after "
            f"{steps:,} steps at {min(slow):g} a step; give --set model.batchnorm_momentum={1 - fitting(steps):.2g} or more steps"
        )
    return found


def lasting(method: Any, steps: int) -> int:
    """Fewest steps that a network of a run goes on for from one start; 0 where nothing trains."""
    found = list(stages(method, steps))
    if found and any(isinstance(module, Start) for module in method.modules()):
        return found[-1].steps  # network and average begin anew with a stage
    each: Counter[str] = Counter()
    for stage in found:
        for name in stage.networks or ("network",):
            if isinstance(method.get_submodule(name), Network):
                each[name] += stage.steps
    return min(each.values(), default=0)


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
