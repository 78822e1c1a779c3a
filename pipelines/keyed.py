"""Random numbers that are pure functions of a key: no generator, no state, the same bits on every device and for any batch size.

The hash is splitmix64 (Steele, Lea, Flood 2014, "Fast Splittable Pseudorandom Number Generators", figure 15) in wrapping int64
arithmetic. Host scalars and device tensors are hashed by the same function, so that a key may be made on either side.
"""

from __future__ import annotations

import torch
from torch import Tensor

_WORD = (1 << 64) - 1


def _signed(value: int) -> int:
    """The int64 whose bits are those of `value` modulo 2**64."""
    value &= _WORD
    return value - (1 << 64) if value >> 63 else value


GOLDEN = _signed(0x9E3779B97F4A7C15)
_FIRST = _signed(0xBF58476D1CE4E5B9)
_SECOND = _signed(0x94D049BB133111EB)


def shifted(bits: Tensor, by: int) -> Tensor:
    """Logical right shift of int64 `bits` (torch's own `>>` copies the sign bit)."""
    return (bits >> by) & ((1 << (64 - by)) - 1)


def mixed(bits: Tensor) -> Tensor:
    """splitmix64's finaliser: a bijection of int64 under which every input bit moves every output bit."""
    bits = (bits ^ shifted(bits, 30)) * _FIRST
    bits = (bits ^ shifted(bits, 27)) * _SECOND
    return bits ^ shifted(bits, 31)


def key(*words: int) -> int:
    """One int64 key of several host integers; the order of the words matters."""
    state = 0
    for word in words:
        state = (state + (GOLDEN & _WORD) + (word & _WORD)) & _WORD
        state = ((state ^ (state >> 30)) * (_FIRST & _WORD)) & _WORD
        state = ((state ^ (state >> 27)) * (_SECOND & _WORD)) & _WORD
        state ^= state >> 31
    return _signed(state)


def joined(base: int | Tensor, *words: Tensor) -> Tensor:
    """Keys of rows: `base` extended by one int64 tensor after another, elementwise.

    `joined(key(a), tensor([b]))` equals `key(a, b)`.
    """
    state = base
    for word in words:
        # A host integer does not wrap by itself.
        step = _signed(state + GOLDEN) if isinstance(state, int) else state + GOLDEN
        state = mixed(step + word)
    return state


def bits(keys: Tensor, count: int) -> Tensor:
    """`count` independent 64-bit words for each key: [n] int64 -> [n, count] int64."""
    slots = torch.arange(1, count + 1, dtype=torch.int64, device=keys.device)
    if torch.compiler.is_compiling():
        # Inductor takes multiples of a range for addresses, and computes those without wrapping: the slots must look like data to it.
        slots = slots | (keys[..., None] & 0)
    return mixed(keys[..., None] + GOLDEN * slots)


def below(words: Tensor, bound: int | Tensor) -> Tensor:
    """Uniform integers in [0, bound) from 64-bit words, for bound < 2**31; the bias is below bound / 2**32."""
    return (shifted(words, 32) * bound) >> 32


def unit(words: Tensor) -> Tensor:
    """Uniform float64 in [0, 1), 53 random bits each."""
    return shifted(words, 11).to(torch.float64) * 2.0**-53
