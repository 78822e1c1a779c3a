"""The resident pipeline by the kernels gives the batches of the one by plain torch, bit for bit; on the CPU in Triton's interpreter."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable

import numpy as np
import pytest
import torch

from fastssl.kernels import _dispatch, augment
from fastssl.pipelines import sources, splits
from fastssl.pipelines.batch import Batch, Views
from fastssl.pipelines.errors import ConfigError
from fastssl.pipelines.policies import LEVELS, OPS, POLICIES, continuous_range, level_value
from fastssl.pipelines.resident import ResidentPipeline
from fastssl.pipelines.resident_fused import knows, layout, taps
from fastssl.pipelines.resize import weights

pytestmark = pytest.mark.skipif(not _dispatch.TRITON, reason="the kernels are Triton's: pip install triton (Linux only)")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
VIEWS = Views(("weak",), ("weak", "strong", "strong"), 1)


@pytest.fixture(autouse=True)
def _interpreted(monkeypatch: pytest.MonkeyPatch):
    if DEVICE == "cpu":
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    # The interpreter computes in numpy, which warns where a hash wraps.
    with np.errstate(all="ignore"):
        yield


@pytest.fixture(scope="module")
def digits():
    return dataclasses.replace(sources.load("digits"), flip=True)


@pytest.fixture(scope="module")
def split(digits):
    return splits.make(digits, per_class=1)


@pytest.fixture
def both(digits, split, monkeypatch) -> Callable[..., tuple[ResidentPipeline, ResidentPipeline]]:
    """The same pipeline by plain torch and by the kernels."""

    def make(views: Views = VIEWS, *, source=digits, batch_size: int = 6, ratio: int = 1, **options):
        made = []
        for asked in ("reference", "triton"):
            monkeypatch.setenv("FASTSSL_KERNELS", asked)
            made.append(ResidentPipeline(source, split, views, batch_size=batch_size, ratio=ratio, device=DEVICE, **options))
        assert [run.fused for run in made] == [False, True]
        return tuple(made)

    return make


def flat(batch: Batch) -> list[torch.Tensor]:
    return [*batch.labelled, batch.label, batch.weight, batch.index, *batch.unlabelled, batch.unlabelled_index, batch.hidden_label]


def same(a: Batch, b: Batch) -> bool:
    pairs = list(zip(flat(a), flat(b), strict=True))
    return all(x.dtype == y.dtype and x.stride() == y.stride() and torch.equal(x, y) for x, y in pairs)


@pytest.mark.parametrize("policy", [name for name in POLICIES if knows(("strong",), POLICIES[name])])
def test_draws_are_equal(both, policy: str) -> None:
    """Over the end of a labelled epoch: ten rows, six a draw."""
    torch_route, kernels = both(policy=policy)
    for draws in range(1, 3):
        assert same(torch_route.draw(), kernels.draw()), f"draw {draws}"
        assert kernels.step.item() == draws


@pytest.mark.parametrize(
    "options",
    [
        {"size": 12},
        {"size": 12, "interpolation": "bilinear", "channels_last": True},
        {"size": 10, "resize": 14},
        {"resize": 11},
        {"size": 5},
    ],
    ids=str,
)
def test_resized_draws_are_equal(both, options: dict) -> None:
    torch_route, kernels = both(Views(("plain",), ("weak", "strong")), ratio=1, policy="usb", **options)
    assert same(torch_route.draw(), kernels.draw())


def test_any_order_of_views_and_two_rooms_for_a_row(both, digits) -> None:
    """More rows a batch than the part has, channels_last, several views of each kind."""
    torch_route, kernels = both(Views(("strong", "plain"), ("strong", "weak", "plain")), batch_size=13, ratio=1, channels_last=True)
    batch = kernels.draw()
    assert same(torch_route.draw(), batch) and len(batch.index.unique()) == 10
    assert batch.labelled[0].is_contiguous(memory_format=torch.channels_last)


def test_supervised_views_alone(both) -> None:
    torch_route, kernels = both(Views(("weak", "weak")))
    assert same(torch_route.draw(), kernels.draw())


def test_sweeps_are_equal(both) -> None:
    torch_route, kernels = both()
    for part, view in (("labelled", "plain"), ("labelled", "strong")):
        for a, b in zip(torch_route.sweep(part, 7, view), kernels.sweep(part, 7, view), strict=True):
            assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert kernels.step.item() == 0


def test_bfloat16(both) -> None:
    """Both round the same fp32 numbers; the interpreter alone cuts them off instead."""
    torch_route, kernels = both(dtype=torch.bfloat16)
    for a, b in zip(flat(torch_route.draw()), flat(kernels.draw()), strict=True):
        assert a.dtype == b.dtype
        if a.dtype == torch.bfloat16 and DEVICE == "cpu":
            assert ((a.view(torch.int16) - b.view(torch.int16)).abs() <= 1).all()
        else:
            assert torch.equal(a, b)


def test_a_batch_size_does_not_change_a_view_and_a_resume_goes_on(both, split) -> None:
    _, one = both(batch_size=2, ratio=2)
    _, two = both(batch_size=4, ratio=2)
    pieces = [one.draw() for _ in range(2)]
    assert all(torch.equal(torch.cat(parts), whole) for *parts, whole in zip(*map(flat, pieces), flat(two.draw()), strict=True))
    _, resumed = both(batch_size=2, ratio=2)
    resumed.load_state_dict(one.state_dict())
    assert same(one.draw(), resumed.draw())
    wider = dataclasses.replace(split, label=(split.label + 1) % 10, unlabelled=split.unlabelled[::3])
    one.use(wider)
    batch = one.draw()
    assert set(batch.unlabelled_index.tolist()) <= set(wider.unlabelled.tolist()) and resumed.step.item() == 3
    at = np.searchsorted(wider.labelled, batch.index.cpu().numpy())
    assert batch.label.tolist() == wider.label[at].tolist()


def test_two_launches_a_draw(both, monkeypatch) -> None:
    _, kernels = both()
    launched = []
    run = augment.Launch.run
    monkeypatch.setattr(augment.Launch, "run", lambda launch, device: (launched.append(launch.kernel.__name__), run(launch, device)))
    kernels.draw()
    assert launched == ["order_kernel", "augment_kernel"]


def test_pillows_levels(both, pictures, pillow) -> None:
    """Kernel against Pillow itself: each operation at its middle level on photograph-like images and noise."""
    x, side = pictures(16, 16)[[0, 5]], 16
    values = [level_value(op, LEVELS // 2 + 1, side, 0.3) for op in OPS]
    images, n = x.repeat(len(OPS), 1, 1, 1), 2 * len(OPS)
    op, value = torch.arange(len(OPS)).repeat_interleave(2)[:, None], torch.tensor(values).double().repeat_interleave(2)[:, None]
    table = augment.Table(torch.zeros(n, 3, dtype=torch.int64), op, value, torch.tensor([0, -1, 0, -1]).repeat(n, 1))
    kernel = augment.Augment((side, side), (side, side), torch.ones(3, device=DEVICE), torch.zeros(3, device=DEVICE))
    monkey = [t.to(DEVICE) for t in table]
    got = kernel(images.to(DEVICE), torch.arange(n, device=DEVICE), augment.Table(*monkey)).cpu()
    for k in range(n):
        assert torch.equal(got[k], pillow(OPS[k // 2], images[k], values[k // 2]).float()), OPS[k // 2]
    assert continuous_range("rotate", side, 0.3) == (-30.0, 30.0), "the kernel turns by less than a whole turn"


@pytest.mark.parametrize(("stored", "size", "picture"), [(8, 12, 12), (8, 5, 8), (32, 224, 256), (9, 9, 7)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_taps_are_pillows_weights(stored: int, size: int, picture: int, interpolation: str) -> None:
    found = taps(stored, size, picture, interpolation, torch.device("cpu"))
    dense = np.zeros((size + picture, stored))
    for out, (first, row) in enumerate(zip(found.first.tolist(), found.weight.tolist(), strict=True)):
        for k, weight in enumerate(row):
            assert weight == 0 or first + k < stored
            if weight:
                dense[out, first + k] = weight
    assert np.array_equal(dense, np.concatenate([weights(stored, side, interpolation) for side in (size, picture)]))
    assert taps(stored, stored, stored, interpolation, torch.device("cpu")) is None


def test_layout_puts_plain_first_and_strong_last() -> None:
    assert layout(("strong", "weak", "plain", "weak"), [3, 3, 5, 5]) == ([2, 1, 3, 0], [5, 3, 5, 3], 5, 8)


def test_what_cannot_serve_raises_or_is_left_to_torch(digits, split, monkeypatch) -> None:
    assert not knows(("simclr",), POLICIES["fixmatch"]) and not knows(("strong",), dataclasses.replace(POLICIES["usb"], law="other"))
    with pytest.raises(ConfigError, match="views are float32 or bfloat16; got torch.float16"):
        ResidentPipeline(digits, split, VIEWS, batch_size=1, dtype=torch.float16)
    monkeypatch.setenv("FASTSSL_KERNELS", "triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert "TRITON_INTERPRET" not in os.environ
    with pytest.raises(RuntimeError, match="FASTSSL_KERNELS=triton, but its kernels serve CUDA"):
        ResidentPipeline(digits, split, VIEWS, batch_size=1, device="cpu")
