"""The oracle and the making of inputs, for all tests of the losses."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor


@pytest.fixture(scope="session")
def oracle() -> ModuleType:
    """oracle.py of this folder, loaded by its path: `tests` is no package and another distribution may own that name."""
    spec = importlib.util.spec_from_file_location("fastssl_losses_oracle", Path(__file__).with_name("oracle.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def normal() -> Callable[..., Tensor]:
    """Normal numbers of a seed: normal(seed, *shape, size=1.0, dtype=float64)."""

    def make(seed: int, *shape: int, size: float = 1.0, dtype: torch.dtype = torch.float64) -> Tensor:
        return (torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * size).to(dtype)

    return make


@pytest.fixture(autouse=True)
def _no_backend_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FASTSSL_KERNELS", raising=False)
