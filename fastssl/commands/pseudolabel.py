"""`fastssl pseudolabel --data D --out FILE`: labels of a whole set, from class names alone or from a finished run.

The file is what `train --foundation-labels` reads: id, label, confidence, a row a sample, in the set's order.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import places, pseudolabel_images, pseudolabel_texts
from .labelling import Labels

if TYPE_CHECKING:
    import torch


COLUMNS = ("id", "label", "confidence")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", metavar="DATA", help="the set to label, as train takes it; with --run the run's own if left out")
    parser.add_argument("--root", metavar="DIR", help="folder that holds the published sets")
    parser.add_argument("--labels", metavar="CSV", help="labels.csv (path,label) of --data: names the classes, decides nothing")
    parser.add_argument("--test", metavar="TEST", help="test images or texts of --data, as train takes them")
    parser.add_argument(
        "--model",
        metavar="MODEL",
        help="glyph_clip or open_clip:ARCH[/TAG], of texts transformers:NAME_OR_FOLDER, which labels by the names of the classes",
    )
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
    parser.add_argument("--test-rows", action="store_true", help="label the test images or texts too")
    parser.add_argument("--amp", choices=("off", "bf16", "fp16"), help="mixed precision (off; with --run the run's)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    pseudolabel_texts.add_arguments(parser)
    places.add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")


def run(args: argparse.Namespace) -> int:
    from ..engine.assemble import choose_device
    from ..pipelines.table import write_table

    out = checked(args)
    places.check(args)
    device = choose_device(args.device, args.amp or "off")
    found = answered(args, device)
    numbers, shares = found.label.tolist(), found.confidence.tolist()
    lines = ((found.source.ids[r], found.classes[c], f"{p:.6f}") for r, c, p in zip(found.rows, numbers, shares, strict=True))
    write_table(out, COLUMNS, lines)
    by = {"entailment": args.entailment} if args.entailment else {}
    result = {"out": str(out), "model": args.model, "run": args.run, **by, **counted(found)}
    if args.json:
        print(json.dumps(result))
    else:
        print("\n".join(table(result, found.source.samples)))
    return 0


def answered(args: argparse.Namespace, device: torch.device) -> Labels:
    """The labels, by whom the flags name."""
    from ..pipelines import sources

    if not args.run:
        texts = args.data not in sources.NAMES and sources.is_table(args.data)
        return pseudolabel_texts.from_table(args, device) if texts else pseudolabel_images.from_names(args, device)
    from ..engine.inference import load_trained
    from ..engine.own_labels import with_own_labels
    from .train import refuse_row_judges, saved_config

    folder = Path(args.run)
    config = saved_config(folder)
    refuse_row_judges(with_own_labels(config, folder))
    trained = load_trained(folder, config)
    for text in trained.complaints:
        print(f"warning: {text}", file=sys.stderr)
    if trained.text is None:
        pseudolabel_texts.refuse_for_images(args, str(folder))
    return (pseudolabel_images if trained.text is None else pseudolabel_texts).from_run(args, config, trained, device)


def checked(args: argparse.Namespace) -> Path:
    """The file to write. Raises ConfigError where the flags do not go together or the file may not be written."""
    from ..pipelines.errors import ConfigError

    if sum(map(bool, (args.model, args.run, args.entailment))) != 1:
        raise ConfigError(
            "who labels? give --model glyph_clip, open_clip:ARCH/TAG or (texts) transformers:NAME, or --run RUN, or (texts) --entailment "
            "NAME, and only one of them"
        )
    if args.entailment and args.weights:
        raise ConfigError("--weights goes with --model; leave it out beside --entailment")
    if args.run and (args.weights or args.prompt):
        raise ConfigError("--weights and --prompt go with --model; a run has its own weights and asks by no words")
    if not args.run and not args.data:
        raise ConfigError("--data says which set is to be labelled: digits, a published set, a folder of images or a table of texts")
    if not args.data and (args.labels or args.test):
        raise ConfigError("--labels and --test go with --data; the run's own set has its own")
    for text in args.prompt or ():
        if text.count("{}") != 1:
            raise ConfigError(f"--prompt '{text}' needs the place of the class name once, as {{}}: 'a photo of a {{}}.'")
    pseudolabel_texts.check(args)
    out = Path(args.out)
    if out.is_dir():
        raise ConfigError(f"{out} is a folder; --out takes the name of a CSV file")
    if out.exists() and not args.overwrite:
        raise ConfigError(f"{out} exists; give another --out, or --overwrite")
    if not out.parent.is_dir():
        raise ConfigError(f"{out.parent} is no folder; make it, or give another --out")
    return out


def counted(found: Labels) -> dict[str, Any]:
    """What was labelled: rows, shares of the classes, mean confidence, and agreement where the set knows better."""
    import numpy as np

    source, rows = found.source, found.rows
    to_source = np.array([source.classes.index(name) for name in found.classes])
    given, known = to_source[found.label.numpy()], source.label[rows]
    right = (given == known)[known >= 0]
    share = {name: float((given == c).mean()) for c, name in enumerate(source.classes)}
    return {
        "data": source.name,
        "rows": len(rows),
        "confidence": float(found.confidence.mean()),
        "share": share,
        "known": len(right),
        "agreement": float(right.mean()) if len(right) else None,
    }


def table(result: dict[str, Any], samples: str = "images") -> list[str]:
    """The result in lines."""
    lines = [f"{result['rows']} {samples} of {result['data']} labelled, mean confidence {result['confidence']:.3f}"]
    lines += [f"  {name}  {100 * share:.2f} %" for name, share in result["share"].items()]
    if result["known"]:
        lines.append(
            f"agreement with the labels that the set knows  {100 * result['agreement']:.2f} % of {result['known']} (for information)"
        )
    return [*lines, f"written: {result['out']}"]
