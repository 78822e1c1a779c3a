"""A tiny float64 network, a data spec and made-up batches for the methods' tests."""

import numpy as np
import pytest
import torch
from torch import nn

from fastssl.methods import find
from fastssl.methods.base import Method
from fastssl.models import Network
from fastssl.models.heads import CosineHead, make_head
from fastssl.pipelines.batch import Batch, DataSpec, FoundationLabels
from fastssl.schedules import Clock

CLASSES, ROWS, LABELLED, UNLABELLED = 5, 40, 4, 6


class Tiny(nn.Module):
    num_features = 7

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(27, 9), nn.Tanh(), nn.Linear(9, 7))

    def forward(self, x):
        return self.layers(x)


class Normed(Tiny):
    """With batch-norm, and dropout where it is asked for."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(27, 9), nn.BatchNorm1d(9), nn.Tanh(), *([nn.Dropout(dropout)] if dropout else []), nn.Linear(9, 7)
        )


def network(head="cosine", seed=0, encoder=Tiny):
    torch.manual_seed(seed)
    encoder = encoder()
    return Network(encoder, make_head(head, 7, CLASSES, scale=1 / 0.07, width=None)).double()


def foundation():
    """Made-up labels of a foundation model; two rows have none."""
    label = np.random.default_rng(0).integers(0, CLASSES, ROWS)
    weight = np.linspace(0.5, 1, ROWS, dtype=np.float32)
    label[[3, 20]], weight[[3, 20]] = -1, 0
    return FoundationLabels(label, weight)


def spec():
    names = tuple("abcde")
    return DataSpec("toy", names, (3, 3, 3), rows=ROWS, unlabelled=ROWS - 8, labelled_counts=(3, 2, 1, 1, 1), foundation=foundation())


class Teacher(nn.Module):
    """Stands for a finished run: logits of a main and an auxiliary head."""

    def __init__(self):
        super().__init__()
        self.network, self.auxiliary = network(seed=5), CosineHead(7, CLASSES).double()

    def forward(self, images):
        out = self.network(images)
        return out.logits, self.auxiliary(out.features)


def given(kind):
    """What a method is given besides network and data."""
    return {} if kind.teacher_run.__func__ is Method.teacher_run.__func__ else {"teacher": Teacher()}


def method(name, head="cosine", unlabelled_batch=UNLABELLED, weak_pass="separate", ema=None, encoder=Tiny, **options):
    kind = find(name)
    ema = kind.usual_ema if ema is None else ema
    config = kind.Config(**options)
    head = kind.head_of(config) or head
    made, others = network(head, encoder=encoder), {key: network(head, 1 + k, encoder) for k, key in enumerate(kind.others(config))}
    options = {"unlabelled_batch": unlabelled_batch, "weak_pass": weak_pass, "ema": ema, **given(kind), **others}
    return kind(config, made, spec(), **options).double()


def batch(views, seed=0):
    g = torch.Generator().manual_seed(seed)

    def images(n):
        return torch.randn(n, 3, 3, 3, generator=g, dtype=torch.float64)

    return Batch(
        labelled=tuple(images(LABELLED) for _ in views.labelled),
        label=torch.randint(CLASSES, (LABELLED,), generator=g),
        weight=torch.ones(LABELLED),
        index=torch.arange(LABELLED),
        unlabelled=tuple(images(UNLABELLED) for _ in views.unlabelled),
        unlabelled_index=torch.randint(8, ROWS, (UNLABELLED,), generator=g),
        hidden_label=torch.randint(-1, CLASSES, (UNLABELLED,), generator=g),
        probe=probe(images(LABELLED), g) if views.probe else (),
    )


def probe(images, g):
    """A probe view, as if by two operations of CTAugment with these levels."""
    return images, torch.randint(19, (LABELLED, 2), generator=g), torch.rand(LABELLED, 2, 2, generator=g, dtype=torch.float64)


def clock(step=0, total=100):
    c = Clock(total, 0)
    c.step.fill_(step)
    return c


@pytest.fixture
def toy():
    """The makers above, as one namespace."""
    from types import SimpleNamespace

    return SimpleNamespace(Normed=Normed, method=method, batch=batch, clock=clock, spec=spec, network=network, given=given)
