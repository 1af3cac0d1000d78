"""What is known of a model in Hugging Face's form without loading it: its files, its digest, the hub."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from jobs.models.hugging_face import HuggingFaceSpec
from storage.base.errors import ModelError, SourceError
from storage.samples.samples import Columns, as_samples
from tests.tiny_models import WORDS, save_model, save_tokenizer


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tokenizer(save_model(tmp_path_factory.mktemp("model")))


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Callable[[str], Path]:
    return lambda name: Path(shutil.copytree(saved, tmp_path / name))


def split(folder: Path) -> Path:
    """The same weights in two files with an index."""
    from safetensors.torch import load_file, save_file

    state = load_file(folder / "model.safetensors")
    names = sorted(state)
    files = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, held in files.items():
        save_file({name: state[name] for name in held}, folder / file, metadata={"format": "pt"})
    where = {name: file for file, held in files.items() for name in held}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    (folder / "model.safetensors").unlink()
    return folder


def test_the_digest_is_the_contents(saved: Path, copy: Callable[[str], Path]) -> None:
    asked = HuggingFaceSpec(str(saved)).digest("float32")
    assert HuggingFaceSpec(str(copy("same"))).digest("float32") == asked
    others = {
        HuggingFaceSpec(str(saved)).digest("float16"),
        HuggingFaceSpec(str(saved), vocabulary=9).digest("float32"),
    }
    weights = copy("weights")
    save_model(weights, seed=1)
    config = copy("config")
    (config / "config.json").write_text((config / "config.json").read_text() + "\n")
    smaller = copy("smaller tokenizer")
    save_tokenizer(smaller, WORDS[:11])
    sharded = split(copy("sharded"))
    others |= {HuggingFaceSpec(str(folder)).digest("float32") for folder in (weights, config, smaller, sharded)}
    assert len(others - {asked}) == 6


def test_each_of_several_files_and_the_index_count(copy: Callable[[str], Path]) -> None:
    folder = split(copy("sharded"))
    asked = HuggingFaceSpec(str(folder))
    first, hashed = asked.digest("float32"), asked.weights_sha256()
    file = folder / "model-00002-of-00002.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert HuggingFaceSpec(str(folder)).digest("float32") != first
    assert HuggingFaceSpec(str(folder)).weights_sha256() != hashed
    file.write_bytes(whole)
    index = folder / "model.safetensors.index.json"
    index.write_text(index.read_text() + " ")
    assert HuggingFaceSpec(str(folder)).digest("float32") != first


def test_a_single_files_hash_is_the_weights(saved: Path) -> None:
    import hashlib

    found = HuggingFaceSpec(str(saved)).weights_sha256()
    assert found == hashlib.sha256((saved / "model.safetensors").read_bytes()).hexdigest()


def test_a_missing_part_is_named(copy: Callable[[str], Path]) -> None:
    folder = split(copy("sharded"))
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelError, match=r"lacks model-00002-of-00002\.safetensors\..*names 2 .*Copy the whole folder"):
        HuggingFaceSpec(str(folder)).digest("float32")


def test_an_index_leads_nowhere_else(copy: Callable[[str], Path]) -> None:
    folder = split(copy("sharded"))
    (folder / "model.bin").touch()
    for odd in ("../model/model.safetensors", "model.bin"):
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": odd}}))
        with pytest.raises(ModelError, match="lacks"):
            HuggingFaceSpec(str(folder)).digest("float32")


def test_the_lineage_has_the_words_of_a_factorys(saved: Path) -> None:
    told = HuggingFaceSpec(str(saved)).lineage()
    assert told == {
        "kind": "transformers",
        "factory": "transformers:LlamaForCausalLM",
        "arguments": {},
        "weights": str(saved),
        "vocabulary": len(WORDS),
    }


def test_planning_needs_no_torch(saved: Path) -> None:
    code = (
        "import sys; from jobs.models.hugging_face import HuggingFaceSpec; "
        f"HuggingFaceSpec({str(saved)!r}).digest('float32'); "
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr == ""


def test_a_folder_far_away_is_refused() -> None:
    with pytest.raises(ModelError, match=r"lies on memory://\..*Copy it to a shared folder"):
        HuggingFaceSpec("memory://models/a").digest("float32")


# The hub

HUB = {"hub": "someone/model", "revision": "0123456789abcdef" * 2 + "01234567"}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], list[dict[str, Any]]]:
    """`hub(answer)`: what the hub's client does from now on; gives the calls that it had."""
    import huggingface_hub

    calls: list[dict[str, Any]] = []

    def answers(answer: Any) -> list[dict[str, Any]]:
        def snapshot_download(name: str, **settings: Any) -> str:
            calls.append({"name": name, **settings})
            return answer(settings)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
        return calls

    return answers


def test_what_was_fetched_once_is_not_asked_for_again(hub: Any, saved: Path) -> None:
    calls = hub(lambda settings: str(saved))
    spec = HuggingFaceSpec(**HUB)
    assert spec.digest("float32") == HuggingFaceSpec(str(saved)).digest("float32")
    assert [call["local_files_only"] for call in calls] == [True]
    assert calls[0]["name"] == HUB["hub"] and calls[0]["revision"] == HUB["revision"]
    assert not any("bin" in pattern or pattern == "*" for pattern in calls[0]["allow_patterns"])
    told = spec.lineage()
    assert (told["hub"], told["revision"]) == (HUB["hub"], HUB["revision"])


def test_what_is_there_in_part_is_fetched(hub: Any, saved: Path, copy: Callable[[str], Path]) -> None:
    part = copy("part")
    (part / "model.safetensors").unlink()
    calls = hub(lambda settings: str(part if settings.get("local_files_only") else saved))
    HuggingFaceSpec(**HUB).digest("float32")
    assert len(calls) == 2


def test_without_a_network_the_folder_form_is_named(hub: Any) -> None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    def fails(settings: Any) -> str:
        raise LocalEntryNotFoundError("Got: ConnectError: Name or service not known\nPlease check your connection")

    hub(fails)
    with pytest.raises(ModelError) as caught:
        HuggingFaceSpec(**HUB).digest("float32")
    said = str(caught.value)
    assert said.startswith("The model 'someone/model' at 0123456789ab cannot be had from the hub (LocalEntry")
    assert "copy the model's folder (config.json, *.safetensors, tokenizer.json)" in said
    assert "teacher.path" in said and "\n" not in said


def test_a_snapshot_without_its_tokenizer_is_completed_where_the_hub_answers(
    hub: Any, saved: Path, copy: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    """Otherwise the key would depend on what somebody fetched to this machine before."""
    part = copy("weights alone")
    (part / "tokenizer.json").unlink()
    calls = hub(lambda settings: str(part if settings.get("local_files_only") else saved))
    assert HuggingFaceSpec(**HUB).digest("float32") == HuggingFaceSpec(str(saved)).digest("float32")
    assert len(calls) == 2

    def no_network(settings: Any) -> str:
        if settings.get("local_files_only"):
            return str(part)
        raise OSError("no route to host")

    hub(no_network)
    caplog.set_level("WARNING", "stillhouse.hub")
    assert HuggingFaceSpec(**HUB).folder == part
    assert "has no tokenizer.json: all of its head is taken for classes" in caplog.text


# What a config says


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({"id2label": {"0": "score"}}, "names 1 labels. A classifier has two or more"),
        ({"num_labels": 0}, "names 0 labels"),
        ({"num_labels": "3"}, "names '3' labels"),
        ({"id2label": 3, "num_labels": 1}, "names 1 labels"),
        ({"num_labels": 3, "problem_type": "multi_label_classification"}, "has the problem_type multi_label"),
        ({"num_labels": 3, "problem_type": "regression"}, "has the problem_type regression"),
    ],
    ids=str,
)
def test_a_classifier_whose_answers_are_no_distribution_is_refused(
    config: dict[str, Any], found: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["BertForSequenceClassification"], **config}))
    with pytest.raises(ModelError) as caught:
        HuggingFaceSpec(str(tmp_path)).classes  # noqa: B018
    assert found in str(caught.value)


def test_a_classifiers_labels_are_counted(tmp_path: Path) -> None:
    for config, classes in (({"num_labels": 3}, 3), ({"id2label": {"0": "a", "1": "b"}}, 2), ({}, 2)):
        about = {"architectures": ["BertForSequenceClassification"], "problem_type": "single_label_classification"}
        (tmp_path / "config.json").write_text(json.dumps({**about, **config}))
        assert HuggingFaceSpec(str(tmp_path)).classes == classes


def test_an_index_of_no_names_and_a_tokenizer_that_is_none_are_sentences(copy: Callable[[str], Path]) -> None:
    folder = split(copy("odd"))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": 1}}))
    with pytest.raises(ModelError, match="has no weight_map of names of files"):
        HuggingFaceSpec(str(folder)).weights_files()
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": "x"}}}))
    with pytest.raises(SourceError, match=r"tokenizer\.json' cannot be read by tokenizers \d.*install that one"):
        HuggingFaceSpec(str(folder)).classes  # noqa: B018


# What the rows say


@pytest.mark.parametrize(
    ("ids", "label", "refused"),
    [
        ([[3, 4, 5], [6, 7, 8]], [[3, 4, 5], [6, 7, 8]], True),
        ([[3, 4, 5], [6, 7, 8]], [[-100, 4, 5], [6, -100, 8]], True),
        ([[3, 4, 5], [6, 7, 8]], [[4, 5, -100], [7, 8, -100]], False),
        ([[3, 3, 3], [6, 6, 6]], [[3, 3, -100], [6, 6, -100]], False),
        ([[3, 3, 4], [6, 6, 6]], [[3, 4, -100], [6, 6, -100]], False),
        ([[3, 4, 5], [6, 7, 8]], [[-100] * 3] * 2, False),
    ],
    ids=["own", "own, some masked", "next", "one token again and again", "a repeated one", "none"],
)
def test_labels_that_are_the_tokens_at_their_own_place_are_refused(
    saved: Path, ids: list[list[int]], label: list[list[int]], refused: bool
) -> None:
    lists = {"input_ids": ids, "label": label}
    columns = {name: pa.array(rows, pa.list_(pa.int32(), 3)) for name, rows in lists.items()}
    samples = as_samples(pa.table({"sample_id": ["a", "b"], **columns}), Columns(), "here")
    spec = HuggingFaceSpec(str(saved))
    if not refused:
        spec.refuse_rows(samples, "here")
        return
    with pytest.raises(SourceError, match=r"^here: the labels are the tokens at their own positions\. .*Shift them"):
        spec.refuse_rows(samples, "here")
