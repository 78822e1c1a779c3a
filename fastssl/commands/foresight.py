"""The memory of a run that is only asked about: `fastssl doctor --model M --batch B`. No data is read and no weights are fetched."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

CLASSES, SIZE = 10, 32  # taken where no data set says how many, and what side its images have


def foreseen(args: argparse.Namespace) -> dict[str, Any]:
    """The run that `args` describe, the peak of its memory in bytes, whether this machine has it, and `said`: the same in sentences.

    Raises:
        ConfigError, SetupError: an unknown name, or a size or precision that network or machine lacks.
    """
    import torch

    from .. import methods, models, presets
    from ..config import resolve
    from ..engine import memory
    from ..engine.assemble import choose_device
    from ..pipelines.batch import DataSpec
    from .train import DEFAULT_METHOD

    name = args.method or DEFAULT_METHOD
    kind = methods.find(name)
    asked = {"model.name": args.model, "train.batch_size": args.batch, "train.amp": args.amp, "data.size": args.size}
    given = {key: value for key, value in asked.items() if value is not None}
    lowest = presets.defaults(name, model=args.model, data="any")  # the method's own recipe, not the one for digits
    config = resolve(name, kind.Config, [("preset", lowest), ("the command line", given)])
    device = choose_device("auto", config.train.amp)
    model = models.bare(config.model)
    size = models.describe(model, args.size).size or args.size or SIZE
    train, views = config.train, kind.asks(config.method)
    unlabelled = train.batch_size * train.ratio if views.unlabelled else 0
    with torch.random.fork_rng(devices=[]):
        network = models.build(model, tuple(map(str, range(CLASSES))), size=size)
    if network.has_batchnorm:
        network = network.to(memory_format=torch.channels_last)
    weak_pass = train.weak_pass if train.weak_pass != "auto" else "joint" if network.has_batchnorm else "separate"
    spec = DataSpec("none", tuple(map(str, range(CLASSES))), (3, size, size), train.batch_size + unlabelled, unlabelled)
    method = kind(config.method, network, spec, unlabelled_batch=unlabelled, ema=train.ema, weak_pass=weak_pass).to(device).train()
    found = memory.foresee(method, train, views=views, image=spec.shape, rows=train.batch_size)
    space = memory.room(device)
    more = f" and {unlabelled} unlabelled" if unlabelled else ""
    said = [
        f"{model.name} by {name}: {train.batch_size} labelled{more} images of {size} x {size} pixels a step, amp {train.amp}, on {device}",
        f"memory: {found.said()}; images held there come on top",
    ]
    fits = None if space is None else found.fits(space)
    if space is not None:
        verdict = "fits" if fits else f"does not fit: {memory.mend(found, train, space)}"
        said.append(f"{memory.told(space)} are free for it here: it {verdict}")
    return {
        "model": model.name,
        "method": name,
        "batch_size": train.batch_size,
        "ratio": train.ratio,
        "size": size,
        "amp": train.amp,
        "device": str(device),
        "peak_bytes": found.peak,
        "room_bytes": space,
        "fits": fits,
        "batch_size_that_fits": None if space is None else found.rows_in(space) if found.evaluates(space) else 0,
        **{key: value for key, value in dataclasses.asdict(found).items() if key in ("fixed", "per_row", "after", "evaluation")},
        "said": said,
    }
