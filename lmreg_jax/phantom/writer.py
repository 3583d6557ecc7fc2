"""Writing the embedded cohort: many subjects, several processes, continued where it was interrupted."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import multiprocessing
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path

from tqdm import tqdm

from lmreg_jax.errors import InputError
from lmreg_jax.imaging.volume import Volume
from lmreg_jax.io.nifti import write_volume
from lmreg_jax.io.tables import replacing
from lmreg_jax.phantom.scan import VERSION, thorax

FOLDERS = ("images", "lungs", "lobes", "landmarks", "points")


def write_cohort(
    root: str | Path,
    *,
    cases: int = 40,
    test: int = 10,
    seed: int = 0,
    shape: tuple[int, int, int] = (160, 112, 208),
    spacing_mm: float = 2.0,
    processes: int | None = None,
    progress: bool = True,
) -> Path:
    """Writes subjects 0 ... cases - 1 below `root`, the last `test` of them as the test split.

    Byte-identical for a seed, on any number of `processes` (default: one a core). The folder
    appears at once when complete. An interrupted call ends its processes and leaves the finished
    cases in a hidden folder next to `root`, from which the same call continues.
    Raises InputError where `root` exists already.
    """
    root = Path(root)
    if not 0 <= test < cases:
        raise InputError(f"test={test} of cases={cases}: at least one training case must remain")
    if root.exists():
        raise InputError(f"{root} exists: name a new folder, or remove it to write it again")
    made_of = hashlib.sha256(repr((VERSION, cases, seed, tuple(map(int, shape)), float(spacing_mm))).encode())
    work = root.with_name(f".{root.name}.{made_of.hexdigest()[:8]}.partial")
    for folder in FOLDERS:
        (work / folder).mkdir(parents=True, exist_ok=True)
    try:
        _write_all(work, cases, seed, shape, spacing_mm, processes, progress)
        _write_table(work / "cases.csv", cases, test)
        for unfinished in work.glob("*/.writing-*"):  # by a process that was killed
            unfinished.unlink(missing_ok=True)
        os.rename(work, root)
    except OSError:
        if not (root / "cases.csv").exists():  # else another process was first, with the same cases
            raise
    return root


def _write_all(
    work: Path,
    cases: int,
    seed: int,
    shape: tuple[int, int, int],
    spacing_mm: float,
    processes: int | None,
    progress: bool,
) -> None:
    one = partial(_write_case, work=work, seed=seed, shape=shape, spacing_mm=spacing_mm)
    todo = [index for index in range(cases) if not _last_file(work, index).exists()]
    count = min(processes or _cores(), len(todo))
    bar = tqdm(total=cases, initial=cases - len(todo), desc="phantom", disable=not progress, unit="case")
    with bar:
        if count > 1:
            with contextlib.suppress(BrokenProcessPool), _workers(count) as pool:
                for done in as_completed([pool.submit(one, index) for index in todo]):
                    done.result()
                    bar.update()
        for index in todo:
            if not _last_file(work, index).exists():  # one process, or workers that cannot start
                one(index)
                bar.update()


@contextlib.contextmanager
def _workers(count: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that an error or a signal in this one ends at once.

    spawn: a fork of a process with running threads (jax's, say) can hang. An executor, not a Pool:
    a Pool restarts workers for ever where the caller's script cannot be imported once more
    (a program on standard input, a script without a __main__ guard).
    """
    others = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")
    # A terminal sends Ctrl-C to the workers, too: this process decides what happens.
    pool = ProcessPoolExecutor(
        count, mp_context=context, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN)
    )
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in set(multiprocessing.active_children()) - others:
            worker.kill()
        raise
    finally:
        pool.shutdown()


def _cores() -> int:
    """Cores this process may use (its affinity, where the system has one)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _name(index: int) -> str:
    return f"thorax_{index:02d}"


def _last_file(work: Path, index: int) -> Path:
    """The file of a case that is written last: the case is complete where it exists."""
    return work / FOLDERS[-1] / f"{_name(index)}.csv"


def _write_case(index: int, *, work: Path, seed: int, shape: tuple[int, int, int], spacing_mm: float) -> None:
    made = thorax(index, seed=seed, shape=shape, spacing_mm=spacing_mm)
    for folder, data in (("images", made.image), ("lungs", made.lungs), ("lobes", made.lobes)):
        write_volume(work / folder / f"{_name(index)}.nii.gz", Volume(data, made.affine))
    for folder, points in (("landmarks", made.landmarks), ("points", made.points)):
        with (
            replacing(work / folder / f"{_name(index)}.csv") as temporary,
            open(temporary, "w", newline="", encoding="utf-8") as file,
        ):
            table = csv.writer(file, lineterminator="\n")
            table.writerow(("name", "x", "y", "z"))
            table.writerows((name, *(f"{value:.4f}" for value in place)) for name, place in points.items())


def _write_table(path: Path, cases: int, test: int) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("case", "split", "image", "lungs", "lobes", "landmarks", "points"))
        for index in range(cases):
            name = _name(index)
            table.writerow(
                (
                    name,
                    "train" if index < cases - test else "test",
                    *(f"{folder}/{name}.nii.gz" for folder in FOLDERS[:3]),
                    *(f"{folder}/{name}.csv" for folder in FOLDERS[3:]),
                )
            )
