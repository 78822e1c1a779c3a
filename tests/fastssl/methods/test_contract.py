"""What every method of the registry must do."""

import pytest
import torch

from fastssl.methods import METHODS
from tests.fastssl.method_cases import CASES

SEMI = [case for case, (name, _) in CASES.items() if name != "supervised"]


def made(toy, case, **more):
    name, options = CASES[case]
    return toy.method(name, **{**options, **more})


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()  # all cases share the base's `loss`, of which the compiler keeps eight forms
    yield


def grads(m):
    return {k: p.grad.clone() for k, p in m.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("case", CASES)
def test_loss_writes_no_memory(toy, case):
    m = made(toy, case)
    before = {k: v.clone() for k, v in m.state_dict().items()}
    m.loss(toy.batch(m.views_of(m.config)), toy.clock(3))
    for key, value in m.state_dict().items():
        assert torch.equal(value, before[key]), key


@pytest.mark.parametrize("case", SEMI)
def test_unlabelled_term_reaches_the_weights(toy, case):
    """Changing nothing but the images that train changes the encoder's gradient, and gradient reaches those images."""
    m = made(toy, case)
    b = toy.batch(m.views_of(m.config))
    teachers, students = b.unlabelled[: m.asked.no_grad], b.unlabelled[m.asked.no_grad :]
    students = tuple(v.clone().requires_grad_() for v in students)
    m.loss(b._replace(unlabelled=(*teachers, *students)), toy.clock(30)).total.backward()
    assert students and all(v.grad.abs().sum() > 0 for v in students)
    first = grads(m)
    m.zero_grad()
    other = tuple(torch.randn_like(v) for v in students)
    m.loss(b._replace(unlabelled=(*teachers, *other)), toy.clock(30)).total.backward()
    key = "network.encoder.layers.1.weight"
    assert not torch.allclose(first[key], grads(m)[key])


@pytest.mark.parametrize("case", SEMI)
def test_teacher_views_get_gradient_only_where_asked_for(toy, case):
    for weak_pass in ("separate", "joint"):
        m = made(toy, case, weak_pass=weak_pass)
        b = toy.batch(m.views_of(m.config))
        weak = b.unlabelled[0].clone().requires_grad_()
        m.loss(b._replace(unlabelled=(weak, *b.unlabelled[1:])), toy.clock(30)).total.backward()
        reached = weak.grad is not None and weak.grad.abs().sum() > 0
        assert reached == (m.views_of(m.config).no_grad == 0), "a view trains where its method says that it does, and nowhere else"


@pytest.mark.parametrize("case", SEMI)
def test_joint_and_separate_passes_agree_without_batchnorm(toy, case):
    results = []
    for weak_pass in ("separate", "joint"):
        m = made(toy, case, weak_pass=weak_pass)
        total = m.loss(toy.batch(m.views_of(m.config)), toy.clock()).total
        total.backward()
        results.append((total.detach(), grads(m)))
    assert torch.allclose(results[0][0], results[1][0], rtol=1e-12)
    for key, value in results[0][1].items():
        assert torch.allclose(value, results[1][1][key], atol=1e-12), key


@pytest.mark.parametrize("case", CASES)
def test_eager_equals_compiled(toy, case):
    m = made(toy, case).float()
    b = toy.batch(m.views_of(m.config))
    b = b._replace(labelled=tuple(v.float() for v in b.labelled), unlabelled=tuple(v.float() for v in b.unlabelled))
    outcomes = []
    for loss in (m.loss, torch.compile(m.loss, backend="aot_eager", fullgraph=True)):
        m.zero_grad()
        terms = loss(b, toy.clock(2))
        terms.total.backward()
        outcomes.append((terms.total.detach(), grads(m), {k: v for k, v in terms.memory.items()}))
    assert torch.allclose(outcomes[0][0], outcomes[1][0], rtol=1e-6)
    for key, value in outcomes[0][1].items():
        assert torch.allclose(value, outcomes[1][1][key], atol=1e-6), key
    for key, value in outcomes[0][2].items():
        other = outcomes[1][2][key]
        assert torch.allclose(value, other, rtol=1e-6) if value.is_floating_point() else torch.equal(value, other), key


@pytest.mark.parametrize("case", CASES)
def test_state_dict_carries_all_memory(toy, case):
    m = made(toy, case)
    b = toy.batch(m.views_of(m.config))
    m.step(b, toy.clock(1), lambda total: total.backward())
    twin = made(toy, case)
    twin.load_state_dict(m.state_dict())
    later = toy.batch(m.views_of(m.config), seed=1)
    assert torch.equal(m.loss(later, toy.clock(2)).total, twin.loss(later, toy.clock(2)).total)


@pytest.mark.parametrize("name", METHODS)
def test_every_option_says_what_it_means(name):
    import dataclasses

    from fastssl.methods import find

    kind = find(name)
    assert kind.summary and kind.paper
    for field in dataclasses.fields(kind.Config):
        assert field.metadata["help"], field.name


@pytest.mark.parametrize("case", CASES)
def test_label_weight_zero_removes_the_labelled_term(toy, case):
    m = made(toy, case)
    b = toy.batch(m.views_of(m.config))
    terms = m.loss(b._replace(weight=torch.zeros_like(b.weight)), toy.clock())
    assert terms.metrics["loss_labelled"] == 0
