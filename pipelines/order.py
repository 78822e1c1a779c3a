"""The order in which a stream visits its rows: a keyed bijection of positions, computed and never stored.

Position p of a stream over n rows falls into epoch p // n, and within an epoch the positions 0..n-1 are permuted by a swap-or-not
network (Hoang, Morris, Rogaway 2012, "An Enciphering Scheme Based on a Card Shuffle", figure 1). Unlike a Feistel network it needs no
cycle walking, so any n costs the same fixed number of device operations and the host is never asked.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from . import keyed

# Each round halves the variance of where one element may lie; 32 leave less than any run could measure.
ROUNDS = 32


def shuffled(position: Tensor, n: int | Tensor, keys: Tensor) -> Tensor:
    """Permutes positions of [0, n).

    Args:
        position: [m] int64 in [0, n).
        n: number of elements, at most 2**31; int or [] int64 tensor.
        keys: [m] int64, one permutation a key.

    Returns:
        [m] int64 in [0, n): for each fixed key a bijection of position.
    """
    pivots = keyed.below(keyed.bits(keys, ROUNDS), n)
    coins = keyed.bits(keys + 1, ROUNDS)
    if position.device.type == "cpu" and not torch.compiler.is_compiling():
        return _on_the_host(position, int(n), pivots, coins)
    for r in range(ROUNDS):
        partner = pivots[:, r] - position
        partner = torch.where(partner < 0, partner + n, partner)
        # Both ends of a pair read the same coin, because it is drawn for the larger of the two.
        coin = keyed.mixed(coins[:, r] + torch.maximum(position, partner)) & 1
        position = torch.where(coin == 1, partner, position)
    return position


def _on_the_host(position: Tensor, n: int, pivots: Tensor, coins: Tensor) -> Tensor:
    """The rounds in numpy, whose calls on a batch's few numbers cost a third of torch's."""
    at, pivot = position.numpy(), np.ascontiguousarray(pivots.numpy().T)
    coin = np.ascontiguousarray(coins.numpy().T).view(np.uint64)  # unsigned: shifts bring in zeros
    first, second = np.uint64(keyed._FIRST & keyed._WORD), np.uint64(keyed._SECOND & keyed._WORD)
    for r in range(ROUNDS):
        partner = pivot[r] - at
        partner = np.where(partner < 0, partner + n, partner)
        word = coin[r] + np.maximum(at, partner).view(np.uint64)
        word ^= word >> np.uint64(30)
        word *= first
        word ^= word >> np.uint64(27)
        word *= second
        word ^= word >> np.uint64(31)
        at = np.where(word & np.uint64(1), partner, at)
    return torch.from_numpy(at)


def visited(start: Tensor, count: int, n: int | Tensor, base: int) -> tuple[Tensor, Tensor]:
    """The elements that stream positions start .. start+count-1 visit.

    Args:
        start: [] int64, position of the stream.
        count: how many positions to read.
        n: elements in an epoch.
        base: key of the stream.

    Returns:
        ([count] int64 element in [0, n), [count] int64 visit number of that element: the epoch). Within an epoch no element
        comes twice; where n < count an element may come again in the same call, with a later visit number.
    """
    position = start + torch.arange(count, dtype=torch.int64, device=start.device)
    epoch = torch.div(position, n, rounding_mode="floor")
    return shuffled(position - epoch * n, n, keyed.joined(base, epoch)), epoch
