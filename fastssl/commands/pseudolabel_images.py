"""`fastssl pseudolabel` of images: by a model with a text tower and class names, or by a finished run."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from . import places
from .labelling import Labels, finite, same_classes, wanted

if TYPE_CHECKING:
    import numpy as np
    import torch

    from ..engine.inference import Trained
    from ..models import Network
    from ..pipelines.source import Source

CHUNK = 512  # images held at the network's size at a time


class Labeller(NamedTuple):
    """A network that labels, and how it is fed."""

    network: Network  # in evaluation mode
    classes: tuple[str, ...]  # in the order of its logits
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str


def from_names(args: argparse.Namespace, device: torch.device) -> Labels:
    """Labels of --data by --model."""
    from .. import models
    from ..config import DataConfig, ModelConfig
    from ..models import zero_shot
    from ..pipelines.errors import ConfigError

    config = ModelConfig(name=args.model, weights=args.weights)
    zero_shot.check(config)
    about = models.describe(config)
    if about.text is not None:
        raise ConfigError(f"{args.model} reads texts, and {args.data} holds images; give --model glyph_clip or open_clip:ARCH/TAG")
    data = DataConfig(name=args.data, root=args.root, labels=args.labels, test=args.test, interpolation=about.interpolation)
    source = loaded(args, data, about.size, device)
    report = models.Report()
    network = zero_shot.build(config, source.classes, tuple(args.prompt or ()), report=report)
    for text in (*report.warnings, *source.warnings):
        print(f"warning: {text}", file=sys.stderr)
    labeller = Labeller(network.eval(), source.classes, about.size, about.mean, about.std, about.interpolation)
    return labelled(labeller, source, wanted(source.test, args), device, args.amp or "off")


def from_run(args: argparse.Namespace, config: Any, trained: Trained, device: torch.device) -> Labels:
    """Labels of --data, or of the run's own set, by its network."""
    import numpy as np

    from ..config import DataConfig
    from ..pipelines import sources, splits
    from ..pipelines.errors import ConfigError

    folder = Path(args.run)
    if args.data not in (None, *sources.NAMES) and sources.is_table(args.data):
        raise ConfigError(f"{folder} reads images, and {args.data} is a table of texts; give a run on texts")
    own = config.data
    data = own
    if args.data:
        data = DataConfig(name=args.data, labels=args.labels, test=args.test, interpolation=own.interpolation, resize=own.resize)
    data = dataclasses.replace(data, root=args.root) if args.root else data
    source = loaded(args, data, trained.size, device)
    for text in source.warnings:
        print(f"warning: {text}", file=sys.stderr)
    same_classes(source, trained.classes, data.name)
    test = source.test.copy()
    if not args.data and (folder / "split.csv").exists():
        test[:] = np.isin(np.arange(len(source)), splits.load(folder / "split.csv", source).test)  # what it held back, too
    labeller = Labeller(trained.network, trained.classes, trained.size, trained.mean, trained.std, data.interpolation or "bicubic")
    amp = args.amp or config.train.amp
    return labelled(labeller, source, wanted(test, args), device, "off" if amp == "fp16" and device.type == "cpu" else amp)


def loaded(args: argparse.Namespace, data: Any, size: int | None, device: torch.device) -> Source:
    """The set, whose images stay small until their turn comes, as in training."""
    from ..engine.assemble import room
    from ..pipelines import sources
    from .train import whole_paths

    data = whole_paths(data)
    places.fetch(args, data)
    return sources.configured(data, size=size, enlarge=False, room=room(device))


def labelled(labeller: Labeller, source: Source, rows: np.ndarray, device: torch.device, amp: str) -> Labels:
    """The likeliest class of each row."""
    import torch

    answers = [logits.double().softmax(1).max(1) for logits in logits_of(labeller, source, rows, device, amp)]
    label, confidence = torch.cat([a.indices for a in answers]), torch.cat([a.values for a in answers])
    finite(confidence, source, rows)
    return Labels(source, rows, labeller.classes, label, confidence)


def logits_of(labeller: Labeller, source: Source, rows: np.ndarray, device: torch.device, amp: str) -> Iterator[torch.Tensor]:
    """[CHUNK, C] fp32 logits on the host, piece after piece."""
    import torch

    from ..engine.step import AMP_TYPES
    from ..pipelines.resize import resized

    network = labeller.network.to(device)
    mean, std = (torch.tensor(values).view(-1, 1, 1).to(device) for values in (labeller.mean, labeller.std))
    kind = AMP_TYPES.get(amp)
    for start in range(0, len(rows), CHUNK):
        images = torch.from_numpy(resized(source.images[rows[start : start + CHUNK]], labeller.size, labeller.interpolation))
        with torch.inference_mode(), torch.autocast(device.type, dtype=kind, enabled=kind is not None, cache_enabled=False):
            yield network((images.to(device).float().div(255) - mean) / std).logits.float().cpu()
