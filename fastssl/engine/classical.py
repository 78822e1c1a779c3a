"""scikit-learn's classifiers on raw pixels or TF-IDF: peers of a run on the very same split, judged on the same test rows."""

from __future__ import annotations

import dataclasses
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from .. import environment
from ..config import RunConfig, option
from ..pipelines import choice, sources, splits
from ..pipelines.batch import Split
from ..pipelines.errors import ConfigError, DataError, ResourceError, unknown
from ..pipelines.source import AnySource, Source
from ..pipelines.text_source import TextSource
from . import tfidf
from .assemble import SOFT_ORIGINS, draw_split
from .report import write_atomically
from .sweep import expected_calibration_error

PREFIX = "sklearn:"
PIECE = 512  # test rows judged at once
LBFGS = 24  # vectors of all weights that its solver holds: ten pairs of the past, weights, gradients


@dataclass(frozen=True)
class LogisticRegression(tfidf.Words):
    """Logistic regression on the labelled rows alone: what the unlabelled ones add is told by the distance to it."""

    max_iter: int = option(1000, "iterations at most", source="ours; scikit-learn: 100")
    unlabelled: ClassVar[bool] = False  # whether it is fitted on unlabelled rows too

    def model(self, texts: bool = False) -> Any:
        from sklearn.linear_model import LogisticRegression as Model

        return Model(max_iter=self.max_iter)

    def floats(self, rows: int, stored: int, weights: int, texts: bool = False) -> int:
        """Numbers of 8 bytes that fitting holds, of `stored` numbers of features and as many `weights`: images, and the solver's."""
        return 2 * stored + LBFGS * weights


@dataclass(frozen=True)
class LabelSpreading(tfidf.Words):
    """Zhou et al. 2004, as scikit-learn has it: labels spread over the graph of all training rows."""

    gamma: float = option(20.0, "of the kernel exp(-gamma d^2) between images of pixels in [0, 1]", source="scikit-learn's default")
    neighbours: int = option(7, "texts: rows that each is joined to, the nearest ones", source="scikit-learn's default")
    alpha: float = option(0.2, "share of a label that comes from its neighbours", source="scikit-learn's default")
    max_iter: int = option(200, "iterations at most", source="ours; scikit-learn: 30")
    unlabelled: ClassVar[bool] = True

    def model(self, texts: bool = False) -> Any:
        from sklearn.semi_supervised import LabelSpreading as Model

        # A kernel of all pairs is rows^2 numbers, and TF-IDF is nearly orthogonal: of texts the nearest alone are joined.
        kernel = {"kernel": "knn", "n_neighbors": self.neighbours} if texts else {"kernel": "rbf", "gamma": self.gamma}
        return Model(**kernel, alpha=self.alpha, max_iter=self.max_iter)

    def floats(self, rows: int, stored: int, weights: int, texts: bool = False) -> int:
        """Features, and kernel and graph of all pairs; of texts the graph, and the GiB in which scikit-learn looks for neighbours."""
        return stored + (6 * self.neighbours * rows + (1 << 27) if texts else 3 * rows * rows)


@dataclass(frozen=True)
class SelfTraining(tfidf.Words):
    """Yarowsky 1995, as scikit-learn has it: logistic regression, trained anew on what it is sure of until nothing is added."""

    threshold: float = option(0.75, "probability from which a row is labelled", source="scikit-learn's default")
    max_iter: int = option(1000, "iterations of the logistic regression at most", source="ours; scikit-learn: 100")
    unlabelled: ClassVar[bool] = True

    def model(self, texts: bool = False) -> Any:
        from sklearn.linear_model import LogisticRegression as Model
        from sklearn.semi_supervised import SelfTrainingClassifier

        return SelfTrainingClassifier(Model(max_iter=self.max_iter), threshold=self.threshold)

    def floats(self, rows: int, stored: int, weights: int, texts: bool = False) -> int:
        """Features, and those of the last round beside them; the solver's."""
        return 3 * stored + LBFGS * weights


PEERS: dict[str, type] = {PREFIX + kind.__name__: kind for kind in (LogisticRegression, LabelSpreading, SelfTraining)}


def is_peer(name: str) -> bool:
    return name.startswith(PREFIX)


def find(name: str) -> type:
    """The options of a peer by name ("sklearn:LabelSpreading").

    Raises:
        ConfigError: unknown name, with the nearest ones.
    """
    if name not in PEERS:
        raise ConfigError(unknown("peer", name, PEERS))
    return PEERS[name]


def run(config: RunConfig, folder: Path) -> dict[str, Any]:
    """Fits the peer that `config.method_name` names and writes split.csv, metrics.jsonl and STATUS.json into `folder` (made here).

    Returns:
        the result, with the keys of `Run.result` that a peer has.

    Raises:
        ConfigError, DataError: the split cannot be drawn as asked, or labels bear weights. ResourceError: it would not fit into memory.
    """
    # Pixels as they are, unless the user asked for a size: networks' own sizes and presets' are no peer's.
    own = config.origins.get("data.size", "default").split()[0] in SOFT_ORIGINS
    room = choice.Room("cpu", *[(environment.memory() or (None, None))[1]] * 2)
    data = config.data
    source = sources.configured(dataclasses.replace(data, size=None if own else data.size, resize=None), room=room)
    if source.choice.name != "resident":
        raise ResourceError(f"{config.method_name} holds all images in memory, and {data.name} does not fit; leave it out of this sweep")
    split = draw_split(config, source)
    begin = time.perf_counter()
    rows = trained_on(split, unlabelled=True)
    features = tfidf.features(config.method, source, rows) if isinstance(source, TextSource) else flat(source)
    model = fitted(config, source, features, split)
    seconds = time.perf_counter() - begin
    result = {
        "run_dir": str(folder),
        "method": config.method_name,
        "data": data.name,
        "seconds": seconds,
        **judged(model, source, features, split),
        "labels": len(split.labelled),
        "seed": config.train.seed,
        "split_hash": split.hash,
    }
    folder.mkdir(parents=True)
    splits.save(split, source, folder / "split.csv")
    write_atomically(folder / "metrics.jsonl", json.dumps({"event": "result", "step": 0, **result}) + "\n")
    write_atomically(folder / "STATUS.json", json.dumps({"state": "finished", "step": 0, "accuracy": result["accuracy"]}) + "\n")
    return result


def trained_on(split: Split, *, unlabelled: bool) -> np.ndarray:
    """Rows of training, in order."""
    return np.union1d(split.labelled, split.unlabelled) if unlabelled else np.unique(split.labelled)


def fitted(config: RunConfig, source: AnySource, features: Any, split: Split) -> Any:
    """The model, trained on labelled and perhaps unlabelled rows together (-1 where unlabelled, as scikit-learn has it).

    Raises:
        DataError: labels with weights. ResourceError: it would not fit into memory.
    """
    if (split.weight != 1).any():
        raise DataError(f"{config.method_name} takes no weights, and the split has some; leave it out of this sweep")
    texts = isinstance(source, TextSource)
    rows = trained_on(split, unlabelled=config.method.unlabelled)
    chosen = features[rows]
    free = (environment.memory() or (None, None))[1]
    stored = tfidf.stored(chosen) if texts else chosen.size
    wanted = 8 * config.method.floats(len(rows), stored, len(source.classes) * features.shape[1], texts)
    if free is not None and wanted > free:
        raise ResourceError(
            f"{config.method_name} would take about {wanted / 2**30:.1f} GiB for {len(rows)} {source.samples}, and {free / 2**30:.1f} are "
            "free; leave it out of this sweep"
        )
    target = np.full(len(source), -1)
    target[split.labelled] = split.label
    return config.method.model(texts).fit(chosen if texts else chosen / 255, target[rows])


def flat(source: Source) -> np.ndarray:
    """[N, D] uint8 pixels; grey images give one channel, not three that are equal."""
    images = np.asarray(source.images)
    if all(np.array_equal(images[:, 0], images[:, c]) for c in range(1, images.shape[1])):
        images = images[:, 0]
    return images.reshape(len(images), -1)


def judged(model: Any, source: AnySource, features: Any, split: Split) -> dict[str, Any]:
    """Accuracy and calibration error on the test rows whose label is known."""
    rows = split.test[source.label[split.test] >= 0]
    if len(rows) == 0:
        return {"accuracy": None, "why_no_accuracy": f"no test {source.samples}; give --test or --holdout", "ece": None}
    right, confidence = [], []
    for some in np.array_split(rows, -(-len(rows) // PIECE)):
        piece = features[some] if isinstance(source, TextSource) else features[some] / 255
        right.append(model.predict(piece) == source.label[some])
        confidence.append(model.predict_proba(piece).max(axis=1))
    hit, sure = (torch.from_numpy(np.concatenate(column)) for column in (right, confidence))
    # A row far from all others has no probabilities in LabelSpreading (0 / 0): then there is no calibration to speak of.
    ece = expected_calibration_error(sure, hit) if bool(torch.isfinite(sure).all()) else None
    return {"accuracy": float(hit.double().mean()), "why_no_accuracy": None, "ece": ece}
