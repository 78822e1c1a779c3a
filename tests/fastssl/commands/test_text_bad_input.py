"""`fastssl train` on texts: networks and data that do not go together end in one sentence, and leave no run directory."""

import shutil

import pytest

from tests import text_set
from tests.fastssl.text_runs import fails


@pytest.fixture
def refused(tmp_path, capsys):
    def check(args, code, *words):
        fails(capsys, ["train", "--quiet", "--steps", "2", "--method", "supervised", *args, "--out", tmp_path / "made"], code, *words)
        assert not (tmp_path / "made").exists()

    return check


def test_a_tokenizer_without_the_encoder_and_the_other_way_round(tmp_path, refused, texts):
    data = texts.flags[:-1]
    for name, taken, words in (
        ("alone", ("config.json", "model.safetensors"), ("tokenizer", "no encoder", "config.json")),
        ("mute", ("tokenizer.json", "tokenizer_config.json"), ("no tokenizer", "tokenizer.json")),
        ("empty", ("model.safetensors",), ("no safetensors weights",)),
    ):
        place = shutil.copytree(texts.encoder, tmp_path / name)
        for file in taken:
            (place / file).unlink()
        refused([*data, f"transformers:{place}"], 4, name, *words)
    other = text_set.encoder(tmp_path / "other", classes=8)
    mixed = shutil.copytree(texts.encoder, tmp_path / "mixed")
    shutil.copy(other / "tokenizer.json", mixed / "tokenizer.json")
    refused([*data, f"transformers:{mixed}"], 4, "do not belong together")


def test_images_for_a_text_model_and_the_other_way_round(tmp_path, refused, texts):
    from PIL import Image

    for name in ("a", "b"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "photos" / name / "one.png")
    model, table = texts.flags[-1], texts.files.train
    refused(["--data", tmp_path / "photos", "--model", model], 2, "reads texts", "holds images")
    refused(["--data", "digits", "--model", model], 2, "reads texts", "digits holds images")
    for name in ("glyph_clip", "wrn-10-1"):
        refused(["--data", table, "--model", name], 2, "holds texts", f"{name} reads images", "transformers:")


def test_labels_never_seen_and_tables_that_cannot_be_read(tmp_path, refused, texts):
    model = texts.flags[-2:]
    strange = tmp_path / "strange.csv"
    strange.write_text("text,label\nfine,music\nodd,cooking\n")
    refused(["--data", texts.files.train, "--test", strange, *model], 3, "strange.csv:3", "cooking")
    wide = tmp_path / "wide.csv"
    wide.write_text("text,label\na,x\nb,y,z\n")
    refused(["--data", wide, *model], 3, "wide.csv:3", "3")
    bytes_ = tmp_path / "bytes.csv"
    bytes_.write_bytes(b"text,label\nfine,a\n\xff,b\n")
    refused(["--data", bytes_, *model], 3, "bytes.csv:3", "UTF-8")
    api = tmp_path / "api.csv"
    api.write_text("id,label\ntrain/000001,music\ntrain/000002,cooking\n")
    refused([*texts.flags, "--method", "zeromatch", "--foundation-labels", api], 3, "api.csv:3", "unknown class 'cooking'")
    api.write_text("id,label\nreviews/000001,music\n")
    refused(
        [*texts.flags, "--method", "zeromatch", "--foundation-labels", api], 3, "labels for other ids", "reviews/000001", "train/000001"
    )
