"""A sweep's table: figures are those of the statistics module, read from runs on disk; its forms say the same."""

from __future__ import annotations

import csv
import json
import statistics

import pytest

from fastssl import __version__, methods
from fastssl.config import DataConfig, RunConfig, TrainConfig
from fastssl.engine import grid_table
from fastssl.engine.grid import Cell, write_record
from fastssl.sections import ModelConfig

ACCURACIES = {("a", "0.1"): [0.5, 0.625, 0.9], ("a", "0.2"): [0.25], ("b", "0.1"): [0.75, None], ("b", "0.2"): []}


def cell(method, lr, seed):
    kind = methods.find("supervised")
    config = RunConfig("supervised", kind.Config(), ModelConfig(), DataConfig(), TrainConfig(seed=seed))
    return Cell(f"{method}-lr={lr}-seed{seed}", method, "v|1" if method == "b" else None, (("train.lr", lr),), seed, config)


@pytest.fixture
def sweep(tmp_path):
    """Cells of which some are finished, one has no test part, one failed, and one is not there."""
    cells = []
    for (method, lr), values in ACCURACIES.items():
        for seed, accuracy in enumerate(values):
            cells.append(cell(method, lr, seed))
            folder = tmp_path / "runs" / cells[-1].name
            folder.mkdir(parents=True)
            result = {"accuracy": accuracy, "why_no_accuracy": None if accuracy else "no test images", "seconds": 3.0 + seed**2}
            result |= {"ece": accuracy and accuracy / 10, "kept": 0.5 + seed / 10, "pseudo_bias": seed / 8 if method == "a" else None}
            lines = [{"event": "train", "step": 1, "accuracy": 0.1}, {"event": "result", "step": 4, **result}]
            (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
            (folder / "STATUS.json").write_text(json.dumps({"state": "finished", "step": 4}))
            write_record(cells[-1], tmp_path)
    cells += [cell("b", "0.2", 0), cell("b", "0.2", 1)]
    write_record(cells[-2], tmp_path, failure={"exit_code": 5, "reason": "not finite\nin 3 steps"})
    return cells, tmp_path, grid_table.collect(cells, tmp_path)


def test_figures_are_the_statistics_modules(sweep):
    *_, rows = sweep
    first, single, none, _ = (row.figures() for row in rows)
    values = [100 * a for a in ACCURACIES["a", "0.1"]]
    assert first["n"] == 3 and first["seconds"] == statistics.median([3, 4, 7])
    assert first["accuracy"] == pytest.approx(statistics.mean(values)) and first["deviation"] == pytest.approx(statistics.stdev(values))
    assert first["ece"] == pytest.approx(statistics.mean(values) / 10) and first["kept"] == pytest.approx(60)
    assert first["pseudo_bias"] == pytest.approx(12.5) and first["pseudo_accuracy"] is None
    assert (single["n"], single["accuracy"], single["deviation"]) == (1, 25.0, None)
    assert (none["n"], none["accuracy"], none["seconds"], none["kept"]) == (1, 75.0, 3.5, pytest.approx(55))


def test_markdown_shows_a_row_each_and_what_failed(sweep):
    *_, rows = sweep
    text = grid_table.as_markdown(rows).splitlines()
    head = "| method | variant | lr | n | accuracy % | std | seed 0 | seed 1 | seed 2 | seconds | ECE % | kept % | pseudo-label bias % |"
    assert text[0] == head and text[1] == "|" + "---|" * 13
    assert text[2] == "| a | - | 0.1 | 3 | 67.50 | 20.46 | 50.00 | 62.50 | 90.00 | 4.0 | 6.75 | 60.00 | 12.50 |"
    assert text[3] == "| a | - | 0.2 | 1 | 25.00 | - | 25.00 | - | - | 3.0 | 2.50 | 50.00 | 0.00 |"
    assert text[4] == "| b | v\\|1 | 0.1 | 1 | 75.00 | - | 75.00 | - | - | 3.5 | 7.50 | 55.00 | - |"
    assert text[5] == "| b | v\\|1 | 0.2 | 0 | - | - | - | - | - | - | - | - | - |"
    assert text[7:] == ["- b-lr=0.2-seed0 failed (exit 5): not finite in 3 steps", "- runs without accuracy: no test images"]


def test_files_hold_the_same_with_command_and_versions(sweep):
    _, root, rows = sweep
    grid_table.write(rows, root, "fastssl sweep --method a,b", jobs=2)
    text = (root / "table.md").read_text()
    assert text.startswith("```sh\nfastssl sweep --method a,b\n```\n") and grid_table.as_markdown(rows) in text
    assert f"fastssl {__version__}, torch " in text and "2 processes of " in text and grid_table.processor() in text
    with open(root / "table.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [line["failed"] for line in table] == ["0", "0", "0", "1"] and table[2]["variant"] == "v|1"
    assert float(table[0]["std"]) == pytest.approx(statistics.stdev([50, 62.5, 90]), abs=1e-9) and table[1]["std"] == ""
    told = grid_table.as_json(rows)
    assert json.loads(json.dumps(told)) == told
    assert told[0]["accuracies"] == {"0": 50.0, "1": 62.5, "2": 90.0} and told[2]["accuracies"]["1"] is None
    assert told[3]["failures"] == [{"run": "b-lr=0.2-seed0", "exit_code": 5, "reason": "not finite\nin 3 steps"}]


def test_the_picture_holds_thirty_rows(sweep):
    pytest.importorskip("matplotlib", reason="table.png needs the report extra")
    from PIL import Image

    _, root, rows = sweep
    for many in (rows, rows * 8):
        grid_table.draw(many, root / "table.png")
        with Image.open(root / "table.png") as image:
            assert image.width > 900 and image.height / len(many) > 36, "at least 36 pixels a row"
            assert len(image.convert("RGB").getcolors(1 << 20)) > 20
    assert [path.name for path in root.iterdir() if path.suffix == ".png"] == ["table.png"]


def test_without_matplotlib_there_is_no_picture(sweep, monkeypatch):
    _, root, rows = sweep
    monkeypatch.setattr(grid_table, "drawable", lambda: False)
    grid_table.write(rows, root, "fastssl sweep")
    assert (root / "table.md").exists() and not (root / "table.png").exists()


def test_names_are_short_where_they_can_be():
    assert grid_table.short_names(["train.lr", "model.name", "data.name"]) == {
        "train.lr": "lr",
        "model.name": "model.name",
        "data.name": "data.name",
    }
