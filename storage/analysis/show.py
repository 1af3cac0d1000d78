"""A look inside a cache: its first rows decoded, with the text of their tokens, and what it says on the whole."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from storage.analysis.overview import overview, view
from storage.base.errors import StillhouseError
from storage.cache.cache import Cache
from storage.encodings.targets import IGNORED
from storage.rows import row_groups
from storage.rows.cache_rows import CacheRows

LIKELIEST, POSITIONS = 3, 12
_BAR = 30

Text = Callable[[int], str | None]


def look(cache: Cache, tokenizer: str | None = None, count: int = 3) -> dict[str, Any]:
    """Everything that `storage show` says. tokenizer: where a tokenizer.json is, if not where the lineage has it."""
    text, note = _text_of(cache, tokenizer)
    quarantined = [sample.to_dict() for shard in cache.shards for sample in shard.quarantined]
    return {
        **cache.facts(),
        "quarantined_samples": quarantined,
        "overview": overview(cache),
        "rows": first_rows(cache, text, count),
        "text": note,
    }


def first_rows(cache: Cache, text: Text = lambda _: None, count: int = 3) -> list[dict[str, Any]]:
    """The first rows in stored order: of each sample, or of its first positions, the likeliest classes at T = 1.

    entropy in nats; kept: the mass of what topk kept; text: of a class, a token's.
    """
    if not cache.samples:
        return []
    parts = ["inputs", "targets"] if "input_ids" in cache.inputs else ["targets"]
    rows = row_groups.first_rows(CacheRows(cache, parts), count)
    assert rows.targets is not None
    shown: list[dict[str, Any]] = []
    for at in range(len(rows)):
        targets = rows.targets.each(lambda array, at=at: array[at : at + 1]).flat()
        label_P = None if rows.label is None else rows.label[at].reshape(-1)
        name = rows.sample_id[at]
        row: dict[str, Any] = {"sample_id": name.item() if hasattr(name, "item") else name}
        seen = view(targets, label_P, LIKELIEST)
        sequence = len(targets) > 1 or (label_P is not None and rows.label is not None and rows.label.ndim > 1)
        tokens = rows.inputs.get("input_ids") if sequence else None
        told: list[dict[str, Any]] = []
        for place in range(min(len(targets), POSITIONS)):
            pairs = zip(seen.top_Pn[place].tolist(), seen.probability_Pn[place].tolist(), strict=True)
            label = None if label_P is None or label_P[place] == IGNORED else int(label_P[place])
            position: dict[str, Any] = {
                "label": label,
                "top": [{"class": i, "probability": p, **_said(text, i)} for i, p in pairs],
                "entropy": float(seen.entropy_P[place]),
            }
            if seen.kept_P is not None:
                position["kept"] = float(seen.kept_P[place])
            if label is not None:
                position |= _said(text, label, "label_text")
            if tokens is not None:
                token = int(tokens[at][place])
                position = {"token": token, **_said(text, token), **position}
            told.append(position)
        if tokens is not None:
            row["tokens"] = [{"token": token, **_said(text, token)} for token in tokens[at][:POSITIONS].tolist()]
        # Of a position without a target nothing was kept.
        shown.append({**row, "positions": told} if sequence else {**row, **told[0]})
    return shown


def _said(text: Text, token: int, key: str = "text") -> dict[str, str]:
    found = text(token)
    return {} if found is None else {key: found}


def _text_of(cache: Cache, tokenizer: str | None) -> tuple[Text, str | None]:
    """Tokens as text, and where the tokenizer is or why there is none."""
    pack: dict[str, Any] = (cache.lineage.get("source") or {}).get("pack") or {}
    url = tokenizer or pack.get("tokenizer")
    if url is None:
        return lambda _: None, None
    try:
        from storage.sources.packing.tokenizer import TokenizerFile

        file = TokenizerFile.read(url)
        file.text_of(0)  # what it holds is looked at only now
        return file.text_of, file.where
    except StillhouseError as error:
        return lambda _: None, f"Tokens are shown by number only: {error}"


def lines(facts: dict[str, Any]) -> list[str]:
    """What `look` gives, for people."""
    lineage, origin = facts["lineage"], facts["lineage"].get("derived_from")
    teacher = lineage["teacher"]
    told = [
        f"{facts['name']}@{facts['cache_key'][:8]}  {facts['url']}",
        f"  digest      {facts['cache_digest']}",
        f"  targets     {json.dumps(facts['encoding'], sort_keys=True)}, {facts['classes']} classes",
        f"  samples     {facts['samples']:,} in {facts['shards']} shards, {facts['bytes'] / 1e6:,.2f} MB; "
        f"{facts['quarantined']} quarantined",
    ]
    if facts["positions"] != facts["samples"]:
        each = facts["bytes"] / facts["positions"]
        told.append(f"  positions   {facts['positions']:,}, {each:,.1f} bytes each with their inputs")
    if origin:
        told.append(f"  derived     from {origin['name']}@{origin['cache_key'][:8]}, {json.dumps(origin['targets'])}")
    told += [
        f"  inputs      {', '.join(facts['inputs'])}; {'labelled' if facts['labelled'] else 'no labels'}",
        f"  teacher     {teacher['factory']} {json.dumps(teacher['arguments'])}, {teacher['dtype']}, "
        f"digest {teacher['digest'][:8]}",
        f"  weights     {teacher['weights']}",
        f"  source      {json.dumps(lineage['source'])}",
        f"  sealed      {lineage['sealed_at']} with {', '.join(f'{k} {v}' for k, v in lineage['software'].items())}",
        *(f"  quarantined {sample['sample_id']}: {sample['reason']}" for sample in facts["quarantined_samples"]),
        *_overview_lines(facts["overview"]),
        "  first rows, the teacher's likeliest classes at T = 1:",
    ]
    for row in facts["rows"]:
        if "positions" in row:
            told.append(f"    sample {row['sample_id']}:")
            if "tokens" in row:
                told.append(f"      tokens  {' '.join(_name(one['token'], one.get('text')) for one in row['tokens'])}")
            told += [f"      {_position_line(position)}" for position in row["positions"]]
        else:
            label = "" if row["label"] is None else f", label {row['label']}"
            told.append(f"    sample {row['sample_id']}{label}: {_likeliest(row)}")
    return [*told, *([f"  {facts['text']}"] if facts["text"] else [])]


def _likeliest(position: dict[str, Any]) -> str:
    top = ", ".join(f"{_name(c['class'], c.get('text'))} {c['probability']:.4f}" for c in position["top"])
    kept = f", kept {position['kept']:.4f}" if "kept" in position else ""
    return f"{top}; entropy {position['entropy']:.3f} nats{kept}"


def _position_line(position: dict[str, Any]) -> str:
    """Of inputs that lie elsewhere the tokens are not known, but the next ones are: they are labels."""
    token = f"{_name(position['token'], position.get('text'))} | " if "token" in position else ""
    if position["label"] is None:
        return f"{token}no target"
    return f"{token}next {_name(position['label'], position.get('label_text'))} | {_likeliest(position)}"


def _name(number: int, text: str | None) -> str:
    return str(number) if text is None else repr(text)


def _overview_lines(facts: dict[str, Any]) -> list[str]:
    if "entropy" not in facts:
        return ["  targets     no position has one"]
    told = [f"  seen        {facts['positions']:,} positions with a target; {facts['masked']:.1%} have none"]
    if "mass_kept" in facts:
        kept = facts["mass_kept"]
        told.append(f"  mass kept   {kept['mean']:.4f} on average, {kept['lowest']:.4f} at least")
    if "teacher_cross_entropy" in facts:
        cross_entropy, accuracy = facts["teacher_cross_entropy"], facts["teacher_accuracy"]
        told.append(f"  teacher     cross entropy {cross_entropy:.4f} nats, accuracy {accuracy:.4f}")
    told.append(f"  entropy     {facts['entropy']['mean']:.3f} nats on average")
    highest = max(found["share"] for found in facts["entropy"]["histogram"])
    for found in facts["entropy"]["histogram"]:
        end = "and more" if found["to"] is None else f"to {found['to']:g}"
        bar = "#" * round(_BAR * found["share"] / highest)
        told.append(f"    {found['from']:>4g} {end:<8} {found['share']:>6.1%} {bar}")
    return told
