"""The language model recipe's student: a small Llama with the teacher's vocabulary, its head tied to its embedding."""

from __future__ import annotations

import torch
from torch import nn
from transformers import LlamaConfig, LlamaModel

from student_train.losses import Unprojected


class StudentNet(nn.Module):
    """input_ids and position_ids [R, L] to hidden states [R, L, width] with the head's weight [vocabulary, width].

    Documents packed into one row are told apart by position_ids, which begin at 0 with each.
    """

    def __init__(self, vocabulary: int, width: int, layers: int, heads: int) -> None:
        super().__init__()
        config = LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=3 * width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            pad_token_id=None,
            use_cache=False,
        )
        self.body = LlamaModel(config)

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> Unprojected:
        # No mask: transformers makes the one of packed documents only where it is given none.
        hidden = self.body(input_ids=input_ids.long(), position_ids=position_ids.long()).last_hidden_state
        return Unprojected(hidden, self.body.embed_tokens.weight)


def build(vocabulary: int = 49152, width: int = 128, layers: int = 3, heads: int = 4) -> StudentNet:
    return StudentNet(vocabulary, width, layers, heads)
