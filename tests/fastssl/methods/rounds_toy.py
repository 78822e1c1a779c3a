"""The toy data as methods that go in rounds look at it between stages."""

from types import SimpleNamespace

import numpy as np
import torch

from fastssl.models import Output
from fastssl.pipelines.batch import Split
from tests.fastssl.methods.oracle import encoder, head

ROWS, CLASSES = 40, 5
LABELLED = np.array([0, 1, 2, 3, 4, 5, 6, 7])
LABEL = np.array([0, 0, 1, 1, 2, 3, 3, 4])
WEIGHTS = np.array([1, 1, 1, 1, 1, 1, 0, 0.5], np.float32)  # row 6 does not count
SPLIT = Split(LABELLED, LABEL, WEIGHTS, np.setdiff1d(np.arange(ROWS), [8, 9]), np.array([8, 9]), "drawn")
POOL = np.arange(10, ROWS)  # the unlabelled rows that have no label
IMAGES = 3 * torch.randn(ROWS, 3, 3, 3, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def looking(m, split=SPLIT, lost=(), spoil=(), seed=0):
    """A Look that forwards the toy images, some of which are lost or come out as NaN. `asked`: the networks that it was asked for."""

    def look(rows, network=None, view="plain", reduce=None):
        assert view == "plain" and len(rows) and not np.isin(rows, [*split.test, *split.labelled]).any()
        look.asked.append(network)
        rows = np.setdiff1d(rows, lost, assume_unique=True)
        index = torch.from_numpy(rows)
        network = m.judged() if network is None else network
        training = network.training
        with torch.no_grad():
            out = network.eval()(IMAGES[index])
        network.train(training)
        if len(spoil):
            out = Output(*(torch.where(torch.isin(index, torch.tensor(spoil))[:, None], torch.nan, t) for t in out))
        found = reduce(out, torch.full((len(rows),), -1), index)
        return index, *(found if isinstance(found, tuple) else (found,))

    look.split, look.pipeline, look.asked = split, SimpleNamespace(seed=seed), []
    return look


def predictions(network, rows=POOL):
    """[n, C] logits of a toy network on plain images, by the equations."""
    values = {f"network.{key}": p for key, p in network.named_parameters()}
    with torch.no_grad():
        z = head(values, encoder(values, IMAGES[rows])).numpy()
    return z
