"""docs/text.md and README's part on texts keep their word: every command runs, in order, on the made text set, and Python too."""

from __future__ import annotations

import csv
import re
import shlex
from pathlib import Path

import pytest
import torch
import transformers

from fastssl import presets
from fastssl.cli import main
from fastssl.models.text_tuning import KNOWN
from fastssl.pipelines.text_policies import TEXT_POLICIES
from fastssl.pipelines.text_views import NAMES
from tests import text_set
from tests.fastssl.text_runs import result_of, rows_of

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "text.md").read_text(encoding="utf-8")
(README,) = re.findall(r"^## Your own texts in three lines\n(.*?)^## ", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.M | re.S)
SHORT = ["--steps", "16", "--batch-size", "8", "--lr", "0.003", "--set", "train.layer_decay=1", "--set", "train.ema=0.5", "--quiet"]
CHANCE = 0.25  # four classes


def blocks(text: str, language: str) -> list[str]:
    return [block for named, block in re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.M | re.S) if named == language]


def commands(text: str) -> list[str]:
    return [line for block in blocks(text, "sh") for line in block.splitlines()]


def written(path: Path, header: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds everything that the pages name: 80 reviews, 60 of them labelled."""
    folder = tmp_path_factory.mktemp("place")
    rows = text_set.sentences(80 + 40 + 3 * 16)
    written(folder / "reviews.csv", ("text", "label"), [(row.text, row.label if n < 60 else "") for n, row in enumerate(rows[:80])])
    written(folder / "reviews_test.csv", ("text", "label"), rows[80:120])
    written(folder / "more.csv", ("text",), [(row.text,) for row in rows[120:136]])
    written(folder / "other.csv", ("body", "topic"), rows[136:152])
    written(folder / "new.csv", ("text",), [(row.text,) for row in rows[152:]])
    topics = zip(text_set.CLASSES, text_set.words()[0], strict=False)
    written(folder / "descriptions.csv", ("label", "description"), [(name, " ".join(own[1:5])) for name, own in topics])
    text_set.informed_encoder(folder / "encoder")
    judge(folder / "judge")
    return folder


def judge(folder: Path) -> None:
    """A network for natural-language inference, of random weights."""
    about = transformers.BertConfig.from_pretrained(text_set.encoder(folder))
    about.id2label = dict(enumerate(("contradiction", "neutral", "entailment")))
    about.label2id = {label: index for index, label in about.id2label.items()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformers.BertForSequenceClassification(about).save_pretrained(folder)


@pytest.fixture(autouse=True)
def _there(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "cache"))


def ran(line: str) -> None:
    program, *words = shlex.split(line)
    assert program == "fastssl"
    assert main([*words, *(SHORT if words[0] == "train" else [])]) == 0, line


def test_every_command_of_the_page_runs(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = commands(PAGE)
    for line in lines:
        ran(line)
    assert {line.split()[1] for line in lines} == {"train", "eval", "predict", "data", "pseudolabel", "export"}
    assert result_of(place / "runs" / "reviews")["accuracy"] > CHANCE + 0.25
    predicted, both = rows_of(place / "predictions.csv"), rows_of(place / "both.csv")
    assert list(predicted[0]) == ["id", "label", "confidence", *sorted(text_set.CLASSES[:4])] and predicted[6]["id"] == "new/000007"
    assert len(predicted) == 16 and len(both) == 56 and both[:16] == predicted
    named = [rows_of(place / f"{name}.csv") for name in ("labels", "described", "entailed", "again")]
    assert all(list(rows[0]) == ["id", "label", "confidence"] and len(rows) == 80 for rows in named)
    assert (place / "net.safetensors").exists() and (place / "net.head.safetensors").exists()
    said = capsys.readouterr().out
    assert "accuracy under FGSM, epsilon 0.01" in said
    # A run that was given no labels has kept those that it made.
    (run,) = [run for run in (place / "runs").iterdir() if (run / "foundation_labels.csv").exists()]
    assert run.name.startswith("zeromatch-reviews") and run.name.endswith("-2")


def test_every_command_of_the_readme_runs(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = commands(README)
    assert [line.split()[1] for line in lines] == ["train", "eval", "predict"]
    for line in lines:
        ran(line)
    assert "12 test texts" in (place / "runs" / "texts" / "log.txt").read_text(encoding="utf-8")
    assert list(rows_of(place / "labelled.csv")[0])[:3] == ["id", "label", "confidence"]


def test_every_python_block_runs(place: Path) -> None:
    found = blocks(PAGE, "python")
    names: dict[str, object] = {"__name__": "snippet"}
    for block in found:
        exec(compile(block, "docs/text.md", "exec"), names)
    assert len(found) == 2 and names["result"]["accuracy"] is not None and names["result"]["labels"] == 20


def test_the_apis_file_is_taken(place: Path, tmp_path: Path) -> None:
    """The example of a file of labels, with labels for all rows."""
    (example,) = blocks(PAGE, "")
    header, *rows = example.splitlines()
    assert header == "id,label,confidence" and all(row.split(",")[1] in text_set.CLASSES[:4] for row in rows)
    (tmp_path / "api.csv").write_text(example, encoding="utf-8")
    flags = ["--data", "reviews.csv", "--model", "transformers:encoder", "--method", "pseudo_supervision", "--foundation-labels"]
    assert main(["train", *flags, str(tmp_path / "api.csv"), *SHORT, "--steps", "2", "--out", str(tmp_path / "run")]) == 0


def table(first: str) -> dict[str, str]:
    """First cell -> second cell, of the table whose header begins with `first`."""
    (body,) = re.findall(rf"^\| {re.escape(first)} \|.*\n\|[-|]+\n((?:\|.*\n)+)", PAGE, flags=re.M)
    rows = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in body.splitlines()]
    return {cell.strip("`"): other for cell, other, *_ in rows}


def test_tables_name_what_there_is() -> None:
    assert tuple(table("view")) == NAMES and tuple(table("`--policy`")) == TEXT_POLICIES
    assert {*table("`--tune`"), "full", "linear", "lp_ft", "bias"} == {*KNOWN}
    plain = presets.defaults("fixmatch", model="transformers:encoder", data="reviews.csv")
    assert presets.defaults("zeromatch", model="transformers:encoder")["train.steps"] == 300
    assert {key: str(plain[key]) for key in table("option")} == table("option")
    for method, key in (
        ("sentaugment", "train.steps"),
        ("mixmatch", "train.ratio"),
        ("remixmatch", "train.ratio"),
    ):
        assert presets.defaults(method, model="transformers:encoder")[key] == {"train.steps": 240, "train.ratio": 1}[key]
