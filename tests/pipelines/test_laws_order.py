"""The order's rounds in numpy, which serve the CPU, are those in torch, which serve devices."""

from __future__ import annotations

import pytest
import torch

from fastssl.pipelines import keyed, order


@pytest.mark.parametrize("n", [1, 2, 17, 1347, 50_000, 2**31 - 1])
def test_both_ways_give_the_same_positions(n, monkeypatch):
    position = torch.arange(5000) % n
    keys = keyed.joined(keyed.key(n), torch.arange(5000))
    host = order.shuffled(position, n, keys)
    assert torch.equal(host, order.shuffled(position, torch.tensor(n), keys))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert torch.equal(host, order.shuffled(position, torch.tensor(n), keys))
    assert host.dtype == torch.int64 and (host >= 0).all() and (host < n).all()


def test_the_bits_are_those_of_the_first_version():
    """Splits and checkpoints of earlier runs depend on them."""
    got = order.shuffled(torch.arange(12), 12, torch.full((12,), 7))
    assert got.tolist() == [7, 1, 5, 0, 4, 11, 6, 9, 8, 10, 3, 2]
    rows = order.visited(torch.tensor(30), 8, torch.tensor(1347), 99)[0]
    assert rows.tolist() == [528, 912, 63, 1281, 1042, 109, 1277, 92]
