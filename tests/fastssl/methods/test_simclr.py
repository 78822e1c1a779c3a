"""SimCLR: contrast and fine-tuning against a float64 calculation over ten steps each, its stages, and what they begin with."""

import copy
import math

import pytest
import torch

from fastssl.config import TrainConfig
from fastssl.engine.update import Update
from fastssl.methods.simclr import lengths
from fastssl.models.heads import CosineHead
from fastssl.pipelines.batch import Views
from fastssl.pipelines.errors import ConfigError
from tests.fastssl.methods import text_toy
from tests.fastssl.methods.contrast_oracle import Oracle, follow, made


def entered(m, k, steps=40):
    stage = m.stage(k, steps)
    m.prepare(k, None)
    m.enter(stage)
    return stage


@pytest.mark.parametrize("options", [{}, {"reduction": "rows", "layers": 1}, {"layers": 3, "temperature": 0.1}], ids=str)
def test_ten_steps_of_either_stage(toy, options):
    m = made(toy, "simclr", **options)
    oracle = Oracle(m)
    head = {name: p.clone() for name, p in m.network.head.named_parameters()}
    follow(m, toy, oracle, entered(m, 0))
    assert all(torch.equal(p, head[name]) for name, p in m.network.head.named_parameters()), "no label has been seen"
    projection = {name: p.clone() for name, p in m.projection.named_parameters()}
    follow(m, toy, oracle, entered(m, 1))
    assert all(torch.equal(p, projection[name]) for name, p in m.projection.named_parameters()), "the projection is dropped"


def test_the_pairs_sum_is_twice_the_rows_mean(toy):
    found = []
    for reduction in ("pairs", "rows"):
        m = made(toy, "simclr", reduction=reduction)
        entered(m, 0)
        found.append(m.loss(toy.batch(m.asked), toy.clock(0)))
    torch.testing.assert_close(found[0].total, 2 * found[1].total)
    assert found[0].metrics["contrast_accuracy"] == found[1].metrics["contrast_accuracy"]


def test_the_contrast_accuracy_is_of_the_nearest_rows(toy):
    m = made(toy, "simclr")
    entered(m, 0)
    batch = toy.batch(m.asked)
    one = batch._replace(unlabelled=(batch.unlabelled[0], batch.unlabelled[0]))
    assert m.loss(one, toy.clock(0)).metrics["contrast_accuracy"] == 1
    terms = m.loss(batch, toy.clock(0))
    h = m.projection(torch.cat([m.network(x).features for x in batch.unlabelled]))
    near = [max((float(a @ b), j) for j, b in enumerate(h) if j != i)[1] for i, a in enumerate(h)]
    assert terms.metrics["contrast_accuracy"] == pytest.approx(sum(j == (i + 6) % 12 for i, j in enumerate(near)) / 12)


def test_its_stages(toy):
    m = made(toy, "simclr", fine_tune_share=0.25, fine_tune_rate=0.5, fine_tune_decay=0.01, view="strong")
    first, second = m.stage(0, 40), m.stage(1, 40)
    assert (first.name, first.steps, first.networks, first.frozen) == ("contrast", 30, ("network", "projection"), ("network.head",))
    assert first.views == Views((), ("strong", "strong")) and (first.rate, first.weight_decay) == (1.0, None)
    assert (second.name, second.steps, second.networks, second.frozen) == ("fine_tune", 10, ("network",), ())
    assert second.views == Views(("weak",)) and (second.rate, second.weight_decay) == (0.5, 0.01) and m.stage(2, 40) is None
    assert not (first.goes_on or second.goes_on), "optimiser and schedule start afresh"
    with pytest.raises(ConfigError, match=r"simclr has 2 stages \(contrast, fine_tune\), a step each at least; give --steps 2 or more"):
        m.stage(0, 1)
    linear = made(toy, "simclr", tuned="head").stage(1, 40)
    assert linear.frozen == ("network.encoder",)


@pytest.mark.parametrize(
    ("steps", "shares", "found"),
    [(40, [0.75, 0.25], [30, 10]), (2, [0.75, 0.25], [1, 1]), (10, [0.01, 0.5, 0.49], [1, 4, 5]), (3, [0.98, 0.01, 0.01], [1, 1, 1])],
)
def test_every_stage_has_a_step_and_they_add_up(steps, shares, found):
    assert lengths(steps, shares) == found and sum(found) == steps


def test_contrast_alone_makes_an_encoder(toy):
    m = made(toy, "simclr", fine_tune_share=0.0)
    assert m.stage(0, 7).steps == 7 and m.stage(1, 7) is None and m.doing == "contrast"
    assert m.asks(m.config) == Views((), ("simclr", "simclr")), "labels are not drawn"


@pytest.mark.parametrize("how", ["zero", "normal", "kept"])
def test_the_classifier_begins_anew(toy, how):
    m = made(toy, "simclr", ema=0.9, classifier=how)
    entered(m, 0)
    m.step(toy.batch(m.asked), toy.clock(0), lambda loss: loss.backward())
    before = copy.deepcopy(m.network.head.state_dict())
    with torch.no_grad():
        m.network.encoder.layers[1].weight.add_(1)
    torch.manual_seed(4)
    said = m.prepare(1, None)
    weight = m.network.head.weight.detach()
    assert said.notes[0].startswith("simclr, stage 2 of 2, fine_tune: the projection is dropped") and not said.warnings
    if how == "kept":
        assert all(torch.equal(value, before[key]) for key, value in m.network.head.state_dict().items())
    else:
        assert (weight == 0).all() == (how == "zero") and (m.network.head.bias == 0).all()
        assert how == "zero" or 0.006 < weight.std() < 0.015
    assert all(torch.equal(value, m.network.state_dict()[key]) for key, value in m.ema.state_dict().items()), "the average starts anew"


def test_a_cosine_head_has_no_zero_to_begin_with(toy):
    m = made(toy, "simclr", "cosine", classifier="zero")
    before = m.network.head.weight.clone()
    entered(m, 1)
    assert isinstance(m.network.head, CosineHead) and torch.equal(m.network.head.weight, before)
    assert m.loss(toy.batch(m.asked), toy.clock(0)).total.isfinite()


@pytest.mark.parametrize(("head", "name"), [("linear", "network.head.weight"), ("projected", "network.head.classifier.weight")])
def test_lars_neither_decays_nor_scales_the_classifier(toy, head, name):
    """What begins at zero has no length to be scaled by."""
    m = made(toy, "simclr", head, classifier="zero").float()
    stage = entered(m, 1)
    groups = Update(m, stage, TrainConfig(optimizer="lars", lr=1.0, weight_decay=0.1)).optimizer.param_groups
    weight = m.get_parameter(name)
    of = [g for g in groups if any(p is weight for p in g["params"])]
    assert len(of) == 1 and not of[0]["adapt"] and of[0]["weight_decay"] == 0
    assert any(g["adapt"] and any(p is m.network.encoder.layers[1].weight for p in g["params"]) for g in groups)


def test_a_projected_head_of_ones_own_begins_anew_too(toy):
    m = made(toy, "simclr", "projected", classifier="normal")
    follow(m, toy, Oracle(m), entered(m, 1))
    assert m.projection.layers[0].in_features == 7, "contrast reads the features, whatever the head"


def test_contrast_moves_batchnorm_once_and_no_other_memory(toy):
    m = made(toy, "simclr", kind=toy.Normed)
    entered(m, 0)
    before = {name: value.clone() for name, value in m.named_buffers()}
    terms = m.loss(toy.batch(m.asked), toy.clock(0))
    terms.total.backward()
    moved = {name for name, value in m.named_buffers() if not torch.equal(value, before[name])}
    assert moved == {f"network.encoder.layers.2.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}
    assert m.network.encoder.layers[2].num_batches_tracked == 1


@pytest.mark.parametrize("stage", [0, 1])
def test_eager_equals_compiled(toy, stage):
    torch.compiler.reset()
    m = made(toy, "simclr")
    entered(m, stage)
    b, found = toy.batch(m.asked), []
    for loss in (m.loss, torch.compile(m.loss, backend="aot_eager", fullgraph=True)):
        m.zero_grad()
        terms = loss(b, toy.clock(2))
        terms.total.backward()
        found.append((terms.total.detach(), m.network.encoder.layers[1].weight.grad.clone()))
    torch.testing.assert_close(*found)


def test_entropy_is_of_the_fine_tuned_network_on_weak_views(toy):
    m = made(toy, "simclr", entropy_min=0.5)
    entered(m, 0)
    assert "loss_entropy" not in m.loss(toy.batch(m.asked), toy.clock(0)).metrics
    entered(m, 1)
    assert m.asked == Views(("weak",), ("weak",))
    terms = m.loss(toy.batch(m.asked), toy.clock(0))
    assert 0 < terms.metrics["loss_entropy"] <= 0.5 * math.log(5) + 1e-9


def test_images_all_alike_and_a_single_pair_leave_everything_finite(toy):
    m = made(toy, "simclr", kind=toy.Normed)
    entered(m, 0)
    batch = toy.batch(m.asked)
    alike = tuple(torch.ones_like(x) for x in batch.unlabelled)
    single = tuple(x[:1] for x in batch.unlabelled)
    for views, expected in ((alike, 2 * math.log(11)), (single, 0.0)):
        m.zero_grad()
        terms = m.loss(batch._replace(unlabelled=views), toy.clock(0))
        terms.total.backward()
        assert terms.total.item() == pytest.approx(expected, abs=1e-9)
        assert all(p.grad.isfinite().all() for p in m.parameters() if p.grad is not None)


def test_texts_are_contrasted_by_views_of_their_own(toy):
    m = text_toy.method("simclr", view="strong")
    m.enter(m.stage(0, 20))
    terms = m.loss(text_toy.batch(m.asked), toy.clock(0))
    terms.total.backward()
    assert m.network.encoder.words.weight.grad.abs().sum() > 0 and terms.total.isfinite()
    m.enter(m.stage(1, 20))
    assert m.loss(text_toy.batch(m.asked), toy.clock(0)).total.isfinite()


def test_what_moves_nothing_is_one_warning(toy):
    m = made(toy, "simclr")
    m.network.encoder.requires_grad_(False)
    said = m.prepare(0, None)
    assert said.notes == ["simclr, stage 1 of 2, contrast: two views (simclr) of each of 6 images a step are told from all others"]
    assert len(said.warnings) == 1 and "take another --tune" in said.warnings[0]
    m.enter(m.stage(0, 10))
    m.loss(toy.batch(m.asked), toy.clock(0)).total.backward()
    assert all(p.grad is not None for p in m.projection.parameters())


def test_what_cannot_be_is_one_sentence(toy, monkeypatch):
    with pytest.raises(ConfigError, match="leave method.ctaugment false"):
        made(toy, "simclr", view="strong", ctaugment=True)
    monkeypatch.setattr("fastssl.methods.bricks.rounds.probe_share", lambda encoder: 0.4)
    with pytest.raises(ConfigError, match="simclr has stages of its own and cannot be tuned by lp_ft"):
        made(toy, "simclr")
