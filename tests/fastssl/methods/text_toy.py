"""The methods on texts as the tests run them: a tiny float64 network of word embeddings, and made-up batches of token ids."""

import torch
from torch import nn

from fastssl.methods import find
from fastssl.methods.base import Method
from fastssl.models import Network
from fastssl.models.heads import CosineHead, make_head
from fastssl.pipelines.batch import Batch, DataSpec
from tests.fastssl import conftest as toy

WORDS, LABELLED_LENGTH, UNLABELLED_LENGTH = 23, 9, 6

# What methods of the registry cannot do to a text, and the options that leave it out.
OF_IMAGES = {"remixmatch": {"lambda_rotation": 0.0, "ctaugment": False}, "adversarial": {"clip": False}}


class TinyText(nn.Module):
    """Embeds words, adds what depends on their place, mixes each with the mean of the text, and pools: rows do not see each other."""

    num_features = 7
    reads_text = True

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(WORDS, 5)
        self.places = nn.Parameter(torch.randn(32, 5) * 0.1)
        self.inner = nn.Linear(10, 8)
        self.outer = nn.Linear(8, 7)

    def embed(self, ids):
        there = ids >= 0
        x = self.words(ids.clamp(min=0)) * there[..., None]
        return torch.cat([x, there[..., None].to(x.dtype)], -1)

    def forward(self, x):
        x = x if torch.is_floating_point(x) else self.embed(x)
        there = (x[..., -1:] > 0).to(x.dtype)
        x = (x[..., :-1] + self.places[: x.shape[1]]) * there
        count = there.sum(1, keepdim=True).clamp(min=1)
        mean = (x.sum(1, keepdim=True) / count).expand_as(x)
        return self.outer((torch.tanh(self.inner(torch.cat([x, mean], -1))) * there).sum(1) / count[:, 0])


def network(head="cosine", seed=0):
    torch.manual_seed(seed)
    encoder = TinyText()
    return Network(encoder, make_head(head, 7, toy.CLASSES, scale=1 / 0.07, width=None)).double()


def spec():
    one = toy.spec()
    return DataSpec(
        "toy", one.classes, (LABELLED_LENGTH,), rows=one.rows, unlabelled=one.unlabelled, labelled_counts=one.labelled_counts,
        foundation=one.foundation, kind="text",
    )  # fmt: skip


class Teacher(nn.Module):
    def __init__(self):
        super().__init__()
        self.network, self.auxiliary = network(seed=5), CosineHead(7, toy.CLASSES).double()

    def forward(self, x):
        out = self.network(x)
        return out.logits, self.auxiliary(out.features)


def method(name, head="cosine", weak_pass="separate", ema=None, **options):
    kind = find(name)
    ema = kind.usual_ema if ema is None else ema
    given = {} if kind.teacher_run.__func__ is Method.teacher_run.__func__ else {"teacher": Teacher()}
    options = {**options, **OF_IMAGES.get(name, {})}
    config = kind.Config(**options)
    head = kind.head_of(config) or head
    others = {key: network(head, 1 + k) for k, key in enumerate(kind.others(config))}
    options = {"unlabelled_batch": toy.UNLABELLED, "weak_pass": weak_pass, "ema": ema, **given, **others}
    return kind(config, network(head), spec(), **options).double()


def texts(count, length, generator):
    """[count, length] ids: 2 to `length` words, -1 beyond the end."""
    ids = torch.randint(WORDS, (count, length), generator=generator)
    size = torch.randint(2, length + 1, (count, 1), generator=generator)
    return torch.where(torch.arange(length) < size, ids, -1)


def batch(views, seed=0):
    """Labelled and unlabelled texts of different lengths, as a pipeline draws them."""
    g = torch.Generator().manual_seed(seed)
    return Batch(
        labelled=tuple(texts(toy.LABELLED, LABELLED_LENGTH, g) for _ in views.labelled),
        label=torch.randint(toy.CLASSES, (toy.LABELLED,), generator=g),
        weight=torch.ones(toy.LABELLED),
        index=torch.arange(toy.LABELLED),
        unlabelled=tuple(texts(toy.UNLABELLED, UNLABELLED_LENGTH, g) for _ in views.unlabelled),
        unlabelled_index=torch.randint(8, toy.ROWS, (toy.UNLABELLED,), generator=g),
        hidden_label=torch.randint(-1, toy.CLASSES, (toy.UNLABELLED,), generator=g),
    )
