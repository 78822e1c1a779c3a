"""The index of image files: what is found, what is remembered, and what happens to a cache that cannot serve."""

from __future__ import annotations

import os
import sqlite3

import numpy as np
import pytest
from PIL import Image

from fastssl.pipelines import images, index_cache
from fastssl.pipelines.errors import DataError
from fastssl.pipelines.file_source import ImageFiles, PathStore
from fastssl.pipelines.index_cache import Cache, index


@pytest.fixture()
def store(folder, encoded):
    made = {f"{i:03d}.png": encoded(Image.new("RGB", (4, 4), (i, 0, 0)), "PNG") for i in range(40)}
    made |= {"empty.png": b"", "palette.png": encoded(Image.new("RGB", (4, 4)).quantize(2), "PNG")}
    base = folder(made)
    return PathStore(sorted(made), str(base))


def indexed(store, **options):
    cache = Cache(store.root)
    try:
        return index(store, cache, **options)
    finally:
        cache.close()


def test_each_file_is_decoded_once(store):
    told = []
    found = indexed(store, progress=lambda done, total: told.append((done, total)))
    assert found.read == 42 and found.bad == {40: "empty file"} and told == [(42, 42)] and not found.warnings
    assert found.plain.tolist() == [True] * 40 + [False, False]
    assert found.content[:40].tolist() == [images.fingerprint(store.read(i)) for i in range(40)]


def test_a_second_run_reads_nothing(store, monkeypatch):
    first = indexed(store)
    monkeypatch.setattr(PathStore, "read", None)
    again = indexed(store)
    assert again.read == 0 and again.bad == first.bad
    assert np.array_equal(again.content, first.content) and np.array_equal(again.plain, first.plain)


def test_what_changed_is_read_again(store):
    first = indexed(store)
    changed = os.path.join(store.root, "003.png")
    with open(changed, "rb") as file:
        same_size = file.read()
    os.utime(changed, ns=(5, 5))
    with open(os.path.join(store.root, "empty.png"), "wb") as file:
        file.write(same_size)
    os.unlink(os.path.join(store.root, "007.png"))
    again = indexed(store)
    assert again.read == 3 and again.bad == {7: "cannot be read: No such file or directory"}
    assert again.content[3] == again.content[40] == first.content[3]
    assert indexed(store).read == 1, "what is missing is asked for every time"


def test_many_blocks_and_threads_change_nothing(store, monkeypatch):
    whole = indexed(store)
    monkeypatch.setattr(index_cache, "_BLOCK", 5)
    told = []
    parts = index(store, Cache("elsewhere"), workers=3, progress=lambda done, total: told.append(done))
    assert np.array_equal(whole.content, parts.content) and whole.bad == parts.bad and parts.read == 42
    assert told == [5, 10, 15, 20, 25, 30, 35, 40, 42]


def test_another_pillow_starts_anew(store, monkeypatch):
    indexed(store)
    monkeypatch.setattr("PIL.__version__", "0.0")
    assert indexed(store).read == 42 and indexed(store).read == 0


def test_a_damaged_cache_is_made_anew(store):
    indexed(store)
    path = Cache(store.root).path
    path.write_bytes(b"not a database, but long enough to be taken for one" * 100)
    found = indexed(store)
    assert found.read == 42 and not found.warnings and indexed(store).read == 0


def test_a_cache_that_cannot_be_written_is_told_of(store, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FASTSSL_CACHE", str(tmp_path / "file"))
    found = indexed(store)
    assert found.read == 42 and len(found.warnings) == 1
    assert "cannot be kept in" in found.warnings[0] and "decode all of them again" in found.warnings[0]


def test_a_disk_that_fills_up_ends_the_remembering_alone(store):
    class Full:
        def execute(self, *_):
            return []

        def executemany(self, *_):
            raise sqlite3.OperationalError("database or disk is full")

        def close(self):
            pass

    cache = Cache(store.root)
    cache.close()
    cache.database = Full()
    found = index(store, cache)
    assert found.read == 42 and found.bad == {40: "empty file"} and "disk is full" in found.warnings[0]


def test_large_hashes_survive(own_cache):
    cache = Cache("x")
    entries = [index_cache.Entry(word, True, "") for word in (0, 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)]
    names, stamps = [str(i) for i in range(5)], [(1, 1 << 62)] * 5
    cache.keep(names, stamps, entries)
    assert cache.remembered(names, stamps) == entries and cache.path.is_relative_to(own_cache)


def test_files_stand_where_an_array_would(store):
    found = indexed(store)
    at = np.array([3, 0, 41])
    held = ImageFiles(store, at, found.content[at], found.plain[at], 8)
    assert held.shape == (3, 3, 8, 8) and len(held) == 3 and held.name(2) == "palette.png"
    assert held[[0, 2]].shape == (2, 3, 8, 8) and held[0:2].dtype == np.uint8 and (held[[0]][0, 0] == 3).all()
    os.unlink(os.path.join(store.root, "003.png"))
    with pytest.raises(DataError, match="1 of 2 images can no longer be decoded") as caught:
        held[[0, 2]]
    assert caught.value.problems == [("003.png", "cannot be read: No such file or directory")]
