"""Nearest neighbours by cosine: exact in blocks, or approximate by faiss where both sides are many."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...pipelines.errors import SetupError

SEARCHES = ("auto", "exact", "faiss")
BLOCK = 2**24  # cosines held at a time
MANY = 1_000_000  # rows of a bank, and
COMPARISONS = 10**10  # pairs of a query and a row, above which `auto` takes faiss: on one core at MANY rows both take two minutes


class Neighbours(NamedTuple):
    """Of each query the nearest rows of a bank, the nearest first, the smaller row first among equals."""

    cosine: Tensor  # [Q, k], -inf where a query has no further neighbour
    index: Tensor  # [Q, k] int64 rows of the bank, -1 where it has none


def unit(x: Tensor) -> Tensor:
    """[N, d] -> rows of length 1, in float64 of float64 and in float32 of all else. A row of zeros stays one; NaN and inf make NaN."""
    x = x if x.dtype == torch.float64 else x.float()
    return x / torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)


def neighbours(queries: Tensor, bank: Tensor, k: int, *, own: bool = False, search: str = "auto") -> Neighbours:
    """The k rows of a bank with the largest cosines to each query.

    Exact cosines are computed in float32 (float64 of float64) with IEEE matrix products, in blocks of at most BLOCK, so that [Q, N] is
    never held. They are equal where their bits are. A row that is not finite is nobody's neighbour, and as a query has none; a row of
    zeros has cosine 0 to all.

    Args:
        queries: [Q, d], of any lengths.
        bank: [N, d] of the same device.
        k: neighbours of each query, at least 1; fewer come where the bank has fewer.
        own: the queries are the bank's rows, in order, and none is its own neighbour.
        search: "exact"; "faiss" (an inverted file in float32 on the host, approximate: of the cosines that it finds all are right, some
            neighbours it misses); "auto": faiss where it is installed, the tensors are the CPU's, the bank has more than MANY rows and
            there are more than COMPARISONS pairs, else exact.

    Returns:
        [Q, min(k, N)] cosines and rows ([Q, min(k, N - 1)] with `own`).

    Raises:
        ValueError: shapes that do not fit, k below 1, another search. SetupError: faiss is asked for and not installed.
    """
    if queries.dim() != 2 or bank.dim() != 2 or queries.shape[1] != bank.shape[1]:
        raise ValueError(f"queries [Q, d] and bank [N, d] are wanted, got {list(queries.shape)} and {list(bank.shape)}")
    if own and len(queries) != len(bank):
        raise ValueError(f"own=True takes the bank itself as queries, got {len(queries)} queries and {len(bank)} rows")
    if k < 1 or search not in SEARCHES:
        raise ValueError(f"k is at least 1 and search one of {', '.join(SEARCHES)}; got k={k} and search={search!r}")
    k = min(k, len(bank) - own)
    if k < 1 or not len(queries):
        k = max(k, 0)
        return Neighbours(unit(queries).new_empty(len(queries), k), torch.empty(len(queries), k, dtype=torch.int64, device=bank.device))
    by_faiss = search == "faiss" or search == "auto" and bank.device.type == "cpu" and pays(len(queries), len(bank)) and installed()
    return (_by_faiss if by_faiss else _exact)(unit(queries), unit(bank), k, own)


def pays(queries: int, rows: int) -> bool:
    """Whether building an index costs less than comparing all pairs. A few queries, as of classes, are compared with any bank at once."""
    return rows > MANY and queries * rows > COMPARISONS


def installed() -> bool:
    return importlib.util.find_spec("faiss") is not None


def _exact(queries: Tensor, bank: Tensor, k: int, own: bool) -> Neighbours:
    found = []
    height = min(len(queries), 1024, BLOCK)
    width = max(1, BLOCK // height)
    sound, fit = bank.isfinite().all(1), queries.isfinite().all(1)
    with _ieee(bank.device):
        for first in range(0, len(queries), height):
            some, best = queries[first : first + height], None
            for start in range(0, len(bank), width):
                cosine = some @ bank[start : start + width].T
                for kept, axis in ((sound[start : start + width], 0), (fit[first : first + height], 1)):
                    if not kept.all():
                        cosine.masked_fill_(~kept.unsqueeze(axis), -torch.inf)
                if own:
                    place = torch.arange(first, first + len(some), device=bank.device)
                    here = (place >= start) & (place < start + cosine.shape[1])
                    cosine[here.nonzero()[:, 0], place[here] - start] = -torch.inf
                value, index = _largest(cosine, k)
                best = (value, index + start) if best is None else _joined(best, (value, index + start), k)
            found.append(best)
    cosine, index = (torch.cat(column) for column in zip(*found, strict=True))
    return Neighbours(cosine, torch.where(cosine == -torch.inf, -1, index))


def _largest(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row, largest first, and their places; the earlier first among equals, which `topk` leaves open."""
    if k >= x.shape[1]:
        place = torch.arange(x.shape[1], device=x.device).expand(len(x), -1)
    else:
        value, place = x.topk(k, dim=1, sorted=False)
        last = value.amin(1, keepdim=True)
        (undecided,) = ((x == last).sum(1) > (value == last).sum(1)).nonzero(as_tuple=True)  # rows with equals on both sides of the cut
        if len(undecided):
            some, least = x[undecided], last[undecided]
            above, equal = some > least, some == least
            taken = above | equal & (equal.cumsum(1, dtype=torch.int32) <= k - above.sum(1, keepdim=True))
            place[undecided] = taken.nonzero()[:, 1].view(-1, k)
        place = place.sort(dim=1).values
    value, order = x.gather(1, place).sort(dim=1, descending=True, stable=True)
    return value, place.gather(1, order)


def _joined(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], k: int) -> tuple[Tensor, Tensor]:
    """The k largest of both; all rows of `one` come before those of `other`."""
    value, order = torch.cat([one[0], other[0]], 1).sort(dim=1, descending=True, stable=True)
    return value[:, :k], torch.cat([one[1], other[1]], 1).gather(1, order[:, :k])


@contextlib.contextmanager
def _ieee(device: torch.device) -> Iterator[None]:
    """Matrix products in the tensors' own precision, whatever the run trains with."""
    kept = torch.backends.cuda.matmul.allow_tf32
    with torch.autocast(device.type, enabled=False):
        try:
            if device.type == "cuda":
                torch.backends.cuda.matmul.allow_tf32 = False
            yield
        finally:
            if device.type == "cuda":
                torch.backends.cuda.matmul.allow_tf32 = kept


def _by_faiss(queries: Tensor, bank: Tensor, k: int, own: bool) -> Neighbours:
    """By an inverted file of about 4 sqrt(N) lists, of which each query looks through a sixteenth, at least 8."""
    try:
        import faiss
    except ImportError as error:
        raise SetupError("search=faiss needs faiss, which is not installed; run: pip install 'fastssl[faiss]'") from error
    rows, asked = (np.ascontiguousarray(x.detach().cpu().float().numpy()) for x in (bank, queries))
    (sound,) = np.isfinite(rows).all(1).nonzero()
    fit = np.isfinite(asked).all(1)
    rows, wanted = rows[sound], min(k + own, len(sound))
    cosine, index = np.full((len(asked), k), -np.inf, np.float32), np.full((len(asked), k), -1)
    if wanted and fit.any():
        lists = max(1, min(int(4 * len(rows) ** 0.5), len(rows) // 39))  # faiss wants 39 rows or more to train a list
        quantizer = faiss.IndexFlatIP(rows.shape[1])
        inverted = faiss.IndexIVFFlat(quantizer, rows.shape[1], lists, faiss.METRIC_INNER_PRODUCT)
        inverted.train(rows)
        inverted.add(rows)
        inverted.nprobe = min(lists, max(8, lists // 16))
        value, place = inverted.search(asked[fit], wanted)
        place = np.where(place >= 0, sound[place], -1)
        if own:
            place[place == np.flatnonzero(fit)[:, None]] = -1
        value = np.where(place >= 0, value, -np.inf)
        order = np.lexsort((np.where(place >= 0, place, len(bank)), -value))[:, :k]
        cosine[fit, : order.shape[1]], index[fit, : order.shape[1]] = (np.take_along_axis(x, order, 1) for x in (value, place))
    return Neighbours(torch.from_numpy(cosine).to(bank), torch.from_numpy(index).to(bank.device))
