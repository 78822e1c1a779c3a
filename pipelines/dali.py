"""NVIDIA DALI as a decoder, and the one door to it: encoded images -> uint8 squares in a torch tensor.

DALI decodes (by nvJPEG on a CUDA device, by libjpeg-turbo on the CPU), turns as EXIF says, cuts out the centred square and resizes it
with antialiasing. It draws nothing at random and orders nothing: the pipeline that feeds it does (streamed.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .choice import INSTALL
from .errors import DataError, SetupError


def _dali() -> tuple[Any, Any, Any]:
    try:
        from nvidia import dali
        from nvidia.dali import fn, types
    except ImportError as error:
        raise SetupError(f"--pipeline dali needs NVIDIA DALI, which is not installed; run: {INSTALL} ({error})") from error
    return dali, fn, types


class Decoder:
    """Decodes batches in DALI's own threads, one batch ahead of who takes them.

    Args:
        most: images a batch at most.
        size: side of the squares in pixels.
        interpolation: how images of another size are resized, "bilinear" or "bicubic".
        device: where the squares are wanted: on CUDA JPEGs are decoded there too.
        threads: DALI's threads on the CPU.

    Raises:
        SetupError: DALI is not installed.
    """

    def __init__(self, most: int, size: int, interpolation: str, device: torch.device, threads: int):
        self.most, self.size, self.interpolation, self.device, self.threads = most, size, interpolation, device, threads
        self.waiting: list[np.ndarray] | None = None
        self.graph = self._built(most)

    def _built(self, most: int) -> Any:
        dali, fn, types = _dali()
        cuda = self.device.type == "cuda"
        index = (self.device.index if self.device.index is not None else torch.cuda.current_device()) if cuda else None
        filters = {"bilinear": types.INTERP_LINEAR, "bicubic": types.INTERP_CUBIC}
        # One batch in flight: the next is decoded while the step trains on this one, and more would only hold memory.
        graph = dali.Pipeline(batch_size=most, num_threads=self.threads, device_id=index, prefetch_queue_depth=1, set_affinity=False)
        with graph:
            data = fn.external_source(name="files", dtype=types.UINT8, ndim=1)
            image = fn.decoders.image(data, device="mixed" if cuda else "cpu", output_type=types.RGB)
            shape = fn.cast(image.shape(), dtype=types.FLOAT)
            height, width = shape[0], shape[1]
            side = dali.math.min(height, width)
            # Edges of the square may fall on half pixels, as Pillow's box does.
            start, end = (fn.stack((height + sign * side) / 2, (width + sign * side) / 2) for sign in (-1, 1))
            square = fn.resize(
                image,
                size=[self.size, self.size],
                roi_start=start,
                roi_end=end,
                roi_relative=False,
                antialias=True,
                interp_type=filters[self.interpolation],
                dtype=types.UINT8,
            )
            graph.set_outputs(fn.transpose(square, perm=[2, 0, 1]))
        graph.build()
        return graph

    def feed(self, files: Sequence[np.ndarray]) -> None:
        """Begins to decode files, [length] uint8 each; the batch before must have been taken."""
        if self.waiting is not None:
            raise RuntimeError("a batch is still being decoded; take it first")
        self.waiting = list(files)
        self._begin()

    def _begin(self) -> None:
        self.graph.feed_input("files", self.waiting)
        self.graph.schedule_run()

    def take(self, out: Tensor, again: Callable[[int], np.ndarray]) -> None:
        """Writes the decoded batch to out, [n, 3, size, size] uint8 on the device.

        Args:
            again: position of a file that DALI refuses -> other bytes of it, that it will take.

        Raises:
            DataError: DALI refuses the batch, and none of its files alone.
        """
        if self.waiting is None:
            raise RuntimeError("no batch is being decoded; feed one first")
        try:
            self._copy(out)
        except RuntimeError as error:
            # A graph that has failed is dead. Whose fault it was is found by trying each file alone.
            refused = [i for i, data in enumerate(self.waiting) if not self._takes(data)]
            self.graph = self._built(self.most)
            if not refused:
                raise DataError(f"DALI cannot decode a batch ({_last(error)}); take --pipeline resident") from error
            for i in refused:
                self.waiting[i] = again(i)
            self._begin()
            self._copy(out)
        self.waiting = None

    def _copy(self, out: Tensor) -> None:
        from nvidia.dali.plugin.pytorch import feed_ndarray

        # Bound to torch's stream: the copy follows what was launched before it, and the host waits for nothing.
        stream = torch.cuda.current_stream(self.device) if self.device.type == "cuda" else None
        (made,) = self.graph.share_outputs(cuda_stream=stream)
        feed_ndarray(made.as_tensor(), out, cuda_stream=stream)
        self.graph.release_outputs()

    def _takes(self, data: np.ndarray) -> bool:
        graph = self._built(1)
        try:
            graph.feed_input("files", [data])
            graph.schedule_run()
            graph.share_outputs()
            graph.release_outputs()
        except RuntimeError:
            return False
        return True

    def drop(self) -> None:
        """Forgets a batch that nobody will take."""
        if self.waiting is not None:
            self.waiting = None
            try:
                self.graph.share_outputs()
                self.graph.release_outputs()
            except RuntimeError:  # a graph that has failed is dead
                self.graph = self._built(self.most)

    def close(self) -> None:
        """Ends DALI's threads and frees its memory."""
        self.graph = self.waiting = None


def _last(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
