"""Bad input to `python -m teacher_infer`: a sentence, an exit code, and nothing half-written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from storage.cache.catalog import list_caches
from storage.objectstore.folder import Folder
from teacher_infer.__main__ import main

Recipe = Callable[..., dict[str, Any]]


@pytest.fixture
def fails(
    write_yaml: Callable[..., str], capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., tuple[int, str]]:
    """Run a recipe that must fail; gives the exit code and what was said, which is one sentence and no traceback."""

    def run(recipe: dict[str, Any], *arguments: str) -> tuple[int, str]:
        code = main([write_yaml(**recipe), "--json", *arguments])
        out, err = capfd.readouterr()
        assert code != 0
        # Ray may still tell this process of the spans that were in flight in an earlier test's failed job.
        assert [line for line in out.splitlines() if "(raylet)" not in line] == []
        assert "Traceback" not in err
        store = Folder(recipe.get("store", str(tmp_path / "store")))
        assert not store.exists() or list_caches(store) == ([], [])
        return code, err

    return run


def test_an_unknown_key_names_the_nearest(recipe: Recipe, fails: Any, tmp_path: Path) -> None:
    code, said = fails(recipe(span_row=3))
    assert code == 2
    assert f"{tmp_path}/recipe.yaml: unknown key 'span_row'. Did you mean 'span_rows'?" in said
    code, said = fails(recipe(), "teacher.batchsize=3")
    assert code == 2
    assert "unknown key 'teacher.batchsize'. Did you mean 'batch_size'?" in said


def test_the_teachers_dtype_is_not_guessed(recipe: Recipe, fails: Any) -> None:
    faulty = recipe()
    del faulty["teacher"]["dtype"]
    code, said = fails(faulty)
    assert code == 2
    assert "the key 'teacher.dtype' is missing" in said


def test_an_unknown_encoding_and_an_unknown_setting_of_one(recipe: Recipe, fails: Any) -> None:
    code, said = fails(recipe(targets={"encoding": "dens"}))
    assert code == 2
    assert "Did you mean 'dense'?" in said
    code, said = fails(recipe(targets={"encoding": "dense", "temprature": 2}))
    assert code == 2
    assert "targets.temprature is no setting of 'dense'" in said
    assert "Did you mean 'temperature'?" in said


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("inputs=reference", "inputs: Input should be 'stored' or 'referenced' (found 'reference')."),
        ("compression=lz4", "compression: Input should be 'zstd' or 'none' (found 'lz4')."),
        ("compression=", "compression: Input should be 'zstd' or 'none' (found None)."),
        ("input=referenced", "unknown key 'input'. Did you mean 'inputs'?"),
    ],
)
def test_what_is_stored_and_how_has_few_forms(recipe: Recipe, fails: Any, override: str, said: str) -> None:
    code, found = fails(recipe(), override)
    assert (code, said in found) == (2, True), found


def test_a_source_with_one_of_the_stores_own_columns(recipe: Recipe, fails: Any, tmp_path: Path) -> None:
    pq.write_table(pa.table({"sample_id": [1, 2], "inputs_xxh3": [0.5, 1.5]}), tmp_path / "a.parquet")
    code, said = fails(recipe(source={"parquet": f"{tmp_path}/a.parquet"}))
    assert code == 2
    assert "an input is named 'inputs_xxh3'. 'sample_id', 'label', 'inputs_xxh3' and names that begin with" in said


def test_missing_weights(recipe: Recipe, fails: Any) -> None:
    code, said = fails(recipe(), "teacher.weights=/nowhere/w.safetensors")
    assert code == 2
    assert "The weights '/nowhere/w.safetensors' are not there." in said


@pytest.mark.parametrize("arguments", [["--plan"], []])
def test_weights_that_do_not_fit_the_factory(one_ray: str, recipe: Recipe, fails: Any, arguments: list[str]) -> None:
    code, said = fails(recipe({"classes": 5}), *arguments)
    assert code == 2
    assert "do not fit the model (of another shape: linear.bias is [3], the model has [5]" in said


def test_pickled_weights_are_not_opened(one_ray: str, recipe: Recipe, fails: Any, tmp_path: Path) -> None:
    torch.save({"linear.weight": torch.zeros(3, 4)}, tmp_path / "w.pt")
    code, said = fails(recipe(), f"teacher.weights={tmp_path}/w.pt", "--plan")
    assert code == 2
    assert "is no safetensors file" in said


def test_a_factory_that_is_not_there(recipe: Recipe, fails: Any) -> None:
    for factory, sentence in (
        ("stillhouse_toys:linaer", "has no function 'linaer'. Did you mean 'linear'?"),
        ("no_such_module:linear", "the module 'no_such_module' cannot be imported"),
        ("linear", "It names a function as package.module:function"),
    ):
        code, said = fails(recipe(), f"teacher.factory={factory}")
        assert code == 2
        assert sentence in said


def test_a_column_that_is_not_there(recipe: Recipe, fails: Any) -> None:
    code, said = fails(recipe(), "source.columns.inputs=[xx]")
    assert code == 2
    assert "stillhouse_toys:rows has no column 'xx'" in said
    code, said = fails(recipe(), "source.columns.label=lable")
    assert "has no column 'lable' (asked for as source.columns.label)" in said
    assert "Did you mean 'label'?" in said


def test_an_empty_source(recipe: Recipe, fails: Any, tmp_path: Path) -> None:
    code, said = fails(recipe(), "source.arguments.count=0")
    assert code == 2
    assert "is empty" in said
    (tmp_path / "nothing").mkdir()
    code, said = fails(recipe(source={"parquet": str(tmp_path / "nothing")}))
    assert code == 2
    assert f"There are no Parquet files at '{tmp_path}/nothing'" in said


def test_duplicate_sample_ids(recipe: Recipe, fails: Any) -> None:
    code, said = fails(recipe(source_arguments={"same_id": True}))
    assert code == 2
    assert "1 sample ids appear more than once: 's0' (40 times)" in said


def test_a_label_outside_the_classes(one_ray: str, recipe: Recipe, fails: Any) -> None:
    code, said = fails(recipe(source_arguments={"bad_label": 3}))
    assert code == 2
    assert (
        "The sample 's39' (in stillhouse_toys:rows[30:40]) has the label 3. The teacher has the classes 0 to 2." in said
    )


def test_a_teacher_that_returns_nan(one_ray: str, recipe: Recipe, fails: Any) -> None:
    code, said = fails(recipe({"bad": 2.5}))
    assert code == 1
    assert "cannot label the sample 's25' (in stillhouse_toys:rows[20:30]): its logits contain NaN." in said


def test_a_store_that_cannot_be_written(recipe: Recipe, fails: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    code, said = fails(recipe(store=f"{tmp_path}/file/store"))
    assert code == 2
    assert f"{tmp_path}/file/store cannot be written: Not a directory." in said


def test_a_store_in_memory_is_refused(recipe: Recipe, fails: Any) -> None:
    code, said = fails(recipe(store="memory://toy-store"))
    assert code == 2
    assert "Ray's workers are other processes" in said


def test_a_recipe_that_is_not_there(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["/nowhere/recipe.yaml"]) == 2
    assert "The recipe '/nowhere/recipe.yaml' cannot be read: No such file or directory." in capfd.readouterr().err


def test_more_actors_than_the_cluster_has_room_for_end_in_a_sentence(one_ray: str, recipe: Recipe, fails: Any) -> None:
    code, said = fails(recipe(ray={"cpus_per_actor": 64, "capacity_timeout_s": 1}))
    assert code == 1
    assert (
        "Only 0 of at least 1 actors found room within 1 s. Each asks for 64 CPUs and 0 GPUs; the cluster has" in said
    )


def test_files_of_other_shapes(recipe: Recipe, fails: Any, tmp_path: Path) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    pq.write_table(pa.table({"sample_id": [1, 2], "x": [[1.0, 2.0], [3.0]]}), folder / "a.parquet")
    code, said = fails(recipe(source={"parquet": str(folder)}))
    assert code == 2
    assert "Column 'x' holds lists of unequal length." in said


def test_weights_with_names_the_model_lacks(one_ray: str, recipe: Recipe, fails: Any, tmp_path: Path) -> None:
    save_file({"other.weight": torch.zeros(1)}, tmp_path / "odd.safetensors")
    code, said = fails(recipe(), f"teacher.weights={tmp_path}/odd.safetensors", "--plan")
    assert code == 2
    assert "not in the file: linear.bias, linear.weight; not in the model: other.weight" in said


def test_two_caches_of_one_name_are_refused(recipe: Recipe, fails: Any) -> None:
    code, said = fails(recipe(held_out={"name": "toy", "source": {"function": "stillhouse_toys:rows"}}))
    assert code == 2
    assert "held_out.name is 'toy', the name of the cache that students learn from" in said


def test_arguments_that_are_no_json(recipe: Recipe, fails: Any) -> None:
    code, said = fails(recipe(), "source.arguments.count=.nan")
    assert code == 2
    assert "source.arguments: arguments are JSON" in said
    code, said = fails(recipe(), "teacher.arguments.rate=.inf")
    assert code == 2
    assert "teacher.arguments: arguments are JSON" in said
