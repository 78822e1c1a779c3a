"""Sets larger than memory: each batch's images are read and decoded while the step before it trains.

Order and views are the resident pipeline's, under the same keys: a batch is the same rows, crops and operations whichever pipeline
draws it, and the same bits wherever both decoders give the same pixels. What runs ahead (reading, decoding) is a function of the
number of batches drawn, so that number is the whole state.
"""

from __future__ import annotations

import dataclasses
import os
import weakref
from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from . import keyed
from .batch import Batch, Split, Sweep, Views
from .dali import Decoder
from .decoded import Reader
from .errors import ConfigError, DataError
from .file_source import ImageFiles
from .order import visited
from .parts import swept
from .resident import _LABELLED, _ORDER, _SWEEP, _UNLABELLED, ResidentPipeline
from .source import Source
from .views import recipe

_REPLACE = 3  # beside resident's _ORDER and _VIEW: keys of rows that stand in for lost ones
_AHEAD = 3  # batches whose files are being read
_TRIES = 64  # rows that are asked to stand in for a lost one
_SWEPT = 64  # images decoded at a time in a sweep, at least


class _Stream(NamedTuple):
    """One part of a planned batch."""

    at: np.ndarray  # [n] int64 positions within the role's rows
    visit: np.ndarray  # [n] int64


class _Plan:
    """A batch to come: who is in it, and its files on their way."""

    def __init__(self, streams: dict[str, _Stream], rows: np.ndarray, futures: list):
        self.streams, self.rows, self.futures = streams, rows, futures
        self.files: list[np.ndarray] | None = None  # once read: the bytes of `rows`


class DaliPipeline(ResidentPipeline):
    """Draws batches from image files of any number, which DALI decodes.

    Takes ResidentPipeline's arguments; source.images is an ImageFiles. The tensors of a Batch are the same ones at every draw.

    Args:
        max_bad: largest share of the set that may be lost, before and during the run, in [0, 1].
        workers: threads that read, and as many that decode; the number of cores, at most 8, and half of them on the CPU, if None.

    Raises:
        SetupError: DALI is not installed.
    """

    def __init__(
        self,
        source: Source,
        split: Split,
        views: Views,
        *,
        batch_size: int,
        ratio: int = 1,
        max_bad: float = 0.01,
        workers: int | None = None,
        **options: Any,
    ):
        files = source.images
        if not isinstance(files, ImageFiles):
            raise ConfigError(f"{source.name} is in memory already; take --pipeline resident")
        self._planned: deque[_Plan] = deque()
        self._fed: _Plan | None = None
        self._drawn = 0  # batches drawn; the device's own count is `step`
        self._host: dict[str, np.ndarray] = {}
        self._out: dict[Views, Batch] = {}  # a captured step of earlier views reads its own
        most = max(batch_size * (1 + (ratio if views.unlabelled else 0)), 1)
        # To the resident pipeline the set's images are those of one batch; which of them is a row's says `_slot`.
        held = dataclasses.replace(source, images=np.zeros((most, 3, files.size, files.size), np.uint8))
        super().__init__(held, split, views, batch_size=batch_size, ratio=ratio, **options)
        self.source, self.capturable = source, False
        self._batch_images = self.images
        self._slot = torch.zeros(len(source), dtype=torch.int64, device=self.device)
        cuda = self.device.type == "cuda"
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        workers = workers or max(1, min(8, cores if cuda else cores // 2))
        self._most = max(most, _SWEPT)
        self.decoder = Decoder(self._most, files.size, files.interpolation, self.device, workers)
        self.reader = Reader(files, workers, max_bad=max_bad, quarantined=len(source.quarantine))
        self._finalizer = weakref.finalize(self, _let_go, self.decoder, self.reader)

    def close(self) -> None:
        """Ends the threads. The pipeline cannot draw afterwards."""
        if self._finalizer.detach() is not None:
            self.decoder.close()
            self.reader.close()

    def use(self, split: Split) -> None:
        super().use(split)
        self._host = {"labelled": split.labelled, "unlabelled": split.unlabelled}
        self._restart()

    def show(self, views: Views) -> None:
        super().show(views)
        self._restart()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        super().load_state_dict(state)
        self._drawn = int(state["step"])
        self._restart()

    def _restart(self) -> None:
        """Forgets what was read and decoded ahead."""
        if self._fed is not None:
            self.decoder.drop()
            self._fed = None
        for plan in self._planned:
            for future in plan.futures:
                future.cancel()
        self._planned.clear()

    def _plan(self, step: int) -> _Plan:
        """Batch number `step`: its rows in the streams' order, computed on the host as the device would."""
        streams = {}
        for role, stream, count in (("labelled", _LABELLED, self.batch_size), ("unlabelled", _UNLABELLED, self.unlabelled_size)):
            if count:
                total, key = max(1, len(self._host[role])), keyed.key(self.seed, _ORDER, stream)
                at, visit = visited(torch.tensor(step * count), count, total, key)
                streams[role] = _Stream(at.numpy(), visit.numpy())
        rows = np.unique(np.concatenate([self._host[role][stream.at] for role, stream in streams.items()]))
        return _Plan(streams, rows, self.reader.submit(rows))

    def _advance(self) -> None:
        """Keeps the reader busy, and the decoder too where the next batch's files are there."""
        ahead = len(self._planned) + (self._fed is not None)
        for step in range(self._drawn + ahead, self._drawn + _AHEAD + 1):
            self._planned.append(self._plan(step))
        if self._fed is None and all(future.done() for future in self._planned[0].futures):
            self._feed()

    def _feed(self) -> None:
        """Hands the next planned batch to the decoder, as soon as its files are read."""
        plan = self._planned.popleft()
        if plan.files is None:
            self._read(plan)
        self.decoder.feed(plan.files)
        self._fed = plan

    def _read(self, plan: _Plan) -> None:
        """Waits for a plan's files, and puts rows that are there in the places of lost ones."""
        files = dict(zip(plan.rows.tolist(), self.reader.results(plan.futures), strict=True))
        lost = {row for row, data in files.items() if data is None}
        if lost:
            for role, (at, visit) in plan.streams.items():
                rows = self._host[role]
                for place in np.flatnonzero(np.isin(rows[at], list(lost))):
                    at[place] = self._stand_in(role, int(rows[at[place]]), int(visit[place]), files)
            used = np.unique(np.concatenate([self._host[role][stream.at] for role, stream in plan.streams.items()]))
            plan.rows = used
        plan.files, plan.futures = [files[row] for row in plan.rows.tolist()], []

    def _stand_in(self, role: str, row: int, visit: int, files: dict[int, np.ndarray | None]) -> int:
        """The position, within a role, of the row that takes a lost row's place at a visit; its bytes are put into `files`."""
        rows = self._host[role]
        words = keyed.bits(torch.tensor([keyed.key(self.seed, _REPLACE, row, visit)]), _TRIES)
        for position in keyed.below(words, len(rows))[0].tolist():
            other = int(rows[position])
            if other not in files:
                files[other] = self.reader.one(other)
            if files[other] is not None:
                return position
        raise DataError(f"no {role} image can be found in the place of {self.reader.files.name(row)}; the disk of {self.source.name} fails")

    def _made(self, requests: list, memory: None = None) -> list[Tensor]:
        return super()._made([request._replace(rows=self._slot.index_select(0, request.rows)) for request in requests])

    def _decoded(self, rows: np.ndarray, out: Tensor) -> None:
        """Takes the fed batch: `rows` into the first places of `out`, and their places into `_slot`."""
        self.decoder.take(out[: len(rows)], lambda i: self._refused(int(rows[i])))
        self._slot[torch.from_numpy(rows).to(self.device)] = torch.arange(len(rows), device=self.device)

    def _refused(self, row: int) -> np.ndarray:
        data = self.reader.by_pillow(row)
        if data is None:
            raise DataError(f"{self.reader.files.name(row)} broke while it was decoded; resume the run")
        return data

    def draw(self) -> Batch:
        """The next batch, as ResidentPipeline's; the tensors are overwritten by the draw after it.

        Raises:
            DataError: too many files have vanished or broken.
        """
        self._advance()
        if self._fed is None:
            self._feed()
        plan, self._fed = self._fed, None
        self._decoded(plan.rows, self._batch_images)
        self._drawn += 1
        self.step.add_(1)
        self._advance()
        place = {role: tuple(torch.from_numpy(part).to(self.device) for part in stream) for role, stream in plan.streams.items()}
        batch = self._batch(place["labelled"], place.get("unlabelled"))
        if self.views not in self._out:
            self._out[self.views] = Batch(*(tuple(v.clone() for v in part) if isinstance(part, tuple) else part.clone() for part in batch))
            return self._out[self.views]
        out = self._out[self.views]
        for old, new in zip(out, batch, strict=True):
            for a, b in zip(old, new, strict=True) if isinstance(old, tuple) else ((old, new),):
                a.copy_(b)
        return out

    def sweep(self, part: str | np.ndarray, batch_size: int = 512, view: str = "plain", *, ordered: bool = True) -> Iterator[Sweep]:
        """As ResidentPipeline's; rows whose file is lost are left out."""
        recipe(view)
        rows, label = swept(part, self.split, self.source.label)
        pieces = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
        reading = deque((piece, self.reader.submit(piece)) for piece in pieces[:2])
        for number in range(len(pieces)):
            piece, futures = reading.popleft()
            if number + 2 < len(pieces):
                reading.append((pieces[number + 2], self.reader.submit(pieces[number + 2])))
            files = self.reader.results(futures)
            good = [i for i, data in enumerate(files) if data is not None]
            if not good:
                continue
            index = torch.from_numpy(piece[good]).to(self.device)
            inputs = self._swept(piece[good], [files[i] for i in good], index, view)
            yield Sweep(inputs, torch.from_numpy(label[piece[good]]).to(self.device), index)

    def _swept(self, rows: np.ndarray, files: list[np.ndarray], index: Tensor, view: str) -> Tensor:
        """One view of rows whose files are read."""
        if self._fed is not None:  # the batch ahead is decoded again afterwards: its files are still there
            self.decoder.take(self._batch_images[: len(self._fed.rows)], lambda i, rows=self._fed.rows: self._refused(int(rows[i])))
            self._planned.appendleft(self._fed)
            self._fed = None
        room = torch.empty((len(rows), *self.images.shape[1:]), dtype=torch.uint8, device=self.device)
        for start in range(0, len(rows), self._most):
            some = slice(start, min(start + self._most, len(rows)))
            self.decoder.feed(files[some])
            self.decoder.take(room[some], lambda i, start=start: self._refused(int(rows[start + i])))
        self._slot[index] = torch.arange(len(rows), device=self.device)
        self.images = room
        try:
            return self._made(self._requests((view,), _SWEEP, index, torch.zeros_like(index)))[0]
        finally:
            self.images = self._batch_images


def _let_go(decoder: Decoder, reader: Reader) -> None:
    """Ends the threads without waiting: the collector may come by within any Python code, that which holds the lock of thread ends too,
    and whoever waits for a thread there waits forever."""
    decoder.close()
    reader.close(wait=False)
