"""Weak and strong views of stored uint8 images in one launch, and the draw of a batch's rows in the launch before it.

`Augment` holds what all launches of a pipeline share and makes views of rows under keys, or under a ready table of operations.
`order` fills the rows, keys and labels of the next batch. Both are made of device arithmetic alone: nothing is read on the host, the
same bits come out on every run, and both may be captured. Views equal those of plain torch (`fastssl.pipelines`) bit for bit, but
for rotations, whose cosine may differ in its last place.

Triton is imported by the first launch.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import _dispatch
from ._augment_order import Drawn, Order, order
from ._launch import Launch

__all__ = ["Augment", "Drawn", "Order", "Strong", "Table", "Taps", "order", "serves"]

OPERATIONS = 14  # `policies.OPS`: identity, autocontrast ... translate_y, by their positions
_TABLES = 3 * 3 * 256  # bytes: two tables of levels, one read and one written, and room for notes
_SCRATCH = 1 << 30  # bytes that one launch may take; more images are several launches
# (pixels of a tile, warps) for views up to 32 x 32 and beyond: 4 pixels a thread of each channel, so that 8 programs fit a multiprocessor.
# At most 8 warps, for a table's 256 levels are then one a thread or more. Chosen by counting registers, not yet measured on a GPU.
SMALL, LARGE = (512, 4), (1024, 8)


class Strong(NamedTuple):
    """The strong view's choices: `policies.Policy` as numbers, its `Sampler`'s tables as tensors on the device."""

    op: Tensor  # [K] int64, positions in OPS
    magnitude: Tensor  # [K, levels] float64 before the sign; or [K, 2] float64 lowest and highest
    continuous: bool
    draws: int
    p: float
    cutout: float  # continuous: the largest side as a share of the width
    pixels: int  # else: the side
    fill: tuple[int, int, int]


class Table(NamedTuple):
    """Ready choices of n images, instead of keys. Rows of images that are not cropped, or not strong, are not read."""

    crop: Tensor  # [n, 3] int64: mirrored (0 or 1), top and left within the padded picture
    op: Tensor  # [n, draws] int64, positions in OPS
    value: Tensor  # [n, draws] float64, signed magnitudes; degrees between -360 and 360
    box: Tensor  # [n, 4] int64: first and last column, first and last row of the cutout, inclusive; last before first for none


class Taps(NamedTuple):
    """Pillow's resizing of stored images: for output pixels of the plain view, then of the picture that crops are cut out of."""

    first: Tensor  # [size + picture] int32: first input pixel
    weight: Tensor  # [size + picture, taps] int32: weights times 2**22


def serves(device: torch.device) -> bool:
    """Whether the kernels serve a device: CUDA with Triton, or the CPU in Triton's interpreter (`FASTSSL_KERNELS` as for the losses).

    Raises RuntimeError where FASTSSL_KERNELS=triton asks for what cannot be.
    """
    return _dispatch.server(device.type) == "triton"


def _check(name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int | None, ...], device: torch.device) -> None:
    fits = tensor.dim() == len(shape) and all(want in (None, have) for want, have in zip(shape, tensor.shape, strict=True))
    if tensor.dtype != dtype or not fits or tensor.device != device or not tensor.is_contiguous():
        wanted = ", ".join("any" if side is None else str(side) for side in shape)
        raise ValueError(
            f"{name} must be contiguous {str(dtype)[6:]} [{wanted}] on {device}; got {str(tensor.dtype)[6:]} {list(tensor.shape)} "
            f"on {tensor.device}{'' if tensor.is_contiguous() else ', strided'}"
        )


class Augment:
    """Makes views of rows of a stored set. The calls of one Augment share scratch memory, so they belong on one stream.

    Args:
        stored: (height, width) of the stored images.
        size: (height, width) of the views.
        scale, offset: [3] float32 on the device: a view is level * scale + offset, one rounding each.
        picture: (height, width) that crops are cut out of; `size` if None.
        pad: pixels by which a picture is reflected at each side before it is cropped, below its sides.
        flip: whether crops are mirrored with probability 1/2 (a table says for itself).
        strong: the strong view's choices; without, there are no strong images but by table.
        taps: resizes the stored images to `size` for plain views, to `picture` for crops. Without, plain views need stored == size
            and crops stored == picture.
        fill: grey levels of a table's cutouts.
        dtype: torch.float32 or torch.bfloat16.
        channels_last: memory format of the views.

    Raises:
        ValueError: sizes that do not go together, or an unknown dtype.
    """

    def __init__(
        self,
        stored: tuple[int, int],
        size: tuple[int, int],
        scale: Tensor,
        offset: Tensor,
        *,
        picture: tuple[int, int] | None = None,
        pad: int = 0,
        flip: bool = False,
        strong: Strong | None = None,
        taps: Taps | None = None,
        fill: tuple[int, int, int] = (0, 0, 0),
        dtype: torch.dtype = torch.float32,
        channels_last: bool = False,
    ):
        picture = picture or size
        if dtype not in (torch.float32, torch.bfloat16):
            raise ValueError(f"views are float32 or bfloat16; got {dtype}")
        if not 0 <= pad < min(picture) or any(p + 2 * pad < s for p, s in zip(picture, size, strict=True)):
            raise ValueError(f"crops of {size} do not fit a picture of {picture} padded by {pad} pixels, fewer than its sides")
        if taps is None and picture != stored:
            raise ValueError(f"crops come out of {picture}, and images are stored as {stored}; pass taps to resize them")
        self.stored, self.size, self.picture = stored, size, picture
        self.pad, self.flip, self.strong, self.taps = pad, flip, strong, taps
        self.scale, self.offset, self.fill = scale, offset, strong.fill if strong else fill
        self.dtype, self.channels_last = dtype, channels_last
        for name, tensor in (("scale", scale), ("offset", offset)):
            _check(name, tensor, torch.float32, (3,), scale.device)
        self._scratch: list[Tensor] = []

    def reserve(self, images: int, draws: int) -> Tensor | None:
        """Scratch memory for launches of so many images. Where it must grow, what was there is kept: a captured launch writes to it."""
        if not draws and self.taps is None:
            return None
        need = min(images, self._most) * (2 * self._buffer + _TABLES)
        if not self._scratch or self._scratch[-1].numel() < need:
            self._scratch.append(torch.empty(need, dtype=torch.uint8, device=self.scale.device))
        return self._scratch[-1]

    @property
    def _most(self) -> int:
        """Images of one launch that keeps something between passes."""
        return max(1, _SCRATCH // (2 * self._buffer + _TABLES))

    @property
    def _buffer(self) -> int:
        """Bytes of one image between two passes; resizing keeps the stored rows at the view's width."""
        (height, width), rows = self.size, self.stored[0] if self.taps else 0
        return -(-3 * width * max(height, rows) // 16) * 16

    def __call__(
        self,
        images: Tensor,
        rows: Tensor,
        keys: Tensor | Table,
        *,
        plain: int = 0,
        weak: int = 0,
        step: Tensor | None = None,
    ) -> Tensor:
        """Views of n images: the first `plain` as they are, the next `weak` cropped, the rest cropped and strengthened.

        Args:
            images: [N, 3, *stored] uint8; not written to.
            rows: [n] int64 in [0, N). Images outside are not looked for: the caller answers for it.
            keys: [n] int64, or a Table of n.
            plain, weak: how many images of each kind, together at most n.
            step: [] int64 to which the launch adds one.

        Returns:
            [n, 3, *size] of `dtype`, in the memory format asked for; a new tensor.

        Raises:
            ValueError: a shape, dtype or device that does not fit, or strong images without `strong` or a table.
        """
        n, device, table = len(rows), images.device, keys if isinstance(keys, Table) else None
        _check("images", images, torch.uint8, (None, 3, *self.stored), device)
        _check("rows", rows, torch.int64, (n,), device)
        if table is None:
            _check("keys", keys, torch.int64, (n,), device)
            draws = self.strong.draws if self.strong else 0
        else:
            draws = table.op.shape[-1]
            for name, tensor, dtype, width in (
                ("crop", table.crop, torch.int64, 3),
                ("op", table.op, torch.int64, draws),
                ("value", table.value, torch.float64, draws),
                ("box", table.box, torch.int64, 4),
            ):
                _check(name, tensor, dtype, (n, width), device)
        if plain < 0 or weak < 0 or plain + weak > n:
            raise ValueError(f"{plain} plain and {weak} weak images of {n}: they must be at least 0 and together at most all")
        if plain + weak < n and not draws:
            raise ValueError(f"{n - plain - weak} strong images, and no operations: pass strong, or a table that draws at least one")
        if plain and self.taps is None and self.stored != self.size:
            raise ValueError(f"plain views of {self.size} need images of that size or taps; images are stored as {self.stored}")
        order = torch.channels_last if self.channels_last else torch.contiguous_format
        out = torch.empty((n, 3, *self.size), dtype=self.dtype, device=device, memory_format=order)
        draws = draws if plain + weak < n else 0
        for launch in self.launches(images, rows, keys, plain, plain + weak, draws, step, out):
            launch.run(device)
        return out

    def launches(
        self, images: Tensor, rows: Tensor, keys: Tensor | Table, crop: int, strong: int, draws: int, step: Tensor | None, out: Tensor
    ) -> list[Launch]:
        """The launches, one but for very many images, that fill `out`: images from `crop` on are cropped, from `strong` on strengthened."""
        from ._augment_jit import augment_kernel

        n, table = len(rows), keys if isinstance(keys, Table) else None
        most = self._most if draws or self.taps else n
        how, taps = self.strong, self.taps
        keyed = how is not None and table is None
        block, warps = SMALL if self.size[0] * self.size[1] <= 1024 else LARGE
        args = {
            "images_ptr": images,
            "rows_ptr": rows,
            "keys_ptr": None if table else keys,
            "op_ptr": table.op if table else how.op if how else None,
            "magnitude_ptr": table.value if table else how.magnitude if how else None,
            "box_ptr": table.box if table else None,
            "crop_ptr": table.crop if table else None,
            "first_ptr": taps.first if taps else None,
            "weight_ptr": taps.weight if taps else None,
            "scale_ptr": self.scale,
            "offset_ptr": self.offset,
            "scratch_ptr": self.reserve(n, draws),
            "step_ptr": step,
            "out_ptr": out,
            "first_crop": crop,
            "first_strong": strong,
            "STORED_H": self.stored[0],
            "STORED_W": self.stored[1],
            "PICTURE_H": self.picture[0],
            "PICTURE_W": self.picture[1],
            "H": self.size[0],
            "W": self.size[1],
            "PAD": self.pad,
            "FLIP": self.flip,
            "TAPS": taps.weight.shape[1] if taps else 0,
            "TABLE": table is not None,
            "DRAWS": draws,
            "CHOICES": len(how.op) if keyed else 0,
            "LEVELS": how.magnitude.shape[1] if keyed else 0,
            "CONTINUOUS": how.continuous if keyed else False,
            "P": how.p if keyed else 1.0,
            "CUTOUT": how.cutout if keyed else 0.0,
            "PIXELS": how.pixels if keyed else 0,
            "FILL": self.fill[0] + (self.fill[1] << 8) + (self.fill[2] << 16),
            "CHANNELS_LAST": self.channels_last,
            "BUFFER": self._buffer,
            "BLOCK_N": block,
            "BLOCK_C": 3,
        }
        return [Launch(augment_kernel, (min(most, n - at),), args | {"first_image": at}, warps) for at in range(0, n, most)]
