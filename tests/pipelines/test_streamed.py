"""The pipeline that decodes batch by batch: the resident pipeline's batches, resume, sweeps, lost and changed files."""

from __future__ import annotations

import dataclasses
import gc
import logging
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from fastssl.kernels import _dispatch
from fastssl.pipelines import sources, splits
from fastssl.pipelines.batch import Batch, Views
from fastssl.pipelines.errors import CheckpointError, ConfigError, DataError
from fastssl.pipelines.resident import ResidentPipeline

pytest.importorskip("nvidia.dali", reason="DALI comes with the dali extra: pip install nvidia-dali-cuda120")
from fastssl.pipelines.streamed import DaliPipeline  # noqa: E402

VIEWS = Views(("weak",), ("weak", "strong", "strong"), 1)
LABEL, INDEX, UNLABELLED, HIDDEN = 1, 3, 7, 8  # places in what `flat` gives


def files(encoded, kind="PNG", side=16, per_class=12):
    """{path: bytes} of noise in four classes: no two images alike."""
    rng = np.random.default_rng(0)
    made = {}
    for name in range(4):
        for i in range(per_class):
            image = Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8))
            made[f"{name}/{i:03d}.{kind.lower()}"] = encoded(image, kind)
    return made


@pytest.fixture()
def data(folder, encoded):
    return folder(files(encoded))


def source_of(data, pipeline="dali", **options):
    return sources.load(data, pipeline=pipeline, **options)


def streamed(data, views=VIEWS, *, source=None, batch_size=6, ratio=3, **options):
    source = source or source_of(data)
    return DaliPipeline(source, splits.make(source, per_class=4), views, batch_size=batch_size, ratio=ratio, workers=2, **options)


def resident(data, views=VIEWS, *, batch_size=6, ratio=3, **options):
    source = source_of(data, "resident")
    return ResidentPipeline(source, splits.make(source, per_class=4), views, batch_size=batch_size, ratio=ratio, **options)


def flat(batch: Batch):
    parts = [*batch.labelled, batch.label, batch.weight, batch.index, *batch.unlabelled, batch.unlabelled_index, batch.hidden_label]
    return [part.clone() for part in parts]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(
    "options", [{}, {"policy": "usb", "seed": 3}, {"size": 24}, {"size": 24, "resize": 28, "interpolation": "bilinear"}]
)
def test_batches_are_the_resident_pipelines_bit_for_bit(data, options):
    a, b = streamed(data, **options), resident(data, **options)
    for _ in range(8):  # over the ends of both streams' epochs
        assert same(flat(a.draw()), flat(b.draw()))
    assert a.spec == b.spec and not a.capturable


def test_jpegs_of_the_stored_size_too(folder, encoded):
    data = folder(files(encoded, "JPEG"))
    a, b = streamed(data), resident(data)
    assert same(flat(a.draw()), flat(b.draw()))


def test_a_set_smaller_than_a_batch_decodes_each_row_once(data):
    a, b = streamed(data, batch_size=40, ratio=2), resident(data, batch_size=40, ratio=2)
    for _ in range(3):
        assert same(flat(a.draw()), flat(b.draw()))
    assert len(a._planned[0].rows) <= 48


def test_addresses_stay(data):
    run = streamed(data)
    first = run.draw()
    before = [part.data_ptr() for part in (*first.labelled, *first.unlabelled, first.label, first.index)]
    values = flat(first)
    second = run.draw()
    assert before == [part.data_ptr() for part in (*second.labelled, *second.unlabelled, second.label, second.index)]
    assert not same(values, flat(second))


@pytest.mark.parametrize("k", [1, 5])
def test_resume_in_mid_epoch_is_bit_for_bit(data, k):
    whole = streamed(data)
    for _ in range(k):
        whole.draw()
    state = {name: value.clone() for name, value in whole.state_dict().items()}
    fresh = streamed(data)
    fresh.draw()  # what it read ahead must be forgotten
    fresh.load_state_dict(state)
    for _ in range(4):
        assert same(flat(whole.draw()), flat(fresh.draw()))
    with pytest.raises(CheckpointError, match="a single step"):
        fresh.load_state_dict({"position": torch.zeros(())})


def test_sweeps_come_between_draws_and_disturb_nothing(data):
    a, b = streamed(data), resident(data)
    for part in ("labelled", "train", "unlabelled"):
        for view in ("plain", "strong"):
            assert same(flat(a.draw()), flat(b.draw()))
            for mine, other in zip(a.sweep(part, 7, view), b.sweep(part, 7, view), strict=True):
                assert same(mine, other)
    halfway = a.sweep("train", 5)
    next(halfway)
    assert same(flat(a.draw()), flat(b.draw())), "an unfinished sweep stands in nobody's way"
    assert torch.equal(next(halfway).index, list(b.sweep("train", 5))[1].index)
    with pytest.raises(ConfigError, match="unknown part"):
        next(a.sweep("trian"))


def test_a_new_split_is_used_from_the_next_draw_on(data):
    a, b = streamed(data), resident(data)
    assert same(flat(a.draw()), flat(b.draw()))
    other = splits.make(a.source, per_class=2, seed=5)
    a.use(other)
    b.use(other)
    for _ in range(3):
        assert same(flat(a.draw()), flat(b.draw()))


def test_a_set_without_unlabelled_views(data):
    a, b = streamed(data, Views(("weak",))), resident(data, Views(("weak",)))
    batch = a.draw()
    assert same(flat(batch), flat(b.draw())) and batch.unlabelled == () and len(batch.unlabelled_index) == 0


def test_a_vanished_file_is_replaced_alike_every_time(data, caplog):
    source = source_of(data)
    split = splits.make(source, per_class=4)
    gone = int(split.labelled[0])
    lost = source.ids[gone]
    (data / lost).unlink()
    with caplog.at_level(logging.WARNING, logger="fastssl"):
        runs = [[flat(run.draw()) for _ in range(16)] for run in (streamed(data, source=source, max_bad=0.1) for _ in range(2))]
    assert all(same(x, y) for x, y in zip(*runs, strict=True))
    replaced = {INDEX: 0, UNLABELLED: 0}
    for mine, other in zip(runs[0], undisturbed(source), strict=True):
        for role in replaced:
            changed = mine[role] != other[role]
            assert gone not in mine[role] and (other[role][changed] == gone).all(), "only the lost row's places change"
            replaced[role] += int(changed.sum())
        assert torch.equal(mine[LABEL], torch.from_numpy(source.label)[mine[INDEX]]), "who stands in brings its own label"
        assert torch.equal(mine[HIDDEN], torch.from_numpy(source.label)[mine[UNLABELLED]])
    assert min(replaced.values()) > 3
    told = [record.getMessage() for record in caplog.records]
    assert told == [f"{lost} cannot be read: No such file or directory; another image takes its place"] * 2, "once a pipeline"
    after = streamed(data, source=source, max_bad=0.1)
    after.load_state_dict({"step": torch.tensor(9)})
    assert same(flat(after.draw()), runs[0][9])


def undisturbed(source):
    """The 16 batches had nothing been lost; rows and labels alone, as nothing is decoded for it."""
    held = dataclasses.replace(source, images=np.zeros(source.images.shape, np.uint8))
    run = ResidentPipeline(held, splits.make(source, per_class=4), VIEWS, batch_size=6, ratio=3)
    return [flat(run.draw()) for _ in range(16)]


def test_sweeps_leave_lost_rows_out(data):
    source = source_of(data)
    (data / source.ids[5]).unlink()
    (data / source.ids[9]).write_bytes(b"")
    run = streamed(data, source=source, max_bad=0.1)
    swept = torch.cat([piece.index for piece in run.sweep("train", 10)])
    assert swept.tolist() == [row for row in range(48) if row not in (5, 9)]


def test_too_many_lost_files_end_the_run(data):
    source = source_of(data)
    for name in source.ids[:40:8]:
        (data / name).write_bytes(b"\x89PNG broken")
    run = streamed(data, source=source, max_bad=0.05)
    with pytest.raises(
        DataError, match=r"3 of 48 images are lost, 3 of them since the run began: 6\.2% where --max-bad allows 5\.0%"
    ) as caught:
        for _ in range(10):
            run.draw()
    assert caught.value.exit_code == 3 and len(caught.value.problems) == 3


def test_a_file_that_changed_is_read_as_it_is_now(data, encoded, caplog):
    source = source_of(data)
    red = encoded(Image.new("RGB", (20, 10), "red"), "PNG")
    (data / source.ids[0]).write_bytes(red)
    with caplog.at_level(logging.WARNING, logger="fastssl"):
        piece = next(streamed(data, Views(("plain",)), source=source).sweep("train", 4))
    assert "0/000.png has changed since it was indexed; it is taken as it is now" in caplog.text
    mean, std = torch.tensor(source.mean), torch.tensor(source.std)
    pixel = piece.inputs[0, :, 3, 3] * std + mean
    assert torch.allclose(pixel, torch.tensor([1.0, 0.0, 0.0]), atol=1e-5)


def test_odd_files_have_one_outcome_in_both_pipelines(folder, encoded):
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (24, 18, 3), dtype=np.uint8))
    deep = np.linspace(0, 65535, 432).astype(np.uint16).reshape(24, 18)
    odd = {
        "0/cmyk.jpg": encoded(image.convert("CMYK"), "JPEG"),
        "0/palette.png": encoded(image.quantize(16), "PNG"),
        "0/onebit.png": encoded(image.convert("1"), "PNG"),
        "0/alpha.png": encoded(image.convert("RGBA").rotate(30), "PNG"),
        "1/transparent.png": encoded(image, "PNG", transparency=(1, 2, 3)),
        "1/deep.png": encoded(Image.fromarray(deep), "PNG"),
        "1/animated.gif": encoded(image, "GIF", save_all=True, append_images=[image.rotate(90)]),
        "1/lossless.webp": encoded(image, "WEBP", lossless=True),
        "1/scan.tiff": encoded(image, "TIFF"),
        "1/rgb.jpg": encoded(image, "JPEG", keep_rgb=True),
    }
    data = folder(odd)
    views = Views(("plain",))
    a, b = (
        kind(s := source_of(data, name, size=16), splits.make(s), views, batch_size=2)
        for kind, name in ((DaliPipeline, "dali"), (ResidentPipeline, "resident"))
    )
    assert not a.source.images.plain.any()
    for mine, other in zip(a.sweep("train"), b.sweep("train"), strict=True):
        assert len(mine.index) == 10 and same(mine, other)


def test_what_is_in_memory_is_refused(data):
    source = source_of(data, "resident")
    with pytest.raises(ConfigError, match="data is in memory already; take --pipeline resident"):
        streamed(data, source=source)


def test_close_ends_the_threads(data):
    before = set(threading.enumerate())
    run = streamed(data)
    run.draw()
    own = [thread for thread in threading.enumerate() if thread not in before]
    assert any(thread.name.startswith("fastssl-read") for thread in own)
    run.close()
    run.close()
    assert not any(thread.is_alive() for thread in own)


def test_a_forgotten_pipeline_waits_for_no_thread(data, monkeypatch):
    """The collector may find it within the code that ends another thread, whose lock the wait would need: it would wait forever."""
    run, waited = streamed(data), []
    run.draw()
    shutdown = run.reader._pool.shutdown
    run.reader._pool.shutdown = lambda wait=True, **options: (waited.append(wait), shutdown(wait=wait, **options))
    del run
    gc.collect()
    assert waited == [False]


@pytest.mark.skipif(not _dispatch.TRITON or torch.cuda.is_available(), reason="needs Triton's interpreter")
def test_the_kernels_make_the_same_views_of_decoded_batches(data, monkeypatch):
    plain = [flat(streamed(data, batch_size=2, ratio=1).draw()), *next(streamed(data).sweep("labelled", 4, "strong"))]
    monkeypatch.setenv("FASTSSL_KERNELS", "triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    run = streamed(data, batch_size=2, ratio=1)
    assert run.fused
    assert same(plain[0], flat(run.draw())) and same(plain[1:], next(run.sweep("labelled", 4, "strong")))
