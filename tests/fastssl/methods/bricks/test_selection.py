"""The surest of each class, and classes that have few by copies."""

import numpy as np
import pytest

from fastssl.methods.bricks.selection import balanced, surest


def test_the_surest_of_each_class():
    label, sure = np.array([0, 1, 0, 0, 1]), np.array([0.3, np.nan, 0.7, 0.7, 0.2])
    assert surest(label, sure, np.array([1, 3])).tolist() == [2, 4], "the earlier of equals; all where there are fewer; NaN never"
    assert surest(label, sure, np.array([0, 0])).tolist() == []
    assert surest(label[:0], sure[:0], np.array([2, 2])).tolist() == []


@pytest.mark.parametrize("per_class", [1, 3, 7, 20])
def test_every_class_that_has_a_row_is_drawn_as_often(per_class):
    rng = np.random.default_rng(0)
    label, sure = rng.choice(4, 40, p=[0.6, 0.3, 0.1, 0]), rng.random(40)
    sure[3] = np.nan
    rows = rng.permutation(100)[:40]
    copies = balanced(rows, label, sure, per_class, 4, (5, 1))
    for c in range(4):
        mine = (label == c) & np.isfinite(sure)
        assert copies[mine].sum() == per_class * mine.any() and copies[label == c].max(initial=0) - copies[mine].min(initial=9) <= 1
        cut = np.sort(sure[mine])[::-1][:per_class]
        assert (copies[mine] > 0).sum() == len(cut) and (sure[mine][copies[mine] > 0] >= cut.min(initial=1)).all()
    assert copies[3] == 0


def test_lots_go_by_the_row_and_fall_on_all_alike():
    rows, one = np.arange(10), np.zeros(10, int)
    sure = np.full(10, 0.5)
    found = np.array([balanced(rows, one, sure, 13, 1, (seed, 1)) for seed in range(400)])
    assert (found.sum(1) == 13).all() and set(np.unique(found)) == {1, 2}
    share = (found == 2).mean(0)
    assert np.abs(share - 0.3).max() < 5 * np.sqrt(0.3 * 0.7 / 400), "a row's mean number of copies is per_class / count"
    turned = balanced(rows[::-1].copy(), one, sure, 13, 1, (7, 1))[::-1]
    assert turned.tolist() == found[7].tolist(), "whatever the order in which rows come"
