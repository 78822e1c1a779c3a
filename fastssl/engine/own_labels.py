"""Foundation labels that a run on texts makes for itself before training: zero-shot, by its own encoder and the names of the classes.

They are kept in the run directory as foundation_labels.csv, so that a run that goes on reads the very same ones.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from .. import models
from ..config import RunConfig
from ..methods.base import Method
from ..models import zero_shot
from ..pipelines import foundation
from ..pipelines.batch import FoundationLabels, Split
from ..pipelines.errors import DataError, DivergedError, unknown
from ..pipelines.table import read_table, unguarded, write_table
from ..pipelines.text_resident import TextPipeline
from ..pipelines.text_source import TextSource
from .step import AMP_TYPES

FILE = "foundation_labels.csv"
COLUMNS = ("id", "label", "confidence")
PIECE = 512  # texts at a time

Say = Callable[[str], None]
Lines = list[tuple[str, str, str]]  # id, label, confidence


def with_own_labels(config: RunConfig, folder: Path) -> RunConfig:
    """A run's configuration that names the labels which the run in `folder` made for itself, where it did."""
    if config.data.foundation_labels is not None or not (folder / FILE).exists():
        return config
    return dataclasses.replace(
        config, data=dataclasses.replace(config.data, foundation_labels=str((folder / FILE).resolve()), descriptions=None)
    )


def wanted(kind: type[Method], config: RunConfig) -> bool:
    """Whether a run on texts makes its own labels: its method cannot do without some, and none were given."""
    needs = kind.needs_foundation or (kind.trains_nothing and config.model.head_init != "text")
    return needs and config.data.foundation_labels is None


def described(path: str, classes: tuple[str, ...]) -> tuple[str, ...]:
    """A CSV with the columns label,description, several rows a class allowed -> prompts as `zero_shot.build` takes them.

    Raises:
        DataError: unreadable, an unknown class or a blank description, every line of it.
    """
    file = Path(path)
    rows, problems = read_table(file, ("label", "description"))
    made = []
    for line, fields in rows:
        name, text = unguarded(fields["label"]), unguarded(fields["description"])
        if name not in classes:
            problems.append((f"{file.name}:{line}", unknown("class", name, classes)))
        elif not text:
            problems.append((f"{file.name}:{line}", f"the description of '{name}' is blank"))
        else:
            made.append(f"{name}={text}")
    if not rows and not problems:
        problems.append((f"{file.name}:1", "has no row below its header"))
    if problems:
        raise DataError(f"{file} does not describe the classes; correct these lines:", problems)
    return tuple(made)


def make(
    config: RunConfig,
    kind: type[Method],
    pipeline: TextPipeline,
    split: Split,
    *,
    warn: Say,
    note: Say,
    progress: Callable[[int, int], None] | None = None,
) -> Lines:
    """Zero-shot labels of the rows that train, and of test rows where the method judges them by their labels too; none unless `wanted`.

    Draws nothing from torch's global generator.

    Args:
        pipeline: has the texts as ids on the run's device.
        progress: called with (texts done, texts in all).

    Raises:
        ConfigError: an encoder of random weights. DivergedError: answers that are not finite.
    """
    if not wanted(kind, config):
        return []
    source, data = pipeline.source, config.data
    prompts = described(data.descriptions, source.classes) if data.descriptions is not None else ()
    report = models.Report()
    plain = dataclasses.replace(config.model, tune="full", head_init="random")
    with torch.random.fork_rng(devices=[]):
        network = zero_shot.build(plain, source.classes, prompts, report=report).to(pipeline.device)
    for text in report.warnings:
        warn(text)
    rows = np.union1d(split.labelled, split.unlabelled)
    rows = np.union1d(rows, split.test) if kind.judges_rows else rows
    amp, done = AMP_TYPES.get(config.train.amp), 0
    label, confidence = np.full(len(source), -1, np.int64), np.zeros(len(source))
    with torch.inference_mode():
        for piece in pipeline.sweep(rows, PIECE, ordered=False):
            with torch.autocast(pipeline.device.type, dtype=amp, enabled=amp is not None, cache_enabled=False):
                logits = network(piece.inputs).logits
            best = logits.double().softmax(1).max(1)
            at = piece.index.cpu().numpy()
            label[at], confidence[at] = best.indices.cpu().numpy(), best.values.cpu().numpy()
            done += len(at)
            if progress is not None:
                progress(done, len(rows))
    broken = np.flatnonzero(~np.isfinite(confidence))
    if len(broken):
        raise DivergedError(
            f"the encoder's answers to {len(broken)} of {len(rows)} texts are not finite, '{source.ids[broken[0]]}' among them; "
            "try --amp off"
        )
    how = f"the descriptions in {Path(data.descriptions).name}" if prompts else "the names of the classes"
    note(
        f"no foundation labels were given: {config.model.name} as it starts labels {len(rows):,} texts by {how} (mean confidence "
        f"{confidence[rows].mean():.3f}), kept as {FILE} in the run directory"
    )
    return [(source.ids[r], source.classes[label[r]], f"{confidence[r]:.6f}") for r in rows]


def read(lines: Lines, config: RunConfig, source: TextSource, split: Split, *, warn: Say, note: Say) -> FoundationLabels:
    """The labels as a file of these lines gives them: what a resumed run will read."""
    with tempfile.TemporaryDirectory(prefix="fastssl-") as folder:
        path = Path(folder) / FILE
        write_table(path, COLUMNS, lines)
        data = dataclasses.replace(config.data, foundation_labels=str(path))
        return foundation.configured(data, source, split, seed=config.train.seed, warn=warn, note=note)
