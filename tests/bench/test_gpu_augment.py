"""The script that measures the augmentation kernels: it refuses without a GPU, and its comparison with the CPU can fail."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bench import gpu_augment
from fastssl.kernels import _dispatch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def test_it_refuses_without_a_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_augment.main([]) == 2
    assert "needs a CUDA device" in capsys.readouterr().err


@pytest.mark.skipif(not _dispatch.TRITON, reason="the kernels are Triton's: pip install triton (Linux only)")
def test_the_comparison_is_zero_and_sees_a_wrong_normalisation(monkeypatch: pytest.MonkeyPatch) -> None:
    if DEVICE.type == "cpu":
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(gpu_augment, "STORED_IMAGES", 20)
    work = gpu_augment.Work("small", 32, 32, 2, 4, "fixmatch")
    with np.errstate(all="ignore"):
        assert gpu_augment.difference(work, DEVICE) == (0.0, 0.0)
        given = gpu_augment.expected
        monkeypatch.setattr(gpu_augment, "expected", lambda *args: given(*args) + 0.02)
        assert gpu_augment.difference(work, DEVICE)[0] > 0.99
