"""Five hundred steps of a small network by the kernels and by the reference: the same curve."""

from __future__ import annotations

import torch

from fastssl.kernels import cross_entropy, pseudo_label_loss, reference


def train(losses, unlabelled, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(loss of each step, final weight) of a linear classifier of blobs: 6 labelled rows, 8 unlabelled ones in two noisy views."""
    g = torch.Generator().manual_seed(0)
    centres = torch.randn(3, 4, generator=g) * 2
    label = torch.arange(6) % 3
    weight = torch.zeros(3, 4, device=device, requires_grad=True)
    curve = []
    for _ in range(500):
        x = (centres[label] + torch.randn(6, 4, generator=g)).to(device)
        u = centres[torch.randint(3, (8,), generator=g)]
        weak, strong = ((u + torch.randn(8, 4, generator=g) * noise).to(device) for noise in (0.5, 1.5))
        teacher = (weak @ weight.T).detach()
        loss = losses(x @ weight.T, label.to(device)).mean()
        loss = loss + unlabelled(strong @ weight.T, teacher, threshold=0.7, weighting="smooth").loss.mean()
        (slope,) = torch.autograd.grad(loss, weight)
        with torch.no_grad():
            weight -= 0.05 * slope
        curve.append(loss.detach())
    return torch.stack(curve), weight.detach()


def test_five_hundred_steps(device: str) -> None:
    ours, weight = train(cross_entropy, pseudo_label_loss, device)
    theirs, wanted = train(reference.cross_entropy, reference.pseudo_label_loss, device)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(weight, wanted, rtol=1e-3, atol=1e-3)
    assert ours[-50:].mean() < 0.5 * ours[:5].mean()
