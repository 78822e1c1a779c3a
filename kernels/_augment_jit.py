"""The augmentation kernel: one program makes one view of one image, from the stored row to normalised numbers.

What is random about a view is computed by its program from the view's key, or read from a table. The image between two passes lies in
scratch memory that belongs to the program alone (two buffers, one read and one written, then three tables of levels), so that images of any
size take the same path and no register file need hold one; for a GPU it is a few kilobytes in the caches at 32 pixels. `tl.debug_barrier()`
makes what a pass wrote visible to the whole program, and ends the reading of what the next pass overwrites: none writes what it reads.

Which operations run is the same for all threads of a program, for it depends on its key alone: all of them meet at each barrier.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ._augment_passes_jit import add_table, coloured, level, place, reflected, sharpened, warped
from ._augment_random_jit import COLOR, ROTATE, SHARPNESS, drawn_box, drawn_crop, drawn_operation


class Exact:
    """A kernel that is always compiled without fusing a multiplication and an addition, which would round once where Pillow rounds twice.

    One stage: Triton may otherwise turn loads of a loop into copies that it starts early, past a barrier.
    """

    OPTIONS = {"enable_fp_fusion": False, "num_stages": 1}

    def __init__(self, kernel):
        self.kernel, self.__name__ = kernel, kernel.__name__

    def __getitem__(self, grid):
        return lambda **given: self.kernel[grid](**(given | self.OPTIONS))

    def warmup(self, **given):
        return self.kernel.warmup(**(given | self.OPTIONS))


@triton.jit
def enlarged(
    picture, target, note, first_ptr, weight_ptr, height, width, flip, down, across,
    STORED_H: tl.constexpr, STORED_W: tl.constexpr, TAPS: tl.constexpr, H: tl.constexpr, W: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """A crop of the resized picture, by Pillow's whole-number weights: across into `note` [3, stored height, W], then down into `target`.

    Sums stay below 2**31, because weights are 2**22 in all and their negative parts are small; a pixel that is weighted by 0 may be any.
    """
    for start in range(0, 3 * STORED_H * W, BLOCK_N):
        e = start + tl.arange(0, BLOCK_N)
        inside = e < 3 * STORED_H * W
        line = e // W
        column = reflected(e - line * W + across, width)
        column = tl.where(flip != 0, (width - 1) - column, column)
        first = tl.load(first_ptr + column, mask=inside, other=0)
        total = tl.full([BLOCK_N], 1 << 21, tl.int32)
        for k in range(TAPS):
            weight = tl.load(weight_ptr + column * TAPS + k, mask=inside, other=0)
            value = tl.load(picture + line * STORED_W + tl.minimum(first + k, STORED_W - 1), mask=inside, other=0)
            total += weight * value.to(tl.int32)
        tl.store(note + e, tl.minimum(tl.maximum(total >> 22, 0), 255).to(tl.uint8), mask=inside)
    tl.debug_barrier()
    for start in range(0, 3 * H * W, BLOCK_N):
        e = start + tl.arange(0, BLOCK_N)
        inside = e < 3 * H * W
        line = e // W
        channel = line // H
        row = reflected(line - channel * H + down, height)
        first = tl.load(first_ptr + row, mask=inside, other=0)
        total = tl.full([BLOCK_N], 1 << 21, tl.int32)
        for k in range(TAPS):
            weight = tl.load(weight_ptr + row * TAPS + k, mask=inside, other=0)
            at = (channel * STORED_H + tl.minimum(first + k, STORED_H - 1)) * W + (e - line * W)
            total += weight * tl.load(note + at, mask=inside, other=0).to(tl.int32)
        tl.store(target + e, tl.minimum(tl.maximum(total >> 22, 0), 255).to(tl.uint8), mask=inside)
    tl.debug_barrier()


@Exact
@triton.jit(do_not_specialize=["first_image", "first_crop", "first_strong"])
def augment_kernel(
    images_ptr,  # [N, 3, STORED_H, STORED_W] uint8
    rows_ptr,  # [n] int64
    keys_ptr,  # [n] int64; None with a table
    op_ptr,  # [K] int64, or with a table [n, DRAWS]
    magnitude_ptr,  # [K, LEVELS] float64, or with a table [n, DRAWS]
    box_ptr,  # [n, 4] int64 with a table
    crop_ptr,  # [n, 3] int64 with a table
    first_ptr,  # [H + PICTURE_H] int32: first input pixel of each output pixel, plain then cropped; None without resizing
    weight_ptr,  # [H + PICTURE_H, TAPS] int32
    scale_ptr,  # [3] float32
    offset_ptr,  # [3] float32
    scratch_ptr,  # [programs, 2 * BUFFER + 2304] uint8; None where nothing is kept between passes
    step_ptr,  # [] int64, one is added to it by the program of image 0; or None
    out_ptr,  # [n, 3, H, W] float32 or bfloat16, written
    first_image,
    first_crop,
    first_strong,
    STORED_H: tl.constexpr,
    STORED_W: tl.constexpr,
    PICTURE_H: tl.constexpr,
    PICTURE_W: tl.constexpr,
    H: tl.constexpr,
    W: tl.constexpr,
    PAD: tl.constexpr,
    FLIP: tl.constexpr,
    TAPS: tl.constexpr,  # 0 without resizing
    TABLE: tl.constexpr,
    DRAWS: tl.constexpr,  # 0 where no image is strong
    CHOICES: tl.constexpr,
    LEVELS: tl.constexpr,
    CONTINUOUS: tl.constexpr,
    P: tl.constexpr,
    CUTOUT: tl.constexpr,
    PIXELS: tl.constexpr,
    FILL: tl.constexpr,  # red + 256 green + 65536 blue
    CHANNELS_LAST: tl.constexpr,
    BUFFER: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,  # channels: 3
):
    """Images before `first_crop` are plain, those before `first_strong` are cropped, the rest cropped and strengthened."""
    i = tl.program_id(0) + first_image
    picture = images_ptr + tl.load(rows_ptr + i) * (BLOCK_C * STORED_H * STORED_W)
    key = tl.full([], 0, tl.uint64)
    if not TABLE:
        key = tl.load(keys_ptr + i).to(tl.uint64)
    flip = tl.full([], 0, tl.int32)
    down = tl.full([], 0, tl.int32)
    across = tl.full([], 0, tl.int32)
    height = tl.full([], H, tl.int32)
    width = tl.full([], W, tl.int32)
    if i >= first_crop:
        if TABLE:
            flip = tl.load(crop_ptr + i * 3).to(tl.int32)
            down = tl.load(crop_ptr + i * 3 + 1).to(tl.int32)
            across = tl.load(crop_ptr + i * 3 + 2).to(tl.int32)
        else:
            flip, down, across = drawn_crop(key, PICTURE_H + 2 * PAD - H + 1, PICTURE_W + 2 * PAD - W + 1, FLIP)
        down -= PAD
        across -= PAD
        height = tl.full([], PICTURE_H, tl.int32)
        width = tl.full([], PICTURE_W, tl.int32)

    scratch, table = images_ptr, images_ptr  # where there are none, nobody reads there
    turn = tl.full([], 0, tl.int32)  # which buffer is written next
    if TAPS > 0 or DRAWS > 0:
        scratch = scratch_ptr + tl.program_id(0).to(tl.int64) * (2 * BUFFER + 2304)
        table = scratch + 2 * BUFFER
    if TAPS > 0:
        part = tl.where(i >= first_crop, H, 0)
        enlarged(
            picture, scratch, scratch + BUFFER, first_ptr + part, weight_ptr + part * TAPS, height, width, flip, down, across,
            STORED_H, STORED_W, TAPS, H, W, BLOCK_N,
        )  # fmt: skip
        picture, turn = scratch, turn + 1
        flip, down, across, height, width = flip * 0, down * 0, across * 0, height * 0 + H, width * 0 + W

    lut = tl.full([], -1, tl.int32)  # offset of the table through which the picture is seen
    left, right, top, bottom = lut + 1, lut, lut + 1, lut
    if DRAWS > 0:
        if i >= first_strong:
            for slot in range(0, DRAWS):
                if TABLE:
                    op = tl.load(op_ptr + i * DRAWS + slot).to(tl.int32)
                    value = tl.load(magnitude_ptr + i * DRAWS + slot)
                else:
                    op, value = drawn_operation(key, slot, op_ptr, magnitude_ptr, CHOICES, LEVELS, CONTINUOUS, P)
                if (op == COLOR) | (op == SHARPNESS) | (op >= ROTATE):
                    to = scratch + turn * BUFFER
                    if op == COLOR:
                        coloured(to, value, picture, height, width, flip, down, across, table, lut, H, W, BLOCK_N)
                    elif op == SHARPNESS:
                        sharpened(to, value, picture, height, width, flip, down, across, table, lut, H, W, BLOCK_N)
                    else:
                        warped(to, op, value, picture, height, width, flip, down, across, table, lut, H, W, BLOCK_N)
                    picture, turn, lut = to, 1 - turn, lut * 0 - 1
                    flip, down, across, height, width = flip * 0, down * 0, across * 0, height * 0 + H, width * 0 + W
                    tl.debug_barrier()
                elif op > 0:
                    new = tl.where(lut == 0, 768, 0)
                    add_table(op, value, new, picture, height, width, flip, down, across, table, lut, H, W, BLOCK_N)
                    lut = new
                    tl.debug_barrier()
            if TABLE:
                left = tl.load(box_ptr + i * 4).to(tl.int32)
                right = tl.load(box_ptr + i * 4 + 1).to(tl.int32)
                top = tl.load(box_ptr + i * 4 + 2).to(tl.int32)
                bottom = tl.load(box_ptr + i * 4 + 3).to(tl.int32)
            else:
                left, right, top, bottom = drawn_box(key, H, W, CONTINUOUS, CUTOUT, PIXELS)

    red_scale, green_scale, blue_scale = tl.load(scale_ptr), tl.load(scale_ptr + 1), tl.load(scale_ptr + 2)
    red_offset, green_offset, blue_offset = tl.load(offset_ptr), tl.load(offset_ptr + 1), tl.load(offset_ptr + 2)
    plane = height * width
    out = out_ptr + i.to(tl.int64) * (BLOCK_C * H * W)
    for start in range(0, BLOCK_C * H * W, BLOCK_N):
        e = start + tl.arange(0, BLOCK_N)
        inside = e < BLOCK_C * H * W
        if CHANNELS_LAST:
            p = e // BLOCK_C
            channel = e - p * BLOCK_C
        else:
            channel = e // (H * W)
            p = e - channel * (H * W)
        y = p // W
        x = p - y * W
        value = level(picture, channel * plane + place(y, x, height, width, flip, down, across), inside, table, lut, channel)
        if DRAWS > 0:
            hole = (x >= left) & (x <= right) & (y >= top) & (y <= bottom)
            fill = tl.where(channel == 0, FILL & 255, tl.where(channel == 1, (FILL >> 8) & 255, FILL >> 16))
            value = tl.where(hole, fill.to(tl.uint8), value)
        scale = tl.where(channel == 0, red_scale, tl.where(channel == 1, green_scale, blue_scale))
        shift = tl.where(channel == 0, red_offset, tl.where(channel == 1, green_offset, blue_offset))
        tl.store(out + e, (value.to(tl.float32) * scale + shift).to(out_ptr.dtype.element_ty), mask=inside)

    if step_ptr is not None:
        # Nobody in this launch reads the step: the launch that did has ended.
        if i == 0:
            tl.store(step_ptr, tl.load(step_ptr) + 1)
