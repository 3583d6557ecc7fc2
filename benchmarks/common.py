"""What the benchmarks share: where a table was made, how it is written, a process's own peak memory."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from experiments.run import provenance
from lmreg_jax.io.tables import replacing

ROOT = Path(__file__).parents[1]
RESULTS = Path("benchmarks/results")
EVERY_S = 0.1  # looks at the memory of processes


def environment(module: str, packages: Iterable[str] = ("jax", "jaxlib")) -> dict[str, Any]:
    """Hardware, versions, commit and the command that ran `module`."""
    return {
        "processor": provenance.processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in packages},
        "commit": provenance.git_commit(ROOT),
        "command": " ".join([f"python -m {module}", *sys.argv[1:]]),
        "load_at_start": os.getloadavg()[0],
    }


def heading(where: dict[str, Any]) -> str:
    """`environment` in one paragraph; a load above the process's own says that others ran beside."""
    versions = ", ".join(f"{k} {v}" for k, v in where["versions"].items())
    return (
        f"{where['processor']}, {where['cores']} cores, Python {where['python']}, {versions}; commit"
        f" {where['commit']}, load {where['load_at_start']:.1f} at the start. `{where['command']}`."
    )


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], *, words: int = 1) -> list[str]:
    """Lines of a Markdown table, its first `words` columns to the left, numbers to the right."""
    lines = [f"| {' | '.join(heads)} |", "| --- " * words + "| ---: " * (len(heads) - words) + "|"]
    return lines + [f"| {' | '.join(row)} |" for row in rows]


def write(stem: Path, where: dict[str, Any], rows: Any, markdown: str) -> None:
    """STEM.json (environment and rows) and STEM.md."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    with replacing(stem.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps({**where, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    with replacing(stem.with_suffix(".md")) as temporary:
        temporary.write_text(markdown, encoding="utf-8")


def answer_of(module: str, *words: str) -> dict[str, Any]:
    """The JSON on the last line that `python -m module words` prints; {"error": ...} where it fails."""
    done = subprocess.run(
        [sys.executable, "-m", module, *words], capture_output=True, text=True, encoding="utf-8"
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return {"error": f"exit {done.returncode}: {lines[-1] if lines else ''}"}
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def peak_mb() -> float:
    """Peak memory of this process. Not `ru_maxrss`: that of the program that started it counts there."""
    return _status_mb("self", "VmHWM")


def watched(command: Sequence[str], environment: Mapping[str, str] | None = None) -> tuple[str, float, float]:
    """Runs a command: what it printed, its seconds, and the most MB that all its processes held at once.

    Ends the program, with what the command said, where it fails.
    """
    most, begin = 0.0, time.time()
    with tempfile.TemporaryFile("w+", encoding="utf-8") as out, tempfile.TemporaryFile("w+b") as errors:
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=errors)
        try:
            while process.poll() is None:
                most = max(most, tree_mb(process.pid))
                time.sleep(EVERY_S)
        finally:
            process.kill()
        seconds = time.time() - begin
        out.seek(0)
        errors.seek(0)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)}: {errors.read().decode(errors='replace')}")
        return out.read(), seconds, most


def tree_mb(process: int) -> float:
    """Memory that a process and all its descendants hold now, what they share counted for each."""
    try:
        tasks = Path(f"/proc/{process}/task").glob("*/children")  # whichever thread started them
        children = [int(child) for task in tasks for child in task.read_text(encoding="utf-8").split()]
        return _status_mb(process, "VmRSS") + sum(map(tree_mb, children))
    except (OSError, StopIteration):  # ended meanwhile
        return 0.0


def _status_mb(process: int | str, name: str) -> float:
    lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024
