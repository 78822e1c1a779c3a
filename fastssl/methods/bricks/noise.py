"""A method's own random numbers: pure functions of (what for, seed, step, row), so that they need no generator and no state.

Where rows are named by their sample, a row's numbers do not depend on the batch around it or on how a batch is cut into pieces; where they
are places of a batch (MixUp's partners and shares, rotations), all pieces of a step under train.accumulate draw the same.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...pipelines import keyed
from ...schedules import Clock

_TRIES = 12  # of a rejection sampler that accepts at least 0.95: none fits in 2.5e-16 of all draws


def stream(name: int, clock: Clock) -> Tensor:
    """[] int64 key of one use of random numbers in the step under way. `name`: `keyed.key(...)`, a use's own."""
    return keyed.joined(keyed.joined(name, clock.seed), clock.step)


def uniform(key: Tensor, rows: Tensor, count: int) -> Tensor:
    """[n] int64 rows -> [n, count] float64 uniform in [0, 1)."""
    return keyed.unit(keyed.bits(keyed.joined(key, rows), count))


def normal(key: Tensor, rows: Tensor, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """[n] int64 rows -> [n, *shape] standard normal numbers (Box and Muller 1958), two of each 64-bit word."""
    count = math.prod(shape)
    words = keyed.bits(keyed.joined(key, rows), (count + 1) // 2)
    kind = torch.float64 if dtype == torch.float64 else torch.float32
    # 32 bits each; the first in (0, 1], as its logarithm is taken.
    first = (keyed.shifted(words, 32).to(kind) + 1) * 2.0**-32
    second = (words & 0xFFFFFFFF).to(kind) * 2.0**-32
    radius, angle = (-2 * first.log()).clamp(min=0).sqrt(), 2 * math.pi * second
    numbers = torch.cat([radius * angle.cos(), radius * angle.sin()], 1)[:, :count]
    return numbers.reshape(len(rows), *shape).to(dtype)


def permutation(key: Tensor, n: int) -> Tensor:
    """[n] int64: a random order of n places."""
    places = torch.arange(n, device=key.device)
    return torch.argsort(keyed.bits(key.view(1), n)[0] if n else places, stable=True)


def beta(key: Tensor, rows: Tensor, alpha: float) -> Tensor:
    """[n] int64 rows -> [n] float64 from Beta(alpha, alpha); alpha above 0.

    A ratio of two Gamma variables, each by Marsaglia and Tsang 2000 (their method for a shape of 1 or more, and its boost by U ** (1 / a)
    below), with a fixed number of tries.
    """
    n = len(rows)
    if alpha == 1.0:
        return uniform(key, rows, 1)[:, 0]
    shape = alpha + 1 if alpha < 1 else alpha
    d = shape - 1 / 3
    c = 1 / math.sqrt(9 * d)
    numbers = uniform(key, rows, 2 * (3 * _TRIES + 1)).view(n, 2, 3 * _TRIES + 1)
    boost, tries = numbers[..., 0], numbers[..., 1:].view(n, 2, _TRIES, 3)
    u, v = 1 - tries[..., 0], tries[..., 1]
    x = (-2 * u.log()).sqrt() * (2 * math.pi * v).cos()
    cube = (1 + c * x) ** 3
    possible = cube > 0
    volume = torch.where(possible, cube, 1.0)
    fits = possible & ((1 - tries[..., 2]).log() < 0.5 * x * x + d - d * volume + d * volume.log())
    first = fits.to(torch.int64).argmax(2, keepdim=True)  # the first that fits
    logs = (d * volume).log().gather(2, first)[..., 0]
    if alpha < 1:
        logs = logs + (1 - boost).log() / alpha
    return torch.sigmoid(logs[:, 0] - logs[:, 1])
