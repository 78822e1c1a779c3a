"""Counts of the classes last chosen, against a Counter over all samples."""

from collections import Counter

import pytest
import torch

from fastssl.methods.bricks.last_labels import LastLabels


def by_hand(last: list[int], batch: list[tuple[int, int, bool]]) -> None:
    for sample, label, chosen in batch:
        if chosen:
            last[sample] = label


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("rows", "size"), [(50, 7), (5, 23), (1, 3)])
def test_counts_are_those_of_a_counter_over_all_samples(rows: int, size: int, masked: bool) -> None:
    classes = 4
    generator = torch.Generator().manual_seed(rows)
    memory, last = LastLabels(rows, classes), [-1] * rows
    for _ in range(30):
        index = torch.randint(rows, (size,), generator=generator)  # samples repeat within a batch
        label = torch.randint(classes, (size,), generator=generator)
        chosen = torch.rand(size, generator=generator) < 0.4
        memory.update(index, label, chosen if masked else None)
        by_hand(last, [(int(i), int(c), bool(k) or not masked) for i, c, k in zip(index, label, chosen, strict=True)])
        assert memory.last.tolist() == last
        counts = Counter(last)
        assert memory.counts.tolist() == [counts[c] for c in (*range(classes), -1)]
    share = max(counts.values())
    assert memory.shares().tolist() == pytest.approx([counts[c] / share for c in range(classes)])


def test_state_is_two_tensors_and_a_loaded_copy_goes_on_alike() -> None:
    memory = LastLabels(9, 3)
    memory.update(torch.tensor([1, 2, 2]), torch.tensor([0, 1, 2]))
    assert set(memory.state_dict()) == {"last", "counts"}
    other = LastLabels(9, 3)
    other.load_state_dict(memory.state_dict())
    for each in (memory, other):
        each.update(torch.tensor([2, 8]), torch.tensor([1, 1]))
    assert torch.equal(memory.counts, other.counts) and torch.equal(memory.last, other.last)
