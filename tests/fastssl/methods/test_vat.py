"""VAT against a float64 calculation over ten steps, and what its search finds on a trained network in each arithmetic."""

import copy

import pytest
import torch
from torch.nn import functional as F

from fastssl import models
from fastssl.config import ModelConfig
from fastssl.kernels import consistency_loss
from fastssl.methods.bricks import noise
from fastssl.methods.bricks.batchnorm import batchnorm
from fastssl.methods.vat import _NOISE, VAT
from fastssl.pipelines import sources
from fastssl.pipelines.batch import DataSpec
from fastssl.schedules import Clock
from tests.fastssl.methods import oracle
from tests.fastssl.methods.apart_oracle import Apart, log_softmax, norms


class Oracle(Apart):
    """Starting noise is an input; all else is from the paper's equations."""

    own = {"lambda_u": 0.3, "entropy_min": 0.06, "epsilon": 6.0, "xi": 0.1, "power_iterations": 1, "reverse": False, "ramp": "linear"}

    def loss(self, batch):
        supervised, u = self.supervised(batch), batch.unlabelled[0]
        clean = self.net(u)
        log_p = log_softmax(clean).detach()
        p = log_p.exp()
        d = noise.normal(noise.stream(_NOISE, self.clock(self.step, self.total)), batch.unlabelled_index, tuple(u.shape[1:]), u.dtype)
        for _ in range(self.o.power_iterations):
            at = (u + self.o.xi * d / norms(d)).requires_grad_()
            (d,) = torch.autograd.grad((p * (log_p - log_softmax(self.net(at, constant=True)))).sum(), at)
        log_q = log_softmax(self.net(u + self.o.epsilon * d / norms(d)))
        rows = (log_q.exp() * (log_q - log_p) if self.o.reverse else p * (log_p - log_q)).sum(1)
        ramp = {"linear": min(1.0, self.step / (0.4 * self.total)), "none": 1.0}[self.o.ramp]
        entropy = -(log_softmax(clean).exp() * log_softmax(clean)).sum(1).mean()
        return supervised + self.o.lambda_u * ramp * rows.mean() + self.o.entropy_min * entropy


FORMS = [
    {},
    {"reverse": True, "entropy_min": 0.0, "ramp": "none"},
    {"power_iterations": 3, "epsilon": 8.0, "lambda_u": 1.0, "entropy_min": 1.0, "xi": 1.0},
]


@pytest.mark.parametrize("normed", [False, True], ids=["plain", "batchnorm"])
@pytest.mark.parametrize("options", FORMS, ids=str)
def test_ten_steps_equal_the_float64_calculation(toy, options, normed):
    m = toy.method("vat", **options, **({"encoder": toy.Normed} if normed else {}))
    expected = Oracle(m, normed, **options)
    expected.clock = toy.clock
    oracle.follow(m, toy, expected, total=14, mixed=False)  # the ramp is over after the sixth step


def passes(m, call):
    """(rows, gradient enabled, weights that can train) of each forward of the network."""
    found = []
    note = lambda _, given: found.append((len(given[0]), torch.is_grad_enabled(), m.network.head.weight.requires_grad))  # noqa: E731
    hook = m.network.register_forward_pre_hook(note)
    call()
    hook.remove()
    return found


@pytest.mark.parametrize(("entropy", "iterations"), [(0.06, 1), (0.0, 1), (0.0, 3)])
def test_a_step_is_three_forwards_of_the_unlabelled_images(toy, entropy, iterations):
    m = toy.method("vat", entropy_min=entropy, power_iterations=iterations)
    b = toy.batch(m.asked)
    # Labelled; clean, with a graph only for the entropy; the search, in which no weight has a gradient; perturbed.
    search = [(6, True, False)] * iterations
    assert passes(m, lambda: m.loss(b, toy.clock(30))) == [(4, True, True), (6, entropy > 0, True), *search, (6, True, True)]
    assert all(p.grad is None for p in m.parameters()), "the search leaves nothing on a parameter"
    assert all(p.requires_grad for p in m.network.parameters())


def test_gradient_goes_through_the_perturbed_branch_alone(toy):
    """Neither the target nor r moves with the weights: a KL by hand, with both as constants, has the same gradient."""
    m = toy.method("vat", entropy_min=0.0, ramp="none", lambda_u=1.0)
    b = toy.batch(m.asked)._replace(weight=torch.zeros(4))
    m.loss(b, toy.clock(3)).total.backward()
    mine = {name: p.grad.clone() for name, p in m.named_parameters()}
    m.zero_grad()
    u = b.unlabelled[0]
    with torch.no_grad():
        z = m.network(u).logits
    r = m.perturbation(u, z, b.unlabelled_index, toy.clock(3))
    assert not r.requires_grad and torch.allclose(norms(r), torch.full((6, 1, 1, 1), 6.0).double())
    F.kl_div(m.network(u + r).logits.log_softmax(1), z.softmax(1), reduction="batchmean").backward()
    for name, p in m.named_parameters():
        assert torch.allclose(p.grad, mine[name], atol=1e-12), name
    assert any(g.abs().max() > 1e-4 for g in mine.values())


def test_noise_is_by_seed_step_and_row(toy):
    m = toy.method("vat")
    b = toy.batch(m.asked)
    u = b.unlabelled[0]
    z = m.network(u).logits.detach()
    first = lambda clock, index=b.unlabelled_index: m.perturbation(u, z, index, clock)  # noqa: E731
    other = toy.clock(3)
    other.seed.fill_(1)
    assert torch.equal(first(toy.clock(3)), first(toy.clock(3)))
    for changed in (first(toy.clock(4)), first(other), first(toy.clock(3), b.unlabelled_index + 1)):
        assert F.cosine_similarity(changed.flatten(1), first(toy.clock(3)).flatten(1)).abs().min() < 0.99
    # A row's direction does not depend on the rows beside it.
    half = m.perturbation(u[3:], z[3:], b.unlabelled_index[3:], toy.clock(3))
    assert torch.allclose(half, first(toy.clock(3))[3:], atol=1e-9)


def test_a_row_without_gradient_is_left_where_it_is(toy):
    m = toy.method("vat", head="linear")
    with torch.no_grad():
        m.network.head.weight.zero_()
    b = toy.batch(m.asked)
    assert not m.perturbation(b.unlabelled[0], torch.zeros(6, 5).double(), b.unlabelled_index, toy.clock()).any()
    assert m.loss(b, toy.clock(30)).metrics["loss_unlabelled"] == 0


@pytest.fixture(scope="module")
def trained():
    """A small residual network with batch-norm after 30 steps on digits, and 64 of them."""
    torch.manual_seed(0)
    digits = sources.load("digits", size=8)
    images, label = torch.from_numpy(digits.images).float().div(255), torch.from_numpy(digits.label)
    images = (images - images.mean()) / images.std()
    classes = tuple(digits.classes)
    network = models.build(ModelConfig(name="wrn-10-1", weights="random"), classes, size=8).train()
    optimiser = torch.optim.SGD(network.parameters(), 0.05, momentum=0.9)
    for _ in range(30):
        rows = torch.randint(len(images), (64,))
        optimiser.zero_grad()
        F.cross_entropy(network(images[rows]).logits, label[rows]).backward()
        optimiser.step()
    return network, images[:64], DataSpec("digits", classes, (3, 8, 8), rows=len(images), unlabelled=len(images))


def searched(trained, *, amp=False, double=False, **options):
    """(method, its r on the images) as `outputs` finds it."""
    network, images, spec = trained
    m = VAT(VAT.Config(entropy_min=0.0, **options), copy.deepcopy(network), spec, unlabelled_batch=64).train()
    m, images = (m.double(), images.double()) if double else (m, images)
    kept = {}
    own = m.perturbation
    m.perturbation = lambda *args: kept.setdefault("r", own(*args))
    clock = Clock(100, 0)
    clock.step.fill_(3)
    batch = sources_batch(images)
    with torch.autocast("cpu", torch.bfloat16, enabled=amp, cache_enabled=False):
        m.outputs(batch, clock)
    return m, kept["r"]


def sources_batch(images):
    from fastssl.pipelines.batch import Batch

    index = torch.arange(len(images))
    return Batch((images[:8],), torch.zeros(8, dtype=torch.int64), torch.ones(8), index[:8], (images,), index, index * 0 - 1)


def divergence(m, images, r, amp=False):
    """Mean KL(f(x) || f(x + r)), as the method's own loss takes it."""
    with torch.no_grad(), batchnorm(m.network, "batch"), torch.autocast("cpu", torch.bfloat16, enabled=amp, cache_enabled=False):
        return float(consistency_loss(m.network(images + r).logits, m.network(images).logits, kind="kl").mean())


@pytest.mark.parametrize(
    ("amp", "options"), [(False, {}), (True, {}), (True, {"direction": "amp", "xi": 1.0})], ids=["fp32", "bf16", "bf16 search"]
)
def test_divergence_at_the_found_direction_is_far_above_that_at_a_random_one(trained, amp, options):
    """Measured at epsilon 3: 0.50 to 0.58 against 0.007."""
    m, r = searched(trained, amp=amp, epsilon=3.0, **options)
    chance = torch.randn(r.shape, generator=torch.Generator().manual_seed(1))
    chance = 3.0 * chance / norms(chance)
    assert torch.allclose(norms(r), norms(chance), rtol=1e-4)
    assert divergence(m, trained[1], r, amp) > 3 * divergence(m, trained[1], chance, amp)


def alike(r, true):
    return float(F.cosine_similarity(r.double().flatten(1), true.double().flatten(1)).mean())


def test_the_direction_is_the_true_one_in_fp32_and_under_bf16(trained):
    """Against a search in float64 with a step of 1e-4. Measured: 0.989 (fp32 and bf16), 0.90 (bf16 search, xi = 1)."""
    _, true = searched(trained, double=True, xi=1e-4)
    assert alike(searched(trained)[1], true) > 0.97
    assert alike(searched(trained, amp=True)[1], true) > 0.97, "the clean pass is in the search's arithmetic, or this falls to 0.43"
    assert alike(searched(trained, amp=True, direction="amp", xi=1.0)[1], true) > 0.8


def test_the_published_step_is_lost_in_rounding(trained):
    """Why xi is not the paper's 1e-6: measured 0.17 in fp32, 0.00 under bf16."""
    _, true = searched(trained, double=True, xi=1e-4)
    assert alike(searched(trained, xi=1e-6)[1], true) < 0.5
    assert alike(searched(trained, amp=True, xi=1e-6, direction="amp")[1], true) < 0.3


@pytest.mark.compiler
@pytest.mark.slow
def test_generated_code_searches_as_eager_code_does(toy):
    torch.compiler.reset()
    m = toy.method("vat", encoder=toy.Normed)
    b = toy.batch(m.asked)
    found = []
    for loss in (m.loss, torch.compile(m.loss, backend="inductor", fullgraph=True)):
        m.zero_grad()
        terms = loss(b, toy.clock(30))
        terms.total.backward()
        found.append((terms.metrics["loss_unlabelled"], [p.grad.clone() for p in m.network.parameters()]))
    assert found[0][0] > 0.01 and torch.allclose(found[0][0], found[1][0], rtol=1e-9)
    assert all(torch.allclose(a, b, atol=1e-9) for a, b in zip(found[0][1], found[1][1], strict=True))
    torch.compiler.reset()
