"""What stands in the place of a Step where a method trains nothing: it is judged and saved all the same."""

from __future__ import annotations

from typing import Any

import torch

from ..schedules import Clock


class Idle:
    """A Step without steps, its own update included: nothing to run, to read or to keep."""

    mode = "idle"

    def __init__(self, seed: int, device: torch.device):
        self.clock = Clock(0, seed, device)
        self.streak = self.worst_streak = torch.zeros((), dtype=torch.int64)
        self.update = self
        self.lr = 0.0

    def read(self) -> dict[str, float | None]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """There is none."""
