"""`fastssl pseudolabel` of a table of texts: by class names or descriptions, by an entailment model, or by a finished run."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..pipelines.errors import ConfigError
from .eval import add_columns
from .labelling import Labels, finite, same_classes, wanted

if TYPE_CHECKING:
    import numpy as np
    import torch

    from ..engine.inference import Trained
    from ..pipelines.text_source import TextSource


def add_arguments(parser: argparse.ArgumentParser) -> None:
    texts = parser.add_argument_group("texts (--data reviews.csv)")
    texts.add_argument(
        "--entailment",
        metavar="NAME",
        help="in place of --model: folder or hub name of a transformers network for natural-language inference",
    )
    texts.add_argument("--describe", action="append", metavar="CLASS=TEXT", help="what a class is, in place of its name; may be repeated")
    texts.add_argument("--descriptions", metavar="CSV", help="the same from a file: label,description, several rows a class allowed")
    add_columns(texts)


def check(args: argparse.Namespace) -> None:
    """Raises ConfigError where flags of texts do not go together, or are given for images."""
    from ..pipelines import sources

    if args.data in sources.NAMES or (args.data and not sources.is_table(args.data)):
        refuse_for_images(args, args.data)
    if args.run and (args.describe or args.descriptions):
        raise ConfigError("--describe and --descriptions say what classes are, and a run knows its own; leave them out")
    for text in args.describe or ():
        name, equals, description = text.partition("=")
        if not (equals and name.strip() and description.strip()):
            raise ConfigError(f"--describe '{text}' is CLASS=TEXT, as in --describe 'sports=matches, teams and players'")


def refuse_for_images(args: argparse.Namespace, what: str) -> None:
    """Raises ConfigError where flags of texts are given for images."""
    given = [f"--{name.replace('_', '-')}" for name in _ONLY if getattr(args, name)]
    if given:
        raise ConfigError(f"{given[0]} goes with a table of texts, and {what} is of images; leave it out")


_ONLY = ("entailment", "describe", "descriptions", "text_column", "label_column")


def from_table(args: argparse.Namespace, device: torch.device) -> Labels:
    """Labels of --data by --model or --entailment."""
    source = loaded(args)
    rows = _wanted(source, args)
    prompts = prompts_of(args, source.classes)
    texts = [source.texts[r] for r in rows]
    return _answered((by_entailment if args.entailment else by_names)(args, source.classes, prompts, texts, device), source, rows)


def from_run(args: argparse.Namespace, config: Any, trained: Trained, device: torch.device) -> Labels:
    """Labels of --data, or of the run's own set, by its network."""
    import numpy as np

    from ..engine.indexing import indexing
    from ..engine.text_inference import reader_of, text_logits
    from ..pipelines import sources, splits

    own = config.data
    if args.data and (args.data in sources.NAMES or not sources.is_table(args.data)):
        raise ConfigError(f"{args.run} reads texts, and {args.data} is no table of them; give one, or a run on images")
    if args.data is None:
        source = loaded(args, own)
    else:
        source = loaded(args, dataclasses.replace(own, name=args.data, test=args.test, extra_unlabelled=None))
    same_classes(source, trained.classes, args.data or own.name)
    test = source.test.copy()
    if not args.data and (Path(args.run) / "split.csv").exists():
        test[:] = np.isin(np.arange(len(source)), splits.load(Path(args.run) / "split.csv", source).test)
    rows = _wanted(dataclasses.replace(source, test=test), args)
    amp = args.amp or config.train.amp
    with indexing(args.json, "labelling texts") as progress:
        network = trained.network.to(device)
        logits = text_logits(network, reader_of(trained), [source.texts[r] for r in rows], amp, progress)
    return _answered(logits.double().softmax(1), source, rows, trained.classes)


def loaded(args: argparse.Namespace, data: Any = None) -> TextSource:
    """The table; its warnings are printed. `data`: a run's own section, if one labels."""
    from ..config import DataConfig
    from ..pipelines import sources

    data = DataConfig(name=args.data, test=args.test) if data is None else data
    columns = {name: getattr(args, name) for name in ("text_column", "label_column") if getattr(args, name)}
    if args.labels or args.root or args.download:
        raise ConfigError(f"--labels, --root and --download go with images, and {data.name} holds texts with their labels; leave them out")
    source = sources.configured(dataclasses.replace(data, **columns))
    for text in source.warnings:
        print(f"warning: {text}", file=sys.stderr)
    return source


def prompts_of(args: argparse.Namespace, classes: tuple[str, ...]) -> tuple[str, ...]:
    """Templates and descriptions as `zero_shot.build` takes them."""
    from ..engine.own_labels import described
    from ..pipelines.errors import unknown

    for text in args.describe or ():
        name = text.partition("=")[0].strip()
        if name not in classes:
            raise ConfigError(unknown("class", name, classes, "--describe"))
    return (*(args.prompt or ()), *(args.describe or ()), *(described(args.descriptions, classes) if args.descriptions else ()))


def by_names(
    args: argparse.Namespace, classes: tuple[str, ...], prompts: tuple[str, ...], texts: list[str], device: torch.device
) -> torch.Tensor:
    """[N, C] probabilities by the cosine of each text to the descriptions of the classes."""
    from .. import models
    from ..config import ModelConfig
    from ..engine.indexing import indexing
    from ..engine.text_inference import TextReader, text_logits
    from ..models import zero_shot

    config = ModelConfig(name=args.model, weights=args.weights)
    zero_shot.check(config)
    about = models.describe(config)
    if about.text is None:
        raise ConfigError(f"{args.model} reads images, and {args.data} holds texts; give --model transformers:NAME_OR_FOLDER")
    report = models.Report()
    network = zero_shot.build(config, classes, prompts, report=report)
    for text in report.warnings:
        print(f"warning: {text}", file=sys.stderr)
    with indexing(args.json, "labelling texts") as progress:
        return text_logits(network.to(device), TextReader(about.text), texts, args.amp or "off", progress).double().softmax(1)


def by_entailment(
    args: argparse.Namespace, classes: tuple[str, ...], prompts: tuple[str, ...], texts: list[str], device: torch.device
) -> torch.Tensor:
    """[N, C] probabilities by what each text entails: one hypothesis a class."""
    import torch

    from ..engine.indexing import indexing
    from ..engine.step import AMP_TYPES
    from ..models import entailment, zero_shot

    hypotheses = zero_shot.phrases(classes, prompts, (entailment.TEMPLATE,))
    several = next((name for name, texts_ in zip(classes, hypotheses, strict=True) if len(texts_) > 1), None)
    if several is not None:
        raise ConfigError(f"--entailment takes one hypothesis a class, and '{several}' has several; keep one --prompt, or one description")
    with indexing(args.json, "labelling texts") as progress:
        found = entailment.entailment_probabilities(
            args.entailment,
            texts,
            tuple(texts_[0] for texts_ in hypotheses),
            "{}",
            device=device,
            amp=AMP_TYPES.get(args.amp or "off"),
            progress=progress,
        )
    return torch.from_numpy(found)


def _wanted(source: TextSource, args: argparse.Namespace) -> np.ndarray:
    return wanted(source.test, args, "texts")


def _answered(probabilities: torch.Tensor, source: TextSource, rows: np.ndarray, classes: tuple[str, ...] | None = None) -> Labels:
    best = probabilities.max(1)
    finite(best.values, source, rows)
    return Labels(source, rows, classes or source.classes, best.indices, best.values)
