"""The parts of a shard key, and in which of them two keys differ."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from storage.base.digest import sha256_of
from storage.encodings import Encoding
from storage.format.header import FORMAT_VERSION
from storage.samples.samples import Inputs

_DIGEST = re.compile(r"[0-9a-f]{64}")
_ABSENT = object()


@dataclass(frozen=True)
class KeyParts:
    """All that the shard keys of a cache count, but for the spans.

    teacher: the digest of the teacher's own key parts, which `teacher_parts` holds readable. preprocessing: how samples
    were made from the source's rows, for example the tokenizer; None where they were not. seed: None for an encoding
    that draws nothing, so that another seed in a recipe costs no teacher work.
    """

    teacher: str
    encoding: dict[str, Any]
    seed: int | None
    inputs: Inputs = "stored"
    preprocessing: dict[str, Any] | None = None
    teacher_parts: dict[str, Any] | None = None

    @staticmethod
    def of(teacher_digest: str, encoding: Encoding, seed: int, *, inputs: Inputs = "stored") -> KeyParts:
        return KeyParts(teacher_digest, encoding.key(), seed if encoding.draws else None, inputs)

    def to_dict(self) -> dict[str, Any]:
        """The parts, readable, as a commit and a cache's lineage keep them."""
        return {
            "format_version": FORMAT_VERSION,
            "teacher": self.teacher if self.teacher_parts is None else self.teacher_parts,
            "encoding": self.encoding,
            "seed": self.seed,
            "inputs": self.inputs,
            "preprocessing": self.preprocessing,
        }

    def shard_key(self, span_digest: str) -> str:
        facts = {
            "format_version": FORMAT_VERSION,
            "teacher": self.teacher,
            "encoding": self.encoding,
            "seed": self.seed,
            "span": span_digest,
        }
        # Counted only where they are not the usual ones, so that keys are what they were before there was a choice.
        if self.inputs != "stored":
            facts["inputs"] = self.inputs
        if self.preprocessing is not None:
            facts["preprocessing"] = self.preprocessing
        return sha256_of(facts)


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """The parts that differ, dotted, with both values where they can be read.

    >>> differences({"encoding": {"k": 64}, "teacher": {"weights": "a" * 64}}, {"encoding": {"k": 128}, "teacher": {}})
    ['encoding.k: 64 -> 128', 'teacher.weights']
    """
    before, after = dict(_flat(old)), dict(_flat(new))
    found: list[str] = []
    for name in sorted(before.keys() | after.keys()):
        one, other = before.get(name, _ABSENT), after.get(name, _ABSENT)
        if one == other:
            continue
        values = [value for value in (one, other) if value is not _ABSENT]
        if any(isinstance(value, str) and _DIGEST.fullmatch(value) for value in values):
            found.append(name)
        else:
            found.append(f"{name}: {_shown(one)} -> {_shown(other)}")
    return found


def _flat(parts: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(parts, dict) and parts:
        for key, value in parts.items():
            yield from _flat(value, f"{name}.{key}" if name else str(key))
    elif parts not in (None, {}):
        yield name, parts


def _shown(value: Any) -> str:
    return "none" if value is _ABSENT else str(value)
