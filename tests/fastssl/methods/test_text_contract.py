"""What every method of the registry must do on texts too."""

import pytest
import torch
import torch.nn.functional as F

from fastssl.pipelines.errors import ConfigError
from tests.fastssl.method_cases import CASES, lived
from tests.fastssl.methods import text_toy

SEMI = [case for case, (name, _) in CASES.items() if name not in ("supervised", "adversarial", "simclr")]
# These draw noise for every place of a view, and one place more is other noise.
NOISY = ("vat", "vat, reversed, two iterations, no entropy")


def made(case, **more):
    name, options = CASES[case]
    return lived(name, text_toy.method(name, **{**options, **more}))


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    yield


def grads(m):
    return {k: p.grad.clone() for k, p in m.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("case", CASES)
def test_a_step_on_texts_is_finite_and_writes_no_memory_in_its_loss(toy, case):
    m = made(case)
    before = {k: v.clone() for k, v in m.state_dict().items()}
    terms = m.loss(text_toy.batch(m.asked), toy.clock(3))
    assert torch.isfinite(terms.total) and all(torch.equal(v, before[k]) for k, v in m.state_dict().items())


@pytest.mark.parametrize("case", SEMI)
def test_the_unlabelled_term_reaches_the_word_embeddings(toy, case):
    """Other unlabelled texts in the views that train give another gradient, all the way down to the words."""
    m = made(case)
    b = text_toy.batch(m.asked)
    found = []
    for other in (b, text_toy.batch(m.asked, seed=7)):
        m.zero_grad()
        keep = m.asked.no_grad
        m.loss(b._replace(unlabelled=(*b.unlabelled[:keep], *other.unlabelled[keep:])), toy.clock(30)).total.backward()
        found.append(grads(m)["network.encoder.words.weight"])
    assert not torch.allclose(*found)


@pytest.mark.parametrize("case", CASES)
def test_padding_changes_nothing(toy, case):
    """Texts padded to longer lengths: the same loss and the same gradients."""
    if case in NOISY:
        pytest.skip("draws noise for every place")
    m = made(case)
    b = text_toy.batch(m.asked)
    longer = lambda views, by: tuple(F.pad(view, (0, by), value=-1) for view in views)  # noqa: E731
    found = []
    for one in (b, b._replace(labelled=longer(b.labelled, 2), unlabelled=longer(b.unlabelled, 5))):
        m.zero_grad()
        total = m.loss(one, toy.clock(5)).total
        total.backward()
        found.append((total.detach(), grads(m)))
    assert torch.allclose(found[0][0], found[1][0], rtol=1e-9)
    for key, value in found[0][1].items():
        assert torch.allclose(value, found[1][1][key], atol=1e-9), key


@pytest.mark.parametrize("case", CASES)
def test_eager_equals_compiled_on_texts(toy, case):
    m = made(case).float()
    b, outcomes = text_toy.batch(m.asked), []
    for loss in (m.loss, torch.compile(m.loss, backend="aot_eager", fullgraph=True)):
        m.zero_grad()
        terms = loss(b, toy.clock(2))
        terms.total.backward()
        outcomes.append((terms.total.detach(), grads(m)))
    assert torch.allclose(outcomes[0][0], outcomes[1][0], rtol=1e-5)
    for key, value in outcomes[0][1].items():
        assert torch.allclose(value, outcomes[1][1][key], atol=1e-5), key


@pytest.mark.parametrize("case", SEMI)
@pytest.mark.parametrize("option", ["mixup", "entropy_min"])
def test_options_of_every_method_work_on_texts(toy, case, option):
    m = made(case, **{option: 0.5})
    total = m.loss(text_toy.batch(m.asked), toy.clock(5)).total
    total.backward()
    assert torch.isfinite(total) and grads(m)["network.encoder.words.weight"].abs().sum() > 0


def test_mixed_texts_are_mixed_word_embeddings():
    """The mix of two texts is the mix of their embedded forms; where one of them has ended, what the other has of it."""
    from fastssl.methods.bricks.mixing import Mix, continuous, mixed

    net = text_toy.network()
    ids = torch.tensor([[3, 4, 5, -1], [7, -1, -1, -1]])
    x = continuous(net, ids)
    out = mixed(x, Mix(torch.tensor([1, 0]), torch.tensor([0.25], dtype=torch.float64)))
    w = net.encoder.words.weight
    assert torch.allclose(out[0, 0, :-1], 0.25 * w[3] + 0.75 * w[7]) and torch.allclose(out[0, 1, :-1], 0.25 * w[4])
    assert torch.equal(out[..., -1] > 0, torch.tensor([[True, True, True, False]] * 2))
    assert torch.equal(mixed(x, Mix(torch.tensor([1, 0]), torch.ones(1).double())), x)


def test_only_tokens_move():
    net = text_toy.network()
    x = net.continuous(torch.tensor([[3, 4, -1]]))
    moved = net.moved(x, torch.ones_like(x))
    assert torch.equal(moved[0, 2], x[0, 2]) and torch.equal(moved[..., -1], x[..., -1])
    assert torch.allclose(moved[0, :2, :-1], x[0, :2, :-1] + 1)


def test_vat_moves_word_embeddings_by_epsilon_where_the_prediction_changes_most(toy):
    m = text_toy.method("vat", epsilon=0.5, ramp="none")
    b = text_toy.batch(m.asked)
    x = m.network.continuous(b.unlabelled[0]).detach()
    logits = m.network(x).logits.detach()
    r = m.perturbation(x, logits, b.unlabelled_index, toy.clock(3))
    assert torch.allclose(r.flatten(1).norm(dim=1), torch.full((len(r),), 0.5, dtype=r.dtype))
    assert r[x[..., -1] == 0].abs().sum() == 0 and r[..., -1].abs().sum() == 0

    def divergence(at):
        return F.kl_div(m.network(at).logits.log_softmax(1), logits.softmax(1), reduction="none").sum(1)

    random = m.network.movable(x, torch.randn(r.shape, generator=torch.Generator().manual_seed(0)).double())
    random = 0.5 * random / random.flatten(1).norm(dim=1)[:, None, None]
    assert (divergence(x + r) > 2 * divergence(x + random)).double().mean() > 0.8


def test_what_texts_cannot_do_is_said():
    from fastssl.methods import find

    for name, options, word in (("remixmatch", {"ctaugment": False}, "lambda_rotation"), ("adversarial", {"clip": True}, "clip")):
        kind = find(name)
        with pytest.raises(ConfigError, match=word):
            kind(kind.Config(**options), text_toy.network(), text_toy.spec(), unlabelled_batch=6)
