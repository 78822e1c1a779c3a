"""Runs on texts: captured steps of several lengths, resume, what a run says of itself, tables in memory, and what does not go together."""

import json

import pytest
import torch

from fastssl import methods
from fastssl.config import resolve
from fastssl.engine import modes
from fastssl.engine.assemble import assemble
from fastssl.engine.run import Run, resume
from fastssl.engine.saved import saved_config
from fastssl.pipelines import keyed, order
from fastssl.pipelines.errors import ConfigError
from fastssl.pipelines.text_table import from_table
from tests import text_set
from tests.fastssl import text_runs


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return text_runs.made(tmp_path_factory.mktemp("texts"), rows=160)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def config_of(texts, method="fixmatch", **values):
    layer = {
        "data.name": str(texts.files.train),
        "data.test": str(texts.files.test),
        "data.labels_per_class": 3,
        "model.name": f"transformers:{texts.encoder}",
        "train.steps": 20,
        "train.batch_size": 4,
        "train.ratio": 2,
        "train.lr": 0.003,
        "train.optimizer": "adamw",
        **{key.replace("__", "."): value for key, value in values.items()},
    }
    return resolve(method, methods.find(method).Config, [("the test", layer)])


def run_of(texts, folder=None, method="fixmatch", **values):
    return Run(assemble(config_of(texts, method, **values), quiet=True), folder, quiet=True)


def weights(run):
    return [value.clone() for value in run.method.state_dict().values()]


def torch_rounds(position, n, pivots, coins):
    """The order's rounds by torch, which a tape sees; on the CPU they run in numpy."""
    for r in range(order.ROUNDS):
        partner = pivots[:, r] - position
        partner = torch.where(partner < 0, partner + n, partner)
        coin = keyed.mixed(coins[:, r] + torch.maximum(position, partner)) & 1
        position = torch.where(coin == 1, partner, position)
    return position


@pytest.mark.parametrize("method", ["fixmatch", "freematch", "mixmatch"])
def test_each_length_is_one_captured_step(texts, steps, monkeypatch, method):
    """Twenty steps of several lengths by recordings of each, bit for bit those of the step's own code."""
    monkeypatch.setattr(order, "_on_the_host", torch_rounds)
    ends, sums, forms = [], [], []
    for taped in (False, True):
        run = run_of(texts, method=method, model__encoder_dropout=0.0)
        run.pipeline.capturable = True
        run.method.train()
        if taped:
            before = weights(run)
            steps.captured(run.step)
            assert all(map(torch.equal, before, weights(run))) and run.pipeline.draws == 0
            for _ in range(20):
                forms.append(run.pipeline.form)
                run.step()
            assert len(run.step.run.recordings) == len(run.pipeline.forms) > 1
            assert {form: tape.replays for form, tape in run.step.run.recordings.items()} == {f: forms.count(f) for f in run.pipeline.forms}
        else:
            steps.eagerly(run.step, 20)
        ends.append(weights(run))
        sums.append(run.step.read())
        assert run.pipeline.draws == 20
    assert len(set(forms)) > 1 and all(map(torch.equal, *ends)) and sums[0] == sums[1]


def test_a_form_that_comes_up_later_is_recorded_then(texts, steps, monkeypatch):
    monkeypatch.setattr(order, "_on_the_host", torch_rounds)
    run = run_of(texts, model__encoder_dropout=0.0)
    run.pipeline.capturable = True
    run.method.train()
    steps.captured(run.step)
    late, renewed = run.pipeline.forms[-1], []
    run.step.run.recordings.pop(late)
    run.step.run.renew = lambda: renewed.append(run.pipeline.form)
    for _ in range(20):
        run.step()
    assert renewed == [late], "its functions are compiled anew: another stage may have taken them"
    assert run.pipeline.forms[-1] in run.step.run.recordings and run.pipeline.draws == 20


def test_compiled_steps_equal_eager_ones(texts):
    ends = []
    for mode in ("eager", "compile"):
        run = run_of(texts, model__encoder_dropout=0.0)
        run.method.train()
        modes.prepare(run.step, mode, lambda text: pytest.fail(text), backend="aot_eager")
        assert run.pipeline.draws == 0
        for _ in range(6):
            run.step()
        ends.append(weights(run))
    for a, b in zip(*ends, strict=True):
        assert torch.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("method", ["fixmatch", "vat", "remixmatch", "temporal_ensembling"])
def test_resume_is_bitwise(texts, tmp_path, method):
    """With dropout, which torch's generator draws."""
    more = {"method__lambda_rotation": 0.0, "method__ctaugment": False} if method == "remixmatch" else {}
    whole = run_of(texts, tmp_path / "whole", method, **more)
    whole.train()
    part = run_of(texts, tmp_path / "part", method, train__stop_at=11, **more)
    part.train()
    again = resume(saved_config(tmp_path / "part", trains=True), tmp_path / "part", quiet=True)
    again.config = type(again.config)(**{**again.config.__dict__, "train": whole.config.train})
    again.train()
    assert again.done == 20
    for (name, a), (_, b) in zip(whole.method.state_dict().items(), again.method.state_dict().items(), strict=True):
        assert torch.equal(a, b), name
    assert int(whole.pipeline.tokens_seen) == int(again.pipeline.tokens_seen)


def test_a_run_counts_tokens_and_says_how_texts_are_read(texts, tmp_path):
    result = run_of(texts, tmp_path / "run", train__report_every=5).train()
    assert result["tokens_per_second"] > 0 and result["accuracy"] > 0.5
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "test texts" in log and "tokens on the mean, read up to" in log and "padded to" in log and "strong view tfidf" in log
    trained = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines() if '"event": "train"' in line]
    assert all(record["tokens_per_second"] > 0 for record in trained)


def test_a_table_in_memory_trains_as_the_file_does(texts, tmp_path):
    config = config_of(texts)
    read = lambda path: [dict(zip(("text", "label"), (row["text"], row["label"]), strict=True)) for row in text_runs.rows_of(path)]  # noqa: E731
    source = from_table(read(texts.files.train), test=read(texts.files.test), name="train")
    from_file = Run(assemble(config, quiet=True), None, quiet=True)
    from_memory = Run(assemble(config, source=source, quiet=True), None, quiet=True)
    assert from_memory.train()["accuracy"] == pytest.approx(from_file.train()["accuracy"], abs=0.15)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"model__name": "glyph_clip"}, "holds texts, and glyph_clip reads images"),
        ({"data__name": "digits", "data__test": None}, "reads texts, and digits holds images"),
        ({"data__size": 32}, "data.size is"),
        ({"data__workers": 3}, "data.workers is of images"),
        ({"model__normalise": "data"}, "model.normalise is of networks for images"),
        ({"data__policy": "fixmatch"}, "policy 'fixmatch' is for images"),
        ({"data__policy": "back_translation"}, "text_aug_0"),
        ({"data__max_length": 65}, "takes 64 tokens at most"),
        ({"method__ctaugment": True}, "method.ctaugment learns how strong views of images"),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_said(texts, values, words):
    with pytest.raises(ConfigError, match=words):
        assemble(config_of(texts, **values), quiet=True)


@pytest.mark.parametrize("method", ["remixmatch"])
def test_a_plain_command_leaves_out_what_texts_cannot_do(texts, tmp_path, method):
    from fastssl.cli import main

    assert main(["train", "--method", method, *texts.flags, *text_runs.STEPS, "--steps", "4", "--out", str(tmp_path / "run")]) == 0
    assert text_set.CLASSES[0] in (tmp_path / "run" / "split.csv").read_text()


def test_another_tokenizer_is_noticed(texts, tmp_path, capsys):
    """Its ids would mean other words, and nothing else would show it."""
    import shutil

    from fastssl.cli import main

    own = tmp_path / "encoder"
    shutil.copytree(texts.encoder, own)
    moved = text_runs.Made(texts.files, own, [*texts.flags[:-1], f"transformers:{own}"])
    run = text_runs.trained(tmp_path / "run", moved, "--steps", "6", "--set", "train.stop_at=3")
    table = json.loads((own / "tokenizer.json").read_text())
    words = table["model"]["vocab"]
    words["music"], words["science"] = words["science"], words["music"]
    (own / "tokenizer.json").write_text(json.dumps(table))
    for command in (["eval", str(run)], ["predict", str(run), str(texts.files.test)], ["train", "--resume", str(run)]):
        assert main(command) == 6
        assert "bring the old one back" in capsys.readouterr().err


def test_a_plain_commands_decay_gives_way_where_layers_are_unknown(texts, monkeypatch):
    from fastssl.models import towers

    monkeypatch.setattr(towers, "layers", lambda encoder: None)
    asked = {"train.layer_decay": 0.5}
    plain = config_of(texts)
    values = {f"{section}.{name}": value for section, body in plain.nested().items() for name, value in body.items()}
    layers = [("the test", {key: value for key, value in values.items() if key != "data.policy"})]
    soft = assemble(resolve("fixmatch", methods.find("fixmatch").Config, [*layers, ("preset", asked)]), quiet=True)
    assert soft.config.train.layer_decay == 1.0 and any("one learning rate for all layers" in note for note in soft.notes)
    with pytest.raises(ConfigError, match="whose layers are known"):
        assemble(resolve("fixmatch", methods.find("fixmatch").Config, [*layers, ("the command line", asked)]), quiet=True)


def written(path, rows):
    import csv

    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(rows[0])
        writer.writerows(rows[1:])
    return path


def test_test_texts_do_not_decide_how_training_texts_are_read(texts, tmp_path):
    rows = [tuple(row.values()) for row in text_runs.rows_of(texts.files.test)]
    long = written(tmp_path / "long.csv", [("text", "label"), *((f"{text} {text} {text}", label) for text, label in rows)])
    plain, other = (run_of(texts, data__test=str(test)) for test in (texts.files.test, long))
    assert plain.config.data.max_length == other.config.data.max_length == other.pipeline.reads
    assert (
        int(other.pipeline._size.max()) == other.pipeline.reads > int(plain.pipeline._size[: len(plain.parts.split.unlabelled)].max()) - 8
    )


def test_a_blank_column_of_translations_is_none(texts, tmp_path):
    rows = [tuple(row.values()) for row in text_runs.rows_of(texts.files.train)]
    table = written(tmp_path / "blank.csv", [("text", "label", "text_aug_0"), *((*row, " ") for row in rows)])
    layer = {"data.name": str(table), "data.test": str(texts.files.test), "model.name": f"transformers:{texts.encoder}", "train.steps": 2}
    config = resolve("fixmatch", methods.find("fixmatch").Config, [("the test", layer)])
    assert assemble(config, quiet=True).config.data.policy == "tfidf"


def test_two_views_that_are_one_are_warned_of(texts):
    def warned(**more):
        return [text for text in assemble(config_of(texts, "pi_model", **more), quiet=True).warnings if "learns nothing" in text]

    assert warned(model__encoder_dropout=0.0) and warned(model__tune="linear")
    assert not warned() and not warned(model__encoder_dropout=0.0, data__token_dropout=0.1)
    assert not warned(model__encoder_dropout=0.0, method__noise=0.1)


def test_an_encoder_of_an_odd_length_is_judged_too(tmp_path):
    from fastssl.cli import main

    files, place = text_set.made(tmp_path, 80), text_set.informed_encoder(tmp_path / "encoder", longest=13)
    odd = text_runs.Made(files, place, ["--data", str(files.train), "--test", str(files.test), "--model", f"transformers:{place}"])
    run = text_runs.trained(tmp_path / "run", odd, "--steps", "3")
    assert main(["eval", str(run)]) == 0 and main(["predict", str(run), str(files.test), "--out", str(tmp_path / "p.csv")]) == 0
    right = [a["label"] == b["label"] for a, b in zip(text_runs.rows_of(tmp_path / "p.csv"), text_runs.rows_of(files.test), strict=True)]
    assert sum(right) / len(right) == pytest.approx(text_runs.result_of(run)["accuracy"], abs=1e-9)


def test_what_a_card_asks_for_in_vain_is_said(tmp_path):
    place = text_set.encoder(tmp_path / "encoder")
    (place / "sentence_bert_config.json").write_text('{"max_seq_length": 32, "do_lower_case": true}')
    (place / "config_sentence_transformers.json").write_text('{"default_prompt_name": "query"}')
    files = text_set.made(tmp_path, 80)
    layer = {"data.name": str(files.train), "model.name": f"transformers:{place}", "train.steps": 2, "data.labels_per_class": 2}
    parts = assemble(resolve("supervised", methods.find("supervised").Config, [("the test", layer)]), quiet=True)
    (said,) = [text for text in parts.warnings if "asks for" in text]
    assert "do_lower_case" in said and "the prompt 'query'" in said
