"""Which pipeline serves a set, and what is said about it."""

from __future__ import annotations

import pytest

from fastssl.pipelines import choice, sources
from fastssl.pipelines.choice import Room, choose
from fastssl.pipelines.errors import ConfigError, SetupError

GIB = 1 << 30


def test_what_fits_is_resident() -> None:
    got = choose("auto", 1000, 32, Room("cpu", 8 * GIB, 8 * GIB), "2.4.0")
    assert got.name == "resident"
    assert (
        got.reason
        == "1,000 images of 32 x 32 pixels take 2.9 MiB decoded, within 50% of the 8.0 GiB free in main memory; DALI 2.4.0 is installed"
    )


def test_the_limit_is_half_of_what_is_free() -> None:
    need = 1000 * 3 * 32 * 32
    assert choose("auto", 1000, 32, Room("cpu", 2 * need, 2 * need), "2.4.0").name == "resident"
    assert choose("auto", 1000, 32, Room("cpu", 2 * need - 1, 2 * need - 1), "2.4.0").name == "dali"


@pytest.mark.parametrize(("free", "host", "where"), [(GIB, 900 * GIB, "cuda:0"), (900 * GIB, GIB, "main memory")])
def test_images_must_fit_on_the_device_and_on_their_way_there(free: int, host: int, where: str) -> None:
    got = choose("auto", 1_281_167, 224, Room("cuda:0", free, host), "2.4.0")
    assert got.name == "dali" and f"take 179.6 GiB decoded, over 50% of the 1.0 GiB free in {where}; DALI" in got.reason


def test_without_dali_what_does_not_fit_names_three_mends() -> None:
    with pytest.raises(
        SetupError, match="is not installed; run: pip install nvidia-dali-cuda120, or .* data.size, or .* --pipeline resident"
    ):
        choose("auto", 1_281_167, 224, Room("cpu", GIB, GIB), None)
    assert choose("auto", 10, 8, Room("cpu", GIB, GIB), None).reason.endswith("DALI is not installed")


def test_what_is_asked_for_is_taken() -> None:
    tight = Room("cpu", 1, 1)
    assert choose("resident", 1000, 32, tight, None) == ("resident", "asked for; 1,000 images of 32 x 32 pixels take 2.9 MiB decoded")
    assert choose("dali", 10, 8, None, None).name == "dali", "files may be read without DALI"
    with pytest.raises(ConfigError, match="unknown pipeline 'dalli'; did you mean dali"):
        choose("dalli", 10, 8, None, None)


def test_who_draws_with_dali_needs_it(monkeypatch) -> None:
    choice.demand("dali" if choice.dali_version() else "auto")
    monkeypatch.setattr(choice, "dali_version", lambda: None)
    choice.demand("auto")
    with pytest.raises(SetupError, match="--pipeline dali needs NVIDIA DALI, which is not installed; run: pip install") as caught:
        choice.demand("dali")
    assert caught.value.exit_code == 4


def test_memory_that_nobody_tells_of_is_no_limit() -> None:
    assert choose("auto", 1 << 40, 224, Room("cpu", None, None), "2.4.0").name == "resident"


def test_named_sets_are_resident() -> None:
    assert sources.load("digits", pipeline="auto").choice.reason.endswith("1,797 images of 8 x 8 pixels take 336.9 KiB decoded")
    with pytest.raises(ConfigError, match="--pipeline dali reads folders of image files and tar shards; digits fits") as caught:
        sources.load("digits", pipeline="dali")
    assert caught.value.exit_code == 2


def test_a_folder_that_does_not_fit_stays_on_the_disk(folder, monkeypatch) -> None:
    monkeypatch.setattr("fastssl.pipelines.file_set.dali_version", lambda: "2.4.0")
    need = 48 * 3 * 16 * 16
    small = sources.load(folder(), pipeline="auto", room=Room("cpu", need, need))
    large = sources.load(folder(), pipeline="auto", room=Room("cpu", 2 * need, 2 * need))
    assert (small.choice.name, large.choice.name) == ("dali", "resident")
    assert small.images.shape == large.images.shape and (small.images[[3, 40]] == large.images[[3, 40]]).all()
    assert small.ids == large.ids and (small.content == large.content).all() and (small.label == large.label).all()


def test_without_dali_installed_the_version_is_none(monkeypatch) -> None:
    monkeypatch.setattr(choice.importlib.util, "find_spec", lambda name: None)
    assert choice.dali_version() is None
