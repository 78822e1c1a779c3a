"""Memory with one row a sample: a dictionary is the oracle; samples repeat within a batch."""

import numpy as np
import pytest
import torch

from fastssl.methods.bricks.rows import PredictionBank, VisitBank, last_of

YES = torch.tensor(True)


def test_last_place_of_each_sample():
    assert last_of(torch.tensor([4, 1, 4, 4, 0, 1]), 5).tolist() == [3, 5, 3, 3, 4, 5]
    assert last_of(torch.tensor([7]), 8).tolist() == [0]


@pytest.mark.parametrize("momentum", [0.0, 0.9, 1.0])
def test_bank_against_a_dictionary(momentum):
    rng = np.random.default_rng(0)
    bank, known = PredictionBank(6, 3, momentum).double(), {}
    for _ in range(40):
        rows, p = rng.integers(0, 6, 8), rng.dirichlet(np.ones(3), size=8)  # eight rows of six samples: some come twice
        wanted = [momentum * known[r] + (1 - momentum) * q if r in known else q for r, q in zip(rows, p, strict=True)]
        found = bank.read(torch.from_numpy(rows), torch.from_numpy(p))
        np.testing.assert_allclose(found, wanted, rtol=1e-12)
        bank.write(torch.from_numpy(rows), found, YES)
        known |= dict(zip(rows, wanted, strict=True))
        np.testing.assert_allclose(bank.mean, [known.get(r, np.zeros(3)) for r in range(6)], rtol=1e-12)


def test_a_step_that_came_to_nothing_leaves_no_trace():
    bank = PredictionBank(4, 2, 0.9)
    index, p = torch.tensor([1, 1, 3]), torch.tensor([[0.2, 0.8], [0.6, 0.4], [1.0, 0.0]])
    bank.write(index, bank.read(index, p), YES)
    before = bank.mean.clone()
    bank.write(index, torch.full((3, 2), torch.nan), torch.tensor(False))
    assert torch.equal(bank.mean, before) and bank.guards_itself
    assert before.tolist() == [[0, 0], pytest.approx([0.6, 0.4]), [0, 0], [1, 0]]


def test_a_piece_that_is_not_finite_spares_its_samples_before_the_verdict():
    bank = PredictionBank(4, 2, 0.9)
    index, p = torch.tensor([1, 2]), torch.tensor([[0.2, 0.8], [torch.nan, torch.nan]])
    bank.write(index, bank.read(index, p), YES)
    assert bank.mean[1].tolist() == pytest.approx([0.2, 0.8]) and bank.mean[2].tolist() == [0, 0]


@pytest.mark.parametrize("momentum", [0.0, 0.6, 0.9999])
def test_ensembles_by_visits_against_a_dictionary(momentum):
    rng = np.random.default_rng(0)
    bank, known, visits = VisitBank(6, 3, momentum).double(), {}, {}
    for _ in range(40):
        rows, p = rng.integers(0, 5, 8), rng.dirichlet(np.ones(3), size=8)
        target, seen = bank.read(torch.from_numpy(rows))
        wanted = [known[r] / (1 - momentum ** visits[r]) if r in visits else np.zeros(3) for r in rows]
        assert seen.tolist() == [r in visits for r in rows]
        np.testing.assert_allclose(target, wanted, rtol=1e-9)
        bank.write(torch.from_numpy(rows), torch.from_numpy(p), YES)
        for r, q in dict(zip(rows, p, strict=True)).items():  # its last row, one visit
            known[r], visits[r] = momentum * known.get(r, 0) + (1 - momentum) * q, visits.get(r, 0) + 1
        assert bank.visits.tolist() == [visits.get(r, 0) for r in range(6)] and not bank.ensemble[5].any()


def test_ensembles_are_left_alone_where_there_was_no_step_and_by_what_is_not_finite():
    bank, index = VisitBank(4, 2, 0.5), torch.tensor([1, 1, 3])
    bank.write(index, torch.tensor([[0.2, 0.8], [0.6, 0.4], [torch.nan, 0.0]]), YES)
    bank.write(index, torch.tensor([[1.0, 0.0]] * 3), torch.tensor(False))
    assert bank.guards_itself and bank.visits.tolist() == [0, 1, 0, 0]
    assert bank.ensemble.tolist() == [[0, 0], pytest.approx([0.3, 0.2]), [0, 0], [0, 0]]
    target, seen = bank.read(torch.tensor([1, 3]))
    assert target.tolist() == [pytest.approx([0.6, 0.4]), [0, 0]] and seen.tolist() == [True, False]
