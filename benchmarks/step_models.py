"""The student, the teacher and the targets of step.py, and one step of each kind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from transformers import LlamaConfig, LlamaModel

from storage.encodings.dense import DenseTargets
from storage.encodings.targets import Targets
from storage.encodings.topk import TopKTargets
from student_train.losses import Output, Unprojected
from student_train.losses.cross_entropy import cross_entropy
from student_train.losses.forward_kl import forward_kl
from student_train.losses.queries import Query, Term
from student_train.losses.student_log_probs import single_loss

TEMPERATURE = 2.0
GRID = (1.0, TEMPERATURE)


@dataclass(frozen=True)
class Task:
    """A student's shape and its batch: V classes, K ids, R sequences of L tokens."""

    classes: int
    ids: int
    device: str
    hidden: int
    layers: int
    batch: int
    length: int

    @property
    def positions(self) -> int:
        return self.batch * self.length

    def student(self) -> LlamaModel:
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=self.classes,
            hidden_size=self.hidden,
            intermediate_size=-(-self.hidden * 8 // 3 // 64) * 64,
            num_hidden_layers=self.layers,
            num_attention_heads=self.hidden // 64,
            num_key_value_heads=self.hidden // 64,
            max_position_embeddings=self.length,
            use_cache=False,
        )
        return _moved(LlamaModel(config), self.device)

    def teacher(self) -> LlamaModel:
        """SmolLM2-135M's shape, but for the vocabulary; in bfloat16 on a GPU."""
        torch.manual_seed(1)
        config = LlamaConfig(
            vocab_size=self.classes,
            hidden_size=576,
            intermediate_size=1536,
            num_hidden_layers=30,
            num_attention_heads=9,
            num_key_value_heads=3,
            max_position_embeddings=self.length,
            use_cache=False,
        )
        dtype = torch.bfloat16 if self.device == "cuda" else torch.float32
        return _moved(LlamaModel(config).eval().requires_grad_(False), self.device, dtype)

    def host(self, array: Any) -> torch.Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        return tensor.pin_memory() if self.device == "cuda" else tensor

    def tokens(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and labels [R, L] int32."""
        drawn = np.random.default_rng(2).integers(0, self.classes, (self.batch, self.length + 1), dtype=np.int32)
        return self.host(drawn[:, :-1]), self.host(drawn[:, 1:])

    def topk(self) -> TopKTargets:
        """Ids that fit each other in form; what they say is made up."""
        generator, (p, k) = np.random.default_rng(3), (self.positions, self.ids)
        ids = np.sort(generator.integers(0, self.classes - k, (p, k)), axis=1) + np.arange(k)
        log_p = np.sort(np.log(generator.dirichlet(np.full(k, 0.3), p) * 0.9 + 1e-6), axis=1)[:, ::-1]
        grid = np.repeat(np.log([[1.0, 4.0]]), p, axis=0)
        arrays = (
            ids.astype(np.uint16 if self.classes <= 1 << 16 else np.uint32),
            log_p.astype(np.float16),
            np.full(p, -3.0, np.float16),
            grid.astype(np.float32),
            np.log1p(-np.exp(log_p[:, :, None] / GRID - grid[:, None]).sum(axis=1).clip(0, 0.99)).astype(np.float32),
            np.ones((p, 2), np.float32),
        )
        return TopKTargets(*map(self.host, arrays), temperatures=GRID, classes=self.classes)

    def dense(self) -> DenseTargets:
        """The same few rows again and again: drawing billions of numbers would take longer than all steps."""
        drawn = np.random.default_rng(4).standard_normal((16, self.classes), np.float32) * 3
        few = (drawn - drawn.max(axis=1, keepdims=True)).astype(np.float16)
        logits = few[np.arange(self.positions) % len(few)]
        return DenseTargets(self.host(logits), self.host(np.ones(self.positions, np.float32)))


def _moved(model: LlamaModel, device: str, dtype: torch.dtype = torch.float32) -> LlamaModel:
    # As a plain module: transformers wraps `to` in a way that no type checker follows.
    torch.nn.Module.to(model, device, dtype)
    return model


class Step:
    """A student with its optimiser, and what its steps compare it with, made once it is asked for."""

    def __init__(self, task: Task) -> None:
        self.task, self.model = task, task.student()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5)
        self.tokens = task.tokens()

    @cached_property
    def targets(self) -> dict[str, Targets]:
        return {}

    @cached_property
    def teacher(self) -> LlamaModel:
        return self.task.teacher()

    @property
    def weight(self) -> torch.Tensor:
        return self.model.embed_tokens.weight

    def take(self, source: str, head: str) -> None:
        """One step."""
        self.backward(source, head)
        self.optimizer.step()
        self.forget()

    def backward(self, source: str, head: str) -> None:
        inputs, label = (self._there(array) for array in self.tokens)
        with self._precision():
            hidden = self.model(inputs).last_hidden_state.reshape(-1, self.task.hidden)
            loss_P = self._loss(source, head, hidden, inputs, label.reshape(-1))
        loss_P.mean().backward()

    def head_alone(self, source: str, head: str) -> None:
        """Forward and backward of the head and the loss, hidden states given."""
        hidden = torch.zeros(self.task.positions, self.task.hidden, device=self.task.device).requires_grad_()
        inputs, label = (self._there(array) for array in self.tokens)
        with self._precision():
            loss_P = self._loss(source, head, hidden, inputs, label.reshape(-1))
        loss_P.mean().backward()
        self.forget()

    def forget(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)

    def apart(self, source: str) -> float:
        """The largest difference of a parameter's gradient between a fused head and a naive one, relative."""
        found = []
        for head in ("naive", "fused"):
            self.backward(source, head)
            found.append([p.grad.clone() for p in self.model.parameters() if p.grad is not None])
            self.forget()
        return max(float((b - a).norm() / a.norm().clamp(min=1e-30)) for a, b in zip(*found, strict=True))

    def _loss(
        self, source: str, head: str, hidden: torch.Tensor, inputs: torch.Tensor, label: torch.Tensor
    ) -> torch.Tensor:
        output: Output = Unprojected(hidden, self.weight) if head == "fused" else functional.linear(hidden, self.weight)
        if head == "textbook":
            assert isinstance(output, torch.Tensor)
            return textbook(output, label.long() if source == "labels" else self._given("topk"))
        if source == "labels":
            return cross_entropy(output, label)
        if source == "live":
            return self._live(output, inputs, fused=head == "fused")
        return forward_kl(output, self._given(source), temperature=TEMPERATURE)

    def _live(self, output: Output, inputs: torch.Tensor, fused: bool) -> torch.Tensor:
        """KL against the teacher's logits: of all positions at once, or made chunk by chunk as the student's are."""
        with torch.no_grad():
            known = self.teacher(inputs).last_hidden_state.reshape(self.task.positions, -1)
        head = self.teacher.embed_tokens.weight.detach()
        if not fused:
            logits = known @ head.t()
            ones = torch.ones(len(logits), device=logits.device)
            return forward_kl(output, DenseTargets(logits, ones), temperature=TEMPERATURE)

        def rows(piece: slice) -> torch.Tensor:
            return torch.log_softmax((known[piece] @ head.t()).float() / TEMPERATURE, dim=1)

        value = Term(Query(TEMPERATURE, mean=rows), lambda result: result.mean_log_m_P - result.mean_log_q_P)
        return TEMPERATURE**2 * single_loss(output, value, slice(None))

    def _given(self, source: str) -> Any:
        if source not in self.targets:
            self.targets[source] = self.task.topk() if source == "topk" else self.task.dense()
        return self.targets[source].each(self._there)

    def _there(self, array: torch.Tensor) -> torch.Tensor:
        return array.to(self.task.device, non_blocking=True)

    @contextmanager
    def _precision(self) -> Iterator[None]:
        with torch.autocast(self.task.device, torch.bfloat16, enabled=self.task.device == "cuda"):
            yield


def textbook(logits_PV: torch.Tensor, compared: Any) -> torch.Tensor:
    """Cross entropy, or forward KL with the tail as one bucket, by torch's own functions on all positions at once."""
    if isinstance(compared, torch.Tensor):
        return functional.cross_entropy(logits_PV.float(), compared, reduction="none")
    ids_PK, log_p_PK, log_tau_P = compared.sparse(TEMPERATURE)
    log_q_PK = torch.log_softmax(logits_PV.float() / TEMPERATURE, dim=1).gather(1, ids_PK)
    log_rest_P = torch.log1p(-log_q_PK.exp().sum(dim=1).clamp(max=1 - 1e-6))
    return (log_p_PK.exp() * (log_p_PK - log_q_PK)).sum(dim=1) + log_tau_P.exp() * (log_tau_P - log_rest_P)
