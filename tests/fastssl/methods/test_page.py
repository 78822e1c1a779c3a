"""docs/methods.md keeps its word: its commands are commands, its options are there, every method has its section and its state."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch

from fastssl.cli import parser
from fastssl.commands.train import configure
from fastssl.config import resolve
from fastssl.methods import METHODS, find

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "methods.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"^```sh\n(.*?)^```$", PAGE, flags=re.M | re.S) for line in block.splitlines()]


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_of_the_page_is_a_command(line):
    program, *words = shlex.split(line)
    args = parser().parse_args(words)
    config = configure(args)
    find(config.method_name).views_of(config.method)
    assert program == "fastssl" and args.command == "train"


def test_the_page_has_every_method():
    headings = {name for heading in re.findall(r"^## (.*)$", PAGE, flags=re.M) for name in re.split(r", | \(", heading)}
    assert set(METHODS) <= headings
    (state,) = re.findall(r"^## State\n(.*?)^## ", PAGE, flags=re.M | re.S)
    rows = [set(re.findall(r"`(\w+)`", line.split("|")[1])) for line in state.splitlines() if line.startswith("| `")]
    assert set.union(*rows) == set(METHODS) and sum(map(len, rows)) == len(METHODS)


def test_options_that_the_page_names_are_there():
    """`method.OPTION=VALUE` in a method's section is one that its method takes."""
    found = 0
    for section in re.split(r"^## ", PAGE, flags=re.M)[1:]:
        names = [name for name in re.split(r", | \(", section.splitlines()[0]) if name in METHODS]
        for name in names[:1]:
            for key, value in re.findall(r"method\.(\w+)=([\w.=,]+)", section):
                if value != "RUN" and not (name == "semikd" and key == "teacher"):
                    resolve(name, find(name).Config, [(name, {f"method.{key}": value.rstrip(".")})])
                    found += 1
    assert found > 25


def test_what_the_state_table_says_of_memory(toy):
    """First values, of the methods whose memory is plain numbers."""
    fifth = torch.full((5,), 0.2).double()
    m = toy.method("freematch")
    assert m.confidence == fifth[0] and torch.equal(m.marginal, fifth) and torch.equal(m.histogram, fifth)
    m = toy.method("softmatch")
    assert (m.mean, m.variance) == (fifth[0], 1)
    m = toy.method("flexmatch")
    assert (m.learned.last == -1).all() and m.learned.counts.tolist() == [0, 0, 0, 0, 0, toy.spec().unlabelled]
    m = toy.method("adamatch")
    assert m.alignment.queue.shape == (128, 5) and (m.alignment.queue == fifth).all() and torch.equal(m.alignment.target_marginal, fifth)
    assert torch.equal(toy.method("debiaspl").marginal, fifth)
    m = toy.method("layermatch")
    assert torch.equal(m.average.weight, m.network.head.weight) and m.centres is None and m.bank is None
    assert not toy.method("layermatch", averaging="outputs").bank.mean.any()
    assert not toy.method("layermatch", averaging="centres").centres.any()
    m = toy.method("semikd")
    assert (m.portion, m.ratio, m.seen, m.moved) == (0.5, 0, 0, -1) and not m.pace.pace.any() and not m.pace.counts.any()
    for name in ("supervised", "fixmatch", "spl", "pseudo_supervision"):
        kept = set(toy.method(name).state_dict()) - {f"network.{key}" for key in toy.method(name).network.state_dict()}
        assert not kept, name
