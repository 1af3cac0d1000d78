"""Claim: of the layouts that were tried, the one that `topk` has takes the fewest bytes of real teacher output.

    python benchmarks/layout.py [--json] [--model FOLDER] [--positions 8192]

A teacher (SmolLM2-135M, from runs/smollm2-135m unless another is named) runs over the standard library's source, and
what softening keeps of it is laid out in each way and compressed with zstd at level 1, a row group's column in one
piece as a shard has it. Bytes a position are of the compressed columns; MB/s are of uncompressed bytes, on one core,
the best of three. `frozen` is what storage.encodings.topk itself makes, with all six of its columns.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from recipes.smollm2.data import documents  # noqa: E402
from storage.encodings import planes  # noqa: E402
from storage.encodings.topk import TopK, TopKTargets  # noqa: E402
from storage.samples import tensor_columns  # noqa: E402

Array = np.ndarray[Any, Any]
REPEATS = 3


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--model", default=str(ROOT / "runs" / "smollm2-135m"), help="a folder in Hugging Face's form")
    parser.add_argument("--positions", type=int, default=8192)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--k", type=int, default=64)
    return parser.parse_args()


def kept_of(asked: argparse.Namespace) -> TopKTargets:
    """What softening keeps, [R, L, ...], of a teacher's logits on so many positions of source text."""
    import torch
    import transformers
    from tokenizers import Tokenizer

    from teacher_infer.soften import soften

    rows, length = max(1, asked.positions // asked.length), asked.length
    tokenizer = Tokenizer.from_file(str(Path(asked.model) / "tokenizer.json"))
    tokens: list[int] = []
    # Five bytes of source are more than a token.
    for text in documents("train", 8 * rows * length + 1_000_000).column("text").to_pylist():
        tokens += tokenizer.encode(text).ids
        if len(tokens) > rows * length:
            break
    count = rows * length
    if len(tokens) <= count:
        raise SystemExit(f"There are {len(tokens):,} tokens of text, fewer than --positions {count:,}.")
    ids_RL = np.array(tokens[:count]).reshape(rows, length)
    label_RL = np.array(tokens[1 : count + 1], np.int32).reshape(rows, length)
    model = transformers.AutoModelForCausalLM.from_pretrained(asked.model, dtype=torch.float32).eval()
    encoding, found = TopK(asked.k), list[TopKTargets]()
    for ids_L, label_L in zip(ids_RL, label_RL, strict=True):
        with torch.inference_mode():
            logits = model(input_ids=torch.from_numpy(ids_L)[None], use_cache=False).logits
        targets = soften(logits, encoding, label_L[None]).targets
        assert isinstance(targets, TopKTargets)
        found.append(targets)
    columns = [
        np.concatenate([getattr(targets, name) for targets in found])
        for name in ("ids_PK", "log_probs_PK", "label_log_prob_P", "log_z_PG", "log_tail_PG", "entropy_PG")
    ]
    return TopKTargets(*columns, temperatures=found[0].temperatures, classes=found[0].classes)


def layouts(kept: TopKTargets, k: int) -> dict[str, list[Array]]:
    """Each way to lay them out, by name: the columns, [R, ...]."""
    narrow = np.uint16 if kept.classes <= 1 << 16 else np.uint32
    ids = kept.ids_PK.astype(narrow)
    wide = kept.ids_PK.astype(np.uint32)
    # As stored, zero is -0.0, so that bits only grow.
    bits = kept.log_probs_PK.astype(np.float16).view(np.uint16) | np.uint16(0x8000)
    order = np.argsort(ids, axis=-1)
    sorted_ids, sorted_bits = (np.take_along_axis(values, order, axis=-1) for values in (ids, bits))

    def steps(values: Array) -> Array:
        made = values.copy()
        made[..., 1:] -= values[..., :-1]
        return made

    encoding = TopK(k, kept.temperatures)
    fields = encoding.fields(kept.classes, kept.ids_PK.shape[1])
    frozen = [tensor_columns.unpack(array, field) for field, array in zip(fields, encoding.encode(kept), strict=True)]
    plain = [ids, bits, kept.label_log_prob_P.astype(np.float16), *(one.astype(np.float32) for one in _grid(kept))]
    return {
        "ids: plain": [ids],
        "ids: byte planes": [planes.split(ids)],
        "ids: uint32 plain": [wide],
        "ids: uint32 byte planes": [planes.split(wide)],
        "ids sorted: plain": [sorted_ids],
        "ids sorted: byte planes": [planes.split(sorted_ids)],
        "ids sorted: differences": [steps(sorted_ids)],
        "ids sorted: planes of differences": [planes.split(steps(sorted_ids))],
        "log p: plain float16": [bits],
        "log p: byte planes": [planes.split(bits)],
        "log p: differences of bits": [steps(bits)],
        "log p: planes of differences": [planes.split(steps(bits))],
        "log p, ids sorted: plain": [sorted_bits],
        "log p, ids sorted: byte planes": [planes.split(sorted_bits)],
        "best of ids sorted: both": [planes.split(steps(sorted_ids)), planes.split(sorted_bits)],
        "plain: ids, log p": plain[:2],
        "frozen: ids, log p": frozen[:2],
        "plain: all columns": plain,
        "frozen: all columns": frozen,
    }


def _grid(kept: TopKTargets) -> tuple[Array, Array, Array]:
    return kept.log_z_PG, kept.log_tail_PG, kept.entropy_PG


def measured(columns: list[Array], positions: int) -> dict[str, float]:
    """Compressed bytes a position, and MB/s of uncompressed bytes each way."""
    raw = [np.ascontiguousarray(column).tobytes() for column in columns]
    packer, opener = zstandard.ZstdCompressor(level=1), zstandard.ZstdDecompressor()
    packed = [packer.compress(one) for one in raw]
    size = sum(map(len, raw)) / 1e6
    return {
        "bytes_a_position": round(sum(map(len, packed)) / positions, 1),
        "uncompressed": round(1e6 * size / positions, 1),
        "compress_mb_s": round(size / best(lambda: [packer.compress(one) for one in raw])),
        "decompress_mb_s": round(size / best(lambda: [opener.decompress(one) for one in packed])),
    }


def best(call: Callable[[], Any]) -> float:
    """Seconds of the fastest of a few."""
    times: list[float] = []
    for _ in range(REPEATS):
        begun = time.perf_counter()
        call()
        times.append(time.perf_counter() - begun)
    return min(times)


def decoding(kept: TopKTargets, k: int, positions: int) -> float:
    """Nanoseconds a position from uncompressed columns to targets."""
    encoding = TopK(k, kept.temperatures)
    fields = encoding.fields(kept.classes, kept.ids_PK.shape[1])
    arrays = encoding.encode(kept)
    columns = {field.name: tensor_columns.unpack(array, field) for field, array in zip(fields, arrays, strict=True)}
    back = encoding.decode(columns, kept.classes)
    assert (back.ids_PK == kept.ids_PK).all()
    assert (back.log_probs_PK == kept.log_probs_PK.astype(np.float16)).all()
    return 1e9 * best(lambda: encoding.decode(columns, kept.classes)) / positions


def main() -> None:
    asked = parsed()
    kept = kept_of(asked)
    positions = int(np.prod(kept.label_log_prob_P.shape))
    answer: dict[str, Any] = {
        "model": Path(asked.model).name,
        "classes": kept.classes,
        "k": asked.k,
        "positions": positions,
        "layouts": {name: measured(columns, positions) for name, columns in layouts(kept, asked.k).items()},
        "decode_ns_a_position": round(decoding(kept, asked.k, positions)),
    }
    if asked.json:
        print(json.dumps(answer))
        return
    print(f"{positions:,} positions of {answer['model']}, V = {kept.classes:,}, k = {asked.k}, zstd-1")
    print(f"{'':36}{'bytes a position':>18}{'uncompressed':>14}{'compress MB/s':>15}{'decompress MB/s':>17}")
    for name, found in answer["layouts"].items():
        print(
            f"{name:36}{found['bytes_a_position']:>18.1f}{found['uncompressed']:>14.1f}"
            f"{found['compress_mb_s']:>15,}{found['decompress_mb_s']:>17,}"
        )
    print(f"decoding the frozen layout: {answer['decode_ns_a_position']} ns a position")


if __name__ == "__main__":
    main()
