"""Lengths of rounds, who may be chosen, and what a round changed."""

import dataclasses

import numpy as np
import pytest

from fastssl.methods.bricks.rounds import by_class, change, lengths, pool, told_vanished
from fastssl.models import Report
from fastssl.pipelines.errors import ConfigError
from tests.fastssl.methods.rounds_toy import LABELLED, POOL, SPLIT


@pytest.mark.parametrize(
    ("steps", "rounds", "share", "expected"),
    [
        (400, 3, 0.0, (100, 100)),
        (402, 3, 0.0, (102, 100)),
        (10, 3, 0.5, (7, 1)),
        (5, 4, 0.99, (1, 1)),
        (7, 0, 0.3, (7, 0)),
        (9, 2, 0.01, (1, 4)),
    ],
)
def test_lengths_use_every_step(steps, rounds, share, expected):
    first, each = lengths("name", steps, rounds, share)
    assert (first, each) == expected and first + rounds * each == steps


def test_too_few_steps_are_one_sentence():
    with pytest.raises(ConfigError, match="name of 3 rounds trains 4 times, a step each at least; give --steps 4 or more"):
        lengths("name", 3, 3, 0.0)


def test_the_pool_has_no_label_and_each_row_once():
    assert pool(SPLIT).tolist() == POOL.tolist()
    assert pool(dataclasses.replace(SPLIT, unlabelled=np.array([20, 11, 20, *LABELLED]))).tolist() == [11, 20]


def test_what_changed():
    found = change(np.array([-1, 2, 1, 0, -1]), np.array([3, 2, -1, 1, -1]))
    assert found == (3, 1, 1, 1) and found.moved == 3 and str(found) == "1 changed their label, 1 new, 1 left out"
    assert change(np.array([-1, 4]), np.array([-1, 4])).moved == 0


def test_classes_in_words_and_those_that_vanish(toy):
    spec, counts = toy.spec(), np.array([3, 0, 2, 0, 1])
    assert by_class(spec, counts) == "of each class: a 3, b 0, c 2, d 0, e 1"
    many = dataclasses.replace(spec, classes=tuple(str(c) for c in range(30)))
    assert by_class(many, np.arange(30)) == "0 to 29 of a class, 14 in the middle"
    for before, told in (([1, 0, 1, 0, 1], 0), ([1, 1, 1, 0, 1], 1), ([1, 2, 1, 2, 1], 1)):
        report = Report()
        told_vanished(report, "name", spec, np.array(before), counts)
        assert len(report.warnings) == told
    assert "for classes b, d; the labels alone teach them" in report.warnings[0]
    report = Report()
    told_vanished(report, "name", spec, np.ones(5), np.zeros(5))
    assert not report.warnings, "nothing selected is told otherwise"
