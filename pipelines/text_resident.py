"""The set as token ids in the device's memory: rows are drawn, and views made, there.

As in resident.py a draw is a pure function of (seed, step), and so is the shape of what it gives: batches have one of a few lengths, so
that each is one captured step. Labelled texts have a length of their own beside unlabelled ones, as networks without batch-norm may forward
them apart; alone they come in groups of like length too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from . import keyed
from .batch import Batch, DataSpec, Split, Sweep, Views
from .errors import CheckpointError, ConfigError, DataError
from .parts import swept
from .text import Tokenizer, Tokens, fixed_lengths
from .text_policies import REPLACING, text_policy
from .text_source import TextSource
from .text_streams import Stream
from .text_views import TextAugmenter, Variants, text_view
from .text_words import Words

# As in resident.py.
_LABELLED, _UNLABELLED, _SWEEP = 1, 2, 3
_ORDER, _VIEW = 1, 2
PIECE = 64  # rows of a sweep at a time on the CPU, whose caches hold no more

MANY = 32  # batches of labelled texts from which they come in groups
Form = tuple[int, int, int, int]  # number and length of the labelled group, and of the unlabelled one


class TextPipeline:
    """Draws batches of views of texts.

    Args:
        source: the set.
        tokens: of all its rows, and of their translations behind them (text_views.with_variants), where `variants` says they are.
        tokenizer: that made them.
        split: who is labelled.
        views: the views of each draw.
        batch_size, ratio, seed, device: as ResidentPipeline's.
        policy: the strong view's policy by name. rate: share of words that it changes.
        token_dropout: share of words that the weak view drops.
        lengths: how many fixed lengths there may be.
        pieces: draws that make one step, all of one form.

    Attributes:
        spec: DataSpec of what is drawn. split: in use.
        capturable: on CUDA, for one form at a time: see `forms`.
        fingerprint: of the tokenizer. reads: tokens of a text that are read, whatever the longest has.
        tokens_seen: [] int64 tokens that were drawn in all views, padding left out.

    Raises:
        ConfigError: unknown view or policy, sizes below 1. DataError: a part that the views need is empty.
    """

    fused = False

    def __init__(
        self,
        source: TextSource,
        tokens: Tokens,
        tokenizer: Tokenizer,
        split: Split,
        views: Views,
        *,
        variants: Variants | None = None,
        batch_size: int,
        ratio: int = 1,
        seed: int = 0,
        policy: str = "tfidf",
        rate: float = 0.3,
        token_dropout: float = 0.0,
        lengths: int = 3,
        pieces: int = 1,
        device: torch.device | str = "cpu",
    ):
        if batch_size < 1:
            raise ConfigError(f"batch size {batch_size}: ask for at least one labelled text a step")
        if views.unlabelled and ratio < 1:
            raise ConfigError(f"ratio {ratio}: ask for at least one unlabelled text per labelled one")
        self.source, self.seed, self.batch_size, self._ratio, self.pieces = source, seed, batch_size, ratio, pieces
        self.fingerprint, self.reads = tokenizer.fingerprint, tokens.ids.shape[1]
        self.device = torch.device(device)
        self.capturable = self.device.type == "cuda"
        size = tokens.size
        # A row's batches must hold whichever of its translations comes.
        self._size = size[: len(source)] if variants is None else np.maximum(size[: len(source)], size[variants.row.numpy()].max(1))
        training = np.union1d(split.labelled, split.unlabelled)
        longest = int(self._size.max())
        # By the texts that train: neither groups nor batches may hang on what is tested.
        most = int(self._size[training].max()) if len(training) else longest
        self.lengths = fixed_lengths(self._size[training], most, lengths)
        self._swept = np.array(sorted({*self.lengths, longest}))
        place = lambda table: torch.from_numpy(table[:, :longest].copy()).to(self.device)  # noqa: E731
        self.ids, self.word, self.first = place(tokens.ids), place(tokens.word), place(tokens.first)
        needed = bool({*REPLACING} & {*text_policy(policy)})
        self.words = Words.of(tokens, training, self.device, tokenizer.special) if needed else None
        self.augmenter = TextAugmenter(
            self.words,
            mask=tokenizer.mask,
            policy=policy,
            rate=rate,
            token_dropout=token_dropout,
            variants=variants,
            device=self.device,
        )
        self.known = torch.from_numpy(source.label).to(self.device)
        rows = len(source)
        self._streams = {
            role: Stream(rows, keyed.key(seed, _ORDER, stream), self.device)
            for role, stream in (("labelled", _LABELLED), ("unlabelled", _UNLABELLED))
        }
        self._label = torch.zeros(rows, dtype=torch.int64, device=self.device)
        self._weight = torch.zeros(rows, dtype=torch.float32, device=self.device)
        self.tokens_seen = torch.zeros((), dtype=torch.int64, device=self.device)
        self.draws, self._held = 0, None  # the host's own count of draws
        self.views = views
        self.use(split)
        self.show(views)

    @property
    def spec(self) -> DataSpec:
        source = self.source
        return DataSpec(
            name=source.name,
            classes=source.classes,
            shape=(int(self._swept[-1]),),
            rows=len(source),
            unlabelled=len(self.split.unlabelled),
            labelled_counts=tuple(np.bincount(self.split.label, minlength=len(source.classes)).tolist()),
            extra=source.extra,
            kind="text",
        )

    def show(self, views: Views) -> None:
        """As ResidentPipeline.show; views of images alone (simclr, probe) are refused."""
        if views.probe:
            raise ConfigError("method.ctaugment learns how strong views of images are drawn, and these are texts; leave it false")
        for name in (*views.labelled, *views.unlabelled):
            text_view(name)
        self._check_parts(self.split, views)
        grouped = bool(views.unlabelled) != bool(self.views.unlabelled)
        self.views = views
        self.unlabelled_size = self.batch_size * self._ratio if views.unlabelled else 0
        if grouped:
            self.use(self.split)

    def use(self, split: Split) -> None:
        """Takes another split in place, from the next draw on. Raises DataError where a part that the views need is empty."""
        self._check_parts(split, self.views)
        self.split = split
        known, other = self._streams["labelled"], self._streams["unlabelled"]
        # Few labels in groups would come group by group: they stay together unless there are many, and nothing beside them.
        alone = not self.views.unlabelled and len(split.labelled) >= MANY * self.batch_size
        known.use(split.labelled, self._size[split.labelled], self.lengths, self.batch_size, single=not alone)
        other.use(split.unlabelled, self._size[split.unlabelled], self.lengths, self.batch_size * self._ratio, single=False)
        self._label[: len(split.label)].copy_(torch.from_numpy(split.label[known.order]))
        self._weight[: len(split.weight)].copy_(torch.from_numpy(split.weight[known.order]))

    def _check_parts(self, split: Split, views: Views) -> None:
        name = self.source.name
        if not len(split.labelled) and views.labelled:
            raise DataError(f"no labelled texts in {name}; give some labels")
        if not len(split.unlabelled) and views.unlabelled:
            raise DataError(f"no unlabelled texts in {name}, and the method learns from them; add some, or take --method supervised")

    @property
    def form(self) -> Form:
        """Shape of the next draw, by the host's own count."""
        if self._held is not None:
            return self._held
        step, (known, other) = self.draws // self.pieces, self._streams.values()
        return self._form(known.turn(step), other.turn(step))

    @property
    def forms(self) -> tuple[Form, ...]:
        """All shapes that draws may have under the split in use."""
        known, other = (range(max(1, len(stream.lengths))) for stream in self._streams.values())
        return tuple(dict.fromkeys(self._form(i, j) for i in known for j in other))

    def _form(self, known: int, other: int) -> Form:
        lengths = [stream.lengths or self.lengths[-1:] for stream in self._streams.values()]
        return (known, lengths[0][known], *((other, lengths[1][other]) if self.unlabelled_size else (0, 0)))

    @contextlib.contextmanager
    def held(self, form: Form) -> Iterator[None]:
        """Draws of one form alone, for whoever records one."""
        self._held = form
        try:
            yield
        finally:
            self._held = None

    def passed(self) -> None:
        """Tells the host's count that a recording of one step's draws was replayed."""
        self.draws += self.pieces

    def draw(self) -> Batch:
        """The next batch. A group smaller than a batch repeats rows with fresh views."""
        batch = self._batch(*self.form)
        self.draws += 1
        return batch

    def _batch(self, known: int, length: int, other: int, other_length: int) -> Batch:
        views, (first, second) = self.views, self._streams.values()
        at, visit = first.next(known, self.batch_size)
        index = first.rows.index_select(0, at)
        labelled = self._views(views.labelled, _LABELLED, index, visit, length)
        unlabelled, seen = index[:0], []
        if self.unlabelled_size:
            place, again = second.next(other, self.unlabelled_size)
            unlabelled = second.rows.index_select(0, place)
            seen = self._views(views.unlabelled, _UNLABELLED, unlabelled, again, other_length)
        for view in (*labelled, *seen):
            self.tokens_seen.add_((view >= 0).sum())
        label, weight = self._label.index_select(0, at), self._weight.index_select(0, at)
        return Batch(tuple(labelled), label, weight, index, tuple(seen), unlabelled, self.known.index_select(0, unlabelled))

    def _views(self, names: tuple[str, ...], stream: int, rows: Tensor, visit: Tensor, length: int) -> list[Tensor]:
        base = [keyed.key(self.seed, _VIEW, stream, number) for number in range(len(names))]
        return [self._view(name, rows, keyed.joined(base[number], rows, visit), length) for number, name in enumerate(names)]

    def _view(self, name: str, rows: Tensor, keys: Tensor, length: int) -> Tensor:
        rows = self.augmenter.reads(rows, keys, name)
        ids, word, first = (table[:, :length].index_select(0, rows) for table in (self.ids, self.word, self.first))
        chance = None if self.words is None else self.words.chance[:, :length].index_select(0, rows)
        return self.augmenter.view(ids, word, first, chance, keys, name)

    def sweep(self, part: str | np.ndarray, batch_size: int = 512, view: str = "plain", *, ordered: bool = True) -> Iterator[Sweep]:
        """As ResidentPipeline.sweep. Where the order does not matter to the caller, texts of like length come together."""
        text_view(view)
        rows, label = swept(part, self.split, self.source.label)
        if not ordered:
            rows = rows[np.argsort(self._size[rows], kind="stable")]
        step = min(batch_size, PIECE) if self.device.type == "cpu" else batch_size
        base = keyed.key(self.seed, _VIEW, _SWEEP, 0)
        for start in range(0, len(rows), step):
            piece = rows[start : start + step]
            length = int(self._swept[np.searchsorted(self._swept, self._size[piece].max())])
            index = torch.from_numpy(piece).to(self.device)
            inputs = self._view(view, index, keyed.joined(base, index, torch.zeros_like(index)), length)
            yield Sweep(inputs, torch.from_numpy(label[piece]).to(self.device), index)

    def state_dict(self) -> dict[str, Tensor]:
        """Draws so far, in all and of each group: all that a resume needs besides split and seed."""
        counts = {role: stream.drawn.clone() for role, stream in self._streams.items()}
        return {"draws": torch.tensor(self.draws), **counts, "tokens": self.tokens_seen.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Goes to the state's place in the streams, in place. Raises CheckpointError for a state of another kind of pipeline."""
        if set(state) != {"draws", "tokens", *self._streams}:
            raise CheckpointError(
                f"this pipeline's state counts draws of texts; the checkpoint holds {', '.join(sorted(state)) or 'nothing'}"
            )
        self.draws = int(state["draws"])
        self.tokens_seen.copy_(state["tokens"])
        for role, stream in self._streams.items():
            stream.drawn.copy_(state[role])
