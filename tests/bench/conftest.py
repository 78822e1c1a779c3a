"""A folder of images for the scripts of accuracies."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def folder(tmp_path):
    """Ten classes, six training images and one for tests each."""
    generator = np.random.default_rng(0)
    for part, count in (("train", 6), ("test", 1)):
        for c in range(10):
            (tmp_path / "images" / part / f"class_{c}").mkdir(parents=True)
            for i in range(count):
                image = Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8))
                image.save(tmp_path / "images" / part / f"class_{c}" / f"{i:04d}.jpg", quality=95)
    return tmp_path / "images"
