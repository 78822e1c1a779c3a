"""What every method of the registry must do."""

import pytest
import torch

from fastssl.methods import METHODS

# Options under which the unlabelled term is active on an untrained network.
ACTIVE = {"fixmatch": {"threshold": 0.0}, "finessl": {"threshold": 0.0}}
SEMI = [name for name in METHODS if name != "supervised"]


def grads(m):
    return {k: p.grad.clone() for k, p in m.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", METHODS)
def test_loss_writes_no_memory(toy, name):
    m = toy.method(name, **ACTIVE.get(name, {}))
    before = {k: v.clone() for k, v in m.state_dict().items()}
    m.loss(toy.batch(m.views_of(m.config)), toy.clock(3))
    for key, value in m.state_dict().items():
        assert torch.equal(value, before[key]), key


@pytest.mark.parametrize("name", SEMI)
def test_unlabelled_term_reaches_the_weights(toy, name):
    """Changing nothing but the strong views' images changes the encoder's gradient, and gradient reaches those images."""
    m = toy.method(name, **ACTIVE[name])
    b = toy.batch(m.views_of(m.config))
    strong = tuple(v.clone().requires_grad_() for v in b.unlabelled[1:])
    m.loss(b._replace(unlabelled=(b.unlabelled[0], *strong)), toy.clock()).total.backward()
    assert all(v.grad.abs().sum() > 0 for v in strong)
    first = grads(m)
    m.zero_grad()
    other = tuple(torch.randn_like(v) for v in b.unlabelled[1:])
    m.loss(b._replace(unlabelled=(b.unlabelled[0], *other)), toy.clock()).total.backward()
    key = "network.encoder.layers.1.weight"
    assert not torch.allclose(first[key], grads(m)[key])


@pytest.mark.parametrize("name", SEMI)
def test_teacher_views_get_no_gradient(toy, name):
    for weak_pass in ("separate", "joint"):
        m = toy.method(name, weak_pass=weak_pass, **ACTIVE[name])
        b = toy.batch(m.views_of(m.config))
        weak = b.unlabelled[0].clone().requires_grad_()
        m.loss(b._replace(unlabelled=(weak, *b.unlabelled[1:])), toy.clock()).total.backward()
        assert weak.grad is None or weak.grad.abs().sum() == 0


@pytest.mark.parametrize("name", SEMI)
def test_joint_and_separate_passes_agree_without_batchnorm(toy, name):
    results = []
    for weak_pass in ("separate", "joint"):
        m = toy.method(name, weak_pass=weak_pass, **ACTIVE[name])
        total = m.loss(toy.batch(m.views_of(m.config)), toy.clock()).total
        total.backward()
        results.append((total.detach(), grads(m)))
    assert torch.allclose(results[0][0], results[1][0], rtol=1e-12)
    for key, value in results[0][1].items():
        assert torch.allclose(value, results[1][1][key], atol=1e-12), key


@pytest.mark.parametrize("name", METHODS)
def test_eager_equals_compiled(toy, name):
    m = toy.method(name, **ACTIVE.get(name, {})).float()
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
        assert torch.equal(value, outcomes[1][2][key]), key


@pytest.mark.parametrize("name", METHODS)
def test_state_dict_carries_all_memory(toy, name):
    m = toy.method(name, **ACTIVE.get(name, {}))
    b = toy.batch(m.views_of(m.config))
    m.step(b, toy.clock(1), lambda total: total.backward())
    twin = toy.method(name, **ACTIVE.get(name, {}))
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


@pytest.mark.parametrize("name", METHODS)
def test_label_weight_zero_removes_the_labelled_term(toy, name):
    m = toy.method(name)
    b = toy.batch(m.views_of(m.config))
    terms = m.loss(b._replace(weight=torch.zeros_like(b.weight)), toy.clock())
    assert terms.metrics["loss_labelled"] == 0
