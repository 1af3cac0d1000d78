"""Teachers that transformers loads: packed documents, the real vocabulary, and what is refused in a sentence."""

from __future__ import annotations

import functools
import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file

from jobs.models.hugging_face import HuggingFaceSpec
from storage.base.errors import JobError, ModelError, RecipeError, SourceError, UsageError
from storage.sources import make_source
from teacher_infer.planning.config import TeacherSection
from teacher_infer.teachers import make_teacher
from teacher_infer.teachers.checked import CheckedTeacher
from teacher_infer.teachers.transformers import TransformersTeacher
from tests.tiny_models import SIZE, WORDS, save_model, save_tokenizer

# Architectures, and what is set in their configs.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", {}),
    "qwen2": ("Qwen2ForCausalLM", {}),
    "gpt2": ("GPT2LMHeadModel", {}),
    "mistral, window 4": ("MistralForCausalLM", {"sliding_window": 4}),
    "llama of a padded head": ("LlamaForCausalLM", {"vocab_size": SIZE + 32}),
}

Save = Callable[..., str]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Save:
    """`saved(name)`: the folder of one of MODELS, with a tokenizer; nobody writes to it."""

    @functools.cache
    def folder(name: str = "llama") -> str:
        architecture, config = MODELS[name]
        return str(save_tokenizer(save_model(tmp_path_factory.mktemp("model"), architecture, **config)))

    return folder


@pytest.fixture
def own(saved: Save, tmp_path: Path) -> Save:
    """The same, to be written to."""
    return lambda name="llama": str(shutil.copytree(saved(name), tmp_path / "own"))


def teacher_of(folder: str, dtype: str = "float32", **settings: Any) -> TransformersTeacher:
    teacher = make_teacher(HuggingFaceSpec(folder, **settings), dtype=dtype, seed=0)
    assert isinstance(teacher, CheckedTeacher)
    teacher = teacher.inner
    assert isinstance(teacher, TransformersTeacher)
    return teacher


def change_config(folder: str, **changed: Any) -> str:
    path = Path(folder) / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))
    return folder


# Packed documents


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.05)])
def test_packed_documents_give_the_logits_of_unpacked_ones(
    saved: Save, tmp_path: Path, name: str, dtype: str, tolerance: float
) -> None:
    draw = np.random.default_rng(0)
    documents = [draw.integers(2, SIZE, size).tolist() for size in (5, 1, 9, 24, 3, 40, 2, 7)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": document}) + "\n" for document in documents))
    source = make_source({"jsonl": str(tmp_path), "pack": {"column": "text", "sequence_length": 16}})
    [file] = source.files()
    rows = source.read(file, 0, file.rows)
    packed = {
        name: np.stack([np.frombuffer(value.as_py(), np.int32) for value in rows.column(name)])
        for name in ("input_ids", "position_ids")
    }
    teacher = teacher_of(saved(name), dtype)
    found = teacher.logits(packed).float().reshape(-1, SIZE)
    at = 0
    for document in documents:
        left = document
        while left:  # what lies in one row is what is seen at once
            piece, left = left[: 16 - at % 16], left[16 - at % 16 :]
            alone = teacher.logits({"input_ids": np.array([piece])}).float()[0]
            torch.testing.assert_close(found[at : at + len(piece)], alone, rtol=0, atol=tolerance)
            at += len(piece)
    assert at == sum(map(len, documents))


@pytest.fixture
def leaking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models whose attention crosses documents, since transformers looks for none."""
    monkeypatch.setattr("transformers.masking_utils.find_packed_sequence_indices", lambda position_ids: None)


@pytest.mark.usefixtures("leaking")
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_model_whose_attention_crosses_documents_is_refused(saved: Save, dtype: str) -> None:
    teacher = teacher_of(saved(), dtype)
    ids, places = np.array([[3, 4, 5, 6, 7, 8]]), np.array([[0, 1, 2, 0, 1, 2]])
    with pytest.raises(JobError, match=r"^LlamaForCausalLM lets one packed document see another: .*a single doc"):
        teacher.logits({"input_ids": ids, "position_ids": places})
    for single in ([0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 0, 0], [0, 0, 0, 0, 0, 0]):
        assert teacher.logits({"input_ids": ids, "position_ids": np.array([single])}).shape == (1, 6, SIZE)
    assert teacher.logits({"input_ids": ids}).shape == (1, 6, SIZE)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_model_whose_positions_run_on_is_refused(saved: Save, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import GPT2LMHeadModel

    real = GPT2LMHeadModel.forward

    def runs_on(self: Any, position_ids: Any = None, **given: Any) -> Any:
        if position_ids is None or (position_ids.diff() == 1).all():
            return real(self, position_ids=position_ids, **given)
        mask = (position_ids.diff(prepend=position_ids[:, :1] - 1) != 1).cumsum(-1)
        mask = (mask[:, :, None] == mask[:, None, :]).tril()[:, None]
        places = torch.arange(position_ids.shape[1])[None].expand_as(position_ids)
        return real(self, position_ids=places, attention_mask=mask, **given)

    monkeypatch.setattr(GPT2LMHeadModel, "forward", runs_on)
    with pytest.raises(JobError, match="lets one packed document see another"):
        teacher_of(saved("gpt2"), dtype).logits(
            {"input_ids": np.array([[3, 4, 5, 6]]), "position_ids": np.array([[0, 1, 0, 1]])}
        )


@pytest.mark.parametrize("name", ["llama", "qwen2", "mistral, window 4"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_padding_before_a_text_is_taken_where_it_moves_nothing(saved: Save, name: str, dtype: str) -> None:
    teacher = teacher_of(saved(name), dtype)
    padded = {"input_ids": np.array([[0, 0, 5, 6, 7]]), "attention_mask": np.array([[0, 0, 1, 1, 1]])}
    found = teacher.logits(padded)[0, 2:].float()
    alone = teacher.logits({"input_ids": np.array([[5, 6, 7]])})[0].float()
    torch.testing.assert_close(found, alone, rtol=0, atol=1e-5 if dtype == "float32" else 0.05)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_padding_before_a_text_is_refused_where_it_counts_as_positions(saved: Save, dtype: str) -> None:
    teacher = teacher_of(saved("gpt2"), dtype)
    ids, mask = np.array([[0, 0, 5, 6, 7]]), np.array([[0, 0, 1, 1, 1]])
    with pytest.raises(JobError, match=r"^GPT2LMHeadModel counts padding before a text as positions: .*after the"):
        teacher.logits({"input_ids": ids, "attention_mask": mask})
    given = {"input_ids": ids, "attention_mask": mask, "position_ids": np.array([[0, 0, 0, 1, 2]])}
    found = teacher.logits(given)[0, 2:].float()
    alone = teacher.logits({"input_ids": ids[:, 2:]})[0].float()
    torch.testing.assert_close(found, alone, rtol=0, atol=1e-5 if dtype == "float32" else 0.05)
    after = {"input_ids": ids[:, ::-1], "attention_mask": mask[:, ::-1]}
    assert teacher.logits(after).shape == (1, 5, SIZE)


@pytest.mark.parametrize("is_decoder", [False, True])
def test_a_model_that_sees_the_tokens_that_follow_is_refused(tmp_path: Path, is_decoder: bool) -> None:
    spec = HuggingFaceSpec(str(save_model(tmp_path, "RobertaForCausalLM", is_decoder=is_decoder)))
    if is_decoder:
        assert (
            TransformersTeacher(spec, dtype="float32", seed=0, device="cpu")
            .logits({"input_ids": np.array([[3, 4]])})
            .ndim
            == 3
        )
        return
    with pytest.raises(ModelError, match=r"^RobertaForCausalLM sees the tokens that follow: .*Set is_decoder"):
        TransformersTeacher(spec, dtype="float32", seed=0, device="cpu")


def test_a_classifier_that_takes_no_batch_is_refused(tmp_path: Path) -> None:
    folder = str(save_model(tmp_path, "GPT2ForSequenceClassification", num_labels=3))
    with pytest.raises(ModelError, match=r"^GPT2ForSequenceClassification does not take .*Set pad_token_id"):
        TransformersTeacher(HuggingFaceSpec(folder), dtype="float32", seed=0, device="cpu")
    change_config(folder, pad_token_id=0)
    teacher = TransformersTeacher(HuggingFaceSpec(folder), dtype="float32", seed=0, device="cpu")
    assert teacher.logits({"input_ids": np.array([[3, 4], [5, 6]])}).shape == (2, 3)


# Several devices


def test_a_model_laid_over_what_there_is_answers_as_on_one_device(saved: Save) -> None:
    spec, ids = HuggingFaceSpec(saved()), {"input_ids": np.array([[3, 4, 5]])}
    spread, one = (TransformersTeacher(spec, dtype="float32", seed=0, device=device) for device in ("auto", "cpu"))
    torch.testing.assert_close(spread.logits(ids), one.logits(ids), rtol=0, atol=1e-6)


@pytest.mark.parametrize("place", ["cpu", "disk"])
def test_a_model_that_the_gpus_do_not_hold_is_refused(saved: Save, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import LlamaForCausalLM

    folder = saved()
    placed = {"model.embed_tokens": 0, "model.layers.1": place}
    monkeypatch.setattr(LlamaForCausalLM, "hf_device_map", placed, raising=False)
    load = LlamaForCausalLM.from_pretrained

    def on_a_machine_with_gpus(*given: Any, device_map: str, **more: Any) -> Any:
        assert device_map == "auto"
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        return load(*given, **more)

    monkeypatch.setattr(LlamaForCausalLM, "from_pretrained", on_a_machine_with_gpus)
    with pytest.raises(JobError, match=rf"a part of it would lie on {place}.*Raise ray\.gpus_per_actor"):
        TransformersTeacher(HuggingFaceSpec(folder), dtype="float32", seed=0, device="auto")


# The real vocabulary


def test_a_padded_head_is_cut_to_the_tokenizers_size(saved: Save) -> None:
    folder = saved("llama of a padded head")
    ids = np.array([[3, 4, 5]])
    cut, whole = teacher_of(folder), teacher_of(folder, vocabulary=SIZE + 32)
    assert cut.logits({"input_ids": ids}).shape == (1, 3, SIZE)
    assert torch.equal(whole.logits({"input_ids": ids})[..., :SIZE], cut.logits({"input_ids": ids}))


def test_without_a_tokenizer_the_head_is_whole(own: Save) -> None:
    folder = own("llama of a padded head")
    (Path(folder) / "tokenizer.json").unlink()
    assert HuggingFaceSpec(folder).classes == SIZE + 32
    assert HuggingFaceSpec(folder, vocabulary=9).classes == 9


def test_a_vocabulary_beyond_the_head_is_refused(saved: Save) -> None:
    with pytest.raises(RecipeError, match=rf"teacher\.vocabulary is 99\. The head of '.*' has {SIZE} columns"):
        HuggingFaceSpec(saved(), vocabulary=99).digest("float32")


# The recipe


SECTION = {"dtype": "float32", "batch_size": 2}


def test_a_folder_without_a_factory_is_hugging_faces(saved: Save) -> None:
    assert TeacherSection(path=saved(), **SECTION).spec() == HuggingFaceSpec(saved())
    assert TeacherSection(path=saved(), vocabulary=9, **SECTION).spec() == HuggingFaceSpec(saved(), vocabulary=9)


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({}, "exactly one of factory, hub and path"),
        ({"path": "a", "hub": "b/c"}, "exactly one of factory, hub and path"),
        ({"hub": "b/c"}, "revision is a commit"),
        ({"path": "a", "revision": "0" * 40}, "hub and revision go together"),
        ({"hub": "b/c", "revision": "main"}, "pattern"),
        ({"hub": "b/c", "revision": "0" * 40, "weights": "w"}, "hub brings its own"),
        ({"factory": "a:b", "vocabulary": 5}, "vocabulary belongs to"),
    ],
)
def test_a_teacher_has_one_form(settings: dict[str, Any], found: str) -> None:
    with pytest.raises(RecipeError, match=found):
        TeacherSection(**settings, **SECTION)


# What a model cannot take


def samples(tmp_path: Path, rows: list[Any], length: int = 8, **pack: Any) -> tuple[Any, pa.Table]:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    packing = {"column": "text", "sequence_length": length, **pack}
    source = make_source({"jsonl": f"{tmp_path}/a.jsonl", "pack": packing})
    [file] = source.files()
    return source, source.read(file, 0, file.rows)


def test_a_token_id_outside_the_vocabulary_is_named_with_its_sample(saved: Save, tmp_path: Path) -> None:
    _, rows = samples(tmp_path, [[3, 4], [5, SIZE]])
    found = rf"The sample 'a\.jsonl:0:0' \(in where\) has the token id {SIZE}\. .* ids 0 to {SIZE - 1}\."
    with pytest.raises(SourceError, match=found):
        HuggingFaceSpec(saved("llama of a padded head")).refuse_rows(rows, "where")


@pytest.mark.parametrize("odd", [-1, SIZE])
def test_a_foreign_id_is_refused_before_the_model_sees_it(saved: Save, odd: int) -> None:
    with pytest.raises(SourceError, match="vocabulary has the ids 0 to"):
        teacher_of(saved("llama of a padded head")).logits({"input_ids": np.array([[3, odd]])})


def test_a_sequence_longer_than_the_context_is_refused(saved: Save, tmp_path: Path) -> None:
    for name in ("llama", "gpt2"):
        with pytest.raises(SourceError, match=r"have 65 tokens\. .* takes 64 .*Lower source\.pack\.sequence_length"):
            HuggingFaceSpec(saved(name)).refuse_rows(samples(tmp_path, [[3]], 65)[1], "where")
        HuggingFaceSpec(saved(name)).refuse_rows(samples(tmp_path, [[3]], 64)[1], "where")


def test_other_inputs_are_refused(saved: Save) -> None:
    from storage.samples.samples import Columns, as_samples

    for names in (["x"], ["input_ids", "x"], ["position_ids"], ["input_ids", "token_type_ids"]):
        table = pa.table({"sample_id": [1], **{name: [[1, 2]] for name in names}})
        with pytest.raises(SourceError, match=r"takes input_ids, attention_mask, position_ids.*, by name"):
            HuggingFaceSpec(saved()).refuse_rows(as_samples(table, Columns(), "where"), "where")
    table = as_samples(pa.table({"sample_id": [1], "input_ids": [7]}), Columns(), "where")
    with pytest.raises(SourceError, match="a list of token ids, of one length"):
        HuggingFaceSpec(saved()).refuse_rows(table, "where")


def test_a_tokenizer_of_another_vocabulary_is_refused(saved: Save, own: Save, tmp_path: Path) -> None:
    spec = HuggingFaceSpec(saved())
    spec.refuse_source(samples(tmp_path, ["w1"], tokenizer=saved())[0])
    spec.refuse_source(samples(tmp_path, ["w1"], tokenizer=str(save_tokenizer(tmp_path / "trims", to=3)))[0])
    spec.refuse_source(samples(tmp_path, [[1]])[0])
    swapped = [*WORDS[:4], WORDS[5], WORDS[4], *WORDS[6:]]
    source, _ = samples(tmp_path, ["w1"], tokenizer=str(save_tokenizer(tmp_path / "swapped", swapped)))
    found = r"another vocabulary \(32 tokens; 'w2' is 5\)\. .* has 32 tokens, and 'w2' is 4\. Name the teacher's own"
    with pytest.raises(UsageError, match=found):
        spec.refuse_source(source)


def test_a_tokenizer_beyond_a_teacher_without_one_is_refused(own: Save, tmp_path: Path) -> None:
    folder = own()
    (Path(folder) / "tokenizer.json").unlink()
    larger = save_tokenizer(tmp_path / "larger", [*WORDS, "more"])
    source, _ = samples(tmp_path, ["w1"], tokenizer=str(larger))
    with pytest.raises(UsageError, match=r"has 33 tokens\. The teacher '.*' has a vocabulary of 32"):
        HuggingFaceSpec(folder).refuse_source(source)


# Folders that are not loaded


@pytest.mark.parametrize("name", ["model.gguf", "weights.pt"])
def test_weights_in_another_form_are_named(own: Save, name: str) -> None:
    folder = Path(own())
    (folder / "model.safetensors").rename(folder / name)
    spec = TeacherSection(path=str(folder), **SECTION).spec()
    found = rf"has its weights in {name}\. Weights are safetensors .*pickles are not opened.*save_pretrained\(FOLDER\)"
    for attempt in (lambda: spec.digest("float32"), lambda: make_teacher(spec, dtype="float32", seed=0)):
        with pytest.raises(ModelError, match=found):
            attempt()


def test_pickled_weights_say_how_they_are_converted(own: Save) -> None:
    folder = Path(own())
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    whole = HuggingFaceSpec(str(folder)).weights_sha256()
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"has its weights in pytorch_model\.bin\. .*pickles are not opened") as caught:
        HuggingFaceSpec(str(folder)).digest("float32")
    # The command as somebody pastes it into a shell.
    said = str(caught.value)
    command = said[said.index("python -c") : said.index(", copy the tok")].replace(
        "python", shlex.quote(sys.executable), 1
    )
    subprocess.run(command, shell=True, check=True, capture_output=True)
    assert HuggingFaceSpec(f"{folder}-safetensors").weights_sha256() == whole


@pytest.mark.parametrize("name", ["model.gguf", "model.GGUF", "model.bin"])
def test_a_path_to_weights_in_another_form_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(ModelError, match=r"teacher\.path is a folder .*GGUF and pickles are not read"):
        TeacherSection(path=str(tmp_path / name), **SECTION).spec()


@pytest.mark.parametrize(
    ("architectures", "found"),
    [
        (["LlamaModel"], r"LlamaModel, a model without a head\. .*with its head"),
        (["BertForMaskedLM"], r"BertForMaskedLM, a masked language model\. .*Write a factory"),
        ([], r"names no architecture\. .*with its head"),
        (None, r"names no architecture\. .*with its head"),
    ],
)
def test_a_model_that_is_no_teacher_is_refused(own: Save, architectures: Any, found: str) -> None:
    spec = HuggingFaceSpec(change_config(own(), architectures=architectures))
    with pytest.raises(ModelError, match=found):
        spec.digest("float32")


def test_a_head_without_weights_is_refused(own: Save) -> None:
    spec = HuggingFaceSpec(change_config(own(), architectures=["LlamaForSequenceClassification"]))
    with pytest.raises(ModelError, match=r"do not have score\.weight as LlamaForSequenceClassification has\..*random"):
        make_teacher(spec, dtype="float32", seed=0)


def test_a_folders_own_code_is_not_run(own: Save) -> None:
    folder = change_config(own(), architectures=["OwnForCausalLM"], auto_map={"AutoModelForCausalLM": "own.Own"})
    (Path(folder) / "own.py").write_text("raise SystemExit('run')")
    with pytest.raises(ModelError, match=r"transformers .* has no OwnForCausalLM\. The code that .* is not run"):
        make_teacher(HuggingFaceSpec(folder), dtype="float32", seed=0)


def test_damaged_weights_are_refused_in_a_sentence(own: Save) -> None:
    folder = own()
    (Path(folder) / "model.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(ModelError, match="transformers cannot load"):
        make_teacher(HuggingFaceSpec(folder), dtype="float32", seed=0)


@pytest.mark.parametrize("package", ["transformers", "huggingface_hub"])
def test_without_the_package_the_extra_is_named(saved: Save, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    spec = HuggingFaceSpec(saved()) if package == "transformers" else HuggingFaceSpec(hub="a/b", revision="0" * 40)
    with pytest.raises(ModelError, match=r"pip install 'stillhouse\[lm\]'"):
        make_teacher(spec, dtype="float32", seed=0)
