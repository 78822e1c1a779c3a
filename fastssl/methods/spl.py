"""Smooth Pseudo-Labeling (arXiv 2405.14313): FixMatch whose samples fade in, so that the loss has no jumps where one crosses tau."""

from __future__ import annotations

from dataclasses import dataclass

from ..config import option
from .bricks.options import ThresholdOptions, but
from .thresholded import Thresholded


class SmoothPseudoLabel(Thresholded):
    """L = mean CE(y, z_x) + lambda_u (1 / U) sum Phi(sg max p_w) CE(argmax p_w, z_s), Phi(c) = (max(0, c - tau) / (1 - tau)) ** power.

    Phi carries no gradient: differentiated, it would jump at tau by about as much as FixMatch's indicator (docs/methods.md). Phi is at
    most 1, so a kept row weighs less than FixMatch's; the paper makes up for it by lambda_u of about 1.1 on CIFAR (second-hand).
    """

    @dataclass(frozen=True)
    class Config(ThresholdOptions):
        weighting: str = but(ThresholdOptions, "weighting", "smooth", "arXiv 2405.14313, eq. 21; power 1, 2 and 1/2 were tried")
        threshold: float = option(0.95, "tau: confidence from which a pseudo-label fades in", source="arXiv 2405.14313", least=0, most=1)

    summary = "FixMatch with weights that rise continuously from the threshold on"
    paper = "Smooth Pseudo-Labeling 2024, arXiv 2405.14313"
