"""Shares of the labelled classes, and what long-tailed labels add to logits: logit adjustment (Menon et al. 2021, arXiv 2007.07314)."""

from __future__ import annotations

import torch
from torch import Tensor

from ...pipelines.batch import DataSpec
from ...pipelines.errors import DataError


def class_shares(spec: DataSpec) -> Tensor:
    """[C] float32 shares of the labelled classes.

    Raises:
        DataError: the data do not say how many labels each class has.
    """
    counts = torch.tensor(spec.labelled_counts, dtype=torch.float32)
    if len(counts) != spec.num_classes or not counts.sum() > 0:
        raise DataError(f"{spec.name} does not say how many labels each class has, and labelled shares were asked for")
    return counts / counts.sum()


def adjustment(spec: DataSpec, tau: float) -> Tensor | None:
    """[C] float32 log(share^tau + 1e-12), what is added to the labelled term's logits (eq. 10); None where tau is 0.

    The small number is the official code's guard, for a class without a label.
    """
    return (class_shares(spec).double() ** tau + 1e-12).log().float() if tau else None
