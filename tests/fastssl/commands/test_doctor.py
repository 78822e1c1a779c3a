"""doctor tells what is there, what is missing, and the command that mends it."""

from __future__ import annotations

import argparse
import json

import pytest
import torch

from fastssl import environment
from fastssl.commands import doctor


def told(capsys: pytest.CaptureFixture[str], code: int = 0, *, as_json: bool = False) -> str:
    assert doctor.run(argparse.Namespace(json=as_json)) == code
    return capsys.readouterr().out


def test_text_names_versions_and_devices(capsys: pytest.CaptureFixture[str]) -> None:
    text = told(capsys)
    assert environment.package_version("torch") in text
    for line in ("python", "cuda driver", "c++ compiler", "memory", "disk", "caches", "triton", "huggingface", "published sets", "step"):
        assert line in text


def test_json_is_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    report = json.loads(told(capsys, as_json=True))
    assert report["packages"]["torch"] == torch.__version__.split("+")[0] or report["packages"]["torch"] == torch.__version__
    assert set(environment.PACKAGES) < set(report["packages"])
    assert report["torch"]["threads"] == torch.get_num_threads()
    assert report["serves"]["device"] == ("cuda" if torch.cuda.is_available() else "cpu")


def test_missing_compiler_is_advice_with_its_mend(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "missing_build_tools", lambda: ("g++",))
    text = told(capsys)
    assert "none usable" in text
    assert "apt-get install g++" in text


def test_missing_optional_package_names_its_extra(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "package_version", lambda name: None if name == "timm" else "1.0")
    (line,) = [line for line in told(capsys).splitlines() if line.split()[:1] == ["timm"]]
    assert "pip install timm (extra vision)" in line


def test_missing_needed_package_is_exit_4(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "package_version", lambda name: None if name == "rich" else "1.0")
    assert "to mend it: pip install rich" in told(capsys, code=4)


def test_driver_without_a_device_is_advice(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor, "_driver", lambda: "470.82")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert "update the driver" in told(capsys)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "built for CPU alone" in told(capsys)


def test_gpu_is_described(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    properties = argparse.Namespace(name="Tesla T4", major=7, minor=5, total_memory=15 << 30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: properties)
    text = told(capsys)
    assert "Tesla T4, 15.0 GiB, compute capability 7.5, no bf16 in hardware" in text


def test_full_disk_is_advice(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: argparse.Namespace(free=1 << 20))
    assert "less than 1 GiB is free" in told(capsys)


def test_kernels_that_cannot_serve_are_advice(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert "closed forms in plain torch" in told(capsys)
    monkeypatch.setenv("FASTSSL_KERNELS", "trition")
    text = told(capsys)
    assert "every loss will refuse: FASTSSL_KERNELS must be triton or reference; got 'trition'" in text
    from fastssl.kernels import cross_entropy

    with pytest.raises(RuntimeError, match="FASTSSL_KERNELS"):
        cross_entropy(torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64))
    monkeypatch.setenv("FASTSSL_KERNELS", "reference")
    text = told(capsys)
    assert "plain torch (fastssl.kernels.reference)" in text and "refuse" not in text


def test_pipelines_are_told_with_the_mend(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastssl.pipelines.choice.dali_version", lambda: None)
    assert "resident alone; sets larger than memory need DALI: pip install nvidia-dali-cuda120" in told(capsys)
    monkeypatch.setattr("fastssl.pipelines.choice.dali_version", lambda: "2.4.0")
    assert "resident, and dali (2.4.0, decoding JPEGs on the" in told(capsys)
