"""The augmentation kernels by keys: draws inside the kernel, launches in pieces, the order of rows, refusals, and how they are compiled."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from fastssl.kernels import augment
from fastssl.kernels.augment import Augment, Drawn, Order, Table
from fastssl.pipelines import keyed
from fastssl.pipelines.order import visited
from fastssl.pipelines.policies import POLICIES
from fastssl.pipelines.resident_fused import knows, strong
from fastssl.pipelines.views import Augmenter

SIDE = 12


def images(n: int = 6, height: int = SIDE, width: int = SIDE) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(4))


def made(policy: str, device: str, size: tuple[int, int] = (SIDE, SIDE), flip: bool = True) -> tuple[Augment, Augmenter]:
    """The kernel, its views grey levels, and the torch code on the CPU that it must equal."""
    here = Augmenter(POLICIES[policy], size, flip=flip, device=device)
    choices = strong(here.sampler)
    one, zero = torch.ones(3, device=device), torch.zeros(3, device=device)
    return Augment(size, size, one, zero, pad=here.pad, flip=flip, strong=choices), Augmenter(POLICIES[policy], size, flip=flip)


SERVED = [name for name, policy in POLICIES.items() if knows(("strong",), policy)]


def test_the_published_policies_are_served() -> None:
    assert {"fixmatch", "finessl", "finessl_16px", "usb", "digits"} <= set(SERVED)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(("policy", "flip"), [(name, k % 2 == 0) for k, name in enumerate(SERVED)])
def test_keys_decide_as_in_torch(device: str, policy: str, flip: bool) -> None:
    kernel, augmenter = made(policy, device, (SIDE, SIDE + 4), flip)
    x, n = images(6, SIDE, SIDE + 4), 30
    g = torch.Generator().manual_seed(7)
    keys, rows = torch.randint(-(2**63), 2**63 - 1, (n,), generator=g), torch.randint(0, 6, (n,), generator=g)
    got = kernel(x.to(device), rows.to(device), keys.to(device), plain=2, weak=6).cpu()
    want = [x[rows[:2]], augmenter.view(x[rows[2:8]], keys[2:8], "weak"), augmenter.view(x[rows[8:]], keys[8:], "strong")]
    assert torch.equal(got, torch.cat(want).float())


def test_a_view_depends_on_its_key_alone(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not on its place, on the images around it, or on how many launches there are; and two runs give the same bits."""
    kernel, _ = made("usb", device)
    x, keys, rows = images().to(device), torch.arange(13, device=device) * 77, torch.arange(13, device=device) % 6
    step = torch.zeros((), dtype=torch.int64, device=device)
    all_at_once = kernel(x, rows, keys, step=step)
    assert step.item() == 1 and torch.equal(kernel(x, rows, keys), all_at_once)
    back = torch.arange(12, -1, -1, device=device)
    assert torch.equal(kernel(x, rows[back], keys[back])[back], all_at_once)
    monkeypatch.setattr(augment, "_SCRATCH", 12_000)
    assert len(kernel.launches(x, rows, keys, 0, 0, 3, step, all_at_once)) == 5
    assert torch.equal(kernel(x, rows, keys, step=step), all_at_once) and step.item() == 2


def test_scratch_keeps_its_address(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel, _ = made("fixmatch", device)
    assert kernel.reserve(5, 0) is None, "views without operations keep nothing between passes"
    first, each = kernel.reserve(8, 2), 2 * 3 * SIDE * SIDE + 9 * 256
    assert kernel.reserve(3, 2) is first and kernel.reserve(8, 2) is first and first.numel() == 8 * each
    assert kernel.reserve(9, 2).numel() == 9 * each and kernel._scratch[0] is first, "a captured launch may hold it"
    monkeypatch.setattr(augment, "_SCRATCH", 10 * each)
    assert kernel.reserve(99, 2).numel() == 10 * each


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(
    ("labelled", "unlabelled", "sizes", "step"), [(3, 9, (5, 40), 4), (70, 65, (7, 1), 11), (1, 0, (1, 1), 3), (6, 6, (6, 6), 0)]
)
def test_rows_labels_and_keys_of_a_draw(device: str, labelled: int, unlabelled: int, sizes: tuple[int, int], step: int) -> None:
    g = torch.Generator().manual_seed(labelled)
    total, counts, views = 50, (labelled, unlabelled), (2, 3 if unlabelled else 0)
    members = [torch.randperm(total, generator=g) for _ in sizes]
    label, weight, known = torch.randint(0, 10, (total,), generator=g), torch.rand(total, generator=g), torch.arange(total) - 1
    orders, base = torch.tensor([keyed.key(5, 1), keyed.key(5, 2)]), torch.tensor([keyed.key(6, k) for k in range(sum(views))])
    number = [counts[k >= views[0]] for k in range(sum(views))]
    # Views lie in the buffer from the last to the first.
    place = torch.tensor([sum(number[k + 1 :]) for k in range(len(number))])
    given = Order(torch.tensor(step), torch.tensor(sizes), orders, base, place, *members, label, weight, known, views[0])
    given = Order(*(t.to(device) if isinstance(t, torch.Tensor) else t for t in given))
    kept = [t.clone() for t in given[:-1]]
    new = lambda n, dtype=torch.int64: torch.empty(n, dtype=dtype, device=device)  # noqa: E731
    images = sum(number)
    out = Drawn(new(labelled), new(labelled), new(labelled, torch.float32), new(unlabelled), new(unlabelled), new(images), new(images))
    augment.order(given, out)
    out = Drawn(*(t.cpu() for t in out))
    for part, (index, count) in enumerate(((out.index, labelled), (out.unlabelled_index, unlabelled))):
        at, visit = visited(torch.tensor(step * count), count, sizes[part], int(orders[part]))
        rows = members[part][at]
        assert torch.equal(index, rows)
        if part == 0:
            assert torch.equal(out.label, label[at]) and torch.equal(out.weight, weight[at])
        else:
            assert torch.equal(out.hidden_label, known[rows])
        for view in range(part * views[0], part * views[0] + views[part]):
            here = slice(int(place[view]), int(place[view]) + count)
            assert torch.equal(out.rows[here], rows)
            assert torch.equal(out.keys[here], keyed.joined(int(base[view]), rows, visit))
    assert all(torch.equal(a, b) for a, b in zip(kept, given[:-1], strict=True)), "the step too"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": images(6, SIDE, 9)}, r"images must be contiguous uint8 \[any, 3, 12, 12\] on cpu; got uint8 \[6, 3, 12, 9\] on cpu"),
        ({"images": images().transpose(2, 3)}, "images must be contiguous uint8 .*, strided"),
        ({"images": images().float()}, "got float32"),
        ({"rows": torch.zeros(4, dtype=torch.int32)}, r"rows must be contiguous int64 \[4\]"),
        ({"keys": torch.zeros(3, dtype=torch.int64)}, r"keys must be contiguous int64 \[4\] on cpu; got int64 \[3\]"),
        ({"plain": 3, "weak": 2}, "3 plain and 2 weak images of 4"),
        (
            {"keys": Table(*(torch.zeros(4, n, dtype=torch.int64) for n in (3, 2, 2, 4)))},
            r"value must be contiguous float64 \[4, 2\] on cpu; got int64 \[4, 2\]",
        ),
    ],
)
def test_what_does_not_fit_is_refused(change: dict, message: str) -> None:
    kernel, _ = made("fixmatch", "cpu")
    given = {"images": images(), "rows": torch.zeros(4, dtype=torch.int64), "keys": torch.zeros(4, dtype=torch.int64)} | change
    with pytest.raises(ValueError, match=message):
        kernel(given.pop("images"), given.pop("rows"), given.pop("keys"), **given)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": torch.float16}, "views are float32 or bfloat16; got torch.float16"),
        ({"pad": 8}, r"crops of \(8, 8\) do not fit a picture of \(8, 8\) padded by 8"),
        ({"picture": (7, 8)}, r"crops of \(8, 8\) do not fit a picture of \(7, 8\) padded by 0"),
        ({"picture": (9, 9)}, r"crops come out of \(9, 9\), and images are stored as \(8, 8\); pass taps"),
    ],
)
def test_sizes_that_do_not_go_together_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Augment((8, 8), (8, 8), torch.ones(3), torch.zeros(3), **options)


def test_no_operations_and_no_plain_views_of_other_sizes() -> None:
    kernel = Augment((9, 9), (8, 8), torch.ones(3), torch.zeros(3), picture=(9, 9))
    x, zero = images(2, 9, 9), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match="2 strong images, and no operations"):
        kernel(x, zero, zero)
    with pytest.raises(ValueError, match=r"plain views of \(8, 8\) need images of that size or taps; images are stored as \(9, 9\)"):
        kernel(x, zero, zero, plain=2)


COMPILED = """
import torch
from bench import compiled_cases, compiled_kernels
class Kept:
    def __init__(self, kernel): self.kernel, self.__name__ = kernel, kernel.__name__
    def warmup(self, **given):
        self.made = self.kernel.warmup(**given)
        return self.made
for case in compiled_cases.cases(["augment (strong, fixmatch), C 32, bfloat16", "augment (strong, usb, stored"]):
    launch = case.launch._replace(kernel=Kept(case.launch.kernel))
    compiled_kernels.compiled(launch, 90)
    ptx = launch.kernel.made.asm["ptx"]
    found = "fma.rn.f" in ptx, "global.nc" in ptx, "cp.async" in ptx, ptx.count("bar.sync") > 6
    print(case.launch.kernel.__name__, *found)
"""


def test_nothing_is_fused_and_no_load_passes_a_barrier(python: Callable, tmp_path) -> None:
    """A fused multiply-add rounds once; a load that may be cached for good, or copied early, would not see what another thread wrote."""
    out = python("-c", COMPILED, TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path), OMP_NUM_THREADS="1").stdout.split("\n")
    lines = [line for line in out if line.startswith("augment_kernel")]
    assert lines and set(lines) == {"augment_kernel False False False True"}
