"""Reading ahead for a pipeline that decodes batch by batch: bytes in threads, checked, and what is broken named.

What reaches the decoder is either a plain file whose bytes are those that were indexed, and so are known to decode, or what Pillow made of
any other file: the finished square as a PPM image, which every decoder reads alike. So an odd file has one outcome in every pipeline,
and a file that has vanished or broken never gets as far as the decoder.
"""

from __future__ import annotations

import logging
import warnings
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from . import images
from .errors import DataError
from .file_source import ImageFiles
from .images import BadImage

log = logging.getLogger("fastssl")

_BLOCK = 8  # files a task


class Reader:
    """Reads rows of ImageFiles in threads.

    Args:
        files: the set's files.
        workers: threads.
        max_bad: largest share of the set that may be lost, with the `quarantined` ones, in [0, 1].
        quarantined: files of the set that had no row from the start.

    Attributes:
        broken: {row: reason} of files that have vanished or broken since they were indexed.
    """

    def __init__(self, files: ImageFiles, workers: int, *, max_bad: float = 0.01, quarantined: int = 0):
        self.files, self.max_bad, self.quarantined = files, max_bad, quarantined
        self.broken: dict[int, str] = {}
        self.refused: set[int] = set()  # rows that the decoder would not have although they are plain
        self._changed: set[int] = set()
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="fastssl-read")

    def submit(self, rows: np.ndarray) -> list[Future]:
        """Begins to read rows; `results` of it are in the same order."""
        return [self._pool.submit(self._some, rows[at : at + _BLOCK].tolist()) for at in range(0, len(rows), _BLOCK)]

    def results(self, futures: list[Future]) -> list[np.ndarray | None]:
        """The bytes of each row, [length] uint8; None where the file is broken.

        Raises:
            DataError: too many are broken by now.
        """
        found = [item for future in futures for item in future.result()]
        for row, data in found:
            if isinstance(data, BadImage):
                self._lost(row, str(data))
        return [None if isinstance(data, BadImage) else data for _, data in found]

    def one(self, row: int) -> np.ndarray | None:
        """`results` of a single row, at once."""
        return self.results(self.submit(np.array([row])))[0]

    def by_pillow(self, row: int) -> np.ndarray | None:
        """As `one`, but never the file's own bytes, from now on: the decoder has refused them."""
        self.refused.add(row)
        return self.one(row)

    def close(self, *, wait: bool = True) -> None:
        self._pool.shutdown(wait=wait, cancel_futures=True)

    def _some(self, rows: list[int]) -> list[tuple[int, np.ndarray | BadImage]]:
        return [(row, self._checked(row)) for row in rows]

    def _checked(self, row: int) -> np.ndarray | BadImage:
        files = self.files
        try:
            data, same = files.read(row)
            if not same and row not in self._changed:
                self._changed.add(row)
                log.warning("%s has changed since it was indexed; it is taken as it is now", files.name(row))
            if same and files.plain[row] and row not in self.refused:
                return np.frombuffer(data, np.uint8)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return ppm(images.decode(data, files.size, files.interpolation))
        except BadImage as error:
            return error

    def _lost(self, row: int, reason: str) -> None:
        if row in self.broken:
            return
        self.broken[row] = reason
        log.warning("%s %s; another image takes its place", self.files.name(row), reason)
        total, lost = len(self.files) + self.quarantined, len(self.broken) + self.quarantined
        if lost > self.max_bad * total:
            raise DataError(
                f"{lost} of {total} images are lost, {len(self.broken)} of them since the run began: {lost / total:.1%} where --max-bad "
                f"allows {self.max_bad:.1%}; bring them back and resume, or raise --max-bad:",
                [(self.files.name(row), reason) for row, reason in sorted(self.broken.items())],
            )


def ppm(pixels: np.ndarray) -> np.ndarray:
    """[3, H, W] uint8 -> the bytes of a PPM file as [length] uint8: lossless, and nothing to be decoded."""
    header = np.frombuffer(f"P6 {pixels.shape[2]} {pixels.shape[1]} 255\n".encode(), np.uint8)
    return np.concatenate([header, pixels.transpose(1, 2, 0).reshape(-1)])
