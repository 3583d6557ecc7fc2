"""A cohort's prepared form on disk: arrays as .npy, all else as JSON, nothing pickled.

An entry is a folder, named by a hash of everything that it depends on, written under another name
and renamed: a second process never sees half of it. Entries are never changed, only replaced.

The images of a loaded case are memory-mapped: cheap, but a file that is cut short under a map ends
the process with SIGBUS, and a changed one goes unnoticed. What runs for hours reads through `fresh`
instead, which reads the file, checks its sum, and raises an error that names it; `Memory` keeps what
it has read.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import secrets
import shutil
import time
import zlib
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmreg_jax.cohort.case import Case, Stored
from lmreg_jax.cohort.options import Options
from lmreg_jax.cohort.table import Row
from lmreg_jax.errors import InputError

log = logging.getLogger(__name__)

VERSION = 5  # raise it whenever the preparation or the layout below changes
META = "cohort.json"
IMAGES = ("image", "lungs", "lobes", "inside")
TABLES = ("landmarks", "points", "landmarks_mm", "points_mm", "scan_from_grid")
TRIES, PAUSE_SECONDS = 3, 0.3  # an entry being replaced, or a network drive's hiccup


class LostCase(InputError):
    """A prepared case whose file has vanished or changed since; `case` is its name."""

    def __init__(self, case: str, message: str) -> None:
        super().__init__(message)
        self.case = case


def cache_key(root: Path, rows: list[Row], pairs: object, options: Options) -> str:
    """Hash of the tables, the options, and every input file's path, size and time of change."""
    files = []
    for row in rows:
        for path in row.files:
            stat = path.stat()
            files.append((str(path), stat.st_size, stat.st_mtime_ns))
    table = [(row.name, row.split, *(str(getattr(row, n)) for n in Row._fields[2:])) for row in rows]
    text = json.dumps([VERSION, str(root.resolve()), table, pairs, files, options._asdict()])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def load(entry: Path) -> tuple[tuple[Case, ...], dict[str, Any]] | None:
    """The entry's cases (images memory-mapped, read-only) and its other values; None without it.

    A damaged entry counts as none; `store` replaces it. Of the images, only the sizes are compared
    here: their sums are checked each time that `fresh` reads them.
    """
    try:
        meta = json.loads((entry / META).read_text(encoding="utf-8"))
        files = {name: Stored(entry / name, size, sum_) for name, (size, sum_) in meta["files"].items()}
        for file in files.values():
            if file.path.stat().st_size != file.size:
                raise ValueError(f"{file.path.name} has another size than was written")
        return tuple(_load_case(entry, files, i, d) for i, d in enumerate(meta["cases"])), meta["values"]
    except FileNotFoundError as error:
        if entry.exists():
            log.warning("%s: damaged (no %s); it is made anew", entry, error.filename)
    except Exception as error:  # Damaged JSON and .npy headers raise a dozen kinds of it.
        log.warning("%s: damaged (%s); it is made anew", entry, error)
    return None


def fresh(case: Case, names: Iterable[str] = IMAGES) -> Case:
    """The case with its arrays `names` read into memory, as they were written to the last bit.

    A case that was not loaded from an entry is given back as it is. Raises LostCase, naming case
    and file, where one has vanished or changed; the next `load` then makes the entry anew.
    """
    if case.stored is None:
        return case
    read: dict[str, Any] = {n: _read_whole(case.name, case.stored[n]) for n in names if n in case.stored}
    return replace(case, **read)


class Memory:
    """`fresh` that keeps the cases it has read, up to `limit` bytes; the least recently used go first.

    What is kept has been checked once, and no longer depends on its files.
    """

    def __init__(self, limit: float, names: Iterable[str]) -> None:
        self._limit, self._names, self._size = limit, tuple(names), 0
        self._kept: OrderedDict[str, Case] = OrderedDict()

    def __call__(self, case: Case) -> Case:
        """The case with its arrays in memory. Raises LostCase as `fresh` does."""
        if case.name in self._kept:
            self._kept.move_to_end(case.name)
            return self._kept[case.name]
        whole = fresh(case, self._names)
        if case.stored is not None:
            self._kept[case.name] = whole
            self._size += self._bytes(whole)
            while self._size > self._limit:
                self._size -= self._bytes(self._kept.popitem(last=False)[1])
        return whole

    def _bytes(self, case: Case) -> int:
        arrays = (getattr(case, name) for name in self._names)
        return sum(array.nbytes for array in arrays if array is not None)


def _read_whole(case: str, file: Stored) -> NDArray[Any]:
    problem = ""
    for attempt in range(TRIES):
        if attempt:
            time.sleep(PAUSE_SECONDS)
        try:
            content = file.path.read_bytes()
        except FileNotFoundError:
            problem = "vanished"
        except OSError as error:
            problem = f"cannot be read ({error.strerror})"
        else:
            if len(content) == file.size and zlib.crc32(content) == file.crc32:
                array: NDArray[Any] = np.load(io.BytesIO(content), allow_pickle=False)
                return array
            problem = "is not as it was written"
            if len(content) != file.size:
                problem += f" ({len(content)} bytes of {file.size})"
    _give_up(file.path.parent)
    raise LostCase(
        case,
        f"{file.path}: the prepared file of case {case!r} {problem}. Start the same command again: the"
        " cohort is prepared anew and the run goes on from its last checkpoint",
    )


def _give_up(entry: Path) -> None:
    """Without its table the entry is damaged for every later `load`, also where only a bit flipped."""
    try:
        (entry / META).unlink(missing_ok=True)
    except OSError as error:
        log.warning("%s: damaged, and cannot be changed (%s); remove it", entry, error.strerror)


def store(entry: Path, cases: Iterable[Case], values: dict[str, Any]) -> None:
    """Writes an entry atomically; where another process was first, theirs is kept.

    cases: taken one by one; values: anything JSON holds, read after the last of them. Raises OSError
    where the disk is full or read-only.
    """
    entry.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(entry, "writing")
    files: dict[str, tuple[int, int]] = {}
    try:
        temporary.mkdir()
        described = [_store_case(temporary, i, case, files) for i, case in enumerate(cases)]
        meta = {"version": VERSION, "files": files, "cases": described, "values": values}
        (temporary / META).write_text(json.dumps(meta), encoding="utf-8")
        _publish(temporary, entry)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _publish(temporary: Path, entry: Path) -> None:
    for _ in range(3):
        try:
            os.rename(temporary, entry)
            return
        except OSError:
            if not entry.exists():
                raise
        if load(entry) is not None:
            return
        damaged = _beside(entry, "damaged")
        try:
            os.rename(entry, damaged)
        except FileNotFoundError:  # the other process took it away first
            continue
        shutil.rmtree(damaged, ignore_errors=True)


def _beside(entry: Path, what: str) -> Path:
    return entry.with_name(f".{what}-{os.getpid()}-{secrets.token_hex(4)}")


def _store_case(folder: Path, index: int, case: Case, files: dict[str, tuple[int, int]]) -> dict[str, Any]:
    """Writes a case's arrays, enters their sizes and sums in `files`; gives back all else of it."""
    described: dict[str, Any] = {
        "alignment": case.alignment,
        "name": case.name,
        "split": case.split,
    }
    for name in (*IMAGES, *TABLES):
        data = getattr(case, name)
        if name in IMAGES:
            described[name] = None if data is None else list(data.shape)
        if data is not None:
            content = io.BytesIO()
            np.save(content, data, allow_pickle=False)
            (folder / _file(name, index)).write_bytes(content.getbuffer())
            files[_file(name, index)] = (content.getbuffer().nbytes, zlib.crc32(content.getbuffer()))
    return described


def _file(name: str, index: int) -> str:
    return f"{name}_{index:04d}.npy"


def _load_case(entry: Path, files: dict[str, Stored], index: int, described: dict[str, Any]) -> Case:
    values: dict[str, Any] = {name: described[name] for name in ("name", "split", "alignment")}
    stored = {n: files[_file(n, index)] for n in IMAGES if described[n] is not None}
    for name in IMAGES:
        path = entry / _file(name, index)
        values[name] = np.load(path, "r", allow_pickle=False) if name in stored else None
    for name in TABLES:
        file = files[_file(name, index)]
        content = file.path.read_bytes()
        if zlib.crc32(content) != file.crc32:
            raise ValueError(f"{file.path.name} is not as it was written")
        values[name] = np.load(io.BytesIO(content), allow_pickle=False)
    return Case(**values, stored=stored)
