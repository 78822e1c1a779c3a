"""What glyph_clip is worth on scikit-learn's digits, which it never saw: python -m fastssl.models.glyph_evaluation [FILE].

Kept apart from `glyph_training`, so that nothing on the way to the weights can read a data set.
"""

from __future__ import annotations

import argparse
import json

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .glyph_clip import IMAGE_SIZE, MEAN, STD, GlyphCLIP, load
from .names import DIGITS


def digit_pictures() -> tuple[Tensor, np.ndarray]:
    """All 1,797 digits as the encoder takes them: [1797, 1, 32, 32] fp32, bilinear from 8 x 8, and their labels."""
    from sklearn.datasets import load_digits

    data = load_digits()
    x = torch.from_numpy(data.images).float()[:, None] / 16
    return (F.interpolate(x, size=IMAGE_SIZE, mode="bilinear", align_corners=False) - MEAN) / STD, data.target


@torch.inference_mode()
def measure(model: GlyphCLIP, rows: np.ndarray | None = None, seeds: int = 5) -> dict[str, float | list[float]]:
    """Accuracies on the digits `rows` (all where None) without any fine-tuning of the encoder.

    Returns:
        zero_shot: names against pictures. probe_1, probe_4: logistic regression on unit-length features of 1 and 4 labels a class, judged
        on all other rows, [mean, standard deviation] over `seeds` draws. probe_half: the same of a random half of the rows.
    """
    from sklearn.linear_model import LogisticRegression

    x, y = digit_pictures()
    if rows is not None:
        x, y = x[rows], y[rows]
    model = model.eval()
    zero_shot = torch.cat([model.zero_shot(part, list(DIGITS)) for part in x.split(512)]).argmax(-1).numpy()
    features = torch.cat([F.normalize(model.vision.forward_features(part), dim=-1) for part in x.split(512)]).numpy()
    result: dict[str, float | list[float]] = {"rows": len(y), "zero_shot": float((zero_shot == y).mean())}
    for name, labels in (("probe_1", 1), ("probe_4", 4), ("probe_half", None)):
        scores = []
        for seed in range(seeds):
            order = np.random.default_rng(seed).permutation(len(y))
            if labels is None:
                train = order[: len(y) // 2]
            else:
                train = np.concatenate([order[y[order] == c][:labels] for c in range(10)])
            rest = np.setdiff1d(order, train)
            scores.append(LogisticRegression(C=100, max_iter=5000).fit(features[train], y[train]).score(features[rest], y[rest]))
        result[name] = [float(np.mean(scores)), float(np.std(scores))]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m fastssl.models.glyph_evaluation", description=__doc__.split(":")[0])
    parser.add_argument("weights", nargs="?", help="a safetensors file (default: the one in the package)")
    print(json.dumps(measure(load(parser.parse_args().weights)), indent=1))


if __name__ == "__main__":
    main()
