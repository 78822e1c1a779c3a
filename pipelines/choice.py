"""Which pipeline serves a set: all of it decoded in the device's memory, or decoded batch by batch from its files."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from typing import NamedTuple

from .errors import ConfigError, SetupError, unknown

PIPELINES = ("auto", "resident", "dali")
SHARE = 0.5  # of free memory that decoded images may take: network, activations and everybody else live there too
INSTALL = "pip install nvidia-dali-cuda120"


class Room(NamedTuple):
    """Free memory in bytes, None where the system does not tell."""

    device: str  # "cpu", "cuda:0", ...
    free: int | None  # on the device
    host: int | None  # main memory, through which images pass


class Choice(NamedTuple):
    """A pipeline and why it was chosen."""

    name: str  # "resident" or "dali"
    reason: str


def dali_version() -> str | None:
    """DALI's version, without waking it; None where it is not installed."""
    try:
        if importlib.util.find_spec("nvidia.dali") is None:
            return None
    except ModuleNotFoundError:  # no package of NVIDIA's at all
        return None
    for cuda in ("120", "130", "110"):
        try:
            return importlib.metadata.version(f"nvidia-dali-cuda{cuda}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return "of an unknown version"


def check(name: str) -> str:
    """The name itself. Raises ConfigError naming the nearest ones."""
    if name not in PIPELINES:
        raise ConfigError(unknown("pipeline", name, PIPELINES))
    return name


def demand(asked: str) -> None:
    """Raises SetupError where DALI is asked for by name and is not installed."""
    if asked == "dali" and dali_version() is None:
        raise SetupError(f"--pipeline dali needs NVIDIA DALI, which is not installed; run: {INSTALL}")


def choose(asked: str, count: int, side: int, room: Room | None, dali: str | None) -> Choice:
    """Chooses for a set of image files.

    Args:
        asked: one of PIPELINES.
        count: images. side: at which they are held, in pixels.
        room: free memory; None to take it as endless.
        dali: DALI's version; None where it is not installed.

    Raises:
        SetupError: nothing but DALI would do, and it is not installed. (Who asks for it by name may want no batches, as `fastssl eval`,
            which decodes with Pillow; who does is refused by `demand`.)
    """
    check(asked)
    need = count * 3 * side * side
    size = _needed(count, side)
    there = f"DALI {dali} is installed" if dali else "DALI is not installed"
    if asked == "resident":
        return Choice("resident", f"asked for; {size}")
    if asked == "dali":
        return Choice("dali", f"asked for; {size}; {there}")
    memories = [] if room is None else [(room.device, room.free)] + ([("main memory", room.host)] if room.device != "cpu" else [])
    known = [(name if name != "cpu" else "main memory", free) for name, free in memories if free is not None]
    tight = [(name, free) for name, free in known if need > SHARE * free]
    if not tight:
        within = " and ".join(f"{told(free)} free in {name}" for name, free in known)
        return Choice("resident", f"{size}, within {SHARE:.0%} of the {within}; {there}" if known else f"{size}; {there}")
    over = " and ".join(f"{told(free)} free in {name}" for name, free in tight)
    if dali is None:
        raise SetupError(
            f"{size}, over {SHARE:.0%} of the {over}, and DALI, which reads them batch by batch, is not installed; run: {INSTALL}, or ask "
            "for a smaller data.size, or take them into memory all the same by --pipeline resident"
        )
    return Choice("dali", f"{size}, over {SHARE:.0%} of the {over}; {there}")


def named(count: int, side: int) -> Choice:
    """The choice for a set by name, which is always held in memory."""
    return Choice("resident", f"sets by name are held in memory; {_needed(count, side)}")


def _needed(count: int, side: int) -> str:
    return f"{count:,} images of {side} x {side} pixels take {told(count * 3 * side * side)} decoded"


def told(size: float) -> str:
    """1536 -> "1.5 KiB"."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            break
        size /= 1024
    return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
