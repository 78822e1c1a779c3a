"""Who serves a call: the public functions, each under the name and signature of its reference.

This version has the reference alone, and it serves every device. `FASTSSL_KERNELS=reference` asks for it by name; `FASTSSL_KERNELS=triton`
is refused at the call, because another implementation than the one asked for must never answer in silence.
Code compiled by `torch.compile` keeps what the variable said when it was traced.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable

from . import reference


def _require_reference() -> None:
    asked = os.environ.get("FASTSSL_KERNELS", "")
    if asked == "triton":
        raise RuntimeError("FASTSSL_KERNELS=triton, but this version of fastssl.kernels has none; unset it or set it to reference")
    if asked not in ("", "reference"):
        raise RuntimeError(f"FASTSSL_KERNELS must be triton or reference; got {asked!r}")


def _served(function: Callable) -> Callable:
    @functools.wraps(function)
    def public(*args, **kwargs):
        _require_reference()
        return function(*args, **kwargs)

    return public


pseudo_label_loss = _served(reference.pseudo_label_loss)
pseudo_label_loss_and_grad = _served(reference.pseudo_label_loss_and_grad)
cross_entropy = _served(reference.cross_entropy)
consistency_loss = _served(reference.consistency_loss)
class_statistics = _served(reference.class_statistics)
