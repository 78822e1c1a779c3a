"""docs/data.md and docs/presets.md keep their word: the tables hold what the code holds, and the commands are known."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from fastssl import presets
from fastssl.cli import parser
from fastssl.commands.presets import described
from fastssl.commands.train import configure
from fastssl.pipelines.set_facts import SETS

DOCS = Path(__file__).resolve().parent.parent / "docs"


def rows(page: str) -> list[list[str]]:
    lines = (line for line in (DOCS / page).read_text(encoding="utf-8").splitlines() if line.startswith("| `"))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_presets_are_all_listed_with_their_numbers() -> None:
    listed = {cells[0].strip("`"): cells[1:] for cells in rows("presets.md") if len(cells) == 6 and cells[0] != "preset"}
    assert list(listed) == list(presets.PRESETS)
    for name, (method, data, network, labels, published) in listed.items():
        entry = described(presets.find(name))
        assert (method, data, labels) == (entry["method"], entry["data"], entry["labels"])
        assert network.split()[0] == entry["model"] and published == str(presets.find(name).published[method])


def test_sets_are_all_listed_with_what_is_known() -> None:
    listed = {cells[0].strip("`"): cells for cells in rows("data.md") if cells[0] != "`--data`"}
    assert list(listed) == list(SETS)
    assert {name: cells[5] == "yes" for name, cells in listed.items()} == {name: facts.flip for name, facts in SETS.items()}


@pytest.mark.parametrize("page", ["data.md", "presets.md"])
def test_every_command_is_understood(page: str) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    commands = [shlex.split(line) for block in re.findall(r"^```sh\n(.*?)^```$", text, flags=re.M | re.S) for line in block.splitlines()]
    assert commands
    for _, *words in commands:
        args = parser().parse_args(words)
        if args.command == "train":
            assert configure(args).data.name in SETS
    (commands,) = [action.choices for action in parser()._actions if isinstance(action.choices, dict)]
    known = {flag for sub in commands.values() for action in sub._actions for flag in action.option_strings}
    assert set(re.findall(r"--[a-z][a-z-]+", text)) <= known
