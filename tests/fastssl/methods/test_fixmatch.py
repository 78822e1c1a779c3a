"""FixMatch and supervised against calculations in numpy float64."""

import numpy as np
import torch


def log_softmax(z):
    z = z - z.max(axis=1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=1, keepdims=True))


def logits(m, x):
    with torch.no_grad():
        return m.network(x).logits.numpy()


def test_fixmatch_equals_equations_3_and_4(toy):
    kept = []
    for seed in range(6):
        m = toy.method("fixmatch", threshold=0.5, lambda_u=0.7)
        b = toy.batch(m.views, seed=seed)
        supervised = -log_softmax(logits(m, b.labelled[0]))[range(4), b.label.numpy()].mean()
        p = np.exp(log_softmax(logits(m, b.unlabelled[0])))
        mask = p.max(axis=1) >= 0.5
        rows = -log_softmax(logits(m, b.unlabelled[1]))[range(6), p.argmax(axis=1)]
        expected = supervised + 0.7 * (mask * rows).sum() / 6
        terms = m.loss(b, toy.clock())
        assert abs(terms.total.item() - expected) < 1e-12
        assert terms.metrics["kept"].item() == np.float32(mask.mean())
        kept.append(mask.mean())
    assert 0 < np.mean(kept) < 1


def test_pseudo_label_accuracy_counts_known_and_kept_rows_alone(toy):
    m = toy.method("fixmatch", threshold=0.0)
    b = toy.batch(m.views)
    guess = torch.from_numpy(logits(m, b.unlabelled[0])).argmax(1)
    hidden = guess.clone()
    hidden[0] = -1
    hidden[1] = (guess[1] + 1) % 5
    right, judged = m.loss(b._replace(hidden_label=hidden), toy.clock()).metrics["pseudo_accuracy"]
    assert (right.item(), judged.item()) == (4, 5)


def test_supervised_equals_cross_entropy(toy):
    m = toy.method("supervised", head="linear", smoothing=0.1)
    b = toy.batch(m.views)
    target = np.full((4, 5), 0.1 / 4)
    target[range(4), b.label.numpy()] = 0.9
    expected = -(target * log_softmax(logits(m, b.labelled[0]))).sum(axis=1).mean()
    assert abs(m.loss(b, toy.clock()).total.item() - expected) < 1e-12


def test_separate_pass_leaves_running_statistics_of_batchnorm_alone(toy):
    from torch import nn

    from fastssl.methods.bricks.forward import forward_views
    from fastssl.models import Network

    network = Network(nn.Sequential(nn.Flatten(), nn.BatchNorm1d(27), nn.Linear(27, 7)).double(), nn.Linear(7, 5).double())
    m = toy.method("fixmatch")
    b = toy.batch(m.views)
    forward_views(network, b, 1, "separate")
    mixed = torch.cat([b.labelled[0], b.unlabelled[1]]).flatten(1).mean(0)
    assert torch.allclose(network.encoder[1].running_mean, 0.1 * mixed)
    assert network.encoder[1].momentum == 0.1
