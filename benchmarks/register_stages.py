"""Where the time of `lmreg register` goes, at the first start, the second, and without kept programs.

    python -m benchmarks.register_stages [--scans FIXED MOVING] [--refine=0] [--output=benchmarks/results]

Each start is the command in a process of its own, its stages told apart by what it says on the way;
tracing and compiling are summed from JAX's own events. The second start finds what the first one
compiled (`compilation_cache`, here in a folder of its own). Also: how long the imports take. Without
--scans two synthetic thoraces. Writes register_stages.md and .json.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

EVENTS = "/jax/core/compile/"  # JAX's own: tracing, lowering,
COMPILING = EVENTS + "backend_compile_duration"  # and compiling, or fetching what was compiled
STAGES = {  # What the command says when it begins something, and the stage that this belongs to.
    "both scans": "reading, lungs, airways",
    "affine alignment": "affine",
    "network": "network",
    "refinement": "refinement",
    "integration": "integration",
    "warped image": "export",
    "transforms": "export",
    "report": "export",
}
STARTS = ("first start", "second start", "nothing kept")
IMPORTS = {
    "import jax": "import jax",
    "import lmreg_jax": "import lmreg_jax",
    "what training and `register` need": "import lmreg_jax.model.registrar",
}


def worker(words: list[str]) -> None:
    """Runs the command; prints seconds of each stage, those of compiling in it, and programs."""
    import jax

    from benchmarks import common
    from lmreg_jax.cli import main as program
    from lmreg_jax.cli import register

    begun: list[tuple[str, float]] = [("start-up", float(os.environ["BENCHMARK_START"]))]
    events: list[tuple[str, float, float]] = []
    fetched = 0

    class Clock(register.Clock):
        def say(self, doing: str) -> None:
            begun.append((STAGES[doing.split(",")[0]], time.time()))
            super().say(doing)

    def spent(event: str, seconds: float, **_: Any) -> None:
        if event.startswith(EVENTS):
            events.append((event, time.time() - seconds, time.time()))

    def happened(event: str, **_: Any) -> None:
        nonlocal fetched
        fetched += event.endswith("/cache_hits")

    jax.monitoring.register_event_duration_secs_listener(spent)
    jax.monitoring.register_event_listener(happened)
    register.Clock = Clock  # type: ignore[misc]
    program.main(words)
    begun.append(("end", time.time()))
    answer: dict[str, dict[str, float]] = {"stages": {}, "compiling": {}, "tracing": {}}
    for (stage, start), (_, end) in itertools.pairwise(begun):
        every = covered([(max(a, start), min(b, end)) for _, a, b in events])
        backend = covered([(max(a, start), min(b, end)) for name, a, b in events if name == COMPILING])
        for kind, seconds in (("stages", end - start - every), ("compiling", backend)):
            answer[kind][stage] = answer[kind].get(stage, 0.0) + seconds
        answer["tracing"][stage] = answer["tracing"].get(stage, 0.0) + every - backend
    programs = sum(name == COMPILING for name, *_ in events)
    counts = {"compiled": programs - fetched, "fetched": fetched}
    print(json.dumps({**answer, **counts, "peak_mb": common.peak_mb()}))


def covered(spans: list[tuple[float, float]]) -> float:
    """Length of the union: JAX counts what is traced within a tracing twice."""
    total, reached = 0.0, -float("inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


def start(words: Sequence[str], cache: str) -> dict[str, Any]:
    """One start of the command; the time from before its process to after it, by stage."""
    from benchmarks import common

    begin = time.time()
    environment = os.environ | {"BENCHMARK_START": repr(begin), "LMREG_COMPILATION_CACHE": cache}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    command = [sys.executable, "-m", "benchmarks.register_stages", "--worker", *words]
    printed, wall, most = common.watched(command, environment)
    answer: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return answer | {"wall": wall, "all_mb": max(most, answer["peak_mb"])}


def imports(repeats: int) -> dict[str, float]:
    """Seconds of each import in a new process, the fastest of `repeats` in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in IMPORTS}
    for _ in range(repeats + 1):
        for name, statement in IMPORTS.items():
            text = f"import time; t = time.perf_counter(); {statement}; print(time.perf_counter() - t)"
            done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
            seconds[name].append(float(done.stdout))
    return {name: min(s[1:]) for name, s in seconds.items()}  # The first fills the disk's cache.


def synthetic(folder: Path, shape: tuple[int, int, int], spacing_mm: float) -> list[str]:
    """Two subjects as scans; the fixed one and the moving one."""
    from lmreg_jax import phantom

    root = phantom.write_cohort(
        folder / "cohort", cases=2, test=1, shape=shape, spacing_mm=spacing_mm, progress=False
    )
    return [str(file) for file in sorted((root / "images").iterdir())]


def markdown(rows: dict[str, Any], where: dict[str, Any], what: str) -> str:
    """The tables for people."""
    from benchmarks import common

    runs = rows["starts"]
    stages = list(dict.fromkeys(STAGES.values()))
    lines = ["# `lmreg register` by stage", "", f"{common.heading(where)} {what}", ""]
    body = []
    for stage in ("start-up", *stages):
        if stage in runs[STARTS[0]]["stages"]:
            body.append([stage, *(f"{r['stages'][stage]:.2f}" for r in runs.values())])
    for name, kind in (("tracing, all stages", "tracing"), ("compiling or fetching", "compiling")):
        body.append([name, *(f"{sum(r[kind].values()):.2f}" for r in runs.values())])
    body.append(["whole process", *(f"{r['wall']:.2f}" for r in runs.values())])
    for name in ("compiled", "fetched"):
        body.append([f"programs {name}", *(str(r[name]) for r in runs.values())])
    body.append(["peak memory (MB)", *(f"{r['peak_mb']:.0f}" for r in runs.values())])
    body.append(["with elastix' process (MB)", *(f"{r['all_mb']:.0f}" for r in runs.values())])
    lines += common.table(["seconds", *STARTS], body)
    one = rows["imports"]
    lines += ["", *common.table(["import", "s"], [[n, f"{s:.2f}"] for n, s in one.items()])]
    return "\n".join(lines) + "\n"


def main() -> None:
    if sys.argv[1:2] == ["--worker"]:
        worker(sys.argv[2:])
        return
    from benchmarks import common  # not at the top: it would count as the worker's start-up

    parser = common.parser(__doc__, "register_stages")
    parser.add_argument("--scans", nargs=2, metavar=("FIXED", "MOVING"))
    parser.add_argument("--shape", default="176x128x224", help="voxels of the synthetic scans")
    parser.add_argument("--spacing", type=float, default=2.0, help="their mm")
    parser.add_argument("--affine", default="moments")
    parser.add_argument("--refine", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=5, help="of the imports")
    given = parser.parse_args()
    where = common.environment("benchmarks.register_stages")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        x, y, z = map(int, given.shape.split("x"))
        scans = given.scans or synthetic(folder, (x, y, z), given.spacing)
        runs = {}
        for number, name in enumerate(STARTS):
            words = ["register", *scans, "--output", str(folder / f"aligned_{number}"), "--quiet"]
            words += [f"--affine={given.affine}", f"--refine={given.refine}"]
            runs[name] = start(words, "off" if name == STARTS[2] else str(folder / "compiled"))
            print(name, runs[name], flush=True)
    rows = {"starts": runs, "imports": imports(given.repeats)}
    kind = "scans as given" if given.scans else f"two synthetic scans of {given.shape} voxels"
    what = (
        f"{kind}, affine step: {given.affine}, {given.refine} steps of refinement. Stages without the"
        " tracing and compiling that falls into them; programs: those that JAX asked its compiler for."
    )
    common.write(given.output / given.name, where, rows, markdown(rows, where, what))
    print(markdown(rows, where, what))


if __name__ == "__main__":
    main()
