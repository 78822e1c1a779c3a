"""The memory of a run that is only asked about: `fastssl doctor --model M --batch B`. No data is read and no weights are fetched."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING, Any

from ..pipelines.errors import ConfigError

if TYPE_CHECKING:
    from ..models import InputSpec

CLASSES, SIZE = 10, 32  # taken where no data set says how many, and what side its images have


def foreseen(args: argparse.Namespace) -> dict[str, Any]:
    """The run that `args` describe, the peak of its memory in bytes, whether this machine has it, and `said`: the same in sentences.

    Raises:
        ConfigError, SetupError: an unknown name, or a size or precision that network or machine lacks.
    """
    import torch

    from .. import methods, models, presets
    from ..config import resolve
    from ..engine import memory, networks
    from ..engine.assemble import choose_device
    from ..pipelines.batch import DataSpec
    from .train import DEFAULT_METHOD

    name = args.method or DEFAULT_METHOD
    kind = methods.find(name)
    asked = {
        "model.name": args.model,
        "train.batch_size": args.batch,
        "train.amp": args.amp,
        "data.size": args.size,
        "data.max_length": args.max_length,
    }
    given = {key: value for key, value in asked.items() if value is not None}
    lowest = presets.defaults(name, model=args.model, data="any")  # the method's own recipe, not the one for digits
    config = resolve(name, kind.Config, [("preset", lowest), ("the command line", given)])
    config = networks.headed(config, kind)
    device = choose_device("auto", config.train.amp)
    model = models.bare(config.model)
    shape = shape_of(models.describe(model, args.size), model.name, args.size, args.max_length)
    texts = len(shape) == 1
    size = None if texts else shape[-1]
    train, views = config.train, kind.asks(config.method)
    unlabelled = train.batch_size * train.ratio if views.unlabelled else 0
    with torch.random.fork_rng(devices=[]):
        network = models.build(model, tuple(map(str, range(CLASSES))), size=size)
    if network.has_batchnorm:
        network = network.to(memory_format=torch.channels_last)
    weak_pass = train.weak_pass if train.weak_pass != "auto" else "joint" if network.has_batchnorm else "separate"
    spec = DataSpec("none", tuple(map(str, range(CLASSES))), shape, train.batch_size + unlabelled, unlabelled)
    with torch.random.fork_rng(devices=[]):
        others = networks.others(kind, config.method, model, spec.classes, size=size)
    options = {"unlabelled_batch": unlabelled, "ema": train.ema, "weak_pass": weak_pass, **others}
    method = kind(config.method, network, spec, **options).to(device).train()
    found = memory.foresee(method, train, views=views, image=spec.shape, rows=train.batch_size)
    space = memory.room(device)
    more = f" and {unlabelled} unlabelled" if unlabelled else ""
    samples = f"texts of {shape[0]} tokens" if texts else f"images of {size} x {size} pixels"
    said = [
        f"{model.name} by {name}: {train.batch_size} labelled{more} {samples} a step, amp {train.amp}, on {device}",
        f"memory: {found.said()}; {found.sample}s held there come on top",
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
        "max_length": shape[0] if texts else None,
        "amp": train.amp,
        "device": str(device),
        "peak_bytes": found.peak,
        "room_bytes": space,
        "fits": fits,
        "batch_size_that_fits": None if space is None else found.rows_in(space) if found.evaluates(space) else 0,
        **{key: value for key, value in dataclasses.asdict(found).items() if key in ("fixed", "per_row", "after", "evaluation")},
        "said": said,
    }


def shape_of(about: InputSpec, name: str, side: int | None, longest: int | None) -> tuple[int, ...]:
    """[C, H, W] of an image, or [L] of a text.

    Raises:
        ConfigError: tokens asked for of a network that reads images, or more than it takes.
    """
    if about.text is None:
        if longest is not None:
            raise ConfigError(f"--max-length counts tokens, and {name} reads images; leave it out")
        size = about.size or side or SIZE
        return 3, size, size
    if longest is not None and longest > about.text.longest:
        raise ConfigError(f"--max-length {longest}: {name} takes {about.text.longest} tokens at most; ask for fewer")
    return (longest or about.text.longest,)
