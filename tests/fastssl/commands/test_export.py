"""`fastssl export`: a real run's files in plain timm, open_clip and torch give what `predict` gives; what it refuses."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("timm", reason="timm comes with pip install 'fastssl[vision]'")
pytest.importorskip("open_clip", reason="open_clip comes with pip install 'fastssl[vision]'")
from safetensors.torch import load_file

from fastssl.cli import main
from fastssl.engine import checkpoint
from tests.fastssl.models.test_open_clip import architectures  # noqa: F401 - a fixture

VIT = ["--model", "timm:test_vit", "--weights", "random", "--set", "model.img_size=32", "--set", "model.patch_size=8"]
TOWER = ["--model", "open_clip:tiny-plain", "--weights", "random"]


def train(folder, *more, method="supervised"):
    """Two steps, of a rule by which each weight moves."""
    args = ["--method", method, "--labels-per-class", "2", "--batch-size", "4", "--ratio", "1", "--steps", "2", "--quiet"]
    assert main(["train", *args, "--set", "train.optimizer=adamw", "--lr", "0.02", *more, "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A ViT of timm's with LoRA and an averaged network, and a file of its."""
    return train(tmp_path_factory.mktemp("runs") / "lora", *VIT, "--tune", "lora", "--ema", "0.5")


def pictures(folder, size):
    """Five images of the network's size as files, so that no resizing stands between predict and the plain libraries."""
    folder.mkdir()
    images = np.random.default_rng(0).integers(0, 256, (5, size, size, 3), dtype=np.uint8)
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i}.png")
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def predicted(folder, images, out):
    """[N, C] probabilities of `fastssl predict`."""
    assert main(["predict", str(folder), str(images), "--out", str(out)]) == 0
    with open(out, newline="") as file:
        rows = list(csv.reader(file))
    return rows[0][3:], torch.tensor([[float(cell) for cell in row[3:]] for row in rows[1:]])


def plainly(description, pixels, monkeypatch):
    """[N, C] probabilities by the description alone: its constants and its Python."""
    about = json.loads(description.read_text())
    mean, std = (torch.tensor(about["input"][key]).view(-1, 1, 1) for key in ("mean", "std"))
    names = {"images": (pixels.float() / 255 - mean) / std}
    with monkeypatch.context() as patch, torch.no_grad():
        patch.chdir(description.parent)
        exec("\n".join(about["python"]), names)
    return about, names["logits"].softmax(1)


CASES = {
    "timm lora": ([*VIT, "--tune", "lora"], "timm", 1),
    "timm ssf and biases": ([*VIT, "--tune", "ssf+bias", "--ema", "0.5"], "timm", 1),
    "timm bias": ([*VIT, "--tune", "bias"], "timm", 1),
    "timm full with dropped paths": ([*VIT, "--set", "model.drop_path=0.3"], "timm", 1),
    "timm linear probe first": ([*VIT, "--tune", "lp_ft"], "timm", 1),
    "timm cosine head": ([*VIT, "--set", "model.head=cosine"], "timm", 2),
    "timm convolutions": (["--model", "timm:test_resnet", "--weights", "random", "--set", "data.size=32"], "timm", 1),
    "timm batch-norm": (["--model", "timm:test_resnet", "--weights", "random", "--set", "data.size=32", "--tune", "bn"], "timm", 1),
    "open_clip lora": ([*TOWER, "--tune", "lora"], "open_clip", 2),
    "open_clip ssf, cosine head": ([*TOWER, "--tune", "ssf", "--set", "model.head=cosine"], "open_clip", 2),
    "open_clip full": ([*TOWER, "--tune", "full"], "open_clip", 2),
    "wide residual network": (["--model", "wrn-28-2", "--set", "data.size=16"], "torch", 2),
    "built-in encoder": (["--tune", "lora"], "torch", 2),
    "prompts": ([*VIT, "--tune", "vpt_deep"], "fastssl", 1),
    "adapters": ([*TOWER, "--tune", "adapter+adaptformer"], "fastssl", 1),
}


@pytest.mark.parametrize("case", CASES)
def test_the_files_give_what_predict_gives(case, tmp_path, monkeypatch, capsys):
    args, layout, files = CASES[case]
    method = "finessl" if "cosine" in case or case == "prompts" else "supervised"
    folder = train(tmp_path / "run", *args, method=method)
    out = tmp_path / "net.safetensors"
    flags = ["--merged"] if layout != "fastssl" else []
    assert main(["export", str(folder), "--out", str(out), *flags]) == 0
    said = capsys.readouterr()
    assert str(out) in said.out and ("cannot be folded" in said.err) == (layout == "fastssl")
    about = json.loads((tmp_path / "net.json").read_text())
    pixels = pictures(tmp_path / "images", about["input"]["size"])
    about, got = plainly(tmp_path / "net.json", pixels, monkeypatch)
    classes, expected = predicted(folder, tmp_path / "images", tmp_path / "p.csv")
    assert classes == about["classes"] and about["layout"] == layout and len(about["files"]) == files
    assert (got - expected).abs().max() < 1e-5
    assert about["method"] == method and about["step"] == 2 and shown(about, folder, out)


def shown(about, folder, out):
    """The command that made the files stands in them."""
    return about["made_by"].endswith(f"fastssl export {folder} --out {out}" + (" --merged" if about["layout"] != "fastssl" else ""))


def test_another_runs_file_is_told_by_its_name_alone(run, tmp_path, capsys):
    """What is shared says nothing of the folders of one machine but those of its own command."""
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    assert main(["export", str(run), "--out", str(first)]) == 0
    again = train(tmp_path / "again", *VIT[:2], "--weights", str(first), *VIT[4:])
    assert main(["export", str(again), "--out", str(second)]) == 0
    assert json.loads((tmp_path / "second.json").read_text())["model"]["weights"] == "first.safetensors"


def test_merging_moves_the_weights_that_lora_updates(run, tmp_path):
    assert main(["export", str(run), "--out", str(tmp_path / "net.safetensors"), "--network", "raw"]) == 0
    merged = load_file(tmp_path / "net.safetensors")
    before = checkpoint.newest(run / "checkpoints")[0]["method"]
    names = [key for key in merged if key.startswith("blocks.") and "attn.qkv.weight" in key]
    for key in names:
        moved = (merged[key] - before[f"network.encoder.model.{key}"]).abs()
        width = moved.shape[0] // 3
        # Keys take no update, and are the bits that they were.
        assert moved[:width].max() > 1e-3 and moved[2 * width :].max() > 1e-3 and not moved[width : 2 * width].any()
    assert names and not any("lora" in key for key in merged)
    assert torch.equal(merged["head.weight"], before["network.head.weight"])


def test_either_network_can_be_had(run, tmp_path, capsys):
    heads = {}
    for kind in ("judged", "raw", "ema"):
        out = tmp_path / f"{kind}.safetensors"
        capsys.readouterr()
        assert main(["export", str(run), "--out", str(out), "--network", kind, "--json"]) == 0
        about = json.loads(capsys.readouterr().out)
        assert about["network"] == ("ema" if kind == "judged" else kind) and about["out"] == str(out)
        heads[kind] = load_file(out)["head.weight"]
    assert torch.equal(heads["judged"], heads["ema"]) and not torch.equal(heads["raw"], heads["ema"])


def test_nothing_is_overwritten_unasked(run, tmp_path, capsys):
    out, head, about = (tmp_path / name for name in ("net.safetensors", "net.head.safetensors", "net.json"))
    for path in (out, head, about):
        path.write_text("mine")
        assert main(["export", str(run), "--out", str(out)]) == 2
        assert f"{path} exists" in capsys.readouterr().err and path.read_text() == "mine"
        path.unlink()
    head.write_text("an earlier export's")
    assert main(["export", str(run), "--out", str(out), "--overwrite"]) == 0
    assert main(["export", str(run), "--out", str(out), "--overwrite", "--kept"]) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.json", "net.safetensors"], (
        "no file is left from before, and none half written"
    )
    assert json.loads(about.read_text())["layout"] == "fastssl"


@pytest.mark.parametrize(
    ("args", "code", "fragments"),
    [
        (["RUN", "--out", "net.pt"], 2, ("net.safetensors", "net.pt")),
        (["RUN", "--out", "net.head.safetensors"], 2, ("net.head.safetensors",)),
        (["RUN", "--out", "nowhere/net.safetensors"], 2, ("nowhere", "no folder")),
        (["RUN", "--out", "taken.safetensors"], 2, ("taken.safetensors is a folder",)),
        (["RUN"], 2, ("--out",)),
        (["RUN", "--out", "net.safetensors", "--network", "best"], 2, ("best", "judged")),
        (["RUN", "--out", "net.safetensors", "--merged", "--kept"], 2, ("--merged", "--kept")),
        (["RUN", "--out", "net.safetensors", "--formt"], 2, ("--formt",)),
        (["nowhere", "--out", "net.safetensors"], 6, ("nowhere", "config.yaml")),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_input_is_one_sentence(run, tmp_path, monkeypatch, capsys, args, code, fragments):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken.safetensors").mkdir()
    assert main(["export", *(str(run) if word == "RUN" else word for word in args)]) == code
    text = capsys.readouterr().err
    assert text.startswith("fastssl: ") and text.count("\n") == 1 and all(fragment in text for fragment in fragments), text
    assert [p.name for p in tmp_path.iterdir()] == ["taken.safetensors"]


def test_what_a_run_does_not_hold_is_refused(tmp_path, capsys):
    folder = train(tmp_path / "run", "--tune", "vpt_deep+lora", "--set", "model.prompts=2", "--ema", "0")
    capsys.readouterr()
    for flag, sentence in ((["--merged"], "prompts cannot be folded"), (["--network", "ema"], "keeps no averaged network")):
        assert main(["export", str(folder), "--out", str(tmp_path / "net.safetensors"), *flag]) == 2
        text = capsys.readouterr().err
        assert sentence in text and text.count("\n") == 1
    for path in (folder / "checkpoints").glob("step-*/state.pt"):
        path.write_bytes(b"broken")
    assert main(["export", str(folder), "--out", str(tmp_path / "net.safetensors")]) == 6
    assert "damaged" in capsys.readouterr().err and not list(tmp_path.glob("net*"))


def test_a_full_disk_is_exit_7_and_leaves_nothing(run, tmp_path, monkeypatch, capsys):
    import safetensors.torch
    from safetensors import SafetensorError

    def full(state, path, metadata):
        path.write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    assert main(["export", str(run), "--out", str(tmp_path / "net.safetensors")]) == 7
    assert "no space left" in capsys.readouterr().err and not list(tmp_path.iterdir())
