"""Oracle of methods whose passes go apart, with batch-norm where the network has it: nothing here comes of fastssl.

Each pass takes its own batch's statistics, and the one that is said to `count` moves the running ones.
"""

import numpy as np
import torch

from tests.fastssl.methods import oracle


def log_softmax(z):
    return z - torch.logsumexp(z, 1, keepdim=True)


def norms(x):
    """[N, 1, 1, 1] L2 norms of whole rows."""
    return x.flatten(1).square().sum(1).sqrt().view(-1, 1, 1, 1)


class Apart(oracle.Step):
    """A method overrides `loss`, and calls `net` for a pass."""

    def __init__(self, m, normed=False, **options):
        super().__init__(m, **options)
        self.normed, self.running = normed, {"mean": np.zeros(9), "var": np.ones(9), "steps": 0}
        self.weight = np.ones(1)

    def net(self, x, *, count=False, constant=False):
        """[N, C] logits. `constant`: no gradient by the weights."""
        v = {name: value.detach() for name, value in self.values.items()} if constant else self.values
        if not self.normed:
            return oracle.head(v, oracle.encoder(v, x))
        at = "network.encoder.layers."
        h = x.flatten(1) @ v[f"{at}1.weight"].T + v[f"{at}1.bias"]
        mean, var = h.mean(0), h.var(0, unbiased=False)
        if count:
            self.running["mean"] = 0.9 * self.running["mean"] + 0.1 * mean.detach().numpy()
            self.running["var"] = 0.9 * self.running["var"] + 0.1 * h.var(0).detach().numpy()
            self.running["steps"] += 1
        h = torch.tanh(v[f"{at}2.weight"] * (h - mean) / torch.sqrt(var + 1e-5) + v[f"{at}2.bias"])
        return oracle.head(v, h @ v[f"{at}4.weight"].T + v[f"{at}4.bias"])

    def supervised(self, batch):
        return (batch.weight * oracle.cross_entropy(self.net(batch.labelled[0], count=True), batch.label)).mean()

    def state(self):
        if not self.normed:
            return super().state()
        at, own = "network.encoder.layers.2.", self.running
        moved = {"running_mean": own["mean"], "running_var": own["var"], "num_batches_tracked": own["steps"]}
        return super().state() | {f"{at}{key}": value for key, value in moved.items()}
