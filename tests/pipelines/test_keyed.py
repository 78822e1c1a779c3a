"""Keyed random numbers and the keyed order: uniform, independent, and functions of nothing but their key."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from fastssl.pipelines import keyed
from fastssl.pipelines.order import shuffled, visited


def chi_square(counts, expected=None):
    return stats.chisquare(np.asarray(counts), expected).pvalue


def test_mix_is_splitmix64():
    # Java's SplittableRandom and every other splitmix64 seeded with 0 begin so.
    words = keyed.bits(torch.zeros(1, dtype=torch.int64), 3)[0]
    assert [w & (2**64 - 1) for w in words.tolist()] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


def test_host_and_device_keys_agree():
    for words in [(0, 1), (5, -3), (2**40, 7)]:
        assert keyed.key(*words) == keyed.joined(keyed.key(words[0]), torch.tensor([words[1]])).item()
    assert keyed.key(1, 2) != keyed.key(2, 1)
    rows = torch.arange(3)
    assert torch.equal(keyed.joined(7, rows, rows + 1)[1:2], keyed.joined(7, rows[1:2], rows[1:2] + 1))


def test_words_are_uniform_and_slots_independent():
    keys = keyed.joined(keyed.key(0), torch.arange(200_000), torch.zeros((), dtype=torch.int64))
    words = keyed.bits(keys, 4)
    unit = keyed.unit(words).numpy()
    assert 0 <= unit.min() and unit.max() < 1
    for slot in range(4):
        assert stats.kstest(unit[:, slot], "uniform").pvalue > 1e-4
    cells = np.histogram2d(unit[:, 0], unit[:, 1], bins=16)[0]
    assert chi_square(cells.ravel()) > 1e-4
    # Consecutive rows, and one bit of difference in the seed, are no nearer than strangers.
    assert abs(np.corrcoef(unit[:-1, 0], unit[1:, 0])[0, 1]) < 0.01
    other = keyed.unit(keyed.bits(keyed.joined(keyed.key(1), torch.arange(200_000), torch.zeros((), dtype=torch.int64)), 1)).numpy()
    assert abs(np.corrcoef(unit[:, 0], other[:, 0])[0, 1]) < 0.01


@pytest.mark.parametrize("bound", [2, 9, 14, 57])
def test_below_is_uniform(bound):
    words = keyed.bits(torch.arange(100_000), 1)[:, 0]
    drawn = keyed.below(words, bound)
    assert drawn.min() == 0 and drawn.max() == bound - 1
    assert chi_square(torch.bincount(drawn)) > 1e-4


@pytest.mark.parametrize("n", [1, 2, 3, 17, 1347, 4096])
def test_order_is_a_bijection(n):
    for key in (0, 1, -5):
        assert torch.equal(shuffled(torch.arange(n), n, torch.full((n,), key)).sort().values, torch.arange(n))


def test_order_is_uniform_in_every_position():
    n, trials = 12, 24_000
    keys = keyed.joined(keyed.key(3), torch.arange(trials))
    table = torch.stack([shuffled(torch.full((trials,), p), n, keys) for p in range(n)], 1)
    for p in range(n):
        assert chi_square(torch.bincount(table[:, p], minlength=n)) > 1e-4
    # Where one element goes says nothing of its neighbour: all ordered pairs are equally likely.
    pairs = torch.bincount(table[:, 0] * n + table[:, 1], minlength=n * n).view(n, n)
    assert (pairs.diagonal() == 0).all()
    assert chi_square(pairs[~torch.eye(n, dtype=torch.bool)]) > 1e-4


def test_all_permutations_of_four_occur_alike():
    trials = 48_000
    keys = keyed.joined(keyed.key(4), torch.arange(trials))
    table = torch.stack([shuffled(torch.full((trials,), p), 4, keys) for p in range(4)], 1)
    codes = (table * torch.tensor([64, 16, 4, 1])).sum(1)
    counts = codes.unique(return_counts=True)[1]
    assert len(counts) == 24 and chi_square(counts) > 1e-4


def test_visits_count_epochs_and_do_not_depend_on_the_batch():
    n = torch.tensor(10)
    whole, visit = visited(torch.tensor(0), 30, n, 99)
    pieces = [visited(torch.tensor(start), 6, n, 99) for start in range(0, 30, 6)]
    assert torch.equal(whole, torch.cat([rows for rows, _ in pieces]))
    assert torch.equal(visit, torch.arange(30) // 10)
    epochs = whole.view(3, 10)
    assert torch.equal(epochs.sort(1).values, torch.arange(10).expand(3, 10))
    assert not torch.equal(epochs[0], epochs[1])
