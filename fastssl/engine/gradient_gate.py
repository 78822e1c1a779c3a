"""The gate of float8: a run trains by it only where the gradient of what trains points where bf16 points."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..models import fp8
from ..pipelines.errors import ConfigError
from .putback import put_back

LEAST = 0.999  # cosine, over all that trains


def when_asked(run: Any) -> None:
    """The check of a Run that begins; one that is taken up again has passed it."""
    form = run.config.train.fp8
    if form != "off" and run.done == 0:
        run.reporter.say(check(run.step, form))


def check(step: Any, form: str) -> str:
    """Compares gradients of one batch of the run, with float8 and without: same weights, same views, same randomness. No trace is left.

    Args:
        step: the stage's Step, not called yet.
        form: `train.fp8`, for the sentence.

    Returns:
        a sentence for the log.

    Raises:
        ConfigError: the cosine is below LEAST, or no number.
    """
    ours = gradient(step)
    with fp8.plain(step.method):
        theirs = gradient(step)
    found = cosine(ours, theirs)
    if not found >= LEAST:
        mend = "take train.fp8=backward or leave it off" if form == "full" else "leave it off"
        raise ConfigError(
            f"train.fp8={form}: the cosine between the gradients with and without float8 is {found:.5f} on a batch of this run, and at "
            f"least {LEAST} is wanted; {mend}"
        )
    layers = len(fp8.converted(step.method))
    return f"fp8 {form} in {layers} frozen layers: the gradient's cosine against bf16 is {found:.5f}"


def gradient(step: Any) -> list[Tensor]:
    """The gradients of one step's losses with respect to all that trains, as fp64 on the host; the step's state stays as it was."""
    parameters, found = step.update.parameters, []

    def collect(loss: Tensor, part: int = 0, rate: Tensor | None = None) -> None:
        with torch.autocast(loss.device.type, enabled=False):
            found.extend(torch.autograd.grad(loss, parameters, allow_unused=True))

    with put_back(step):
        step.clock.advance()
        batch = step.pipeline.draw()
        with torch.autocast(step.device.type, dtype=step.amp, enabled=step.amp is not None, cache_enabled=False):
            step.method.step(batch, step.clock, collect)
    return [torch.zeros(()) if g is None else g.detach().double().cpu().flatten() for g in found]


def cosine(a: list[Tensor], b: list[Tensor]) -> float:
    """Of two gradients, each in the same pieces; no number where one of them is zero or not finite."""
    dot, aa, bb = (sum(float((x * y).sum()) for x, y in zip(*pair, strict=True)) for pair in ((a, b), (a, a), (b, b)))
    return dot / (aa * bb) ** 0.5 if aa * bb > 0 else float("nan")
