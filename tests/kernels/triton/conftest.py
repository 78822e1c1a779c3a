"""The Triton kernels in a test process: on a GPU where there is one, in Triton's interpreter on the CPU elsewhere.

What `@triton.jit` makes is decided when Triton and the kernels are imported, so they are imported here, under TRITON_INTERPRET=1. The
variable is taken back at once: no other test of the process, and no process that one starts, may run in the interpreter unasked.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest
import torch

if torch.cuda.is_available():
    DEVICE = "cuda"
else:
    DEVICE = "cpu"
    os.environ["TRITON_INTERPRET"] = "1"
import triton  # noqa: E402
import triton.experimental.gluon  # noqa: E402, F401

from fastssl.kernels import _dispatch, _launch  # noqa: E402

for name in ("pseudo_label_loss", "cross_entropy", "consistency_loss", "class_statistics"):
    _dispatch.triton_kernels(name)

os.environ.pop("TRITON_INTERPRET", None)


@pytest.fixture(scope="session")
def device() -> str:
    """ "cuda", or "cpu" where the kernels are interpreted."""
    return DEVICE


@pytest.fixture(autouse=True)
def _triton_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    """The public functions take the kernels here, or fail."""
    monkeypatch.setenv("FASTSSL_KERNELS", "triton")
    if DEVICE == "cpu":
        monkeypatch.setenv("TRITON_INTERPRET", "1")


@pytest.fixture(params=["whole", "looped"])
def tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of walking along a row: as a launch would choose for these few classes, and step by step in tiles of 16."""
    if request.param == "looped":
        monkeypatch.setattr(_launch, "WHOLE", ())
        monkeypatch.setattr(_launch, "STEP", _launch.Blocks(1, 16, True, 4))
    return request.param


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that a kernel is to write holds NaN, or a label outside, until it does."""

    def poison(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def made(*args, **kwargs) -> torch.Tensor:
            tensor = make(*args, **kwargs)
            return tensor.fill_(float("nan") if tensor.is_floating_point() else 99)

        return made

    monkeypatch.setattr(torch, "empty", poison(torch.empty))
    monkeypatch.setattr(torch.Tensor, "new_empty", poison(torch.Tensor.new_empty))


@pytest.fixture(autouse=True)
def _numpy_may_see_infinities() -> Iterator[None]:
    """The interpreter computes in numpy, which warns of every inf - inf; here they are meant."""
    import numpy

    with numpy.errstate(all="ignore"):
        yield
