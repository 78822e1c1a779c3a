"""MixUp's brick: partners, shares, and a batch that is mixed within itself."""

import pytest
import torch

from fastssl.methods.bricks.mixing import drawn, mixed, mixed_batch

CPU = torch.device("cpu")


def test_one_share_for_a_batch_or_one_for_each_row(toy):
    whole = drawn(toy.clock(3), 50, 0.75, device=CPU)
    each = drawn(toy.clock(3), 50, 0.75, each="sample", device=CPU)
    assert whole.share.shape == (1,) and each.share.shape == (50,) and len(each.share.unique()) == 50
    assert sorted(whole.partner.tolist()) == list(range(50)) and torch.equal(whole.partner, each.partner)


def test_major_keeps_a_row_mostly_itself(toy):
    either = drawn(toy.clock(3), 200, 0.75, each="sample", device=CPU).share
    major = drawn(toy.clock(3), 200, 0.75, each="sample", major=True, device=CPU).share
    assert either.min() < 0.5 and torch.equal(major, torch.maximum(either, 1 - either))


def test_alpha_zero_leaves_rows_as_they_are(toy):
    x = torch.randn(6, 3)
    for each in ("batch", "sample"):
        assert torch.equal(mixed(x, drawn(toy.clock(), 6, 0.0, each=each, device=CPU)), x)


def test_two_mixes_of_a_step_have_nothing_in_common(toy):
    first, second = (drawn(toy.clock(3), 30, 1.0, use=use, device=CPU) for use in (0, 1))
    assert not torch.equal(first.partner, second.partner) and first.share != second.share


@pytest.mark.parametrize("each", ["batch", "sample"])
def test_mixed_rows(toy, each):
    mix = drawn(toy.clock(3), 5, 0.75, each=each, device=CPU)
    x = torch.randn(5, 3, 2, 2, dtype=torch.float64)
    out = mixed(x, mix)
    for row, partner in enumerate(mix.partner.tolist()):
        share = float(mix.share[row if each == "sample" else 0])
        assert torch.allclose(out[row], share * x[row] + (1 - share) * x[partner], rtol=1e-12)
    assert mixed(x.bfloat16(), mix).dtype == torch.bfloat16


@pytest.mark.parametrize("whole", [0, 1, 2])
def test_a_batch_mixed_within_itself(toy, whole):
    b = toy.batch(toy.method("finessl").asked)
    b = b._replace(weight=torch.tensor([1.0, 0.5, 0.25, 0.0]))
    mix = mixed_batch(b, toy.clock(3), 0.75, whole)
    known, other, share = mix.labelled.partner, mix.unlabelled.partner, float(mix.share)
    assert torch.allclose(mix.batch.labelled[0], share * b.labelled[0] + (1 - share) * b.labelled[0][known], rtol=1e-12)
    for number, (got, was) in enumerate(zip(mix.batch.unlabelled, b.unlabelled, strict=True)):
        assert torch.allclose(got, was if number < whole else share * was + (1 - share) * was[other], rtol=1e-12)
    theirs = mix.partners()
    assert torch.equal(theirs.label, b.label[known]) and torch.equal(theirs.weight, b.weight[known])
    assert torch.equal(theirs.index, b.index[known]) and torch.equal(theirs.unlabelled_index, b.unlabelled_index[other])
    assert torch.equal(theirs.hidden_label, b.hidden_label[other])
    for number, (got, was) in enumerate(zip(theirs.unlabelled, mix.batch.unlabelled, strict=True)):
        assert torch.equal(got, was[other] if number < whole else was)
    for same in ("label", "weight", "index", "unlabelled_index", "hidden_label"):
        assert torch.equal(getattr(mix.batch, same), getattr(b, same))
