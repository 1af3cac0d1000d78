"""A language model's recipe with everything in it found and planned, or refused in a sentence, before anything runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, processors

from storage.base.errors import ModelError, RecipeError, SourceError, UsageError
from storage.objectstore.folder import Folder
from storage.samples.described_columns import columns_line
from storage.sources import make_source
from teacher_infer.__main__ import _done_line, _plan_lines, main
from teacher_infer.planning.config import TeacherRecipe
from teacher_infer.planning.prepare import Prepared, actor_settings, lineage_of, prepare, show_plan
from teacher_infer.teachers import make_spec
from tests.tiny_models import SIZE, WORDS, save_model, save_tokenizer

L = 16


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tokenizer(save_model(tmp_path_factory.mktemp("model"))))


Ask = Callable[..., Prepared]


@pytest.fixture
def ask(tmp_path: Path, model: str) -> Ask:
    """`ask(documents, pack, **recipe)`: a recipe over some texts, prepared."""

    def prepared(documents: list[Any] = [*WORDS[2:]] * 4, pack: Any = None, **changed: Any) -> Prepared:
        (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
        packing = {"column": "text", "sequence_length": L, "tokenizer": model, "end_token": "<end>", **(pack or {})}
        recipe = {
            "name": "words",
            "store": str(tmp_path / "store"),
            "source": {"jsonl": str(tmp_path / "a.jsonl"), "pack": packing},
            "teacher": {"path": model, "dtype": "float32", "batch_size": 4},
            "targets": {"encoding": "dense"},
            "tracking": {"uri": False},
        }
        found = TeacherRecipe.model_validate({**recipe, **changed})
        return prepare(found, Folder(found.store))

    return prepared


def keys(prepared: Prepared) -> list[str]:
    return [span.shard_key for part in prepared.parts for span in part.plan.spans]


def test_a_plan_tells_positions_and_classes_without_the_weights(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = ask()
    monkeypatch.setattr("teacher_infer.teachers.transformers.load", None)
    told = show_plan(prepared)
    assert told["classes"] == SIZE
    assert told["positions"] == told["forward_positions"] == prepared.parts[0].plan.rows * L == 240
    assert told["expected_bytes"] >= 240 * SIZE * 2


def test_positions_of_sequences_without_labels_are_counted_too(ask: Ask, tmp_path: Path) -> None:
    rows = "".join(json.dumps({"sample_id": f"r{n}", "input_ids": [2 + n, 3, 4, 5]}) + "\n" for n in range(6))
    (tmp_path / "ids.jsonl").write_text(rows)
    told = show_plan(ask(source={"jsonl": str(tmp_path / "ids.jsonl")}))
    assert told["positions"] == told["forward_positions"] == 24


def test_documents_that_are_skipped_are_counted_in_the_plan_and_in_the_answer(ask: Ask) -> None:
    some = [*WORDS[2:]]
    with pytest.raises(SourceError, match=r"source\.pack\.empty_documents=skip"):
        ask(["", *some, None])
    prepared = ask(["", *some, None, " "], {"empty_documents": "skip"})
    [part] = prepared.parts
    assert show_plan(prepared)["skipped_documents"] == part.answer()["skipped_documents"] == 3
    facts = {**part.answer(), "cache": "u", "cache_digest": "d" * 64, "bytes": 1, "quarantined": 0}
    for lines in (
        _plan_lines({**facts, "forward_positions": 0}, part.columns),
        _done_line({**facts, "forward_positions": 0}),
    ):
        assert lines.splitlines()[0].endswith("; 3 empty documents skipped")
    assert "skipped_documents" not in show_plan(ask(some))


def test_what_is_done_with_empty_documents_moves_no_key(ask: Ask) -> None:
    assert keys(ask()) == keys(ask([*WORDS[2:]] * 4, {"empty_documents": "skip"}))


def test_a_tokenizer_counts_in_the_key_though_the_tokens_are_the_same(
    ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = keys(ask())
    assert keys(ask()) == before
    other = save_tokenizer(tmp_path / "other", to=1000)
    found = ask(pack={"tokenizer": str(other)})
    assert [span.digest for span in found.parts[0].plan.spans] == [s.digest for s in ask().parts[0].plan.spans]
    assert not set(keys(found)) & set(before)


def test_an_actor_makes_the_same_teacher_and_source_of_plain_values(ask: Ask) -> None:
    prepared = ask()
    settings = json.loads(json.dumps(actor_settings(prepared, "leases/1")))
    assert make_spec(settings["spec"]).digest("float32") == prepared.teacher_digest
    [span] = prepared.parts[0].plan.spans
    [source] = map(make_source, settings["sources"])
    assert source.read(span.file, 0, 2).num_rows == 2


def test_the_lineage_says_which_model_and_which_source(ask: Ask, model: str) -> None:
    prepared = ask()
    told = lineage_of(prepared, prepared.parts[0])
    assert told["teacher"]["factory"] == "transformers:LlamaForCausalLM"
    assert told["teacher"]["weights"] == model and told["teacher"]["vocabulary"] == SIZE
    assert told["source"]["pack"]["tokenizer"] == model


# Refused before any work


def test_weights_that_would_not_load_are_refused(ask: Ask, model: str, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(model, tmp_path / "broken"))
    state = load_file(broken / "model.safetensors")
    del state["model.norm.weight"]
    save_file(state, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"do not have model\.norm\.weight as LlamaForCausalLM has"):
        ask(teacher={"path": str(broken), "dtype": "float32", "batch_size": 4})


def test_another_tokenizer_is_refused(ask: Ask, tmp_path: Path) -> None:
    other = save_tokenizer(tmp_path / "other", [*WORDS[:2], *reversed(WORDS[2:])])
    with pytest.raises(UsageError, match=r"has another vocabulary .*Name the teacher's own tokenizer"):
        ask(pack={"tokenizer": str(other)})


def test_token_ids_outside_the_vocabulary_are_refused(ask: Ask) -> None:
    with pytest.raises(SourceError, match=rf"has the token id {SIZE}\."):
        ask([[3, SIZE]], {"tokenizer": None, "end_token": None})


def test_sequences_beyond_the_context_are_refused(ask: Ask) -> None:
    with pytest.raises(SourceError, match=r"takes 64 \(max_position_embeddings\)"):
        ask(pack={"sequence_length": 65})


def test_an_empty_document_is_refused(ask: Ask) -> None:
    with pytest.raises(SourceError, match=r"The document 'a\.jsonl:1' .* has no tokens"):
        ask(["w1", "", "w2"])


def test_a_held_out_source_is_looked_at_too(ask: Ask, tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_text('{"text": [99]}\n')
    second = {"jsonl": str(tmp_path / "b.jsonl"), "pack": {"column": "text", "sequence_length": L}}
    with pytest.raises(SourceError, match="has the token id 99"):
        ask(held_out={"name": "held", "source": second})


@pytest.mark.parametrize(
    "place, changed",
    [
        ("source.jsonl", {"source": {"jsonl": "https://me:hunter2@host/a.jsonl"}}),
        ("source.arguments.password", {"source": {"function": "a:b", "arguments": {"password": "hunter2"}}}),
        (
            "held_out.source.parquet",
            {"held_out": {"name": "h", "source": {"parquet": "https://host/a.parquet?sig=hunter2"}}},
        ),
        ("teacher.path", {"teacher": {"path": "s3://k:hunter2@bucket/m", "dtype": "float32", "batch_size": 4}}),
        (
            "teacher.weights",
            {
                "teacher": {
                    "factory": "a:b",
                    "weights": "https://host/w.safetensors?X-Amz-Signature=hunter2",
                    "dtype": "float32",
                    "batch_size": 4,
                }
            },
        ),
        (
            "teacher.arguments.api_key",
            {"teacher": {"factory": "a:b", "arguments": {"api_key": "hunter2"}, "dtype": "float32", "batch_size": 4}},
        ),
    ],
)
def test_a_secret_that_would_be_sealed_is_refused_before_any_work(ask: Ask, place: str, changed: Any) -> None:
    with pytest.raises(RecipeError, match=rf"^{place} holds a password, a token or a key") as caught:
        ask(**changed)
    assert "hunter2" not in str(caught.value)


def test_a_url_that_holds_no_secret_is_sealed_whole(ask: Ask, tmp_path: Path) -> None:
    url = f"{tmp_path}/ids.jsonl?partition_key=2024"
    Path(url).write_text("".join(json.dumps({"sample_id": n, "input_ids": [2 + n, 3]}) + "\n" for n in range(3)))
    prepared = ask(source={"jsonl": url})
    lineage = lineage_of(prepared, prepared.parts[0])
    assert lineage["source"]["jsonl"] == url
    assert make_source(lineage["source"]).files()[0].rows == 3


def test_a_plan_says_which_columns_are_inputs_and_which_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_yaml: Callable[..., str], capfd: pytest.CaptureFixture[str]
) -> None:
    frame = pd.DataFrame({"sample_id": range(6), "x": np.zeros(6, np.float32), "label": [0, 1, 2] * 2})
    (tmp_path / "data" / "year=2024").mkdir(parents=True)
    frame[frame.label != 1].to_parquet(tmp_path / "data" / "year=2024" / "a.parquet")
    (tmp_path / "plan_nets.py").write_text(
        "import torch\nclass Net(torch.nn.Linear):\n    def forward(self, x): return super().forward(x[:, None])\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    recipe = write_yaml(
        name="toy",
        store=str(tmp_path / "store"),
        source={"parquet": str(tmp_path / "data")},
        teacher={
            "factory": "plan_nets:Net",
            "arguments": {"in_features": 1, "out_features": 3},
            "dtype": "float32",
            "batch_size": 4,
        },
        targets={"encoding": "dense"},
        tracking={"uri": "off"},
    )
    assert main([recipe, "--plan"]) == 0
    assert (
        "\n  inputs: x float32; label: label int64; sample_id: sample_id int64; left out, unless source.columns.inputs "
        "names them: '__index_level_0__' (the index of a pandas data frame), 'year' (a partition: folders named "
        "key=value)\n"
    ) in capfd.readouterr().out
    assert main([recipe, "--plan", "--json"]) == 0
    plan = json.loads(capfd.readouterr().out)
    assert plan["inputs"] == {"x": {"dtype": "float32", "shape": []}}
    assert [one["column"] for one in plan["left_out"]] == ["__index_level_0__", "year"]
    assert main([recipe, "--plan", "--json", "source.columns.inputs=[year]"]) == 0
    plan = json.loads(capfd.readouterr().out)
    assert (list(plan["inputs"]), plan["left_out"]) == (["year"], [])


def test_a_plan_says_once_which_files_were_left_out(
    ask: Ask, tmp_path: Path, model: str, capfd: pytest.CaptureFixture[str], write_yaml: Callable[..., str]
) -> None:
    prepared = ask()
    data = tmp_path / "data"
    (data / "_temporary").mkdir(parents=True)
    (data / "a.jsonl").symlink_to(tmp_path / "a.jsonl")
    (data / "_temporary" / "b.jsonl").write_text('{"text": "w1"}\n')
    (data / "README.md").write_text("words")
    note = (
        f"Source {data}: 1 link followed (a.jsonl); left out: 1 with a name that begins with '_' or '.' (_temporary); "
        "left out: 1 file of another ending than .jsonl or .ndjson, also followed by .gz, .zst, .bz2, .xz (1 .md)."
    )
    source = {"jsonl": str(data), "pack": prepared.recipe.source.pack.model_dump()}
    held_out = {"name": "again", "source": source}
    recipe = prepared.recipe.model_dump(mode="json") | {"source": source, "held_out": held_out}
    path = write_yaml(**recipe)
    assert main([path, "--plan", "--json"]) == 0
    out, err = capfd.readouterr()
    assert json.loads(out)["notes"] == [note]
    assert err.count(note) == 1
    assert "notes" not in show_plan(prepared)


def test_a_plan_of_documents_has_the_inputs_of_packed_rows(ask: Ask) -> None:
    told = show_plan(ask())
    assert told["inputs"]["input_ids"] == {"dtype": "int32", "shape": [L]}
    assert (told["label"]["column"], told["left_out"]) == ("label", [])
    assert told["preprocessing"]["special_tokens"] == {"before": [], "after": []}
    assert columns_line(told).endswith("; the tokenizer adds nothing before a document, nothing after it")


def test_a_plan_of_documents_says_which_special_tokens_and_columns_there_are(tmp_path: Path, model: str) -> None:
    made = Tokenizer.from_file(f"{model}/tokenizer.json")
    made.post_processor = processors.TemplateProcessing(single="<end> $A", special_tokens=[("<end>", 1)])
    made.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "a.jsonl").write_text('{"text": "w1", "url": "u"}\n')
    recipe = {
        "name": "words",
        "store": str(tmp_path / "store"),
        "source": {
            "jsonl": str(tmp_path / "a.jsonl"),
            "pack": {"column": "text", "sequence_length": L, "tokenizer": str(tmp_path)},
        },
        "teacher": {"path": model, "dtype": "float32", "batch_size": 4},
        "targets": {"encoding": "dense"},
        "tracking": {"uri": False},
    }
    found = TeacherRecipe.model_validate(recipe)
    line = columns_line(show_plan(prepare(found, Folder(found.store))))
    assert "; left out: 'url' (pack takes 'text' alone); the tokenizer adds <end> before a document, nothing" in line
