"""`fastssl sweep` on texts: methods and scikit-learn's peers in one grid, on the same splits, and a table of texts that has changed."""

from __future__ import annotations

import pytest

from fastssl.cli import main
from tests import text_set
from tests.fastssl.sweep_cases import results
from tests.fastssl.text_runs import fails, made

PEERS = "sklearn:LogisticRegression,sklearn:SelfTraining,sklearn:LabelSpreading"
pytestmark = pytest.mark.usefixtures("cache")


def test_methods_and_peers_stand_in_one_table(texts, tmp_path, capsys):
    words = ["--labels-per-class", "5", "--batch-size", "5", "--steps", "2", "--ratio", "1", "--seeds", "0-1"]
    assert main(["sweep", "--method", f"fixmatch,{PEERS}", *texts.flags, *words, "--out", str(tmp_path / "s")]) == 0
    said, found = capsys.readouterr(), results(tmp_path / "s")
    assert len(found) == 8 and all(0 < r["accuracy"] <= 1 and r["labels"] == 20 for r in found.values())
    for seed in (0, 1):
        assert len({r["split_hash"] for name, r in found.items() if name.endswith(f"seed{seed}")}) == 1
    lines = [line for line in said.out.splitlines() if line.startswith("| sklearn") or line.startswith("| fixmatch")]
    assert [line.split(" | ")[:2] for line in lines] == [[f"| {name}", "2"] for name in f"fixmatch,{PEERS}".split(",")]
    assert "image" not in said.out + said.err


def test_a_changed_table_is_noticed(tmp_path, capsys):
    texts = made(tmp_path / "set", rows=40)
    command = ["sweep", "--method", "sklearn:LogisticRegression", *texts.flags, "--labels-per-class", "2", "--out", str(tmp_path / "s")]
    assert main(command) == 0 and main(command) == 0
    assert "1 finished and kept" in capsys.readouterr().err
    train, test = (path.read_text() for path in texts.files)
    for path, text, key in ((texts.files.train, train, "data.name"), (texts.files.test, test, "data.test")):
        path.write_text(text.replace(f",{text_set.CLASSES[0]}", f",{text_set.CLASSES[1]}", 1))
        fails(capsys, command, 2, f"was begun with {key} of content", "give another --out")
        path.write_text(text)
    assert main(command) == 0
