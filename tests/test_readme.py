"""README keeps its word: its commands are complete lines that the parser knows, and its Python runs."""

from __future__ import annotations

import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def blocks(root: Path) -> list[tuple[str, str]]:
    """(language, text) of every fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", (root / "README.md").read_text(encoding="utf-8"), flags=re.M | re.S)


def shell_lines(blocks: list[tuple[str, str]]) -> list[str]:
    return [line for language, text in blocks if language == "sh" for line in text.splitlines()]


def test_the_three_commands_are_each_one_line(blocks: list[tuple[str, str]]) -> None:
    starts = [text.splitlines() for language, text in blocks if language == "sh" and text.startswith("pip install")]
    assert starts == [
        ["pip install . && fastssl train --method finessl --amp bf16"],
        ["pip install '.[test]' && pytest -n 2 --dist loadfile"],
        ["pip install '.[bench]' && pytest bench --benchmark-only"],
    ]


def test_every_fastssl_line_is_understood(blocks: list[tuple[str, str]], python) -> None:
    """Each command exists, and its --help knows each flag that README writes."""
    helps: dict[str, str] = {}
    commands = [shlex.split(part) for line in shell_lines(blocks) for part in line.split("&&") if part.split()[0] == "fastssl"]
    assert {words[1] for words in commands} >= {"train", "predict"}
    for _, command, *words in commands:
        if command not in helps:
            helps[command] = python("-m", "fastssl", command, "--help").stdout
        for flag in (word.split("=")[0] for word in words if word.startswith("--")):
            assert re.search(rf"{flag}\b", helps[command]), f"fastssl {command} does not know {flag}"


def test_every_extra_that_readme_names_exists(root: Path) -> None:
    extras = set(tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    text = (root / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"'\.\[(\w+)\]'", text)) - {"NAME"} <= extras
    section = text.split("## Extras")[1].split("##")[0]
    assert extras <= set(re.findall(r"`(\w+)`", section))


def test_python_runs_as_it_stands(blocks: list[tuple[str, str]], python) -> None:
    snippets = [text for language, text in blocks if language == "python"]
    assert snippets
    for text in snippets:
        python("-c", text)


def test_ci_runs_readmes_test_command(root: Path) -> None:
    """.ci/run takes the command from README: the line that its own filter finds is the one above, and it holds no other."""
    script = (root / ".ci" / "run").read_text(encoding="utf-8")
    (extraction,) = re.findall(r"^command=\$\((.*)\)$", script, flags=re.M)
    found = subprocess.run(["bash", "-c", extraction], cwd=root, capture_output=True, text=True, check=True).stdout
    assert found == "pip install '.[test]' && pytest -n 2 --dist loadfile\n"
    assert "pip install" not in script
