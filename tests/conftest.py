"""What all tests share: no network, the compiler marker, and Python in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

# Set before anything imports a hub client: a test that would fetch must fail at once instead of waiting for a network.
os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", WANDB_MODE="disabled")

if "PYTEST_XDIST_WORKER" in os.environ:  # several processes share the cores
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))))

import torch  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from fastssl import environment  # noqa: E402
from fastssl.kernels import _dispatch  # noqa: E402


def import_kernels() -> None:
    """Triton and the kernels, made for Triton's interpreter where there is no GPU.

    What `@triton.jit` makes is decided when it is imported, so this comes before anything else may import Triton. The variable is taken
    back at once: no other test, and no process that one starts, may run in the interpreter unasked.
    """
    before = os.environ.pop("TRITON_INTERPRET", None)
    if not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"
    import triton.experimental.gluon  # noqa: F401

    for name in _dispatch.__all__:
        _dispatch.triton_kernels(name)
    os.environ.pop("TRITON_INTERPRET", None)
    if before is not None:
        os.environ["TRITON_INTERPRET"] = before


if _dispatch.TRITON:
    import_kernels()

ROOT = Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = environment.missing_build_tools()
    if not missing:
        return
    skip = pytest.mark.skip(reason=f"needs a C++ compiler: apt-get install {' '.join(missing)}")
    for item in items:
        if item.get_closest_marker("compiler"):
            item.add_marker(skip)


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root."""
    return ROOT


@pytest.fixture(scope="session")
def python() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs this interpreter with the given arguments in a fresh process; fails the test with its stderr unless it exits with `code`."""

    def call(*args: str, cwd: Path = ROOT, code: int = 0, timeout: float = 300, **env: str) -> subprocess.CompletedProcess[str]:
        # PYTHONPATH is dropped: what is importable must be so by the working folder or by installation alone.
        outer = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        done = subprocess.run([sys.executable, *args], cwd=cwd, env=outer | env, capture_output=True, text=True, timeout=timeout)
        assert done.returncode == code, f"exit {done.returncode}, wanted {code}\n{done.stdout}\n{done.stderr}"
        return done

    return call


@pytest.fixture
def nothing_from_the_host() -> type[TorchDispatchMode]:
    """A mode that fails at a copy from the host's memory to a device: a captured graph would wait for it, and repeat it as it was."""

    class NothingFromTheHost(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
                source = args[0] if func is torch.ops.aten._to_copy.default else args[1]
                assert not (out.device.type == "cuda" and source.device.type == "cpu"), f"copied from the host: {func} {tuple(out.shape)}"
            return out

    return NothingFromTheHost
