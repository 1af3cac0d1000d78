"""stillhouse-store ls STORE | show CACHE or STORE | verify or rm CACHE | derive CACHE --to ENCODING [--name NAME]
| gc STORE [--older-than 7d] [--dry-run]; each with [--json]"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from typing import Any

from stillhouse_commands import refuse_shadows

refuse_shadows(__file__, "jobs")

from jobs.command_line import Command, Program  # noqa: E402
from jobs.console import Progress, last, say, table  # noqa: E402
from storage.base.errors import NoCache  # noqa: E402
from storage.cache.catalog import list_caches, verify  # noqa: E402
from storage.cache.gc import collect, forget  # noqa: E402
from storage.cache.open import is_store, open_cache  # noqa: E402
from storage.objectstore.folder import Folder  # noqa: E402
from storage.objectstore.location import absolute  # noqa: E402


def main(arguments: Sequence[str] | None = None, *, prog: str = "python -m storage") -> int:
    commands = {
        "ls": Command("list the sealed caches of a store", _store, _ls),
        "show": Command(
            "show what a cache is, where it came from and its first rows, decoded; of a store, list its caches",
            _show_arguments,
            _show,
        ),
        "verify": Command("hash every shard again; exit 3 when one differs from what was committed", _cache, _verify),
        "rm": Command("forget a cache; its shards stay until gc finds that nothing needs them", _cache, _rm),
        "derive": Command(
            "seal a cache that keeps less of each position, without the teacher", _derive_arguments, _derive
        ),
        "gc": Command("remove what no cache needs, no running job can want and is older than that", _gc_arguments, _gc),
    }
    return Program(prog, "Look after a store of caches.", commands).run(arguments)


def _store(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("store", help="a folder URL")


def _cache(parser: argparse.ArgumentParser, also: str = "") -> None:
    parser.add_argument("cache", help=f"STORE/NAME, STORE/NAME@KEY8 or STORE/caches/KEY{also}")


def _show_arguments(parser: argparse.ArgumentParser) -> None:
    _cache(parser, ", or a STORE")
    parser.add_argument(
        "--tokenizer", metavar="PATH", help="a tokenizer.json or its folder, where the teacher's is not at hand"
    )


def _derive_arguments(parser: argparse.ArgumentParser) -> None:
    _cache(parser)
    parser.add_argument(
        "--to", required=True, metavar="ENCODING", help="as in topk:k=16 or topk:k=32,temperatures=[1,2]"
    )
    parser.add_argument("--name", help="what to call it; NAME-ENCODING unless said, as in corpus-topk16")


def _gc_arguments(parser: argparse.ArgumentParser) -> None:
    _store(parser)
    parser.add_argument(
        "--older-than", type=_seconds, default="7d", help="spare what is younger: 30m, 12h, 7d (7d unless said)"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be removed; remove nothing")


def _ls(asked: argparse.Namespace) -> tuple[dict[str, Any], str, int]:
    store = Folder(absolute(asked.store))
    if store.exists() and not is_store(store):
        raise NoCache(f"{store.url} is no store: it has neither commits nor caches.", "A teacher's recipe makes one.")
    return _listed(store)


def _listed(store: Folder) -> tuple[dict[str, Any], str, int]:
    wanted = ("name", "url", "cache_key", "cache_digest", "encoding", "samples", "positions", "bytes", "quarantined")
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
    text = (
        table(["cache", "digest", "encoding", "samples", "MB", "quarantined"], lines) if rows else "no sealed cache yet"
    )
    for problem in problems:
        say(problem)
    return {"caches": rows, "problems": problems}, text, 3 if problems else 0


def _show(asked: argparse.Namespace) -> tuple[dict[str, Any], str, int]:
    from storage.analysis.show import lines, look

    tokenizer = None if asked.tokenizer is None else absolute(asked.tokenizer)
    try:
        cache = open_cache(absolute(asked.cache))
    except NoCache:
        store = Folder(absolute(asked.cache))
        if not is_store(store):
            raise
        return _listed(store)
    facts = look(cache, tokenizer)
    return facts, "\n".join(lines(facts)), 0


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


def _derive(asked: argparse.Namespace) -> tuple[dict[str, Any], str, int]:
    from storage.analysis.derive import derive, derived_encoding

    parent = open_cache(absolute(asked.cache))
    encoding = derived_encoding(asked.to, parent.encoding)
    name = asked.name or f"{parent.name}-{asked.to.partition(':')[0]}{encoding.to_dict().get('k', '')}"
    with Progress("derive", parent.samples, "samples") as progress:
        cache = derive(parent, encoding, name, progress.update)
    text = (
        f"derived {cache.label}, digest {cache.digest[:8]}, from {parent.label}: {cache.positions:,} positions, "
        f"{cache.bytes / 1e6:,.2f} MB of {parent.bytes / 1e6:,.2f}\n  {cache.url}"
    )
    return {**cache.facts(), "parent": {"cache_key": parent.key, "cache_digest": parent.digest}}, text, 0


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
