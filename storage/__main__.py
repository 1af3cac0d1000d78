"""python -m storage ls STORE | show CACHE | verify CACHE [--json]"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from storage.cache import open_cache
from storage.catalog import list_caches, verify
from storage.console import last, run_command, say, table
from storage.errors import NoCache
from storage.folder import Folder
from storage.recipes import absolute


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m storage", description="Look after a store of caches.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, operand, text in (
        ("ls", "store", "list the sealed caches of a store"),
        ("show", "cache", "show what a cache is, where it came from and its first rows, decoded"),
        ("verify", "cache", "hash every shard again; exit 3 when one differs from what was committed"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument(
            operand, help="STORE/NAME, STORE/NAME@KEY8 or STORE/caches/KEY" if operand == "cache" else "a folder URL"
        )
        command.add_argument("--json", action="store_true", help="the answer as JSON on stdout, and nothing else there")
    asked = parser.parse_args(arguments)
    run = {"ls": _ls, "show": _show, "verify": _verify}[asked.command]
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
    facts = {**cache.facts(), "rows": first_rows(cache)}
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


if __name__ == "__main__":
    sys.exit(last(main()))
