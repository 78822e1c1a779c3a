"""Distribution alignment: marginals over many steps against numpy, a queue past its end, classes never predicted."""

import numpy as np
import pytest
import torch

from fastssl.methods.bricks.alignment import Alignment
from tests.fastssl.methods import oracle


def pair(target, memory="ema", start="batch"):
    shares = torch.from_numpy(oracle.COUNTS / oracle.COUNTS.sum()) if target == "labelled" else None
    ours = Alignment(oracle.CLASSES, target=target, memory=memory, shares=shares, from_batch=start == "batch").double()
    return ours, oracle.Marginals(target, memory, start)


@pytest.mark.parametrize("target", ["uniform", "labelled", "predicted"])
@pytest.mark.parametrize(("memory", "start"), [("ema", "batch"), ("ema", "uniform"), ("queue", "batch")])
def test_marginals_move_before_they_are_used(target, memory, start):
    ours, theirs = pair(target, memory, start)
    rng = np.random.default_rng(0)
    for _ in range(300):  # a queue holds 128
        mean, known = rng.dirichlet(np.ones(5) / 2, size=2)
        before = {key: value.clone() for key, value in ours.state_dict().items()}
        ratio, found = ours.read(torch.from_numpy(mean), torch.from_numpy(known))
        assert all(torch.equal(value, before[key]) for key, value in ours.state_dict().items()), "read writes nothing"
        np.testing.assert_allclose(ratio, theirs.ratio(mean, known), rtol=1e-6)
        ours.write(found)
        for key, value in theirs.state().items():
            np.testing.assert_allclose(ours.state_dict()[key.removeprefix("alignment.")], value, rtol=1e-6)


def test_the_first_alignment(toy):
    """From the batch: predictions become uniform on the whole at once. From the uniform marginal or queue: nearly nothing happens."""
    mean = torch.tensor([0.6, 0.1, 0.1, 0.1, 0.1], dtype=torch.float64)
    for memory, start, moved in (("ema", "batch", 1.0), ("ema", "uniform", 0.001), ("queue", "batch", 1 / 128)):
        ratio, _ = pair("uniform", memory, start)[0].read(mean, mean)
        wanted = 0.2 / ((1 - moved) * 0.2 + moved * mean)
        assert torch.allclose(ratio, wanted, rtol=1e-5), (memory, start)


@pytest.mark.parametrize("memory", ["ema", "queue"])
@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_a_class_never_predicted_or_never_labelled(memory, kind):
    ours = Alignment(3, target="labelled", memory=memory, shares=torch.tensor([0.5, 0.5, 0.0])).to(kind)
    never = torch.tensor([0.0, 0.5, 0.5], dtype=kind)
    for _ in range(200):
        ratio, found = ours.read(never, never)
        ours.write(found)
        assert torch.isfinite(ratio).all() and (ratio > 0).all()
    assert ratio[0] > 1e5 * ratio[1] > 1e5 * ratio[2]


def test_one_step_is_one_update(toy):
    m = toy.method("fixmatch", align="predicted", align_memory="queue")
    b = toy.batch(m.views)
    for step in range(3):
        m.loss(b, toy.clock(step)), m.loss(b, toy.clock(step))
        assert m.alignment.place == step
        m.step(b, toy.clock(step), lambda total: None)


def test_the_averages_decay_is_an_option(toy):
    """Half of each average is its past, where that is asked for."""
    ours = Alignment(2, target="predicted", from_batch=False, decay=0.5).double()
    mean, known = torch.tensor([0.9, 0.1]).double(), torch.tensor([0.3, 0.7]).double()
    ratio, found = ours.read(mean, known)
    assert torch.allclose(ratio, torch.tensor([0.4 / 0.7, 0.6 / 0.3]).double(), rtol=1e-5)
    ours.write(found)
    assert torch.allclose(ours.marginal, torch.tensor([0.7, 0.3]).double())
    for name in ("fixmatch", "adamatch", "softmatch"):
        made = toy.method(name, align="uniform", align_decay=0.25)
        assert made.alignment.decay == 0.25
