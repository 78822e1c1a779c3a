"""`fastssl pseudolabel --data D --out FILE`: labels of a whole set, from class names alone or from a finished run.

The file is what `train --foundation-labels` reads: id, label, confidence, a row an image, in the set's order.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from . import places

if TYPE_CHECKING:
    import numpy as np
    import torch

    from ..models import Network
    from ..pipelines.source import Source

CHUNK = 512  # images held at the network's size at a time
COLUMNS = ("id", "label", "confidence")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", metavar="DATA", help="the set to label, as train takes it; with --run the run's own if left out")
    parser.add_argument("--root", metavar="DIR", help="folder that holds the published sets")
    parser.add_argument("--labels", metavar="CSV", help="labels.csv (path,label) of --data: names the classes, decides nothing")
    parser.add_argument("--test", metavar="TEST", help="test images of --data, as train takes them")
    parser.add_argument("--model", metavar="MODEL", help="glyph_clip or open_clip:ARCH[/TAG], which labels by the names of the classes")
    parser.add_argument("--weights", metavar="FILE", help="safetensors file of --model, image and text tower; its own if left out")
    parser.add_argument(
        "--prompt",
        action="append",
        metavar="TEXT",
        help="what a class is called, its name at {}; may be repeated (the model's own prompts)",
    )
    parser.add_argument("--run", metavar="RUN", help="run directory that train made, in place of --model: its judged network labels")
    parser.add_argument("--out", metavar="CSV", required=True, help="file to write: id,label,confidence")
    parser.add_argument("--overwrite", action="store_true", help="replace the file that --out names")
    parser.add_argument("--test-rows", action="store_true", help="label the test images too")
    parser.add_argument("--amp", choices=("off", "bf16", "fp16"), help="mixed precision (off; with --run the run's)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    places.add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")


class Labeller(NamedTuple):
    """A network that labels, and how it is fed."""

    network: Network  # in evaluation mode
    classes: tuple[str, ...]  # in the order of its logits
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str


def run(args: argparse.Namespace) -> int:
    from ..engine.assemble import choose_device
    from ..pipelines.table import write_table

    out = checked(args)
    places.check(args)
    device = choose_device(args.device, args.amp or "off")
    labeller, source, rows, amp = (from_run if args.run else from_names)(args, device)
    label, confidence = labelled(labeller, source, rows, device, amp)
    lines = ((source.ids[r], labeller.classes[c], f"{p:.6f}") for r, c, p in zip(rows, label.tolist(), confidence.tolist(), strict=True))
    write_table(out, COLUMNS, lines)
    result = {"out": str(out), "model": args.model, "run": args.run, **counted(labeller, source, rows, label, confidence)}
    if args.json:
        print(json.dumps(result))
    else:
        print("\n".join(table(result)))
    return 0


def checked(args: argparse.Namespace) -> Path:
    """The file to write. Raises ConfigError where the flags do not go together or the file may not be written."""
    from ..pipelines.errors import ConfigError

    if bool(args.model) == bool(args.run):
        raise ConfigError("who labels? give --model glyph_clip or --model open_clip:ARCH/TAG, or --run RUN, and only one of them")
    if args.run and (args.weights or args.prompt):
        raise ConfigError("--weights and --prompt go with --model; a run has its own weights and asks by no words")
    if not args.run and not args.data:
        raise ConfigError("--data says which set is to be labelled: digits, a published set or a folder of images")
    if not args.data and (args.labels or args.test):
        raise ConfigError("--labels and --test go with --data; the run's own set has its own")
    for text in args.prompt or ():
        if text.count("{}") != 1:
            raise ConfigError(f"--prompt '{text}' needs the place of the class name once, as {{}}: 'a photo of a {{}}.'")
    out = Path(args.out)
    if out.is_dir():
        raise ConfigError(f"{out} is a folder; --out takes the name of a CSV file")
    if out.exists() and not args.overwrite:
        raise ConfigError(f"{out} exists; give another --out, or --overwrite")
    if not out.parent.is_dir():
        raise ConfigError(f"{out.parent} is no folder; make it, or give another --out")
    return out


def from_names(args: argparse.Namespace, device: torch.device) -> tuple[Labeller, Source, np.ndarray, str]:
    """A model with a text tower, the set, the rows to label, and the precision."""
    from .. import models
    from ..config import DataConfig, ModelConfig
    from ..models import zero_shot

    config = ModelConfig(name=args.model, weights=args.weights)
    zero_shot.check(config)
    about = models.describe(config)
    data = DataConfig(name=args.data, root=args.root, labels=args.labels, test=args.test, interpolation=about.interpolation)
    source = loaded(args, data, about.size, device)
    report = models.Report()
    network = zero_shot.build(config, source.classes, tuple(args.prompt or ()), report=report)
    for text in (*report.warnings, *source.warnings):
        print(f"warning: {text}", file=sys.stderr)
    labeller = Labeller(network.eval(), source.classes, about.size, about.mean, about.std, about.interpolation)
    return labeller, source, wanted(source.test, args), args.amp or "off"


def from_run(args: argparse.Namespace, device: torch.device) -> tuple[Labeller, Source, np.ndarray, str]:
    """A run's judged network, the set, the rows to label, and the precision."""
    import numpy as np

    from ..config import DataConfig
    from ..engine.inference import load_trained
    from ..pipelines import splits
    from ..pipelines.errors import DataError
    from .train import refuse_row_judges, saved_config

    folder = Path(args.run)
    config = saved_config(folder)
    refuse_row_judges(config)
    trained = load_trained(folder, config)
    own = config.data
    data = own
    if args.data:
        data = DataConfig(name=args.data, labels=args.labels, test=args.test, interpolation=own.interpolation, resize=own.resize)
    data = dataclasses.replace(data, root=args.root) if args.root else data
    source = loaded(args, data, trained.size, device)
    for text in (*trained.complaints, *source.warnings):
        print(f"warning: {text}", file=sys.stderr)
    strange = sorted(set(source.classes) ^ set(trained.classes))
    if strange:
        ours, theirs = ", ".join(source.classes[:5]), ", ".join(trained.classes[:5])
        raise DataError(
            f"{data.name} and the run differ in their classes, {', '.join(strange[:5])} among them: the set has {len(source.classes)} "
            f"({ours}, ...), the run {len(trained.classes)} ({theirs}, ...); take a run that was trained on these classes"
        )
    test = source.test.copy()
    if not args.data and (folder / "split.csv").exists():
        test[:] = np.isin(np.arange(len(source)), splits.load(folder / "split.csv", source).test)  # what it held back, too
    labeller = Labeller(trained.network, trained.classes, trained.size, trained.mean, trained.std, data.interpolation or "bicubic")
    amp = args.amp or config.train.amp
    return labeller, source, wanted(test, args), "off" if amp == "fp16" and device.type == "cpu" else amp


def loaded(args: argparse.Namespace, data: Any, size: int | None, device: torch.device) -> Source:
    """The set, whose images stay small until their turn comes, as in training."""
    from ..engine.assemble import room
    from ..pipelines import sources
    from .train import whole_paths

    data = whole_paths(data)
    places.fetch(args, data)
    return sources.configured(data, size=size, enlarge=False, room=room(device))


def wanted(test: np.ndarray, args: argparse.Namespace) -> np.ndarray:
    """[n] rows to label, in the set's order."""
    import numpy as np

    from ..pipelines.errors import DataError

    rows = np.flatnonzero(~test | args.test_rows)
    if not len(rows):
        raise DataError("all images of the set are test images; --test-rows labels them")
    return rows


def labelled(labeller: Labeller, source: Source, rows: np.ndarray, device: torch.device, amp: str) -> tuple[torch.Tensor, torch.Tensor]:
    """[n] int64 classes and [n] float64 confidences of rows: the largest probability."""
    import torch

    from ..pipelines.errors import DivergedError

    answers = [logits.double().softmax(1).max(1) for logits in logits_of(labeller, source, rows, device, amp)]
    label, confidence = torch.cat([a.indices for a in answers]), torch.cat([a.values for a in answers])
    broken = confidence.isnan().nonzero().flatten()
    if len(broken):
        name = source.ids[rows[int(broken[0])]]
        raise DivergedError(
            f"the network's answers to {len(broken)} of {len(rows)} images are not finite, '{name}' among them; try --amp off"
        )
    return label, confidence


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


def counted(labeller: Labeller, source: Source, rows: np.ndarray, label: torch.Tensor, confidence: torch.Tensor) -> dict[str, Any]:
    """What was labelled: rows, shares of the classes, mean confidence, and agreement where the set knows better."""
    import numpy as np

    to_source = np.array([source.classes.index(name) for name in labeller.classes])
    given, known = to_source[label.numpy()], source.label[rows]
    right = (given == known)[known >= 0]
    share = {name: float((given == c).mean()) for c, name in enumerate(source.classes)}
    return {
        "data": source.name,
        "rows": len(rows),
        "confidence": float(confidence.mean()),
        "share": share,
        "known": len(right),
        "agreement": float(right.mean()) if len(right) else None,
    }


def table(result: dict[str, Any]) -> list[str]:
    """The result in lines."""
    lines = [f"{result['rows']} images of {result['data']} labelled, mean confidence {result['confidence']:.3f}"]
    lines += [f"  {name}  {100 * share:.2f} %" for name, share in result["share"].items()]
    if result["known"]:
        lines.append(
            f"agreement with the labels that the set knows  {100 * result['agreement']:.2f} % of {result['known']} (for information)"
        )
    return [*lines, f"written: {result['out']}"]
