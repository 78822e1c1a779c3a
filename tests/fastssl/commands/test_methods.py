"""`fastssl methods` and `fastssl methods show NAME`."""

from __future__ import annotations

import dataclasses
import inspect
import json
import sys

import pytest

from fastssl.cli import main
from fastssl.methods import METHODS, find


def test_all_are_listed(capsys):
    assert main(["methods", "--json"]) == 0
    assert [entry["name"] for entry in json.loads(capsys.readouterr().out)] == list(METHODS)
    assert main(["methods"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(METHODS)
    assert all(find(line.split()[0]).paper in line for line in lines)


@pytest.mark.parametrize("name", METHODS)
def test_one_is_shown_with_what_it_computes_and_every_option(capsys, name):
    kind = find(name)
    assert main(["methods", "show", name]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"{name}: {kind.summary}\n{kind.paper}\n\n{inspect.cleandoc(kind.__doc__)}\n\nviews: labelled ")
    for field in dataclasses.fields(kind.Config):
        assert f"  --set method.{field.name}={field.default}" in text and field.metadata["help"] in text
    assert main(["methods", "show", name, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["name"], shown["about"]) == (name, inspect.cleandoc(kind.__doc__))
    assert [option["option"] for option in shown["options"]] == [f"method.{field.name}" for field in dataclasses.fields(kind.Config)]


def test_what_is_shown_of_some(capsys):
    assert main(["methods", "show", "finessl"]) == 0
    text = capsys.readouterr().out
    assert "method.margin_scale=8.0" in text and "alpha_0" in text and "2405.11756" in text
    assert main(["methods", "show", "layermatch"]) == 0
    text = capsys.readouterr().out
    assert "Open in our sources" in text and "[full | conflict_global | conflict_element | off]" in text
    assert "off: all of it" in text, "what the averaged classifier does to the gradient"
    assert main(["methods", "show", "zero_shot"]) == 0
    assert "views: labelled none; unlabelled none" in capsys.readouterr().out


def test_a_method_of_ones_own_without_a_docstring(capsys, tmp_path, monkeypatch):
    (tmp_path / "bare_method.py").write_text(
        "from fastssl.methods.fixmatch import FixMatch\n\n\nclass Bare(FixMatch):\n    summary = 'as it is'\n", encoding="utf-8"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    try:
        assert main(["methods", "show", "bare_method:Bare"]) == 0
    finally:
        sys.modules.pop("bare_method", None)
    text = capsys.readouterr().out
    assert text.startswith("bare_method:Bare: as it is\n") and "\n\nviews: labelled weak; unlabelled weak, strong\n" in text


def test_an_unknown_one_names_the_nearest(capsys):
    assert main(["methods", "show", "finesl"]) == 2
    assert "finessl" in capsys.readouterr().err
    assert main(["methods", "shwo", "finessl"]) == 2
    assert "show NAME" in capsys.readouterr().err
