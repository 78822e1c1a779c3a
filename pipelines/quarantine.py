"""Images that cannot be used: how many a set may hold, and how they are told of."""

from __future__ import annotations

from collections.abc import Container

import numpy as np

from .errors import DataError

_SHOWN = 5


def counted(names: list[str]) -> str:
    """ "7 ('a', 'b', ...)": how many, and the first few by name."""
    names = sorted(names)
    return f"{len(names)} ({', '.join(map(repr, names[:_SHOWN]))}{', ...' if len(names) > _SHOWN else ''})"


def judge(where: str, bad: list[tuple[str, str]], total: int, max_bad: float) -> list[str]:
    """Lets a few undecodable images of `where` pass, (id, reason) each, out of `total`.

    Returns:
        sentences for the user: none where all are good.

    Raises:
        DataError: more than the share `max_bad`, or all of them.
    """
    if len(bad) > max_bad * total:
        raise DataError(
            f"{len(bad)} of {total} images in {where} cannot be decoded, {len(bad) / total:.1%} where --max-bad "
            f"allows {max_bad:.1%}; repair or remove them, or raise --max-bad:",
            bad,
        )
    if len(bad) == total:
        raise DataError(f"none of the {total} images in {where} can be decoded:", bad)
    return [f"undecodable images, left out of {total}: {counted([name for name, _ in bad])}"] if bad else []


def closed_up(rows: np.ndarray, bad: Container[int]) -> list[int]:
    """Moves the good rows of an array together, in place as a second copy of a set may not fit; returns their old positions."""
    keep = [i for i in range(len(rows)) if i not in bad]
    for row, i in enumerate(keep):
        if row != i:
            rows[row] = rows[i]
    return keep
