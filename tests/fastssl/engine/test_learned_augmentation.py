"""CTAugment's learned rates between method, pipeline and step: one module, put back on a skipped step, captured, saved; any method's."""

from __future__ import annotations

import pytest
import torch

from fastssl.cli import main
from fastssl.engine.capture import addresses
from fastssl.methods import find
from tests.fastssl.engine.test_run import flat, state_of

NET = ["--model", "wrn-10-1", "--set", "data.size=8", "--set", "model.batchnorm_momentum=0.1", "--ema", "0.9", "--quiet"]
SHORT = [*NET, "--labels-per-class", "2", "--batch-size", "4", "--ratio", "2", "--steps", "6", "--set", "train.eval_every=6"]


def learning(toy, steps, **train):
    kind = find("fixmatch")
    m = kind(kind.Config(ctaugment=True, threshold=0.0), toy.network(), toy.spec(), unlabelled_batch=6, ema=0.9)
    return steps.step_of(toy, m, **train)


def test_a_step_moves_the_rates_and_a_skipped_one_does_not(toy, steps):
    step = learning(toy, steps)
    rates = step.method.augmentation.weight
    before = rates.clone()
    step()
    after = rates.clone()
    assert (after < before).any() and (after <= before).all()
    step.pipeline.fresh, made = lambda k: made(k)._replace(labelled=(torch.full((4, 3, 3, 3), float("nan")),)), step.pipeline.fresh
    step()
    assert not step.update.ok and torch.equal(rates, after)


def test_captured_rates_are_the_eager_ones(toy, steps):
    eager, taped = learning(toy, steps), steps.captured(learning(toy, steps))
    batch = eager.pipeline.batch
    assert set(addresses(batch)) == {tensor.data_ptr() for tensor in steps.tensors(batch)}
    steps.eagerly(eager, 5)
    for _ in range(5):
        taped()
    assert (eager.method.augmentation.weight < 1).sum() > (eager.method.augmentation.weight == 0).sum()
    assert all(torch.equal(a, b) for a, b in zip(steps.everything(eager), steps.everything(taped), strict=True))


def test_pipeline_and_method_share_one_module():
    from fastssl.config import resolve
    from fastssl.engine.assemble import assemble
    from fastssl.presets.plain import defaults

    for name, layer in (("remixmatch", {}), ("fixmatch", {"method.ctaugment": True, "data.policy": "ctaugment"})):
        plain = defaults(name, model="wrn-10-1") | {"model.name": "wrn-10-1", "train.batch_size": 4, "train.ratio": 2, **layer}
        parts = assemble(resolve(name, find(name).Config, [("preset", plain)]), quiet=True)
        assert parts.pipeline.augmenter.rates is parts.method.learned_augmentation() is not None
        assert parts.pipeline.draw().probe[0].shape[0] == 4
    plain |= {"method.ctaugment": False}
    parts = assemble(resolve(name, find(name).Config, [("preset", plain)]), quiet=True)
    assert parts.method.learned_augmentation() is None and parts.pipeline.augmenter.rates is not None
    assert parts.pipeline.draw().probe == ()


@pytest.mark.parametrize("pieces", ["1", "2"])
def test_a_run_of_any_method_learns_and_resumes_them(tmp_path, pieces):
    """Strong views depend on the rates, so a resume that lost them would end elsewhere."""
    words = ["--method", "fixmatch", "--policy", "ctaugment", "--set", "method.ctaugment=true", "--set", "method.threshold=0"]
    words += [*SHORT, "--set", f"train.accumulate={pieces}"]
    assert main(["train", *words, "--out", str(tmp_path / "whole")]) == 0
    assert main(["train", *words, "--set", "train.stop_at=3", "--out", str(tmp_path / "broken")]) == 0
    halfway = flat(state_of(tmp_path / "broken"))["/method/augmentation.weight"]
    assert main(["train", "--resume", str(tmp_path / "broken"), "--quiet"]) == 0
    whole, broken = (flat(state_of(tmp_path / name)) for name in ("whole", "broken"))
    assert not torch.equal(halfway, whole["/method/augmentation.weight"])
    for key, value in whole.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, broken[key]), key


@pytest.mark.parametrize("name", ["remixmatch", "fixmatch"])
def test_another_policy_is_refused_in_one_sentence(tmp_path, capsys, name):
    words = ["--method", name, "--policy", "digits", "--set", "method.ctaugment=true", *SHORT]
    assert main(["train", *words, "--out", str(tmp_path / "run")]) == 2
    assert "method.ctaugment learns the rates of CTAugment; take --policy ctaugment, or method.ctaugment=false" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
