"""scikit-learn's semi-supervised classifiers on raw pixels: peers of a run on the very same split, judged on the same test rows."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import environment
from ..config import RunConfig, option
from ..pipelines import choice, sources, splits
from ..pipelines.batch import Split
from ..pipelines.errors import ConfigError, DataError, ResourceError, unknown
from ..pipelines.source import Source
from .assemble import SOFT_ORIGINS, draw_split
from .report import write_atomically
from .sweep import expected_calibration_error

PREFIX = "sklearn:"
PIECE = 512  # test images judged at once


@dataclass(frozen=True)
class LabelSpreading:
    """Zhou et al. 2004, as scikit-learn has it: labels spread over the graph of all training images."""

    gamma: float = option(20.0, "of the kernel exp(-gamma d^2) between images of pixels in [0, 1]", source="scikit-learn's default")
    alpha: float = option(0.2, "share of a label that comes from its neighbours", source="scikit-learn's default")
    max_iter: int = option(200, "iterations at most", source="ours; scikit-learn: 30")

    def model(self) -> Any:
        from sklearn.semi_supervised import LabelSpreading as Model

        return Model(kernel="rbf", gamma=self.gamma, alpha=self.alpha, max_iter=self.max_iter)

    @staticmethod
    def floats(rows: int, pixels: int) -> int:
        """Numbers of 8 bytes that fitting holds: images, and kernel and graph of all pairs."""
        return rows * pixels + 3 * rows * rows


@dataclass(frozen=True)
class SelfTraining:
    """Yarowsky 1995, as scikit-learn has it: logistic regression, trained anew on what it is sure of until nothing is added."""

    threshold: float = option(0.75, "probability from which an image is labelled", source="scikit-learn's default")
    max_iter: int = option(1000, "iterations of the logistic regression at most", source="ours; scikit-learn: 100")

    def model(self) -> Any:
        from sklearn.linear_model import LogisticRegression
        from sklearn.semi_supervised import SelfTrainingClassifier

        return SelfTrainingClassifier(LogisticRegression(max_iter=self.max_iter), threshold=self.threshold)

    @staticmethod
    def floats(rows: int, pixels: int) -> int:
        """Numbers of 8 bytes that fitting holds: images, and those of the last round beside them."""
        return 3 * rows * pixels


PEERS: dict[str, type] = {PREFIX + kind.__name__: kind for kind in (LabelSpreading, SelfTraining)}


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
    source = sources.load(
        data.name,
        size=None if own else data.size,
        labels=data.labels,
        test=data.test,
        max_bad=data.max_bad,
        root=data.root,
        extra=data.extra,
        extra_unlabelled=data.extra_unlabelled,
        interpolation=data.interpolation or "bicubic",
        workers=data.workers,
        pipeline=data.pipeline,
        room=room,
    )
    if source.choice.name != "resident":
        raise ResourceError(f"{config.method_name} holds all images in memory, and {data.name} does not fit; leave it out of this sweep")
    split = draw_split(config, source)
    images = flat(source)
    begin = time.perf_counter()
    model = fitted(config, source, images, split)
    seconds = time.perf_counter() - begin
    result = {
        "run_dir": str(folder),
        "method": config.method_name,
        "data": data.name,
        "seconds": seconds,
        **judged(model, source, images, split),
        "labels": len(split.labelled),
        "seed": config.train.seed,
        "split_hash": split.hash,
    }
    folder.mkdir(parents=True)
    splits.save(split, source, folder / "split.csv")
    write_atomically(folder / "metrics.jsonl", json.dumps({"event": "result", "step": 0, **result}) + "\n")
    write_atomically(folder / "STATUS.json", json.dumps({"state": "finished", "step": 0, "accuracy": result["accuracy"]}) + "\n")
    return result


def fitted(config: RunConfig, source: Source, images: np.ndarray, split: Split) -> Any:
    """The model, trained on labelled and unlabelled rows together (-1 where unlabelled, as scikit-learn has it).

    Raises:
        DataError: labels with weights. ResourceError: it would not fit into memory.
    """
    if (split.weight != 1).any():
        raise DataError(f"{config.method_name} takes no weights, and the split has some; leave it out of this sweep")
    rows = np.union1d(split.labelled, split.unlabelled)
    free = (environment.memory() or (None, None))[1]
    wanted = 8 * config.method.floats(len(rows), images.shape[1])
    if free is not None and wanted > free:
        raise ResourceError(
            f"{config.method_name} would take about {wanted / 2**30:.1f} GiB for {len(rows)} images, and {free / 2**30:.1f} are free; "
            "leave it out of this sweep"
        )
    target = np.full(len(source), -1)
    target[split.labelled] = split.label
    return config.method.model().fit(images[rows] / 255, target[rows])


def flat(source: Source) -> np.ndarray:
    """[N, D] uint8 pixels; grey images give one channel, not three that are equal."""
    images = np.asarray(source.images)
    if all(np.array_equal(images[:, 0], images[:, c]) for c in range(1, images.shape[1])):
        images = images[:, 0]
    return images.reshape(len(images), -1)


def judged(model: Any, source: Source, images: np.ndarray, split: Split) -> dict[str, Any]:
    """Accuracy and calibration error on the test rows whose label is known."""
    rows = split.test[source.label[split.test] >= 0]
    if len(rows) == 0:
        return {"accuracy": None, "why_no_accuracy": "no test images; give --test or --holdout", "ece": None}
    right, confidence = [], []
    for some in np.array_split(rows, -(-len(rows) // PIECE)):
        right.append(model.predict(images[some] / 255) == source.label[some])
        confidence.append(model.predict_proba(images[some] / 255).max(axis=1))
    hit, sure = (torch.from_numpy(np.concatenate(column)) for column in (right, confidence))
    # An image far from all others has no probabilities in LabelSpreading (0 / 0): then there is no calibration to speak of.
    ece = expected_calibration_error(sure, hit) if bool(torch.isfinite(sure).all()) else None
    return {"accuracy": float(hit.double().mean()), "why_no_accuracy": None, "ece": ece}
