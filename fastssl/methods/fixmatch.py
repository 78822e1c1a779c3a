"""FixMatch (Sohn et al. 2020): the confident prediction on a weak view is the label of the strong view."""

from __future__ import annotations

from dataclasses import dataclass

from ..config import option
from .bricks.options import ThresholdOptions
from .thresholded import Thresholded


class FixMatch(Thresholded):
    """L = mean CE(y, z_x) + lambda_u (1 / U) sum 1[max p_w >= tau] CE(argmax p_w, z_s) (equations 3 and 4)."""

    @dataclass(frozen=True)
    class Config(ThresholdOptions):
        threshold: float = option(
            0.95, "tau: confidence from which a pseudo-label is used", source="FixMatch, section 2.4", least=0, most=1
        )

    summary = "hard pseudo-labels of confident weak views train the strong views"
    paper = "Sohn et al. 2020, arXiv 2001.07685"
