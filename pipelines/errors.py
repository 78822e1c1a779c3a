"""Errors that end a command: each carries the exit code that the command line returns.

They live on the ground floor because data, methods and commands all raise them.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FastsslError(Exception):
    """Base of every error whose message is meant for the user: one sentence saying what, where, and how to mend it."""

    exit_code = 1


class ConfigError(FastsslError, ValueError):
    """A flag, an option or a value that does not fit (exit 2)."""

    exit_code = 2


class DataError(FastsslError):
    """Data that cannot be used as given (exit 3). `problems` lists every fault found, `(place, sentence)` each."""

    exit_code = 3

    def __init__(self, message: str, problems: Iterable[tuple[str, str]] = (), most: int = 20):
        self.problems = list(problems)
        lines = [f"  {place}: {what}" for place, what in self.problems[:most]]
        if len(self.problems) > most:
            lines.append(f"  ... and {len(self.problems) - most} more")
        super().__init__("\n".join([message, *lines]))


class SetupError(FastsslError):
    """Something that this machine lacks: a package, a device, a file of weights (exit 4)."""

    exit_code = 4


class DivergedError(FastsslError):
    """Training went non-finite or collapsed (exit 5)."""

    exit_code = 5


class CheckpointError(FastsslError):
    """A checkpoint that cannot be read, or belongs to another run (exit 6)."""

    exit_code = 6


class ResourceError(FastsslError):
    """Out of memory or disk (exit 7)."""

    exit_code = 7


class Preempted(FastsslError):
    """Asked to stop by the scheduler; the state is saved (exit 75)."""

    exit_code = 75


def unknown(kind: str, name: str, known: Iterable[str], place: str = "") -> str:
    """One sentence for a name that nobody knows, with the nearest names that somebody does."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"
    return f"unknown {kind} '{name}'{' in ' + place if place else ''}; {hint}"
