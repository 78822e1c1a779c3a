"""The Triton kernels in a test process: on a GPU where there is one, in Triton's interpreter on the CPU elsewhere (tests/conftest.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from fastssl.kernels import _launch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


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
