"""Language models that take no time: random weights in Hugging Face's form, and a tokenizer of words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

WORDS = ["<unk>", "<end>", *(f"w{n}" for n in range(30))]
SIZE = len(WORDS)

SHAPE: dict[str, Any] = {
    "vocab_size": SIZE,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


def save_tokenizer(folder: Path, words: list[str] = WORDS, **trim: Any) -> Path:
    """A tokenizer.json whose tokens are words, `w0` to `w29` unless others are given."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens(["<end>"])
    if trim:
        made.enable_truncation(trim["to"])
        made.enable_padding(length=trim["to"])
    folder.mkdir(exist_ok=True, parents=True)
    made.save(str(folder / "tokenizer.json"))
    return folder


def save_model(folder: Path, architecture: str = "LlamaForCausalLM", seed: int = 0, **config: Any) -> Path:
    """A model of an architecture of transformers with random weights."""
    import torch
    import transformers

    kind = getattr(transformers, architecture)
    if architecture.startswith("GPT2"):
        shape: dict[str, Any] = {"vocab_size": SIZE, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
        shape |= {"bos_token_id": 1, "eos_token_id": 1}
    else:
        shape = dict(SHAPE)
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(seed)
    kind(kind.config_class(**{**shape, **config})).save_pretrained(folder)
    return folder
