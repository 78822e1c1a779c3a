"""What the machine offers is read from PATH, the environment and installed metadata, and told in one sentence."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import sysconfig
from pathlib import Path

import pytest

from fastssl import environment


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder as the whole PATH, Python's headers in place, and no CC or CXX."""
    (tmp_path / "include").mkdir()
    (tmp_path / "include" / "Python.h").touch()
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path / name))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    return tmp_path


def program(folder: Path, name: str) -> str:
    file = folder / name
    file.write_text("#!/bin/sh\n")
    file.chmod(0o755)
    return str(file)


def test_bare_machine_lacks_a_compiler(path: Path) -> None:
    assert environment.compiler() is None
    assert environment.missing_build_tools() == ("g++",)


def test_gcc_alone_is_not_enough(path: Path) -> None:
    program(path, "gcc")
    assert environment.missing_build_tools() == ("g++",)


def test_gcc_and_gxx_are(path: Path) -> None:
    program(path, "gcc")
    cxx = program(path, "g++")
    assert environment.compiler() == cxx


def test_missing_headers_are_named(path: Path) -> None:
    program(path, "gcc"), program(path, "g++")
    os.remove(path / "include" / "Python.h")
    assert environment.compiler() is None
    assert "apt-get install python3-dev" in environment.mend_build_tools()


def test_cc_and_cxx_name_the_compilers(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(path, "mycc")
    monkeypatch.setenv("CC", "mycc -O1")
    monkeypatch.setenv("CXX", "mycxx")
    assert environment.compiler() is None
    cxx = program(path, "mycxx")
    assert environment.compiler() == cxx


def test_one_warning_a_process_names_the_mend(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    environment.warn_without_compiler.cache_clear()
    with caplog.at_level(logging.WARNING, "fastssl"):
        environment.warn_without_compiler()
        environment.warn_without_compiler()
    environment.warn_without_compiler.cache_clear()
    assert [record.getMessage() for record in caplog.records] == [environment.mend_build_tools()]
    assert "apt-get install g++" in caplog.text


def test_no_warning_with_a_compiler(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    program(path, "gcc"), program(path, "g++")
    environment.warn_without_compiler.cache_clear()
    environment.warn_without_compiler()
    assert not caplog.records


@pytest.mark.slow
@pytest.mark.compiler
def test_the_compiler_that_is_found_compiles(tmp_path: Path, python) -> None:
    """With it, inductor builds a kernel: the two look for the same program."""
    code = "import torch; f = torch.compile(lambda x: (x * 2).sin()); x = torch.ones(8); assert torch.allclose(f(x), (x * 2).sin())"
    python("-c", code, cwd=tmp_path, TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "cache"))


def test_package_version() -> None:
    assert environment.package_version("torch") == importlib.metadata.version("torch")
    assert environment.package_version("no-such-distribution-of-fastssl") is None


def test_memory_cores_and_caches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert 1 <= environment.cpu_count() <= (os.cpu_count() or 1)
    if (memory := environment.memory()) is not None:
        assert 0 < memory[1] <= memory[0]
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    monkeypatch.setenv("TRITON_HOME", str(tmp_path))
    caches = environment.caches()
    assert caches["huggingface"] == str(tmp_path)
    assert caches["triton"] == str(tmp_path / ".triton" / "cache")


def test_default_caches_are_those_that_torch_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    assert environment.caches()["inductor"] == default_cache_dir()
