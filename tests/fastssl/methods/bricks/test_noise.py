"""Keyed random numbers: their distributions against scipy's, and that they are functions of (use, seed, step, row) and of nothing else."""

import numpy as np
import pytest
import torch

from fastssl.methods.bricks import noise
from fastssl.pipelines import keyed
from fastssl.schedules import Clock

stats = pytest.importorskip("scipy.stats", reason="scipy comes with scikit-learn")
USE = keyed.key(0x54657374)
ALPHAS = (0.1, 0.5, 0.75, 1.0, 4.0)
DRAWN = 40_000
UNLIKELY = 1e-3  # of a test's p-value; the numbers are fixed, so a pass stays one


def clock(step=5, seed=1):
    made = Clock(100, seed)
    made.step.fill_(step)
    return made


def key(step=5, seed=1, use=USE):
    return noise.stream(use, clock(step, seed))


ROWS = torch.arange(DRAWN)
DRAWS = {
    "uniform": lambda key, rows: noise.uniform(key, rows, 3),
    "normal": lambda key, rows: noise.normal(key, rows, (3, 3)),
    "beta": lambda key, rows: noise.beta(key, rows, 0.75),
}


def test_uniform():
    u = noise.uniform(key(), ROWS, 2)
    assert u.dtype == torch.float64 and u.shape == (DRAWN, 2) and u.min() >= 0 and u.max() < 1
    for column in u.T.numpy():
        assert stats.kstest(column, "uniform").pvalue > UNLIKELY
    assert abs(np.corrcoef(u.T.numpy())[0, 1]) < 0.02, "numbers of one row are independent"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3,), (2, 2)])
def test_normal(dtype, shape):
    z = noise.normal(key(), ROWS, shape, dtype)
    assert z.dtype == dtype and z.shape == (DRAWN, *shape) and z.isfinite().all()
    columns = z.double().flatten(1).T.numpy()
    for column in columns:
        assert abs(column.mean()) < 0.02 and abs(column.std() - 1) < 0.02
        assert abs((column**3).mean()) < 0.05 and abs((column**4).mean() - 3) < 0.15
        assert dtype == torch.bfloat16 or stats.kstest(column, "norm").pvalue > UNLIKELY
    off = np.corrcoef(columns) - np.eye(len(columns))
    assert np.abs(off).max() < 0.02, "both numbers of a word are independent"
    squares = np.corrcoef(columns**2) - np.eye(len(columns))
    assert np.abs(squares).max() < 0.02


@pytest.mark.parametrize("alpha", ALPHAS)
def test_beta(alpha):
    share = noise.beta(key(), ROWS, alpha).numpy()
    assert share.dtype == np.float64 and share.min() >= 0 and share.max() <= 1
    # Half by half: of shares within 1e-16 of 1, more than a hundredth for alpha 0.1, float64 knows the 1 alone.
    law, least = stats.beta(alpha, alpha).cdf, 1e-12
    assert stats.binomtest(int((share < 0.5).sum()), DRAWN).pvalue > UNLIKELY
    for half in (share, 1 - share):
        inner = half[(half < 0.5) & (half > least)]
        assert stats.kstest(inner, lambda x: (law(x) - law(least)) / (0.5 - law(least))).pvalue > UNLIKELY
    assert abs(share.mean() - 0.5) < 0.01 and share.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.03)


@pytest.mark.parametrize("alpha", [1e-3, 1e-2, 100.0])
def test_beta_far_out_is_no_nan(alpha):
    share = noise.beta(key(), ROWS, alpha)
    assert share.isfinite().all() and share.mean() == pytest.approx(0.5, abs=0.01)
    wanted = 1 / (4 * (2 * alpha + 1))
    assert share.var().item() == pytest.approx(wanted, rel=0.03)


@pytest.mark.parametrize("n", [0, 1, 2, 7, 500])
def test_permutation(n):
    order = noise.permutation(key(), n)
    assert order.dtype == torch.int64 and sorted(order.tolist()) == list(range(n))
    if n > 6:
        others = [noise.permutation(key(step=6), n), noise.permutation(key(seed=2), n)]
        assert all(not torch.equal(order, other) for other in others) and torch.equal(order, noise.permutation(key(), n))


def test_every_place_is_as_likely():
    places = torch.stack([noise.permutation(key(step), 4) for step in range(4000)])
    for column in places.T:
        counts = torch.bincount(column, minlength=4).double()
        assert ((counts - 1000) ** 2 / 1000).sum() < 16.3, "chi-square, three degrees of freedom, 0.1 %"


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_numbers_are_of_use_seed_step_and_row(draw):
    rows = torch.arange(1000)
    first = draw(key(), rows)
    assert torch.equal(first, draw(key(), rows)), "the same once more, with a generator or without"
    for other in (key(step=6), key(seed=2), key(use=keyed.key(1))):
        again = draw(other, rows)
        assert (again == first).double().mean() < 0.01
        assert abs(np.corrcoef(first.flatten(), again.flatten())[0, 1]) < 0.1


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_a_rows_numbers_do_not_depend_on_the_batch(draw):
    rows = torch.tensor([7, 3, 900_000, 7])
    whole = draw(key(), rows)
    assert torch.equal(whole[0], whole[3]), "one row, one draw"
    apart = torch.cat([draw(key(), rows[:1]), draw(key(), rows[1:])])
    assert torch.equal(whole, apart)


@pytest.mark.parametrize("draw", [*DRAWS.values(), lambda key, rows: noise.permutation(key, len(rows))], ids=[*DRAWS, "permutation"])
def test_traces_whole_and_reads_the_step_as_it_is(draw):
    torch.compiler.reset()
    rows, time = torch.arange(16), clock()
    traced = torch.compile(lambda: draw(noise.stream(USE, time), rows), backend="aot_eager", fullgraph=True)
    assert torch.allclose(traced().double(), draw(key(), rows).double())
    time.step.fill_(9)
    assert torch.allclose(traced().double(), draw(key(step=9), rows).double()), "nothing of the step is frozen"


@pytest.mark.compiler
@pytest.mark.slow
def test_generated_code_draws_the_same_numbers():
    """Inductor once took multiples of a range for addresses: MixUp's shares did not compile, and a permutation wrote beyond its memory."""

    def drawn(key):
        few = ROWS[:7]
        return [noise.permutation(key, 37), noise.beta(key, few, 4.0), noise.beta(key, few, 0.75), noise.uniform(key, few, 5)]

    torch.compiler.reset()
    compiled = torch.compile(drawn, fullgraph=True, dynamic=False)(key())
    torch.compiler.reset()
    for ours, other in zip(drawn(key()), compiled, strict=True):
        assert torch.equal(ours, other) if ours.dtype == torch.int64 else torch.allclose(ours, other, rtol=1e-12)
