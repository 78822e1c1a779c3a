"""Image files that stay where they are: read, and decoded when somebody asks for them. For sets larger than memory.

A store knows where each file's bytes lie (`PathStore`: files of a folder; `ShardStore`: members of tar shards). `ImageFiles` stands in
`Source.images` where a resident set has its array: it has a shape, and indexing it by rows decodes them with Pillow.
"""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from . import images
from .errors import DataError
from .images import BadImage


class Stamp(NamedTuple):
    """What tells that a file is still the one that was indexed."""

    size: int  # bytes
    mtime: int  # ns


class Store(Protocol):
    """Where the bytes of N files lie. Slices are lists of what Pillow can open."""

    names: list[str]  # one a file; unique, in UTF-8

    def __len__(self) -> int: ...

    def __getitem__(self, at: slice) -> list[Any]: ...

    def read(self, i: int) -> bytes:
        """All bytes of file i. Raises BadImage with the system's reason."""

    def stamp(self, i: int) -> Stamp | None:
        """Size and time of file i; None where it cannot be asked."""


class PathStore:
    """Files of one folder, and those of a second one whose names bear a prefix.

    Args:
        names: relative to the folder, with forward slashes.
        root: the folder.
        prefix, other: names that begin with `prefix` lie in the folder `other`.
    """

    def __init__(self, names: list[str], root: str, prefix: str = "", other: str = ""):
        self.names, self.root, self.prefix, self.other = names, root, prefix, other

    def __len__(self) -> int:
        return len(self.names)

    def path(self, i: int) -> str:
        name = self.names[i]
        if self.prefix and name.startswith(self.prefix):
            return os.path.join(self.other, name[len(self.prefix) :])
        return os.path.join(self.root, name)

    def __getitem__(self, at: slice) -> list[str]:
        return [self.path(i) for i in range(*at.indices(len(self)))]

    def read(self, i: int) -> bytes:
        return images.read_file(self.path(i))

    def stamp(self, i: int) -> Stamp | None:
        try:
            found = os.stat(self.path(i))
        except OSError:
            return None
        return Stamp(found.st_size, found.st_mtime_ns)


class ShardStore:
    """Members of uncompressed tar files, found by their offsets.

    Args:
        names: one a member.
        shards: paths of the tar files.
        shard: [N] int32 position in `shards`. offset, length: [N] int64 bytes.
    """

    def __init__(self, names: list[str], shards: list[str], shard: np.ndarray, offset: np.ndarray, length: np.ndarray):
        self.names, self.shards, self.shard, self.offset, self.length = names, shards, shard, offset, length
        self._open: dict[int, int] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, at: slice) -> list[io.BytesIO]:
        return [self._buffer(i) for i in range(*at.indices(len(self)))]

    def _buffer(self, i: int) -> io.BytesIO:
        try:
            return io.BytesIO(self.read(i))
        except BadImage:  # reported when it is decoded
            return io.BytesIO()

    def read(self, i: int) -> bytes:
        length = int(self.length[i])
        try:
            data = os.pread(self._descriptor(int(self.shard[i])), length, int(self.offset[i]))
        except OSError as error:
            raise BadImage(f"its shard cannot be read: {error.strerror}") from error
        if len(data) < length:
            raise BadImage(f"its shard ends early: {len(data)} of {length} bytes")
        return data

    def _descriptor(self, shard: int) -> int:
        # pread has no position to share, so that all threads read one open file.
        with self._lock:
            if shard not in self._open:
                self._open[shard] = os.open(self.shards[shard], os.O_RDONLY)
            return self._open[shard]

    def stamp(self, i: int) -> Stamp | None:
        try:
            found = os.stat(self.shards[int(self.shard[i])])
        except OSError:
            return None
        return Stamp(int(self.length[i]), found.st_mtime_ns)

    def __del__(self) -> None:
        for descriptor in getattr(self, "_open", {}).values():
            os.close(descriptor)


class JoinedStore:
    """The files of one store, and after them those of another."""

    def __init__(self, first: Store, second: Store):
        self.first, self.second = first, second
        self.names = [*first.names, *second.names]

    def __len__(self) -> int:
        return len(self.names)

    def _of(self, i: int) -> tuple[Store, int]:
        return (self.first, i) if i < len(self.first) else (self.second, i - len(self.first))

    def __getitem__(self, at: slice) -> list[Any]:
        places = (self._of(i) for i in range(*at.indices(len(self))))
        return [store[k : k + 1][0] for store, k in places]

    def read(self, i: int) -> bytes:
        store, k = self._of(i)
        return store.read(k)

    def stamp(self, i: int) -> Stamp | None:
        store, k = self._of(i)
        return store.stamp(k)


class ImageFiles:
    """N indexed image files of a store, decoded when they are asked for; `[rows]` gives [n, 3, S, S] uint8 by Pillow, in threads.

    Args:
        store: where the bytes lie.
        at: [N] int64, position in the store of each row.
        content: [N] uint64, hash of each file's bytes when it was indexed.
        plain: [N] bool, files that any sound decoder reads alike (`images.examined`).
        size: side of the decoded squares in pixels.
        interpolation: how images of another size are resized, "bilinear" or "bicubic".
        workers: decoding threads; the number of cores, at most 8, if None.

    Attributes:
        shape: (N, 3, S, S), as an array's.
    """

    def __init__(
        self,
        store: Store,
        at: np.ndarray,
        content: np.ndarray,
        plain: np.ndarray,
        size: int,
        interpolation: str = "bicubic",
        workers: int | None = None,
    ):
        self.store, self.at, self.content, self.plain = store, at, content, plain
        self.size, self.interpolation, self.workers = size, interpolation, workers
        self.shape = (len(at), 3, size, size)

    def __len__(self) -> int:
        return len(self.at)

    def name(self, row: int) -> str:
        return self.store.names[self.at[row]]

    def read(self, row: int) -> tuple[bytes, bool]:
        """(the bytes of a row's file, whether they are those that were indexed). Raises BadImage."""
        data = self.store.read(int(self.at[row]))
        return data, images.fingerprint(data) == int(self.content[row])

    def __getitem__(self, rows: Sequence[int] | np.ndarray | slice) -> np.ndarray:
        """Raises DataError for a file that has vanished or broken since it was indexed."""
        rows = np.arange(len(self))[rows]
        pixels, _, bad = images.decode_each(lambda i: self.read(rows[i])[0], len(rows), self.size, self.workers, self.interpolation)
        if bad:
            raise DataError(
                f"{len(bad)} of {len(rows)} images can no longer be decoded; bring them back, or remove them and train anew:",
                [(self.name(rows[i]), reason) for i, reason in bad.items()],
            )
        return pixels
