"""What every method of the registry must do."""

import pytest
import torch

from fastssl.methods import METHODS
from tests.fastssl.method_cases import CASES, CORE, lived

SEMI = [case for case, (name, _) in CASES.items() if name not in ("supervised", "adversarial", "simclr")]


def made(toy, case, **more):
    name, options = CASES[case]
    return lived(name, toy.method(name, **{**options, **more}))


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()  # all cases share the base's `loss`, of which the compiler keeps eight forms
    yield


def backward(total, part=0, rate=None):
    total.backward()


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
    m.step(b, toy.clock(1), backward)
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


def moved_statistics(m):
    """Network -> how often its running statistics were moved."""
    return {place: int(value) for place, value in m.named_buffers() if place.endswith("num_batches_tracked")}


@pytest.mark.parametrize("weak_pass", ["joint", "separate"])
@pytest.mark.parametrize("case", CASES)
def test_one_pass_a_step_moves_batchnorms_running_statistics(toy, case, weak_pass):
    m = made(toy, case, encoder=toy.Normed, weak_pass=weak_pass).train()
    before = moved_statistics(m)
    m.step(toy.batch(m.asked), toy.clock(30), backward)
    after = moved_statistics(m)
    assert after["network.encoder.layers.2.num_batches_tracked"] == 1
    assert all(0 <= after[place] - count <= 1 for place, count in before.items()), "and of every other network at most one"
    flags = [(layer.training, layer.track_running_stats) for layer in m.network.modules() if isinstance(layer, torch.nn.BatchNorm1d)]
    assert flags == [(True, True)], "the modes are put back"


@pytest.mark.parametrize("case", CASES)
def test_entropy_is_a_term_of_any_method(toy, case):
    plain, other = made(toy, case), made(toy, case, entropy_min=0.7)
    views = other.asked
    assert views.no_grad == 0 and views.unlabelled
    b = toy.batch(views)
    bare = b if plain.asked.unlabelled else b._replace(unlabelled=(), unlabelled_index=b.unlabelled_index[:0])
    terms, without = other.loss(b, toy.clock(30)), plain.loss(bare, toy.clock(30))
    p = other.network(b.unlabelled[0]).logits.softmax(1)
    if CASES[case][0] == "pl_feature":
        p = other.clean([other.network(b.unlabelled[0])], b).softmax(1)
    expected = 0.7 * (-(p * p.log()).sum(1)).mean()
    if CASES[case][1].get("entropy_min") is None and not plain.config.entropy_min:
        assert torch.allclose(terms.total - without.total, expected, rtol=1e-9)
    assert torch.allclose(terms.metrics["loss_entropy"], expected, rtol=1e-9)
    other.zero_grad()
    terms.total.backward()
    mine = grads(other)
    other.zero_grad()
    made_up = b._replace(unlabelled=(torch.randn_like(b.unlabelled[0]), *b.unlabelled[1:]))
    other.loss(made_up, toy.clock(30)).total.backward()
    key = "network.encoder.layers.1.weight"
    assert not torch.allclose(mine[key], grads(other)[key])


@pytest.mark.parametrize("case", CASES)
def test_entropy_is_of_rows_as_they_were_drawn(toy, case):
    """Whatever MixUp does to the views that train."""
    other = made(toy, case, entropy_min=0.7, mixup=0.75)
    b = toy.batch(other.asked)
    p = other.network(b.unlabelled[0]).logits.softmax(1)
    if CASES[case][0] == "pl_feature":
        p = other.clean([other.network(b.unlabelled[0])], b).softmax(1)
    found = other.loss(b, toy.clock(30)).metrics["loss_entropy"]
    assert torch.allclose(found, 0.7 * (-(p * p.log()).sum(1)).mean(), rtol=1e-9)


@pytest.mark.parametrize("case", CASES)
def test_mixup_is_an_option_of_any_method(toy, case):
    m = made(toy, case, mixup=0.5)
    b = toy.batch(m.asked)
    total = m.loss(b, toy.clock(30)).total
    assert not torch.allclose(total, m.loss(b, toy.clock(31)).total), "another step mixes otherwise"
    assert not torch.allclose(total, made(toy, case, mixup=0.0).loss(b, toy.clock(30)).total)
    total.backward()
    if CASES[case][0] not in CORE:
        return
    mine = grads(m)
    m.zero_grad()
    compiled = torch.compile(m.loss, backend="aot_eager", fullgraph=True)(b, toy.clock(30)).total
    compiled.backward()
    assert torch.allclose(total, compiled, rtol=1e-9)
    for key, value in grads(m).items():
        assert torch.allclose(value, mine[key], atol=1e-9), key


@pytest.mark.parametrize("case", CASES)
def test_a_label_of_weight_zero_teaches_nothing(toy, case):
    """Neither by its loss nor by what is remembered of it: another class in its place changes nothing, now or later."""
    states = []
    for label in (0, 1):
        m = made(toy, case)
        for step in range(2):
            b = toy.batch(m.asked, seed=step)
            weight, classes = b.weight.clone(), b.label.clone()
            weight[1], classes[1] = 0, label
            m.zero_grad()
            terms = m.step(b._replace(weight=weight, label=classes), toy.clock(30 + step), backward)
        states.append((terms.total.detach(), m.state_dict(), grads(m)))
    assert torch.equal(states[0][0], states[1][0])
    for one, other in zip(states[0][1:], states[1][1:], strict=True):
        assert all(torch.equal(value, other[key]) for key, value in one.items())
