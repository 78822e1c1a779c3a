"""Nearest neighbours against all cosines in numpy: ties, blocks, rows that are not finite, self, and faiss's approximation."""

import numpy as np
import pytest
import torch

from fastssl.methods.bricks import neighbours as brick
from fastssl.methods.bricks.neighbours import neighbours, pays, unit
from fastssl.pipelines.errors import SetupError


def tied(n, seed):
    """[n, 8] rows with four entries of 1 or -1: cosines are quarters, exactly, and most of them tie."""
    rng = np.random.default_rng(seed)
    x = np.zeros((n, 8))
    for row in x:
        row[rng.permutation(8)[:4]] = rng.choice([-1.0, 1.0], 4)
    return x


def by_numpy(queries, bank, k, own=False):
    with np.errstate(invalid="ignore"):
        a, b = (x / np.maximum(np.sqrt((x**2).sum(1, keepdims=True)), 1e-300) for x in (queries, bank))
    cosine = np.nan_to_num(a @ b.T, nan=-np.inf)
    if own:
        np.fill_diagonal(cosine, -np.inf)
    index = np.array([sorted(range(len(b)), key=lambda j: (-row[j], j)) for row in cosine])[:, :k]
    value = np.take_along_axis(cosine, index, 1)
    return value, np.where(value == -np.inf, -1, index)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("block", [5, 64, 2**24])
@pytest.mark.parametrize("k", [1, 7, 60])
def test_ties_go_to_the_smaller_row_in_blocks_of_any_size(monkeypatch, dtype, own, block, k):
    monkeypatch.setattr(brick, "BLOCK", block)
    held, largest = [], brick._largest
    monkeypatch.setattr(brick, "_largest", lambda x, k: held.append(x.numel()) or largest(x, k))
    bank = tied(40, 0)
    queries = bank if own else tied(9, 1)
    found = neighbours(torch.from_numpy(queries).to(dtype), torch.from_numpy(bank).to(dtype), k, own=own)
    value, index = by_numpy(queries, bank, min(k, 40 - own), own)
    assert found.index.dtype == torch.int64 and found.cosine.dtype == dtype
    assert found.index.tolist() == index.tolist()
    assert np.array_equal(found.cosine.double().numpy(), value)
    assert max(held) <= block and len(held) >= len(queries) * 40 / block, "all pairs are never held together"


@pytest.mark.parametrize("seed", [0, 1])
def test_lengths_do_not_matter_and_float64_is_float64(seed):
    rng = np.random.default_rng(seed)
    queries, bank = rng.normal(size=(6, 5)), rng.normal(size=(50, 5)) * 10.0 ** rng.integers(-3, 4, (50, 1))
    found = neighbours(torch.from_numpy(queries), torch.from_numpy(bank), 12)
    value, index = by_numpy(queries, bank, 12)
    assert found.index.tolist() == index.tolist()
    np.testing.assert_allclose(found.cosine, value, rtol=1e-12)


@pytest.mark.parametrize("block", [8, 2**24])
@pytest.mark.parametrize("search", ["exact", "faiss"])
def test_rows_that_are_not_finite_are_nobodys_neighbours(monkeypatch, search, block):
    if search == "faiss":
        pytest.importorskip("faiss")
    monkeypatch.setattr(brick, "BLOCK", block)
    bank, queries = tied(6, 0), tied(4, 1)
    bank[1, 2], bank[4, 0], queries[2, 0], bank[3] = np.nan, np.inf, np.inf, 0
    value, index = by_numpy(queries, bank, 6)
    found = neighbours(torch.from_numpy(queries).float(), torch.from_numpy(bank).float(), 6, search=search)
    assert (found.index[2] == -1).all() and (found.cosine[2] == -torch.inf).all()
    assert found.index.tolist() == index.tolist() and np.array_equal(found.cosine.numpy(), value)
    assert (found.cosine[0][found.index[0] == 3] == 0).all() and (found.index[0] == -1).sum() == 2


def test_half_precision_is_compared_in_fp32_under_autocast_too():
    x = torch.randn(30, 16, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        found = neighbours(x[:5], x, 4)
    assert torch.equal(found.cosine, neighbours(x[:5], x, 4).cosine) and found.cosine.dtype == torch.float32
    assert neighbours(x.bfloat16()[:5], x.bfloat16(), 4).cosine.dtype == torch.float32


def test_rows_of_length_one():
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0], [torch.inf, 1.0]])
    assert torch.equal(unit(x)[:2], torch.tensor([[0.6, 0.8], [0.0, 0.0]])) and unit(x)[2].isnan().any()


def test_a_bank_of_none_and_queries_of_none():
    x = torch.ones(3, 2)
    assert neighbours(x, x[:0], 4).index.shape == (3, 0)
    assert neighbours(x[:0], x, 4).index.shape == (0, 3)
    assert neighbours(x[:1], x[:1], 4, own=True).index.shape == (1, 0)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda x: neighbours(x, x[:, :1], 1), r"\[Q, d\] and bank \[N, d\]"),
        (lambda x: neighbours(x[:2], x, 1, own=True), "2 queries and 3 rows"),
        (lambda x: neighbours(x, x, 0), "k=0"),
        (lambda x: neighbours(x, x, 1, search="best"), "'best'"),
    ],
)
def test_what_does_not_fit_is_said(call, said):
    with pytest.raises(ValueError, match=said):
        call(torch.ones(3, 2))


def test_auto_takes_faiss_where_it_pays_alone(monkeypatch):
    assert not pays(1000, 10**6) and not pays(10, 10**8) and pays(20_000, 2 * 10**6)
    taken = []
    monkeypatch.setattr(brick, "_by_faiss", lambda *_: taken.append(1))
    x = torch.ones(3, 2)
    neighbours(x, x, 1)
    monkeypatch.setattr(brick, "pays", lambda *_: True)
    monkeypatch.setattr(brick, "installed", lambda: False)
    neighbours(x, x, 1)
    assert not taken
    monkeypatch.setattr(brick, "installed", lambda: True)
    neighbours(x, x, 1)
    assert taken


def test_faiss_that_is_missing_names_the_command(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    with pytest.raises(SetupError, match=r"pip install 'fastssl\[faiss\]'"):
        neighbours(torch.ones(3, 2), torch.ones(3, 2), 1, search="faiss")


@pytest.mark.parametrize("own", [False, True])
def test_faiss_finds_the_most_of_them_with_their_right_cosines(own):
    pytest.importorskip("faiss")
    rng = np.random.default_rng(0)
    bank = rng.normal(size=(30, 16))[rng.integers(0, 30, 4000)] + 0.5 * rng.normal(size=(4000, 16))
    bank = torch.from_numpy(bank).float()
    queries = bank if own else bank[:50] + 0.1
    found, exact = (neighbours(queries, bank, 20, own=own, search=search) for search in ("faiss", "exact"))
    both = np.mean([len(set(a) & set(b)) / 20 for a, b in zip(found.index.tolist(), exact.index.tolist(), strict=True)])
    assert both > 0.9 and found.index.shape == exact.index.shape
    there = found.index >= 0
    right = (unit(queries)[:, None] * unit(bank)[found.index.clamp(min=0)]).sum(2)
    torch.testing.assert_close(found.cosine[there], right[there], rtol=1e-5, atol=1e-5)
    assert not own or (found.index != torch.arange(4000)[:, None]).all()
    again = neighbours(queries, bank, 20, own=own, search="faiss")
    assert torch.equal(found.index, again.index) and torch.equal(found.cosine, again.cosine)
