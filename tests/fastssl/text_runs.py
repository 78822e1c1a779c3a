"""Small runs on the made text set, for the tests of commands and engine."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any, NamedTuple

from fastssl.cli import main
from tests import text_set

STEPS = ["--labels-per-class", "5", "--batch-size", "10", "--steps", "20", "--lr", "0.003", "--set", "train.eval_every=20", "--quiet"]


class Made(NamedTuple):
    """A text set with an encoder for it, and the flags of `train` that name them."""

    files: text_set.Files
    encoder: Path
    flags: list[str]


def made(folder: Path, rows: int = 80, **options: Any) -> Made:
    """A text set of `rows` training rows and half as many test rows, with an encoder that tells its classes apart."""
    files, place = text_set.made(folder, rows, **options), text_set.informed_encoder(folder / "encoder")
    return Made(files, place, ["--data", str(files.train), "--test", str(files.test), "--model", f"transformers:{place}"])


def trained(out: Path, texts: Made, *flags: str) -> Path:
    """A run of some twenty steps."""
    assert main(["train", *texts.flags, *STEPS, *flags, "--out", str(out)]) == 0
    return out


def result_of(run: Path) -> dict[str, Any]:
    """The result that a run wrote."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines() if '"result"' in line][-1]


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def fails(capsys: Any, args: list[str], code: int, *fragments: str) -> None:
    """The command ends in one sentence with these words."""
    capsys.readouterr()
    assert main([str(word) for word in args]) == code
    said = capsys.readouterr().err
    told = said[said.index("fastssl: ") :]
    assert "Traceback" not in said
    for fragment in fragments:
        assert fragment in told, told
