"""python -m storage ls STORE | show, verify or rm CACHE | gc STORE [--older-than 7d] [--dry-run]; each with [--json]"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from typing import Any

from storage.cache import open_cache
from storage.catalog import list_caches, verify
from storage.console import last, run_command, say, table
from storage.errors import NoCache
from storage.folder import Folder
from storage.recipes import absolute
from storage.sweep import collect, forget


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m storage", description="Look after a store of caches.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, operand, text in (
        ("ls", "store", "list the sealed caches of a store"),
        ("show", "cache", "show what a cache is, where it came from and its first rows, decoded"),
        ("verify", "cache", "hash every shard again; exit 3 when one differs from what was committed"),
        ("rm", "cache", "forget a cache; its shards stay until gc finds that nothing needs them"),
        ("gc", "store", "remove what no cache needs, no running job can want and is older than that"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument(
            operand, help="STORE/NAME, STORE/NAME@KEY8 or STORE/caches/KEY" if operand == "cache" else "a folder URL"
        )
        command.add_argument("--json", action="store_true", help="the answer as JSON on stdout, and nothing else there")
        if name == "gc":
            command.add_argument(
                "--older-than", type=_seconds, default="7d", help="spare what is younger: 30m, 12h, 7d (7d unless said)"
            )
            command.add_argument("--dry-run", action="store_true", help="say what would be removed; remove nothing")
    asked = parser.parse_args(arguments)
    run = {"ls": _ls, "show": _show, "verify": _verify, "rm": _rm, "gc": _gc}[asked.command]
    return run_command(lambda: run(asked), as_json=asked.json)


def _ls(asked: argparse.Namespace) -> tuple[dict[str, Any], str, int]:
    wanted = ("name", "url", "cache_key", "cache_digest", "encoding", "samples", "positions", "bytes", "quarantined")
    store = Folder(absolute(asked.store))
    if store.exists() and not (store.exists("commits") or store.exists("caches")):
        raise NoCache(f"{store.url} is no store: it has neither commits nor caches.", "A teacher's recipe makes one.")
    found, problems = list_caches(store)
    rows = [{key: row[key] for key in wanted} for row in found]
    lines = [
        [
            f"{row['name'] or ''}@{row['cache_key'][:8]}",
            row["cache_digest"][:8],
            row["encoding"]["encoding"],
            f"{row['samples']:,}",
            f"{row['bytes'] / 1e6:,.2f}",
            str(row["quarantined"]),
        ]
        for row in rows
    ]
    text = table(["cache", "digest", "encoding", "samples", "MB", "quarantined"], lines) if rows else "no sealed cache"
    for problem in problems:
        say(problem)
    return {"caches": rows, "problems": problems}, text, 3 if problems else 0


def _show(asked: argparse.Namespace) -> tuple[dict[str, Any], str, int]:
    from storage.show import first_rows

    cache = open_cache(absolute(asked.cache))
    quarantined = [sample.to_dict() for shard in cache.shards for sample in shard.quarantined]
    facts = {**cache.facts(), "quarantined_samples": quarantined, "rows": first_rows(cache)}
    return facts, "\n".join(_lines(facts)), 0


def _lines(facts: dict[str, Any]) -> list[str]:
    lineage = facts["lineage"]
    teacher = lineage["teacher"]
    lines = [
        f"{facts['name']}@{facts['cache_key'][:8]}  {facts['url']}",
        f"  digest      {facts['cache_digest']}",
        f"  targets     {json.dumps(facts['encoding'], sort_keys=True)}, {facts['classes']} classes",
        f"  samples     {facts['samples']:,} in {facts['shards']} shards, {facts['bytes'] / 1e6:,.2f} MB; "
        f"{facts['quarantined']} quarantined",
        f"  inputs      {', '.join(facts['inputs'])}; {'labelled' if facts['labelled'] else 'no labels'}",
        f"  teacher     {teacher['factory']} {json.dumps(teacher['arguments'])}, {teacher['dtype']}, "
        f"digest {teacher['digest'][:8]}",
        f"  weights     {teacher['weights']}",
        f"  source      {json.dumps(lineage['source'])}",
        f"  sealed      {lineage['sealed_at']} with {', '.join(f'{k} {v}' for k, v in lineage['software'].items())}",
        *(f"  quarantined {sample['sample_id']}: {sample['reason']}" for sample in facts["quarantined_samples"]),
        "  first rows, the teacher's likeliest classes at T = 1:",
    ]
    for row in facts["rows"]:
        label = "" if row["label"] is None else f", label {row['label']}"
        top = ", ".join(f"{c['class']} {c['probability']:.4f}" for c in row["top"])
        lines.append(f"    sample {row['sample_id']}{label}: {top}; entropy {row['entropy']:.3f} nats")
    return lines


def _verify(asked: argparse.Namespace) -> tuple[dict[str, Any], str, int]:
    cache = open_cache(absolute(asked.cache))
    answer = verify(cache)
    counts = f"{cache.label}: {answer['shards']} shards, {answer['samples']:,} samples, {answer['bytes'] / 1e6:,.2f} MB"
    if answer["ok"]:
        return answer, f"{counts}: every byte is as it was committed.", 0
    return answer, "\n".join([f"{counts}: damaged.", *answer["problems"]]), 3


def _rm(asked: argparse.Namespace) -> tuple[dict[str, Any], str, int]:
    cache = open_cache(absolute(asked.cache))
    answer = forget(cache)
    names = ", ".join(answer["names"]) or "no name"
    return (
        answer,
        f"forgot {cache.label} (it had {names}). Its {answer['shards']} shards, {answer['bytes'] / 1e6:,.2f} MB, stay: "
        "the teacher's recipe seals them again without teacher work, until gc removes what nothing needs.",
        0,
    )


def _gc(asked: argparse.Namespace) -> tuple[dict[str, Any], str, int]:
    answer = collect(Folder(absolute(asked.store)), asked.older_than, dry_run=asked.dry_run)
    removed = ", ".join(f"{count:,} {kind}" for kind, count in sorted(answer["removed"].items())) or "nothing"
    lines = [f"{'would remove' if asked.dry_run else 'removed'} {removed}; {answer['bytes'] / 1e6:,.2f} MB"]
    if answer["kept"]:
        lines.append("kept " + ", ".join(f"{count:,} {why}" for why, count in sorted(answer["kept"].items())))
    if answer["jobs"]:
        lines.append(f"running: {', '.join(answer['jobs'])}")
    if asked.dry_run:
        lines += answer["paths"]
    return answer, "\n".join(lines), 0


def _seconds(text: str) -> float:
    """
    >>> _seconds("90"), _seconds("30m"), _seconds("1.5h"), _seconds("7d")
    (90.0, 1800.0, 5400.0, 604800.0)
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"'{text}' is no time; it is written like 90s, 30m, 12h or 7d")
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[found[2]]


if __name__ == "__main__":
    sys.exit(last(main()))
