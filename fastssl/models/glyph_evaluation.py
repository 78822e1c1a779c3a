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

from fastssl.pipelines.digits import load_digits

from .glyph_clip import IMAGE_SIZE, MEAN, STD, GlyphCLIP, load
from .names import DIGITS


def digit_pictures() -> tuple[Tensor, np.ndarray, np.ndarray]:
    """All 1,797 digits as the pipeline shows them: [1797, 3, 32, 32] fp32 normalised, labels [1797], and which are the test part."""
    source = load_digits(IMAGE_SIZE)
    return (torch.from_numpy(source.images).float() / 255 - MEAN) / STD, source.label, source.test


@torch.inference_mode()
def measure(model: GlyphCLIP, seeds: int = 5, design: bool = False) -> dict[str, float | list[float]]:
    """Accuracies on the digits without any fine-tuning of the encoder.

    Args:
        model: the encoder.
        seeds: draws of labelled rows.
        design: look at the training part alone, also for judging: the only look that choices about the encoder may rest on.

    Returns:
        `zero_shot` and `zero_shot_test`: names against pictures, on all rows and on the test part. `probe_1`, `probe_4`, `probe_all`:
        logistic regression on unit-length features with 1, 4 or all labels a class of the training part, judged on the test part,
        [mean, standard deviation] over the draws. With `design` the probes are judged on the other training rows and
        `zero_shot` is theirs; `probe_all` then learns from half of them.
    """
    from sklearn.linear_model import LogisticRegression

    x, y, test = digit_pictures()
    if design:
        x, y, test = x[~test], y[~test], np.zeros((~test).sum(), bool)
    right = torch.cat([model.zero_shot(part, list(DIGITS)) for part in x.split(512)]).argmax(-1).numpy() == y
    features = torch.cat([F.normalize(model.vision.forward_features(part), dim=-1) for part in x.split(512)]).numpy()
    result: dict[str, float | list[float]] = {"zero_shot": round(float(right.mean()), 4)}
    if not design:
        result["zero_shot_test"] = round(float(right[test].mean()), 4)
    for name, labels in (("probe_1", 1), ("probe_4", 4), ("probe_all", None)):
        scores = []
        for seed in range(seeds):
            order = np.random.default_rng(seed).permutation(np.flatnonzero(~test))
            known = order[: len(order) // 2] if design else order
            if labels is not None:
                known = np.concatenate([order[y[order] == c][:labels] for c in range(10)])
            judged = np.setdiff1d(order, known) if design else np.flatnonzero(test)
            scores.append(LogisticRegression(C=100, max_iter=5000).fit(features[known], y[known]).score(features[judged], y[judged]))
        result[name] = [round(float(np.mean(scores)), 4), round(float(np.std(scores)), 4)]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m fastssl.models.glyph_evaluation", description=__doc__.split(":")[0])
    parser.add_argument("weights", nargs="?", help="a safetensors file (default: the one in the package)")
    print(json.dumps(measure(load(parser.parse_args().weights)), indent=1))


if __name__ == "__main__":
    main()
