"""The augmentation kernel by ready tables: every operation, chains of them, crops, cutouts, normalisation, against plain torch."""

from __future__ import annotations

import pytest
import torch

from fastssl.kernels import augment
from fastssl.kernels.augment import Augment, Table
from fastssl.pipelines.policies import GEOMETRIC, LEVELS, OPS, POLICIES, Drawn, Policy, Sampler, continuous_range, level_value
from fastssl.pipelines.views import Augmenter

pytestmark = pytest.mark.usefixtures("poisoned")
FILL = (125, 123, 114)


def pictures(height: int, width: int) -> torch.Tensor:
    """[7, 3, H, W] uint8: noise, one value, two values, ramps, dim, one stray pixel, dark."""
    g = torch.Generator().manual_seed(height * 100 + width)
    noise = lambda low, high: torch.randint(low, high, (3, height, width), generator=g, dtype=torch.uint8)  # noqa: E731
    constant = torch.tensor([7, 130, 255], dtype=torch.uint8).view(3, 1, 1).expand(3, height, width)
    two = torch.where(noise(0, 10) < 3, 40, 90).to(torch.uint8)
    ramp = torch.linspace(0, 255, height * width).to(torch.uint8).view(1, height, width).repeat(3, 1, 1)
    ramp[1] = ramp[1].flip(1)
    stray = torch.full((3, height, width), 200, dtype=torch.uint8)
    stray[:, height // 2, width // 3] = torch.tensor([3, 200, 201], dtype=torch.uint8)
    return torch.stack([noise(0, 256), constant, two, ramp, noise(100, 120), stray, noise(0, 9)])


@pytest.fixture(params=["one tile", "many tiles"])
def tile(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A pass as a launch would make it for small images, and in tiles of 128 pixels."""
    if request.param == "many tiles":
        monkeypatch.setattr(augment, "SMALL", (128, 4))
        monkeypatch.setattr(augment, "LARGE", (128, 4))
    return request.param


def whole(n: int, draws: int, device: str, **given: torch.Tensor) -> Table:
    """A table that leaves images alone but for what is given."""
    table = {
        "crop": torch.zeros(n, 3, dtype=torch.int64),
        "op": torch.zeros(n, draws, dtype=torch.int64),
        "value": torch.zeros(n, draws, dtype=torch.float64),
        "box": torch.tensor([0, -1, 0, -1]).repeat(n, 1),
    } | given
    return Table(**{name: tensor.to(device) for name, tensor in table.items()})


def levels(x: torch.Tensor, table: Table, device: str, fill: tuple[int, int, int] = (0, 0, 0), **options) -> torch.Tensor:
    """Strong views under a table as grey levels, on the CPU: scale 1, offset 0."""
    size = options.pop("size", tuple(x.shape[2:]))
    kernel = Augment(tuple(x.shape[2:]), size, torch.ones(3, device=device), torch.zeros(3, device=device), fill=fill, **options)
    return kernel(x.to(device), torch.arange(len(x), device=device), table).cpu()


def expected(x: torch.Tensor, table: Table, fill: tuple[int, int, int] = (0, 0, 0)) -> torch.Tensor:
    drawn = Drawn(table.op.cpu(), table.value.cpu(), table.box.cpu())
    return Augmenter(Policy(fill=fill), tuple(x.shape[2:]), flip=False).strengthened(x, drawn).float()


def values(op: str, side: int) -> list[float]:
    """All nine levels, both signs where there are two, and what a continuous law may draw."""
    found = sorted({level_value(op, level, side, 0.3) for level in range(1, LEVELS + 1)})
    if OPS.index(op) >= GEOMETRIC:
        found += [-value for value in found]
    low, high = continuous_range(op, side, 0.3)
    found += [low + (high - low) * u for u in (0.0, 0.137, 0.5, 0.811, 1.0)] if op != "posterize" else [1.0, 2.0, 8.0]
    if op in ("brightness", "color", "contrast", "sharpness"):
        found += [0.0, 1.0, 1.9]
    return found if high > low else [0.0]


@pytest.mark.parametrize("op", OPS)
def test_an_operation_at_every_level(device: str, op: str) -> None:
    x, every = pictures(16, 16), values(op, 16)
    # Every value on two pictures, and where there is no value on all of them.
    pairs = [(k % 7, value) for k, value in enumerate(every * 2)] if len(every) > 1 else [(k, every[0]) for k in range(7)]
    x = x[[k for k, _ in pairs]]
    value = torch.tensor([[v] for _, v in pairs], dtype=torch.float64)
    table = whole(len(x), 1, device, op=torch.full((len(x), 1), OPS.index(op)), value=value)
    assert torch.equal(levels(x, table, device), expected(x, table))


@pytest.mark.parametrize("side", [(33, 31), (8, 8), (2, 5), (1, 1)])
def test_an_operation_at_any_size(device: str, tile: str, side: tuple[int, int]) -> None:
    x = pictures(*side)
    op = torch.arange(1, len(OPS)).view(-1, 1)
    x = x[(torch.arange(len(op)) * 3) % 5]
    value = torch.tensor([[values(OPS[k], 31)[-4 if len(values(OPS[k], 31)) > 4 else 0]] for k in op[:, 0]], dtype=torch.float64)
    table = whole(len(x), 1, device, op=op, value=value)
    assert torch.equal(levels(x, table, device), expected(x, table))


@pytest.mark.parametrize("policy", ["fixmatch", "usb"])
def test_chains_in_the_drawn_order(device: str, tile: str, policy: str) -> None:
    """Three operations, each seeing what the one before it left: tables of levels, buffers and cutouts in turn."""
    n, x = 60 if tile == "one tile" else 15, pictures(16, 16)
    g = torch.Generator().manual_seed(len(tile))
    words = torch.randint(-(2**63), 2**63 - 1, (n, 15), generator=g)
    drawn = Sampler(Policy(draws=3, p=0.9, law=POLICIES[policy].law), 16, 16).drawn(words)
    x = x[torch.arange(n) % 7]
    table = whole(n, 3, device, op=drawn.op, value=drawn.value, box=drawn.box)
    assert torch.equal(levels(x, table, device, FILL), expected(x, table, FILL))
    assert (drawn.op > 0).sum(1).max() == 3


def test_levels_upon_levels_and_pixels_upon_levels(device: str) -> None:
    """Every pair of an operation on levels, or of the colour, with what reads the image after it."""
    first, second = (["brightness", "contrast", "solarize", "autocontrast", "equalize", "color"],) * 2
    pairs = [(OPS.index(a), OPS.index(b)) for a in first for b in (*second, "sharpness", "rotate")]
    magnitude = {"brightness": 0.6, "contrast": 0.4, "solarize": 128.0, "color": 0.3, "sharpness": 0.2, "rotate": 20.0}
    op = torch.tensor(pairs)
    value = torch.tensor([[magnitude.get(OPS[k], 0.0) for k in pair] for pair in pairs], dtype=torch.float64)
    x = pictures(12, 9)[torch.arange(len(op)) % 5]
    table = whole(len(op), 2, device, op=op, value=value)
    assert torch.equal(levels(x, table, device), expected(x, table))


@pytest.mark.parametrize(("stored", "size", "pad"), [((16, 16), (16, 16), 2), ((20, 17), (13, 15), 3), ((7, 9), (7, 9), 6)])
def test_crops_and_mirrors(device: str, tile: str, stored: tuple[int, int], size: tuple[int, int], pad: int) -> None:
    corners = [(f, t, s) for f in (0, 1) for t in (0, 1, stored[0] + 2 * pad - size[0]) for s in (0, pad, stored[1] + 2 * pad - size[1])]
    crop = torch.tensor(corners)
    x = torch.randint(0, 256, (len(crop), 3, *stored), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    padded = torch.nn.functional.pad(torch.where(crop[:, 0].view(-1, 1, 1, 1) == 1, x.flip(3), x).float(), (pad,) * 4, mode="reflect")
    want = torch.stack([image[:, t : t + size[0], s : s + size[1]] for image, (_, t, s) in zip(padded, corners, strict=True)])
    kernel = Augment(stored, size, torch.ones(3, device=device), torch.zeros(3, device=device), picture=stored, pad=pad)
    table = whole(len(x), 1, device, crop=crop)
    rows = torch.arange(len(x), device=device)
    assert torch.equal(kernel(x.to(device), rows, table, weak=len(x)).cpu(), want)
    assert torch.equal(kernel(x.to(device), rows, table).cpu(), want), "a strong view without operations is the weak one"
    op = torch.full((len(x), 1), OPS.index("equalize"))
    assert torch.equal(
        kernel(x.to(device), rows, whole(len(x), 1, device, crop=crop, op=op)).cpu(), expected(want.byte(), table._replace(op=op))
    )


def test_cutouts(device: str) -> None:
    box = torch.tensor([[0, 0, 0, 0], [3, 9, 2, 4], [0, 11, 0, 9], [11, 12, 9, 10], [5, 4, 0, 9], [0, 11, 5, 4]])
    x = pictures(10, 12)[:6]
    table = whole(6, 1, device, box=box)
    got = levels(x, table, device, FILL)
    for k, (left, right, top, bottom) in enumerate(box.tolist()):
        want = x[k].float()
        want[:, top : bottom + 1, left : right + 1] = torch.tensor(FILL).view(3, 1, 1).float()
        assert torch.equal(got[k], want)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_normalisation(device: str, dtype: torch.dtype, channels_last: bool) -> None:
    """A product and a sum, each rounded once; the interpreter alone cuts bfloat16 off where a GPU rounds it."""
    x = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(2, 3, 1, 1)
    mean, std = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.2471, 0.2435, 0.2616])
    scale, offset = 1 / (255 * std), -mean / std
    kernel = Augment((16, 16), (16, 16), scale.to(device), offset.to(device), dtype=dtype, channels_last=channels_last)
    got = kernel(x.to(device), torch.arange(2, device=device), torch.zeros(2, dtype=torch.int64, device=device), plain=2).cpu()
    want = (x * scale.view(3, 1, 1)) + offset.view(3, 1, 1)
    exact = (x.double() / 255 - mean.double().view(3, 1, 1)) / std.double().view(3, 1, 1)
    assert got.dtype == dtype and got.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    if dtype == torch.float32:
        assert torch.equal(got, want) and (got - exact).abs().max() < 1e-6
    elif device == "cuda":
        assert torch.equal(got, want.bfloat16())
    else:
        assert ((got.view(torch.int16) - want.bfloat16().view(torch.int16)).abs() <= 1).all() and (
            got.float() - want
        ).abs().max() < 2**-7 * 2.2


def test_rows_are_gathered_and_nothing_else_is_written(device: str) -> None:
    x = pictures(8, 8).to(device)
    before, rows = x.clone(), torch.tensor([5, 0, 5, 6, 3], device=device)
    table = whole(
        5, 2, device, op=torch.randint(0, 14, (5, 2), generator=torch.Generator().manual_seed(3)), value=torch.ones(5, 2).double()
    )
    kept = [t.clone() for t in table]
    kernel = Augment((8, 8), (8, 8), torch.ones(3, device=device), torch.zeros(3, device=device))
    got = kernel(x, rows, table, plain=1).cpu()
    assert torch.equal(got[0], x[5].cpu().float()) and got.isfinite().all()
    assert torch.equal(got[1:], expected(x[rows[1:]].cpu(), Table(*(t[1:] for t in table))))
    assert torch.equal(x, before) and all(torch.equal(a, b) for a, b in zip(table, kept, strict=True)) and rows.tolist() == [5, 0, 5, 6, 3]
