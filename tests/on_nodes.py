"""Jobs on a Ray of several nodes, in a process of their own: it and the session's Ray do not go together."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def run_on_nodes(script: str, folder: Path, *modules: Path) -> tuple[dict[str, Any], str]:
    """A script's JSON answer, and what it said on stderr. modules: folders that it imports from, beside the project."""
    path = folder / "script.py"
    path.write_text(textwrap.dedent(script))
    places = os.pathsep.join(map(str, (ROOT / "benchmarks", ROOT, *modules)))
    environment = {**os.environ, "PYTHONPATH": places, "RAY_AUTH_MODE": "disabled"}
    done = subprocess.run(
        [sys.executable, str(path), str(folder)], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-4000:]
    # Ray's own words may stand on both sides: the command ends before its process does.
    return json.JSONDecoder().raw_decode(done.stdout, done.stdout.index("{\n"))[0], done.stderr
