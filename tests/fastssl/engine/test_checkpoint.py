"""Checkpoints are whole or absent, and never read when damaged."""

import json
import os

import pytest
import torch

from fastssl.engine import checkpoint
from fastssl.pipelines.errors import CheckpointError, ResourceError


def write(folder, step, value=1.0, keep=2):
    return checkpoint.save(folder, step, {"x": torch.full((3,), value), "n": step}, {"method": "toy"}, keep=keep)


def test_round_trip_and_rotation(tmp_path):
    for step in (5, 10, 15):
        write(tmp_path, step, float(step))
    assert [p.name for p in checkpoint.listed(tmp_path)] == ["step-10", "step-15"]
    state, manifest, complaints = checkpoint.newest(tmp_path)
    assert torch.equal(state["x"], torch.full((3,), 15.0)) and manifest["step"] == 15 and not complaints


@pytest.mark.parametrize("damage", ["truncate", "flip", "manifest", "gone"])
def test_damage_is_named_and_the_previous_one_serves(tmp_path, damage):
    write(tmp_path, 1)
    last = write(tmp_path, 2)
    data = last / "state.pt"
    if damage == "truncate":
        os.truncate(data, 100)
    elif damage == "flip":
        raw = bytearray(data.read_bytes())
        raw[len(raw) // 2] ^= 1
        data.write_bytes(raw)
    elif damage == "manifest":
        (last / "MANIFEST.json").write_text("{")
    else:
        data.unlink()
    with pytest.raises(CheckpointError, match="step-2"):
        checkpoint.load(last)
    _, manifest, complaints = checkpoint.newest(tmp_path)
    assert manifest["step"] == 1 and "step-2" in complaints[0]


@pytest.mark.parametrize("at", range(8))
def test_a_kill_at_any_point_of_a_save_leaves_the_previous_one(tmp_path, monkeypatch, at):
    """Every system call of the writer in turn is where the process dies."""

    class Killed(BaseException):
        pass

    write(tmp_path, 1)
    calls = iter(range(100))

    def dying(real):
        def call(*args, **kwargs):
            if next(calls) == at:
                raise Killed
            return real(*args, **kwargs)

        return call

    for name in ("fsync", "rename", "open"):
        monkeypatch.setattr(os, name, dying(getattr(os, name)))
    try:
        write(tmp_path, 2)
        died = False
    except Killed:
        died = True
    monkeypatch.undo()
    _, manifest, _ = checkpoint.newest(tmp_path)
    assert manifest["step"] in ((1, 2) if died else (2,))
    write(tmp_path, 3)
    assert checkpoint.newest(tmp_path)[1]["step"] == 3


def test_full_disk_keeps_the_old_one(tmp_path, monkeypatch):
    write(tmp_path, 1)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError, match="no space left"):
        write(tmp_path, 2)
    monkeypatch.undo()
    assert checkpoint.newest(tmp_path)[1]["step"] == 1
    assert not list(tmp_path.glob(".writing*"))


def test_what_a_killed_writer_left_is_cleared(tmp_path):
    for name in (".writing-7-1", ".old-7-1"):
        (tmp_path / name).mkdir()
    write(tmp_path, 8)
    assert [p.name for p in tmp_path.iterdir()] == ["step-8"]


def test_another_schema_is_refused(tmp_path):
    path = write(tmp_path, 1) / "MANIFEST.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"schema": 99}))
    with pytest.raises(CheckpointError, match="schema 99"):
        checkpoint.load(path.parent)


def test_no_checkpoint_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        checkpoint.newest(tmp_path)


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "bombed"),))

    path = write(tmp_path, 1)
    torch.save({"x": Bomb()}, path / "state.pt")
    manifest = json.loads((path / "MANIFEST.json").read_text())
    manifest["files"]["state.pt"] = {"bytes": (path / "state.pt").stat().st_size, "sha256": checkpoint.sha256(path / "state.pt")}
    (path / "MANIFEST.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="more than tensors"):
        checkpoint.load(path)
    assert not (tmp_path / "bombed").exists()
