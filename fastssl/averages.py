"""Running means and the length of a run: how much of its start one still holds at the end, and which decay fits. Plain numbers."""

from __future__ import annotations

LEAST = 100  # steps of a run whose figures are believed; shorter ones are trials
LEFT = 0.1  # share of the start that is too much in what a run is judged by
DECAYS = (0.999, 0.998, 0.995, 0.99, 0.98, 0.95)


def lags(decay: float, steps: int) -> bool:
    """Whether a running mean of that decay is more than LEFT its start after so many steps."""
    return decay**steps > LEFT


def fitting(steps: int) -> float:
    """The slowest of DECAYS whose mean looks back over a sixth of so many steps at most; the fastest where none does. The sixth is ours: at
    300 steps it gives the 0.98 that plain commands on digits have."""
    return next((decay for decay in DECAYS if 1 / (1 - decay) <= steps / 6 + 1e-6), DECAYS[-1])
