"""Label propagation and Arazo's pseudo-labelling as `fastssl train` runs them: stops inside any pass, rounds that are told and counted,
labels that spread as scikit-learn spreads them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from sklearn.semi_supervised import LabelSpreading

from fastssl.cli import main, parser
from fastssl.commands.train import configure
from fastssl.engine.assemble import assemble
from fastssl.engine.look import Look
from fastssl.engine.run import Run
from fastssl.methods.bricks.diffusion import diffused, neighbour_graph
from fastssl.methods.bricks.neighbours import unit
from tests.fastssl.engine.test_run import flat, records, state_of

NET = ["--model", "wrn-10-1", "--set", "data.size=8", "--set", "model.batchnorm_momentum=0.1", "--ema", "0.9", "--lr", "0.1", "--quiet"]
SHORT = ["--labels-per-class", "2", "--batch-size", "4", "--ratio", "2", "--steps", "9", "--set", "train.eval_every=9"]
OWN = {"label_propagation": ["--set", "method.neighbours=5"], "pl_mixup": []}


def trained(folder, name, *more):
    flags = ["--set", "method.warmup_share=0.34", "--set", "method.every=2", *OWN[name], *more]
    assert main(["train", "--method", name, *NET, *SHORT, *flags, "--out", str(folder)]) == 0
    return folder


@pytest.mark.parametrize("name", OWN)
def test_a_stop_inside_any_pass_changes_nothing(tmp_path, capsys, name):
    whole = trained(tmp_path / "whole", name, "--json")
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [one["steps"] for one in result["rounds"]] == [3, 5, 7, 9] and result["rounds"][-1]["accuracy"] == result["accuracy"]
    assert [one["name"] for one in result["rounds"]] == ["labels", *["train"] * 3] and result["rounds"][0]["accuracy"] is not None
    assert all(one["moved"] >= 0 for one in result["rounds"][1:])
    assert f"{name}, round 2 of 3: " in (whole / "log.txt").read_text()
    reference = flat(state_of(whole))
    for stop in (4, 5, 8):
        broken = trained(tmp_path / f"stopped{stop}", name, "--set", f"train.stop_at={stop}")
        assert main(["train", "--resume", str(broken), "--quiet"]) == 0
        resumed = flat(state_of(broken))
        for key, value in reference.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, resumed[key]), (stop, key)
        assert records(whole) == records(broken)


def features(seed):
    """(features [n, d], labels or -1, hidden labels) of the training digits by a network that 40 labels have trained for 60 steps."""
    flags = ["--labels-per-class", "4", "--batch-size", "20", "--ratio", "1", "--steps", "120", "--seed", str(seed)]
    more = ["--set", "method.warmup_share=0.5", "--set", "train.stop_at=60"]
    config = configure(parser().parse_args(["train", "--method", "label_propagation", *NET, *flags, *more]))
    run = Run(assemble(config, quiet=True), None, quiet=True)
    run.train()
    look = Look(run.pipeline, run.parts.split, run.method.judged())
    index, f, given = look("train", reduce=lambda out, label, _: (out.features, label))
    return unit(f), given, run.parts.source.label[index.numpy()]


def test_at_least_as_right_as_scikit_learns_label_spreading():
    """The same features, numbers of neighbours and samples, over three seeds; of its alphas the best at each k."""
    ours, theirs, k = [], [], 10
    for seed in range(3):
        f, given, hidden = features(seed)
        new = (given < 0).numpy()
        right = lambda label: (np.asarray(label)[new] == hidden[new]).mean()  # noqa: E731, B023
        ours.append(right(diffused(neighbour_graph(f, k), given, (given >= 0).float(), 10).label))
        tried = [LabelSpreading(kernel="knn", n_neighbors=k, alpha=alpha, max_iter=1000) for alpha in (0.2, 0.5, 0.8, 0.99)]
        theirs.append([right(one.fit(f.numpy(), given.numpy()).transduction_) for one in tried])
    assert np.mean(ours) > 0.8 and np.mean(ours) >= np.mean(theirs, axis=0).max()
