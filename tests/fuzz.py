"""Breaks files in many ways and reads them:  python -m tests.fuzz --count 10000 [--seed 1]

Each file is read, or refused with an InputError that names it. A reader that raises anything else,
crashes, works for more than SECONDS, waits for more than PATIENCE, or asks for more than BOUND_MIB of
memory beyond what its process had at the start (the system refuses more, RLIMIT_AS) has failed; its
file is kept, and the exit status is 1. The valid files are of a few KiB; deflate, at most 1032 : 1,
makes a few MiB of them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests import fuzz_readers
from tests.fuzz_readers import KINDS
from tests.mutations import mutated

BOUND_MIB = 256
SECONDS = 20  # of the processor's time; a file takes milliseconds
PATIENCE = 600  # seconds by the clock, for one that waits for something; a busy machine takes its time
SILENCE = 700  # the same for a worker without a word: it hangs where Python cannot look


class TooSlowError(BaseException):
    """Not an Exception: no reader may swallow it."""


def broken(kind: str, number: int, seed: int, valid: list[Path], folder: Path) -> Path:
    """The file (or folder) `number` of a kind: a copy of a valid one, broken."""
    chance = random.Random(f"{seed} {kind} {number}")
    path = fuzz_readers.with_copy(chance.choice(valid), folder)
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    victim = chance.choice(files)
    other = chance.choice(valid)
    other = victim if other.is_dir() else other
    content = mutated(victim.read_bytes(), other.read_bytes(), chance, text=KINDS[kind].text)
    if path.is_dir() and chance.random() < 0.1:
        victim.unlink()
    else:
        victim.write_bytes(content)
    return path


def work(kind: str, first: int, count: int, seed: int, keep: Path) -> None:
    """Reads files `first` to `first + count` of a kind; a line of JSON on stdout for each finding."""
    logging.disable(logging.CRITICAL)

    def too_slow(*_: object) -> None:
        raise TooSlowError

    for number in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(number, too_slow)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "valid").mkdir()
        valid = KINDS[kind].write(folder / "valid")
        for path in valid:
            problem = fuzz_readers.complaint(kind, path)
            if problem:
                raise SystemExit(f"{kind}: a valid file is refused: {problem}")
        limit_memory()
        for number in range(first, first + count):
            say(at=number)
            path = broken(kind, number, seed, valid, folder)
            try:
                signal.setitimer(signal.ITIMER_PROF, SECONDS)
                signal.alarm(PATIENCE)
                problem = fuzz_readers.complaint(kind, path)
            except TooSlowError:
                problem = f"took more than {SECONDS} s of work, or {PATIENCE} s in all"
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
                signal.alarm(0)
            if problem:
                say(at=number, problem=problem)
                keep.mkdir(parents=True, exist_ok=True)
                shutil.move(path, keep / f"{kind.replace(' ', '_')}-{number}-{path.name}")
            shutil.rmtree(path.parent)
        say(done=True, peak_mib=peak_mib() - AT_START)


AT_START = 0.0


def limit_memory() -> None:
    """From here on, no more than BOUND_MIB beyond what the process has."""
    global AT_START
    AT_START = peak_mib()
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0])
    most = pages * resource.getpagesize() + BOUND_MIB * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def say(**what: Any) -> None:
    print("\n@" + json.dumps(what), flush=True)


def fuzz(kind: str, count: int, seed: int, keep: Path) -> tuple[int, float, list[str]]:
    """Files read, the peak of memory beyond the start (MiB), and what was found."""
    first, peak, found = 0, 0.0, []
    while first < count:
        command = [sys.executable, "-m", "tests.fuzz", "--worker", kind, "--first", str(first)]
        command += ["--count", str(count - first), "--seed", str(seed), "--keep", str(keep)]
        worker = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            encoding="utf-8",
        )
        at, done = first, False
        with watched(worker) as heard:
            assert worker.stdout is not None
            for line in worker.stdout:
                if not line.startswith("@"):
                    continue
                heard()
                said = json.loads(line[1:])
                at, done = said.get("at", at), said.get("done", False)
                peak = max(peak, said.get("peak_mib", 0.0))
                if "problem" in said:
                    found.append(f"{kind} {at}: {said['problem']}")
        worker.wait()
        if done:
            return count, peak, found
        errors = worker.stderr_text[-300:] if hasattr(worker, "stderr_text") else ""
        found.append(f"{kind} {at}: its process ended with status {worker.returncode} {errors}")
        if at == first and worker.returncode == 1:
            return first, peak, found  # It did not even start.
        first = at + 1
    return count, peak, found


@contextlib.contextmanager
def watched(worker: Any) -> Iterator[Any]:
    """Kills a worker that says nothing for SILENCE seconds; drains its stderr, which libraries fill."""
    last = time.monotonic()
    ended = threading.Event()

    def heard() -> None:
        nonlocal last
        last = time.monotonic()

    def watch() -> None:
        while not ended.wait(1.0):
            if time.monotonic() - last > SILENCE:
                worker.kill()

    def drain() -> None:
        worker.stderr_text = ""
        for line in worker.stderr:
            worker.stderr_text = (worker.stderr_text + line)[-2000:]

    threads = [threading.Thread(target=f, daemon=True) for f in (watch, drain)]
    for thread in threads:
        thread.start()
    try:
        yield heard
    finally:
        ended.set()
        for thread in threads:
            thread.join(timeout=10)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000, help="files in all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kind", choices=KINDS, action="append", help="only these (default: all)")
    parser.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir()) / "lmreg_fuzz")
    parser.add_argument("--worker", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        work(given.worker, given.first, given.count, given.seed, given.keep)
        return 0
    kinds = [kind for kind in given.kind or KINDS if fuzz_readers.available(kind)]
    shares = sum(KINDS[kind].share for kind in kinds)
    total, failures = 0, []
    for kind in kinds:
        count = -(-given.count * KINDS[kind].share // shares)
        start = time.monotonic()
        read, peak, found = fuzz(kind, count, given.seed, given.keep)
        total += read
        failures += found
        seconds = time.monotonic() - start
        print(
            f"{kind:16} {read:6} files {len(found):4} failures {peak:6.0f} MiB {seconds:6.0f} s", flush=True
        )
    for failure in failures:
        print(failure)
    print(f"{total} files, {len(failures)} failures, memory bound {BOUND_MIB} MiB, seed {given.seed}")
    if failures:
        print(f"their files: {given.keep}")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
