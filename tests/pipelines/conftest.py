"""Shared by the pipelines' tests: Pillow's own operations, test images, and folders of image files made from digits."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from bench.view_peers import PILLOW


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def pillow():
    """Runs one of Pillow's operations on an [3, H, W] uint8 tensor."""

    def run(op: str, image: torch.Tensor, value: float) -> torch.Tensor:
        made = PILLOW[op](Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()), value)
        return torch.from_numpy(np.array(made)).permute(2, 0, 1)

    return run


def _smooth(rng, height, width):
    coarse = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).transpose(2, 0, 1)


@pytest.fixture(scope="session")
def pictures():
    """Builds [8, 3, H, W] uint8 images of one size: noise, blocks, one value, two values, ramps, photograph-like, dim, one stray pixel."""

    def build(height: int, width: int) -> torch.Tensor:
        rng = np.random.default_rng(height * 1000 + width)
        noise = rng.integers(0, 256, (3, height, width), dtype=np.uint8)
        blocks = np.kron(rng.integers(0, 256, (3, -(-height // 4), -(-width // 4)), dtype=np.uint8), np.ones((1, 4, 4), np.uint8))
        constant = np.broadcast_to(np.array([7, 130, 255], np.uint8)[:, None, None], (3, height, width))
        two = np.where(rng.random((3, height, width)) < 0.3, 40, 90).astype(np.uint8)
        ramp = np.broadcast_to(np.linspace(0, 255, width).astype(np.uint8), (3, height, width)).copy()
        ramp[1] = np.linspace(255, 0, height).astype(np.uint8)[:, None]
        dim = rng.integers(100, 120, (3, height, width), dtype=np.uint8)
        stray = np.full((3, height, width), 200, np.uint8)
        stray[:, height // 2, width // 3] = (3, 200, 201)
        stack = [noise, blocks[:, :height, :width], constant, two, ramp, _smooth(rng, height, width), dim, stray]
        return torch.from_numpy(np.stack(stack))

    return build


def _encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def encoded():
    """Encodes a Pillow image: (image, format, options) -> bytes."""
    return _encoded


@pytest.fixture(scope="session")
def digit_files():
    """{"3/0123.jpg": JPEG bytes}: 12 real digits of each of the classes 0, 1, 2 and 3, in colour, 16 pixels wide."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    files = {}
    for name in range(4):
        for row in np.flatnonzero(digits.target == name)[:12]:
            grey = Image.fromarray((digits.images[row] * 255 / 16).round().astype(np.uint8))
            files[f"{name}/{row:04d}.jpg"] = _encoded(grey.resize((16, 16)).convert("RGB"), "JPEG", quality=90)
    return files


@pytest.fixture()
def folder(tmp_path, digit_files):
    """Writes {relative path: bytes} (the digit files by default) below tmp_path/data in the given order, and returns the folder."""

    def write(files=None, root="data", order=1):
        base = tmp_path / root
        base.mkdir(exist_ok=True)
        for name, content in list((digit_files if files is None else files).items())[::order]:
            (base / name).parent.mkdir(parents=True, exist_ok=True)
            (base / name).write_bytes(content)
        return base

    return write


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """Indices of image files go to a folder of the test's own, not to the user's cache."""
    place = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("FASTSSL_CACHE", str(place))
    return place
