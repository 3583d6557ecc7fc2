"""A cohort's prepared form on disk: arrays as .npy, all else as JSON, nothing pickled.

An entry is a folder, named by a hash of everything that it depends on, written under another name
and renamed: a second process never sees half of it. Entries are never changed, only replaced.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmreg_jax.cohort_case import Case
from lmreg_jax.cohort_options import Options
from lmreg_jax.cohort_table import Row

log = logging.getLogger(__name__)

VERSION = 2  # raise it whenever the preparation or the layout below changes
IMAGES = ("image", "lungs", "lobes", "inside")
TABLES = ("landmarks", "points", "landmarks_mm", "points_mm", "scan_from_grid")


def cache_key(root: Path, rows: list[Row], pairs: object, options: Options) -> str:
    """Hash of the tables, the options, and every input file's path, size and time of change."""
    files = []
    for row in rows:
        for path in row.files:
            stat = path.stat()
            files.append((str(path), stat.st_size, stat.st_mtime_ns))
    table = [
        (row.name, row.split, *(str(getattr(row, n)) for n in Row._fields[2:])) for row in rows
    ]
    text = json.dumps([VERSION, str(root.resolve()), table, pairs, files, options._asdict()])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def load(entry: Path) -> tuple[tuple[Case, ...], dict[str, Any]] | None:
    """The entry's cases (images memory-mapped, read-only) and its other values; None without it.

    A damaged entry (a file missing or of another size) counts as none; `store` replaces it.
    """
    try:
        meta = json.loads((entry / "cohort.json").read_text(encoding="utf-8"))
        for name, size in meta["sizes"].items():
            if (entry / name).stat().st_size != size:
                raise ValueError(f"{name} has another size than was written")
        return tuple(_load_case(entry, i, d) for i, d in enumerate(meta["cases"])), meta["values"]
    except FileNotFoundError as error:
        if entry.exists():
            log.warning("%s: damaged (no %s); it is made anew", entry, error.filename)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError) as error:
        log.warning("%s: damaged (%s); it is made anew", entry, error)
    return None


def store(entry: Path, cases: tuple[Case, ...], values: dict[str, Any]) -> None:
    """Writes an entry whole or not at all; where another process was first, theirs is kept.

    values: anything JSON holds. Raises OSError where the disk is full or read-only.
    """
    entry.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(entry, "writing")
    try:
        temporary.mkdir()
        described = [_store_case(temporary, i, case) for i, case in enumerate(cases)]
        sizes = {path.name: path.stat().st_size for path in sorted(temporary.iterdir())}
        meta = {"version": VERSION, "sizes": sizes, "cases": described, "values": values}
        (temporary / "cohort.json").write_text(json.dumps(meta), encoding="utf-8")
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


def _store_case(folder: Path, index: int, case: Case) -> dict[str, Any]:
    described: dict[str, Any] = {
        "alignment": case.alignment,
        "name": case.name,
        "split": case.split,
    }
    for name in IMAGES:
        data = getattr(case, name)
        described[name] = None if data is None else list(data.shape)
        if data is not None:
            np.save(folder / f"{name}_{index:04d}.npy", data, allow_pickle=False)
    for name in TABLES:
        np.save(folder / f"{name}_{index:04d}.npy", getattr(case, name), allow_pickle=False)
    return described


def _load_case(entry: Path, index: int, described: dict[str, Any]) -> Case:
    def read(name: str, mapped: bool) -> NDArray[Any]:
        path = entry / f"{name}_{index:04d}.npy"
        array: NDArray[Any] = np.load(path, "r" if mapped else None, allow_pickle=False)
        return array

    values: dict[str, Any] = {name: described[name] for name in ("name", "split", "alignment")}
    for name in IMAGES:
        values[name] = None if described[name] is None else read(name, mapped=True)
    for name in TABLES:
        values[name] = read(name, mapped=False)
    return Case(**values)
