"""Labels that spread over a graph of nearest neighbours (Zhou et al. 2004; Iscen et al. 2019, arXiv 1904.04717).

Nothing of [N, N] is held: a graph is its edges, and F = (I - alpha S)^-1 Y is solved by conjugate gradients, a few classes at a time.
The same bits come on every run: sums go in a fixed order, on CUDA too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .neighbours import neighbours

BLOCK = 2**24  # products of an edge and a column held at a time on an accelerator
_CACHED = 2**18  # the same on a CPU, whose caches they then fit into
COLUMNS = 2**26  # entries of [N, classes at a time]


class Graph(NamedTuple):
    """S = D^-1/2 W D^-1/2 of N nodes, symmetric, its diagonal zero. Entries of row i are start[i] to start[i + 1]; a pair of nodes may
    have two, which add."""

    start: Tensor  # [N + 1] int64
    row: Tensor  # [E] int64, in order
    column: Tensor  # [E] int64
    weight: Tensor  # [E] float

    @property
    def isolated(self) -> Tensor:
        """[N] bool: nodes without an edge."""
        return self.start.diff() == 0

    def __matmul__(self, x: Tensor) -> Tensor:
        """[N, c] -> S x."""
        return (_by_edges if x.device.type == "cpu" else _by_rows)(self, x)


def _by_edges(graph: Graph, x: Tensor) -> Tensor:
    """In the order of the edges, which is the order that a CPU's index_add has."""
    out = torch.zeros_like(x)
    step = max(1, _CACHED // max(1, x.shape[1]))
    for at in range(0, len(graph.row), step):
        some = slice(at, at + step)
        out.index_add_(0, graph.row[some], graph.weight[some, None] * x[graph.column[some]])
    return out


def _by_rows(graph: Graph, x: Tensor) -> Tensor:
    """Each row's sum by one thread: the atomics of an accelerator's index_add come in any order."""
    out = torch.zeros_like(x)
    edges = torch.arange(0, len(graph.row), max(1, BLOCK // max(1, x.shape[1])), device=x.device)
    cuts = sorted({*(torch.searchsorted(graph.start, edges, right=True) - 1).tolist(), len(x)})
    for first, last in zip(cuts, cuts[1:], strict=False):
        at, end = graph.start[first], graph.start[last]
        products = graph.weight[at:end, None] * x[graph.column[at:end]]
        out[first:last] = torch.segment_reduce(products, "sum", offsets=graph.start[first : last + 1] - at, axis=0)
    return out


def neighbour_graph(features: Tensor, k: int, *, power: float = 3.0, search: str = "auto") -> Graph:
    """W = A + A^T, A_ij = max(0, cos(v_i, v_j)) ** power where j is one of the k nearest neighbours of i other than i, else 0.

    Two nodes that are each other's neighbours count twice. A cosine below 0 is no similarity: its cube would be a negative weight. A row of
    zeros, or one that is not finite, has no edge.

    Args:
        features: [N, d], of any lengths; float64 makes a graph in float64, all else one in float32.
        k: at least 1. search: as in neighbours.py.
    """
    near = neighbours(features, features, k, own=True, search=search)
    n, device = len(features), features.device
    weight = near.cosine.clamp(min=0) ** power
    one = torch.arange(n, device=device)[:, None].expand_as(near.index)[weight > 0]
    other, weight = near.index[weight > 0], weight[weight > 0]
    row, column, weight = torch.cat([one, other]), torch.cat([other, one]), torch.cat([weight, weight])
    order = torch.argsort(row * n + column, stable=True)
    row, column, weight = row[order], column[order], weight[order]
    start = torch.zeros(n + 1, dtype=torch.int64, device=device)
    start[1:] = torch.bincount(row, minlength=n).cumsum(0)
    bare = Graph(start, row, column, weight)
    degree = (bare @ weight.new_ones(n, 1))[:, 0]
    scale = torch.where(degree > 0, degree, 1.0).rsqrt()
    return bare._replace(weight=weight * (scale[row] * scale[column]))


def conjugate_gradients(product: Callable[[Tensor], Tensor], b: Tensor, *, tolerance: float, most: int) -> Tensor:
    """Solves A x = b for each column by itself: one scalar a column, from x = 0, as scipy.sparse.linalg.cg(rtol=tolerance) does.

    Args:
        product: [N, c] -> A times it, A symmetric and positive definite.
        b: [N, c].
        tolerance: a column is done once norm(b - A x) <= tolerance norm(b).
        most: iterations.
    """
    x, r = torch.zeros_like(b), b.clone()
    p, square = r.clone(), (r * r).sum(0)
    goal = tolerance**2 * square
    for _ in range(most):
        going = square > goal
        if not going.any():  # a column of NaN is not among them
            break
        moved = product(p)
        curvature = (p * moved).sum(0)
        rate = torch.where(going & (curvature > 0), square / curvature, 0.0)
        x += rate * p
        r -= rate * moved
        now = (r * r).sum(0)
        p = torch.where(going, r + now / square * p, p)
        square = torch.where(going, now, square)
    return x


class Diffused(NamedTuple):
    """What a node has of the classes, q = max(F, 0) over its sum."""

    label: Tensor  # [N] int64 likeliest class, the smaller among equals; -1 where no class has reached the node
    certainty: Tensor  # [N] float: 1 - H(q) / log C in [0, 1]; 0 where no class has


def diffused(
    graph: Graph,
    label: Tensor,
    strength: Tensor,
    classes: int,
    *,
    alpha: float = 0.99,
    seeds: str = "share",
    tolerance: float = 1e-6,
    iterations: int = 20,
) -> Diffused:
    """Labels of all nodes of a graph from those of some (Iscen et al. 2019, section 3).

    Args:
        label: [N] int64 classes of the labelled nodes; anywhere else it does not matter.
        strength: [N] at least 0: how much a label counts, 0 of a node that has none.
        alpha: in [0, 1).
        seeds: entry of a labelled node in its class's column of Y: its strength over the class's sum of them (share), or as it is (one).
        tolerance, iterations: of the conjugate gradients.
    """
    n, kind, device = len(label), graph.weight.dtype, graph.weight.device
    strength = strength.to(kind)
    known = strength > 0
    label = torch.where(known, label, 0)
    total, moment = torch.zeros(2, n, dtype=torch.float64, device=device)  # sum of F, sum of F log F
    peak, best = torch.zeros(n, dtype=kind, device=device), torch.full((n,), -1, device=device)
    width = max(1, COLUMNS // max(1, n))
    for first in range(0, classes, width):
        columns = torch.arange(first, min(first + width, classes), device=device)
        y = torch.where(label[:, None] == columns, strength[:, None], 0.0)
        if seeds == "share":
            y = y / torch.where((whole := y.sum(0)) > 0, whole, 1.0)
        f = conjugate_gradients(lambda x: x - alpha * (graph @ x), y, tolerance=tolerance, most=iterations).clamp(min=0)
        value, place = f.max(1)
        higher = value > peak
        peak, best = torch.where(higher, value, peak), torch.where(higher, columns[place], best)
        f = f.double()
        total += f.sum(1)
        moment += torch.xlogy(f, f).sum(1)
    reached = best >= 0
    whole = torch.where(reached, total, 1.0)
    entropy = whole.log() - moment / whole
    certainty = torch.where(reached, (1 - entropy / math.log(classes)).clamp(0, 1), 0.0)
    return Diffused(best, certainty.to(kind))


def class_weights(label: Tensor, classes: int) -> Tensor:
    """[C] float32 zeta_c = (N / C) / number of nodes of class c, taken as 1 where there is none. `label`: [n] int64, -1 does not count."""
    count = torch.bincount(label[label >= 0], minlength=classes)
    return (count.sum() / classes / count.clamp(min=1)).to(torch.float32)
