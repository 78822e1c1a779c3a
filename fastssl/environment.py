"""What this machine offers: build tools, optional packages, memory. Asks files and PATH alone; torch is not imported here."""

from __future__ import annotations

import functools
import getpass
import importlib.metadata
import logging
import os
import shutil
import sys
import sysconfig
import tempfile
from pathlib import Path

log = logging.getLogger("fastssl")

# Distribution -> the pip extra of fastssl that brings it; "" for what a plain `pip install fastssl` brings. Held equal to
# pyproject.toml by a test.
PACKAGES: dict[str, str] = {
    "torch": "",
    "numpy": "",
    "scikit-learn": "",
    "safetensors": "",
    "pyyaml": "",
    "pillow": "",
    "rich": "",
    "timm": "vision",
    "open_clip_torch": "vision",
    "torchvision": "vision",
    "transformers": "text",
    "pyarrow": "text",
    "faiss-cpu": "faiss",
    "nvidia-dali-cuda120": "dali",
    "matplotlib": "report",
    "jinja2": "report",
    "torchao": "fp8",
    "tensorboard": "track",
    "wandb": "track",
    "pytest-benchmark": "bench",
    "liger-kernel": "bench",
}


def package_version(distribution: str) -> str | None:
    """The installed version of a distribution, without importing it; None where it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _which(command: str) -> str | None:
    # $CC and $CXX may carry a wrapper or arguments ("ccache g++"): the first word is what must be found.
    return shutil.which(command.split()[0])


def _cxx() -> str | None:
    return _which(os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++"))


def missing_build_tools() -> tuple[str, ...]:
    """Debian names of the packages without which Triton and inductor cannot build on this machine; () where they can.

    Triton takes $CC, gcc or clang; inductor takes $CXX or g++ (clang++ on macOS); both include Python.h.
    """
    cc = [os.environ["CC"]] if os.environ.get("CC") else ["gcc", "clang"]
    missing = []
    if not _cxx() or not any(map(_which, cc)):
        missing.append("g++")  # brings gcc too
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        missing.append("python3-dev")
    return tuple(missing)


def compiler() -> str | None:
    """Path of the C++ compiler that builds Triton's launchers and inductor's code; None where one of their tools is missing."""
    return None if missing_build_tools() else _cxx()


def mend_build_tools() -> str:
    """One sentence for a machine that lacks build tools: what is lost, what serves instead, and the command that mends it."""
    missing = missing_build_tools()
    return (
        "Triton kernels and compiled steps cannot be built here, so the plain torch losses and the eager step serve; "
        f"to mend it: apt-get install {' '.join(missing)}"
    )


@functools.cache
def warn_without_compiler() -> None:
    """Logs one warning a process where build tools are missing. Call it where a build would have been the default."""
    if compiler() is None:
        log.warning(mend_build_tools())


def cpu_count() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory() -> tuple[int, int] | None:
    """(total, available) bytes of main memory, a container's limit counted as the total; None where the system does not tell."""
    try:
        fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        total, available = (int(fields[key].split()[0]) * 1024 for key in ("MemTotal", "MemAvailable"))
    except (OSError, KeyError, ValueError):
        return None
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
    except (OSError, ValueError):  # no cgroup v2, or "max"
        return total, available
    return min(total, limit), min(available, max(limit - used, 0))


def bf16_in_hardware() -> bool | None:
    """Whether this CPU multiplies bfloat16 itself (AVX512-BF16, AMX, Arm BF16); None where the system does not tell."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return None
    flags = {flag for line in text.splitlines() if line.startswith(("flags", "Features")) for flag in line.split()}
    return bool(flags & {"avx512_bf16", "amx_bf16", "bf16"}) if flags else None


def caches() -> dict[str, str]:
    """Where Triton, inductor, torch.hub and the Hugging Face hub keep what they build and fetch."""
    home = Path.home()
    shared = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    return {
        "triton": os.environ.get("TRITON_CACHE_DIR") or str(Path(os.environ.get("TRITON_HOME") or home, ".triton", "cache")),
        "inductor": os.environ.get("TORCHINDUCTOR_CACHE_DIR") or str(Path(tempfile.gettempdir(), f"torchinductor_{_user()}")),
        "torch": os.environ.get("TORCH_HOME") or str(shared / "torch"),
        "huggingface": os.environ.get("HF_HOME") or str(shared / "huggingface"),
    }


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container's user id without a name
        return f"uid_{os.getuid()}" if hasattr(os, "getuid") else "unknown_user"
