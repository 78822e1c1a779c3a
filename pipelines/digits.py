"""scikit-learn's 1,797 handwritten digits: the set that needs no file.

Origin: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI repository; the 8x8 test half that scikit-learn
ships. Values 0..16 become round(v * 255 / 16), grey repeated over three channels.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch

from .errors import SetupError
from .source import Source

TEST_SHARE = 0.25


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def test_part(ids: list[str], label: np.ndarray) -> np.ndarray:
    """[N] bool: a quarter of each class, those whose id has the smallest hash. The same rows for every seed, size and version."""
    order = np.array([_hash(f"test part of {name}") for name in ids], np.uint64)
    test = np.zeros(len(ids), np.bool_)
    for c in np.unique(label):
        rows = np.flatnonzero(label == c)
        test[rows[np.argsort(order[rows])][: round(TEST_SHARE * len(rows))]] = True
    return test


def resized(images: np.ndarray, size: int) -> np.ndarray:
    """[N, H, W] uint8 grey -> [N, size, size] uint8, bicubic about pixel centres, without antialiasing: digits are only ever enlarged."""
    if images.shape[1:] == (size, size):
        return images
    pixels = torch.from_numpy(images)[:, None].double()
    pixels = torch.nn.functional.interpolate(pixels, (size, size), mode="bicubic", align_corners=False)
    return pixels[:, 0].round_().clamp_(0, 255).to(torch.uint8).numpy()


def load_digits(size: int | None = None) -> Source:
    """The digits at `size` pixels, their own 8 if None.

    Mirroring changes what a digit says, so flip is False. Mean and std are 1/2, which maps values to [-1, 1]: the set's own would
    only move the background away from that end.

    Raises:
        SetupError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits as read
    except ImportError as error:
        raise SetupError("the digits come with scikit-learn, which is not installed; run: pip install scikit-learn") from error
    bundle = read()
    grey = np.round(bundle.images * (255 / 16)).astype(np.uint8)
    label = bundle.target.astype(np.int64)
    ids = [f"digits/{row:04d}" for row in range(len(label))]
    test = test_part(ids, label)
    content = np.array([int.from_bytes(hashlib.blake2b(g.tobytes(), digest_size=8).digest(), "little") for g in grey], np.uint64)
    grey = resized(grey, size or grey.shape[1])
    return Source(
        name="digits",
        classes=tuple(str(c) for c in range(10)),
        ids=ids,
        label=label,
        given=~test,
        test=test,
        images=np.repeat(grey[:, None], 3, axis=1),
        content=content,
        flip=False,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    )
