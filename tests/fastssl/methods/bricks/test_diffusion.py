"""Labels on graphs against SciPy's solvers and scikit-learn's LabelSpreading; graphs that fall apart."""

import numpy as np
import pytest
import torch
from scipy import sparse
from scipy.sparse import linalg
from sklearn.semi_supervised import LabelSpreading

from fastssl.methods.bricks import diffusion as brick
from fastssl.methods.bricks.diffusion import class_weights, conjugate_gradients, diffused, neighbour_graph
from tests.fastssl.methods import oracle_graph as oracle

ALPHA, CLASSES = 0.99, 4


def clouds(n=90, seed=0):
    """[n, 6] features of CLASSES overlapping clouds around directions in all quadrants, and their classes."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, CLASSES, n)
    return rng.normal(size=(CLASSES, 6))[label] + 0.7 * rng.normal(size=(n, 6)), label


def dense(graph):
    n = len(graph.start) - 1
    return torch.zeros(n, n, dtype=graph.weight.dtype).index_put_((graph.row, graph.column), graph.weight, accumulate=True).numpy()


def seeded(label, per_class=2):
    """Strength 1 of the first rows of each class."""
    strength = np.zeros(len(label))
    for c in range(CLASSES):
        strength[np.flatnonzero(label == c)[:per_class]] = 1
    return strength


@pytest.mark.parametrize("k", [1, 7, 200])
def test_the_graph_is_that_of_the_equations(k):
    x, _ = clouds()
    graph = neighbour_graph(torch.from_numpy(x), k)
    w, s = oracle.graph(x, k)
    np.testing.assert_allclose(dense(graph), s.toarray(), atol=1e-12)
    assert (np.diag(dense(graph)) == 0).all() and np.array_equal(dense(graph), dense(graph).T)
    v = x / np.linalg.norm(x, axis=1, keepdims=True)
    nearest = np.argsort(-(v @ v.T - 9 * np.eye(90)), axis=1)[:, 0]
    pairs = [(i, j) for i, j in enumerate(nearest) if nearest[j] == i]
    assert pairs and all(abs(w[i, j] - 2 * (v[i] @ v[j]) ** 3) < 1e-12 for i, j in pairs), "nearest to each other: counted twice"
    assert len(graph.weight) <= 2 * 90 * min(k, 89), "edges, not pairs"
    assert ((v @ v.T)[w == 0] < 0).any(), "some cosines are below 0, and have no edge"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("product", ["_by_edges", "_by_rows"])
def test_products_in_pieces_of_any_size(monkeypatch, product, dtype):
    x, _ = clouds()
    graph = neighbour_graph(torch.from_numpy(x).to(dtype), 9)
    y = torch.randn(90, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    whole = dense(graph) @ y.numpy()
    for size in (1, 37, 500, 2**24):
        monkeypatch.setattr(brick, "BLOCK", size)
        monkeypatch.setattr(brick, "_CACHED", size)
        found = getattr(brick, product)(graph, y)
        np.testing.assert_allclose(found, whole, atol=1e-12 if dtype == torch.float64 else 1e-5)
        assert torch.equal(found, getattr(brick, product)(graph, y))


@pytest.mark.parametrize(("most", "tolerance"), [(20, 1e-6), (3, 1e-6), (500, 1e-10), (500, 0.1)])
def test_conjugate_gradients_equal_scipys_for_each_column(most, tolerance):
    """At the same number of iterations, columns that are done early among others; one is empty."""
    x, label = clouds()
    graph, (_, s) = neighbour_graph(torch.from_numpy(x), 7), oracle.graph(x, 7)
    system = sparse.identity(90) - ALPHA * s
    b = np.stack([*((label == c) * seeded(label) for c in range(CLASSES)), np.zeros(90), np.linalg.eigh(system.toarray())[1][:, 5]], 1)
    found = conjugate_gradients(lambda y: y - ALPHA * (graph @ y), torch.from_numpy(b), tolerance=tolerance, most=most)
    for column in range(b.shape[1]):
        wanted, _ = linalg.cg(system, b[:, column], rtol=tolerance, maxiter=most)
        np.testing.assert_allclose(found[:, column], wanted, atol=1e-7 * max(1, np.abs(wanted).max()))
    if most == 500 and tolerance < 0.1:
        np.testing.assert_allclose(found, linalg.spsolve(sparse.csc_matrix(system), b), atol=1e-7)


def test_conjugate_gradients_end_where_numbers_are_no_numbers():
    b = torch.ones(4, 2, dtype=torch.float64)
    b[0, 0] = torch.nan
    calls = []
    found = conjugate_gradients(lambda y: calls.append(1) or 2 * y, b, tolerance=0.0, most=7)
    assert len(calls) <= 7 and torch.equal(found[:, 1], torch.full((4,), 0.5, dtype=torch.float64))


@pytest.mark.parametrize("columns", [1, 2**26])
@pytest.mark.parametrize("seeds", ["share", "one"])
def test_diffusion_equals_the_direct_solution(monkeypatch, seeds, columns):
    monkeypatch.setattr(brick, "COLUMNS", columns)
    x, label = clouds()
    strength = seeded(label)
    strength[np.flatnonzero(label == 1)[2:9]] = 0.5  # more labels of one class, that count half
    graph = neighbour_graph(torch.from_numpy(x), 7)
    hidden = torch.where(torch.from_numpy(strength) > 0, torch.from_numpy(label), -1)
    options = {"alpha": ALPHA, "seeds": seeds, "tolerance": 1e-12, "iterations": 500}
    found = diffused(graph, hidden, torch.from_numpy(strength), CLASSES, **options)
    wanted, certainty = oracle.judged(oracle.spread(oracle.graph(x, 7)[1], label, strength, CLASSES, seeds=seeds, exact=True))
    assert found.label.tolist() == wanted.tolist() and (wanted == label).mean() > 0.6
    np.testing.assert_allclose(found.certainty, certainty, atol=1e-6)
    other = diffused(graph, hidden, torch.from_numpy(strength), CLASSES, **{**options, "seeds": "one" if seeds == "share" else "share"})
    assert (other.label != found.label).any(), "a class with more labels takes more where each counts 1"


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("k", [5, 20])
def test_the_outcome_is_that_of_scikit_learns_label_spreading(k, seed):
    """On the same graph, whose affinities it is given, and with the paper's Y of ones: F differs by the factor 1 - alpha."""
    x, label = clouds(seed=seed)
    known = seeded(label) > 0
    w, _ = oracle.graph(x, k)
    spreading = LabelSpreading(kernel=lambda a, b: w, alpha=ALPHA, max_iter=20_000, tol=1e-12)
    spreading.fit(x, np.where(known, label, -1))
    options = {"alpha": ALPHA, "seeds": "one", "tolerance": 1e-12, "iterations": 500}
    graph = neighbour_graph(torch.from_numpy(x), k)
    found = diffused(graph, torch.from_numpy(label), torch.from_numpy(known * 1.0), CLASSES, **options)
    assert found.label.tolist() == spreading.transduction_.tolist()
    np.testing.assert_allclose(found.certainty, oracle.judged(spreading.label_distributions_)[1], atol=1e-6)
    few = diffused(
        graph, torch.from_numpy(label), torch.from_numpy(known * 1.0), CLASSES, **{**options, "iterations": 20, "tolerance": 1e-6}
    )
    assert (few.label == found.label).double().mean() > 0.95, "20 iterations are enough"


def test_isolated_points_and_islands_without_a_label_have_none():
    """Two islands and points of which nothing is like another; numbers that are no numbers; nobody's certainty is NaN."""
    x = np.zeros((14, 6))
    x[:5, :2] = np.abs(np.random.default_rng(0).normal(size=(5, 2))) + 0.1
    x[5:10, 2:4] = np.abs(np.random.default_rng(1).normal(size=(5, 2))) + 0.1
    x[10, 4], x[11, 4] = 1, -1  # their cosine is -1, whose cube would be a negative weight
    x[13] = np.nan  # and row 12 is zeros
    graph = neighbour_graph(torch.from_numpy(x), 3)
    assert graph.isolated.tolist() == [False] * 10 + [True] * 4 and graph.weight.isfinite().all()
    strength = torch.zeros(14)
    strength[[0, 1, 10]] = 1
    label = torch.tensor([2, 0, *[-1] * 8, 1, -1, -1, -1])
    for seeds in ("share", "one"):
        found = diffused(graph, label, strength, CLASSES, seeds=seeds)
        assert (found.label[:5] >= 0).all() and found.label[5:10].tolist() == [-1] * 5 and found.label[10:].tolist() == [1, -1, -1, -1]
        assert found.certainty.isfinite().all() and not found.certainty[5:10].any() and found.certainty[10] == 1
    nothing = diffused(graph, label, torch.zeros(14), CLASSES)
    assert (nothing.label == -1).all() and not nothing.certainty.any()
    lonely = neighbour_graph(torch.ones(1, 3), 5)
    assert lonely.isolated.tolist() == [True] and diffused(lonely, torch.tensor([1]), torch.ones(1), 2).label.tolist() == [1]


def test_float32_and_repeats():
    x, label = clouds(300, seed=4)
    strength = torch.from_numpy(seeded(label))
    exact = diffused(neighbour_graph(torch.from_numpy(x), 10), torch.from_numpy(label), strength, CLASSES)
    graph = neighbour_graph(torch.from_numpy(x).float(), 10)
    assert graph.weight.dtype == torch.float32
    found, again = (diffused(graph, torch.from_numpy(label), strength, CLASSES) for _ in range(2))
    assert (found.label == exact.label).double().mean() > 0.99
    torch.testing.assert_close(found.certainty.double(), exact.certainty, atol=1e-3, rtol=0)
    assert torch.equal(found.label, again.label) and torch.equal(found.certainty, again.certainty)


def test_weights_of_classes():
    label = torch.tensor([0, 0, 0, 2, -1, 0, 2, -1])
    assert class_weights(label, 3).tolist() == pytest.approx([6 / 3 / 4, 6 / 3 / 1, 6 / 3 / 2])
    assert class_weights(torch.tensor([-1, -1]), 2).tolist() == [0, 0]
