"""SimCLRv2: its three stages against a float64 calculation over ten steps each, teachers of its own and of another make."""

import copy

import numpy as np
import pytest
import torch

from fastssl.methods import find
from fastssl.models.heads import ProjectedHead
from fastssl.pipelines.batch import Views
from fastssl.pipelines.errors import ConfigError
from tests.fastssl.methods import contrast_oracle, text_toy
from tests.fastssl.methods.contrast_oracle import Oracle, follow, made

FORMS = {
    "self": {},
    "self, averaged, labels too": {"ema": 0.9, "alpha": 0.3, "distil_temperature": 2.0, "distil_square": True},
    "self, tuned": {"student": "tuned", "distil_temperature": 0.5},
    "from the features": {"head": "linear", "fine_tune_from": 0, "layers": 2},
    "another teacher": {"teacher": True, "teacher_model": "toy", "alpha": 0.5},
}


def entered(m, k, steps=40):
    m.prepare(k, None)
    stage = m.stage(k, steps)
    m.enter(stage)
    return stage


def form(toy, case, **more):
    return made(toy, "simclrv2", **{"head": "projected", **FORMS[case], **more})


def values(network):
    return {key: value.clone() for key, value in network.state_dict().items()}


def same(network, kept):
    return all(torch.equal(value, kept[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize("case", FORMS)
def test_ten_steps_of_each_stage(toy, case):
    m = form(toy, case)
    oracle, start = Oracle(m), values(m.network)
    assert (oracle.statistics is None) == (case == "from the features")
    follow(m, toy, oracle, entered(m, 0))
    follow(m, toy, oracle, entered(m, 1))
    assert case != "another teacher" or same(m.network, start), "the student waits"
    learned = m.judged()
    tuned, statistics = values(learned), oracle.statistics
    places = [p.data_ptr() for p in m.parameters()]
    stage = entered(m, 2)
    assert same(m.teacher, tuned) and [p.data_ptr() for p in m.parameters()] == places
    assert same(m.network, tuned if case == "self, tuned" else start)
    oracle.teach(m.teacher.state_dict(), statistics and (m.teacher.head.norm.running_mean.clone(), m.teacher.head.norm.running_var.clone()))
    if statistics is not None:
        oracle.statistics = (m.network.head.norm.running_mean.clone(), m.network.head.norm.running_var.clone())
        if not m.ema_decay:
            np.testing.assert_allclose(m.teacher.head.norm.running_var, statistics[1])
    follow(m, toy, oracle, stage)
    assert same(m.teacher, tuned), "frozen"


def test_the_first_layer_of_the_projection_is_the_judged_networks(toy):
    m = form(toy, "self")
    assert isinstance(m.network.head, ProjectedHead) and m.projection.layers[0].in_features == m.network.head.width == 6
    assert len(m.projection.layers) == 5, "two more layers of three"
    assert not m.network.head.classifier.weight.any() and not m.network.head.classifier.bias.any()
    stage = entered(m, 0)
    assert stage.frozen == ("network.head.classifier",)
    m.loss(toy.batch(m.asked), toy.clock(0)).total.backward()
    assert m.network.head.linear.weight.grad.abs().sum() > 0 and m.network.head.classifier.weight.grad is None
    assert m.network.head.norm.num_batches_tracked == 1, "two passes through it, one of which counts"
    kind = find("simclrv2")
    assert kind.head_of(kind.Config()) == "projected" and kind.head_of(kind.Config(fine_tune_from=0)) is None


def test_its_stages(toy):
    m = form(toy, "self", fine_tune_share=0.25, distil_share=0.5, distil_rate=0.3, distil_view="strong")
    names = [m.stage(k, 40) for k in range(3)]
    assert [(s.name, s.steps, s.networks) for s in names] == [
        ("contrast", 10, ("network", "projection")),
        ("fine_tune", 10, ("network",)),
        ("distil", 20, ("network",)),
    ]
    assert names[2].views == Views((), ("strong",)) and names[2].rate == 0.3 and names[2].weight_decay is None
    assert names[1].weight_decay == 0 and names[1].rate == pytest.approx(1 / 30) and m.stage(3, 40) is None
    other = form(toy, "another teacher")
    names = [other.stage(k, 40) for k in range(3)]
    assert [s.networks for s in names] == [("teacher", "projection"), ("teacher",), ("network",)]
    assert [s.frozen for s in names] == [("teacher.head.classifier", "network"), ("network",), ("teacher",)]
    assert names[2].views == Views(("weak",), ("weak",))
    short = form(toy, "self", distil_share=0.0)
    assert short.stage(2, 40) is None and short.teacher is None and short.doing == "fine_tune"


def test_who_is_judged(toy):
    m = form(toy, "another teacher")
    found = []
    for k in range(3):
        entered(m, k)
        found.append(m.judges())
    assert found == [("teacher",), ("teacher",), ("network",)]
    assert form(toy, "self").judges() == ("network",) and form(toy, "self", ema=0.9).judges() == ("ema",)


@pytest.mark.parametrize("case", ["self", "another teacher"])
def test_who_is_in_evaluation(toy, case):
    """The teacher is while it teaches, dropout and all; while it learns it is not."""
    m = form(toy, case, kind=toy.Normed).train()
    for k in range(3):
        entered(m, k)
        m.train()
        assert m.teacher.head.norm.training == (case == "another teacher" and k < 2)
        assert m.network.encoder.training == (case == "self" or k == 2)
        norm = m.teacher.head.norm.num_batches_tracked.clone()
        m.step(toy.batch(m.asked), toy.clock(0), lambda loss: loss.backward())
        assert m.teacher.head.norm.num_batches_tracked - norm == (case == "another teacher" and k < 2)
    assert all(p.grad is None for p in m.teacher.parameters()) or case == "another teacher"


def test_no_gradient_reaches_the_teacher(toy):
    m = form(toy, "another teacher")
    for k in range(3):
        entered(m, k)
    m.zero_grad()
    m.loss(toy.batch(m.asked), toy.clock(0)).total.backward()
    assert all(p.grad is None for p in m.teacher.parameters()) and all(p.grad is None for p in m.projection.parameters())


def test_at_temperature_one_the_square_changes_nothing_and_at_two_it_is_four(toy):
    for t, factor in ((1.0, 1.0), (2.0, 4.0)):
        totals = []
        for square in (False, True):
            m = form(toy, "self, tuned", distil_temperature=t, distil_square=square)
            for k in range(3):
                entered(m, k)
                m.step(toy.batch(m.asked), toy.clock(0), lambda loss: loss.backward())
            totals.append(m.loss(toy.batch(m.asked, seed=4), toy.clock(0)).total)
        torch.testing.assert_close(totals[1], factor * totals[0])


def test_the_teachers_words_are_measured(toy):
    m = form(toy, "another teacher")
    for k in range(3):
        entered(m, k)
    with torch.no_grad():
        m.teacher.head.classifier.weight.normal_()
    batch = toy.batch(m.asked)
    terms = m.loss(batch, toy.clock(0))
    right = m.teacher(batch.unlabelled[0]).logits.argmax(1) == batch.hidden_label
    known = batch.hidden_label >= 0
    count, total = terms.metrics["pseudo_accuracy_all"]
    assert count / total == pytest.approx(float(right[known].double().mean())) and (terms.metrics["loss_labelled"] > 0)


def test_it_goes_on_from_its_state(toy):
    m = form(toy, "self")
    for k in range(3):
        entered(m, k)
        m.step(toy.batch(m.asked), toy.clock(0), lambda loss: loss.backward())
    twin = form(toy, "self")
    twin.load_state_dict(copy.deepcopy(m.state_dict()))
    twin.enter(twin.stage(2, 40))
    batch = toy.batch(m.asked, seed=9)
    assert torch.equal(m.loss(batch, toy.clock(1)).total, twin.loss(batch, toy.clock(1)).total)


def test_texts_go_through_its_stages(toy):
    m = text_toy.method("simclrv2", view="strong", fine_tune_from=0, alpha=0.5)
    for k in range(3):
        m.prepare(k, None)
        m.enter(m.stage(k, 20))
        terms = m.loss(text_toy.batch(m.asked), toy.clock(0))
        terms.total.backward()
        assert terms.total.isfinite()


REFUSED = {
    "distils what was fine-tuned": {"fine_tune_share": 0.0},
    "leave contrast no steps; give less than 1 in all": {"fine_tune_share": 0.5, "distil_share": 0.5},
    "distil_share=0 leaves that out": {"teacher_model": "toy", "teacher": True, "distil_share": 0.0},
    "goes on with its teacher's weights": {"teacher_model": "toy", "teacher": True, "student": "tuned"},
    "leave model.head out, or give --set method.fine_tune_from=0": {"head": "linear"},
    "leave method.ctaugment false": {"distil_view": "strong", "ctaugment": True},
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_what_cannot_be_is_one_sentence(toy, sentence):
    with pytest.raises(ConfigError, match=sentence):
        made(toy, "simclrv2", **{"head": "projected", **REFUSED[sentence]})


def test_mixed_texts_cannot_be_read_by_another_network():
    kind = find("simclrv2")
    config = kind.Config(teacher_model="toy", fine_tune_from=0, mixup=0.5)
    with pytest.raises(ConfigError, match="method.teacher_model cannot read"):
        kind(config, text_toy.network(), text_toy.spec(), teacher=text_toy.network(), unlabelled_batch=6)


def test_a_teacher_is_passed_where_one_is_named(toy):
    for options in ({"teacher": True}, {"teacher_model": "toy"}):
        with pytest.raises(ValueError, match="nowhere else"):
            made(toy, "simclrv2", "projected", **options)


def test_no_class_is_ever_lost_to_a_zero_start(toy):
    """The classifier begins at zero: the first step moves it alone, the second the encoder too."""
    m = form(toy, "self")
    entered(m, 1)
    moved = []
    for step in range(2):
        m.zero_grad()
        m.step(toy.batch(m.asked), toy.clock(step), lambda loss: loss.backward())
        moved.append(float(m.network.encoder.layers[1].weight.grad.abs().sum()))
        with torch.no_grad():
            for p in m.network.parameters():
                p -= contrast_oracle.RATE * (0 if p.grad is None else p.grad)
    assert moved[0] == 0 < moved[1]
