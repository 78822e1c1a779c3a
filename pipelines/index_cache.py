"""The index of a set of image files: each opened and decoded once, and what was found kept on disk for the next run.

One SQLite file a data folder, in `$FASTSSL_CACHE` or the user's cache; a row holds a file's name, size and time of change, and the hash,
kind or fault that was found. A file whose size or time differ is read again. What Pillow finds is Pillow's, so another version starts anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from . import images
from .file_source import Stamp, Store
from .images import BadImage

_BLOCK = 256  # files a task and a query: SQLite takes at least 999 names a query
_RULES = 1  # of images.py; a new number makes every index anew


class Entry(NamedTuple):
    """What was found in one file."""

    content: int  # uint64 hash of its bytes; 0 of a bad one
    plain: bool
    reason: str  # why it is bad; "" of a good one


class Member(NamedTuple):
    """One image inside a tar shard."""

    name: str
    offset: int  # bytes from the shard's start
    length: int  # bytes
    label: str  # "" where it has none


class Index(NamedTuple):
    """What was found in N files."""

    content: np.ndarray  # [N] uint64
    plain: np.ndarray  # [N] bool
    bad: dict[int, str]  # position -> reason
    read: int  # files that were opened; the others were remembered
    warnings: list[str]


def folder() -> Path:
    """Where indices are kept: index/ in $FASTSSL_CACHE, else in fastssl/ of $XDG_CACHE_HOME or ~/.cache."""
    own = os.environ.get("FASTSSL_CACHE")
    base = Path(own).expanduser() if own else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "fastssl"
    return base / "index"


class Cache:
    """The remembered entries of the files below `places`. Without a writable cache folder it remembers nothing, and says so once.

    Attributes:
        fault: why nothing can be kept; "" where it can.
    """

    def __init__(self, *places: str):
        name = hashlib.blake2b("\0".join(places).encode("utf-8", "surrogateescape"), digest_size=12).hexdigest()
        self.path = folder() / f"{name}.sqlite3"
        self.fault = ""
        self.database: sqlite3.Connection | None = None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.database = self._opened()
        except sqlite3.OperationalError as error:
            self._give_up(error)
        except sqlite3.DatabaseError:  # no database, or a damaged one: what it held can be found again
            with contextlib.suppress(OSError):
                self.path.unlink()
            try:
                self.database = self._opened()
            except sqlite3.Error as error:
                self._give_up(error)
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self.database = None
        self.fault = f"the index of the images cannot be kept in {self.path.parent} ({error}); the next run will decode all of them again"

    def _opened(self) -> sqlite3.Connection:
        from PIL import __version__ as pillow

        rules = f"{_RULES}, Pillow {pillow}"
        database = sqlite3.connect(self.path, timeout=60)
        database.execute("CREATE TABLE IF NOT EXISTS rules (text TEXT)")
        if database.execute("SELECT text FROM rules").fetchall() != [(rules,)]:
            for table in ("files", "shards", "members"):
                database.execute(f"DROP TABLE IF EXISTS {table}")
            database.execute("DELETE FROM rules")
            database.execute("INSERT INTO rules VALUES (?)", (rules,))
        database.execute(
            "CREATE TABLE IF NOT EXISTS files (name TEXT PRIMARY KEY, size INTEGER, mtime INTEGER, content INTEGER, plain INTEGER, "
            "reason TEXT) WITHOUT ROWID"
        )
        database.execute("CREATE TABLE IF NOT EXISTS shards (name TEXT PRIMARY KEY, size INTEGER, mtime INTEGER) WITHOUT ROWID")
        database.execute("CREATE TABLE IF NOT EXISTS members (shard TEXT, name TEXT, offset INTEGER, length INTEGER, label TEXT)")
        database.execute("CREATE INDEX IF NOT EXISTS by_shard ON members (shard)")
        database.commit()
        return database

    @contextlib.contextmanager
    def _trying(self) -> Iterator[None]:
        """A disk that fills up, or a file that is taken away, ends the remembering, not the run."""
        try:
            yield
        except sqlite3.Error as error:
            self._give_up(error)

    def remembered(self, names: list[str], stamps: list[Stamp | None]) -> list[Entry | None]:
        """The entries of files whose stamp has not changed; None of the others."""
        found: dict[str, tuple] = {}
        if self.database is not None:
            with self._trying():
                marks = ",".join("?" * len(names))
                found = {row[0]: row[1:] for row in self.database.execute(f"SELECT * FROM files WHERE name IN ({marks})", names)}
        entries: list[Entry | None] = []
        for name, stamp in zip(names, stamps, strict=True):
            row = found.get(name)
            same = row is not None and stamp is not None and row[:2] == stamp
            entries.append(Entry(row[2] % (1 << 64), bool(row[3]), row[4]) if same else None)
        return entries

    def keep(self, names: list[str], stamps: list[Stamp | None], entries: list[Entry]) -> None:
        """Remembers entries; one without a stamp could never be trusted and is left out."""
        if self.database is None:
            return
        signed = lambda word: word - (1 << 64) if word >> 63 else word  # noqa: E731  SQLite's whole numbers have a sign
        rows = [
            (name, *stamp, signed(entry.content), entry.plain, entry.reason)
            for name, stamp, entry in zip(names, stamps, entries, strict=True)
            if stamp is not None
        ]
        with self._trying():
            self.database.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?)", rows)
            self.database.commit()

    def shard(self, name: str, stamp: Stamp) -> list[Member] | None:
        """The images of a tar file that has not changed since they were found; None otherwise."""
        if self.database is not None:
            with self._trying():
                if self.database.execute("SELECT size, mtime FROM shards WHERE name = ?", (name,)).fetchone() == stamp:
                    query = "SELECT name, offset, length, label FROM members WHERE shard = ? ORDER BY rowid"
                    return [Member(*row) for row in self.database.execute(query, (name,))]
        return None

    def keep_shard(self, name: str, stamp: Stamp, members: list[Member]) -> None:
        """Remembers the images of a tar file."""
        if self.database is not None:
            with self._trying():
                self.database.execute("DELETE FROM members WHERE shard = ?", (name,))
                self.database.executemany("INSERT INTO members VALUES (?, ?, ?, ?, ?)", [(name, *member) for member in members])
                self.database.execute("INSERT OR REPLACE INTO shards VALUES (?, ?, ?)", (name, *stamp))
                self.database.commit()

    def close(self) -> None:
        if self.database is not None:
            self.database.close()
            self.database = None


def _found(store: Store, i: int) -> Entry:
    try:
        data = store.read(i)
        return Entry(images.fingerprint(data), images.examined(data), "")
    except BadImage as error:
        return Entry(0, False, str(error))


def index(store: Store, cache: Cache, *, workers: int | None = None, progress: Callable[[int, int], None] | None = None) -> Index:
    """Opens and decodes, in threads, every file of a store that the cache does not remember.

    Args:
        workers: threads; the number of cores, at most 8, if None.
        progress: called with (files done, files in all).
    """
    count = len(store)
    content, plain, bad = np.zeros(count, np.uint64), np.zeros(count, np.bool_), {}
    read = 0
    threads = images.threads(workers)

    def look(start: int, missing: list[int]) -> list[Entry]:
        return [_found(store, start + i) for i in missing]

    def stamped(start: int) -> list[Stamp | None]:
        # Taken before the bytes are read: a file that changes in between is read again by the next run.
        return [store.stamp(i) for i in range(start, min(start + _BLOCK, count))]

    with warnings.catch_warnings(), ThreadPoolExecutor(threads) as pool:
        warnings.simplefilter("ignore")
        waiting: deque = deque()

        def settle() -> None:
            nonlocal read
            start, names, stamps, entries, missing, future = waiting.popleft()
            fresh = future.result()
            read += len(fresh)
            for i, entry in zip(missing, fresh, strict=True):
                entries[i] = entry
            cache.keep([names[i] for i in missing], [stamps[i] for i in missing], fresh)
            for i, entry in enumerate(entries, start):
                content[i], plain[i] = entry.content, entry.plain
                if entry.reason:
                    bad[i] = entry.reason
            if progress is not None:
                progress(start + len(entries), count)

        for start in range(0, count, _BLOCK):
            names, stamps = store.names[start : start + _BLOCK], stamped(start)
            entries = cache.remembered(names, stamps)
            missing = [i for i, entry in enumerate(entries) if entry is None]
            waiting.append((start, names, stamps, entries, missing, pool.submit(look, start, missing)))
            if len(waiting) > 2 * threads:  # a bounded number of answers in memory
                settle()
        while waiting:
            settle()
    return Index(content, plain, bad, read, [cache.fault] if cache.fault else [])
