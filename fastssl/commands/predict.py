"""`fastssl predict RUN PATHS --out predictions.csv`: path (of texts: id), label, confidence and one column a class, in input order."""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from . import predict_texts
from .eval import add_columns

if TYPE_CHECKING:
    from ..config import RunConfig
    from ..engine.inference import Trained

CHUNK = 512  # images decoded at a time, so that memory stays bounded whatever the number of files


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="run directory that train made")
    parser.add_argument(
        "paths",
        metavar="PATH",
        nargs="+",
        help="images, or folders of them (read in sorted order); for a run on texts tables "
        "(.csv, .tsv, .parquet, .jsonl), .txt files with a text a line, or - for standard input",
    )
    add_columns(parser, labels=False)
    parser.add_argument("--out", metavar="CSV", help="file to write; standard output if left out")
    parser.add_argument("--overwrite", action="store_true", help="replace the file that --out names")
    parser.add_argument("--json", action="store_true", help="end stdout with one JSON object of the counts (needs --out)")


def run(args: argparse.Namespace) -> int:
    from ..pipelines.errors import ConfigError, DataError

    out = Path(args.out) if args.out else None
    if out is not None and out.is_dir():
        raise ConfigError(f"{out} is a folder; --out takes the name of a CSV file")
    if out is not None and out.exists() and not args.overwrite:
        raise ConfigError(f"{out} exists; give another --out, or --overwrite")
    if args.json and out is None:
        raise ConfigError("--json needs --out, as standard output would hold the predictions")
    if out is not None and not out.parent.is_dir():
        raise ConfigError(f"{out.parent} is no folder; make it, or give another --out")
    from ..engine.inference import load_trained
    from ..engine.own_labels import with_own_labels
    from .train import refuse_row_judges, saved_config

    folder = Path(args.run)
    config = saved_config(folder)
    refuse_row_judges(with_own_labels(config, folder))
    trained = load_trained(folder, config)
    for text in trained.complaints:
        print(f"warning: {text}", file=sys.stderr)
    count, empty = (texts if trained.text is not None else images)(args, out, trained, config)
    if args.json:
        lost = "undecodable" if trained.text is None else "empty"
        print(json.dumps({"run_dir": str(folder), "out": str(out), trained.samples: count, lost: empty}))
    if empty == count:
        raise DataError(f"none of the {count} images can be decoded")
    return 0


def images(args: argparse.Namespace, out: Path | None, trained: Trained, config: RunConfig) -> tuple[int, int]:
    """Writes the rows of images; how many there are, and how many of them cannot be decoded."""
    from ..pipelines.errors import ConfigError

    predict_texts.refuse_texts(args.paths, args.run)
    if args.text_column:
        raise ConfigError(f"--text-column goes with a table of texts, and {args.run} reads images; leave it out")
    files = expand(args.paths)
    bad: list[tuple[str, str]] = []
    rows = (row for start in range(0, len(files), CHUNK) for row in predict_rows(files[start : start + CHUNK], trained, config, bad))
    write(out, ["path", "label", "confidence", *trained.classes], rows)
    for path, reason in bad[:20]:
        print(f"warning: {path}: {reason}; its row is empty", file=sys.stderr)
    if bad:
        print(f"warning: {len(bad)} of {len(files)} images cannot be decoded", file=sys.stderr)
    return len(files), len(bad)


def texts(args: argparse.Namespace, out: Path | None, trained: Trained, config: RunConfig) -> tuple[int, int]:
    """Writes the rows of texts; how many there are, and how many of them are empty."""
    from ..pipelines.table import guarded

    given = predict_texts.read(args.paths, args.text_column or config.data.text_column, args.run)
    header = ["id", "label", "confidence", *(guarded(name) for name in trained.classes)]
    write(out, header, predict_texts.rows(given, trained, config.train.amp))
    bad = [name for name, text in zip(given.ids, given.texts, strict=True) if not text]
    for name in bad[:20]:
        print(f"warning: {name}: the text is empty; so is its row", file=sys.stderr)
    if bad:
        print(f"warning: {len(bad)} of {len(given.ids)} texts are empty", file=sys.stderr)
    return len(given.ids), len(bad)


def write(out: Path | None, header: list[str], rows: Iterable[list[str]]) -> None:
    """Writes a CSV as its rows come, whole or not at all; to standard output where no file is named."""
    target = out.with_name(f".{out.name}.{os.getpid()}") if out else None
    stream = open(target, "w", newline="", encoding="utf-8") if target else sys.stdout  # noqa: SIM115 - closed below, stdout is not
    try:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
    except BaseException:
        if target:
            stream.close()
            target.unlink(missing_ok=True)
        raise
    if target:
        stream.close()
        os.replace(target, out)


def expand(paths: list[str]) -> list[Path]:
    """Files as given, and the images of folders in sorted order.

    Raises:
        DataError: a path that does not exist, or no image at all.
    """
    from ..pipelines.errors import DataError
    from ..pipelines.images import SUFFIXES

    files: list[Path] = []
    missing = []
    for word in paths:
        path = Path(word)
        if path.is_dir():
            files += sorted(p for p in path.rglob("*") if p.is_file() and p.suffix.lower() in SUFFIXES)
        elif path.exists():
            files.append(path)
        else:
            missing.append((word, "no such file or folder"))
    if missing:
        raise DataError(f"{len(missing)} of {len(paths)} paths do not exist:", missing)
    if not files:
        raise DataError(f"no image in {', '.join(paths)}; known kinds: {', '.join(sorted(SUFFIXES))}")
    return files


def predict_rows(files: list[Path], trained, config: RunConfig, bad: list[tuple[str, str]]) -> list[list[object]]:
    """One row a file, in order. A file that cannot be decoded gets an empty row and is added to `bad`."""
    import numpy as np

    from ..engine.inference import logits_for
    from ..pipelines.images import decode_files
    from ..pipelines.table import guarded

    images, _, reasons = decode_files(files, trained.size, interpolation=config.data.interpolation or "bicubic")
    good = np.array([i not in reasons for i in range(len(files))])
    probabilities = iter(logits_for(trained.network, images[good], trained, config.train.amp).double().softmax(dim=1).tolist())
    rows: list[list[object]] = []
    for i, path in enumerate(files):
        if i in reasons:
            bad.append((str(path), reasons[i]))
            rows.append([guarded(str(path)), "", "", *[""] * len(trained.classes)])
            continue
        p = next(probabilities)
        top = max(range(len(p)), key=p.__getitem__)
        rows.append([guarded(str(path)), trained.classes[top], f"{p[top]:.6f}", *(f"{value:.6f}" for value in p)])
    return rows
