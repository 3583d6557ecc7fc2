"""The tables of a cohort on disk: its cases, where their files lie, who pairs with whom.

    ROOT/cases.csv   case,split,image,lungs,lobes,landmarks,points   (only case,image required)
    ROOT/pairs.csv   fixed,moving                                     (optional)

A folder of bare .nii / .nii.gz without cases.csv is a cohort of unannotated training cases.
"""

from __future__ import annotations

import difflib
import itertools
import logging
from collections.abc import Collection
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NamedTuple

from lmreg_jax.errors import InputError
from lmreg_jax.io.tables import read_table

log = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
FILES = ("image", "lungs", "lobes", "landmarks", "points")
IMAGES = (".nii", ".nii.gz")


class MissingFile(InputError):
    """A file that the table names is not there."""


class Row(NamedTuple):
    """One case of the table; files it does not have are None."""

    name: str
    split: str
    image: Path
    lungs: Path | None = None
    lobes: Path | None = None
    landmarks: Path | None = None
    points: Path | None = None

    @property
    def files(self) -> list[Path]:
        return [path for field in FILES if (path := getattr(self, field)) is not None]


def read_cases(
    root: Path, *, allow_outside_root: bool = False, skipped: dict[str, str] | None = None
) -> list[Row]:
    """The cases of cases.csv (or of a bare folder of images), in its order; files are not opened.

    skipped: where given, cases with a missing file are left out and noted there, name to reason.
    Raises InputError on duplicate names, unknown splits, files that are missing or lie outside
    `root`, and tables without a case.
    """
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; name the folder that holds cases.csv or images")
    table = root / "cases.csv"
    if not table.exists():
        return _bare_folder(root)
    rows: list[Row] = []
    seen: dict[str, int] = {}
    for line, cells in read_table(table, required=("case", "image")):
        where = f"{table}, line {line}"
        name = _checked_name(cells["case"], where)
        if name in seen:
            raise InputError(f"{where}: case {name!r} is already on line {seen[name]}; rename one")
        seen[name] = line
        split = cells.get("split", "").lower() or "train"
        if split not in SPLITS:
            raise InputError(f"{where}: split {split!r} of case {name!r}; one of {', '.join(SPLITS)}")
        if not cells["image"]:
            raise InputError(f"{where}: case {name!r} names no image")
        try:
            paths = {
                column: _file(root, cells[column], where, column, allow_outside_root)
                for column in FILES
                if cells.get(column)
            }
        except MissingFile as error:
            if skipped is None:
                raise
            skipped[name] = str(error)
            continue
        rows.append(Row(name, split, **paths))
    if not rows:
        raise InputError(f"{table}: no case in it; add a line for each: case,split,image,...")
    _warn_of_columns(table)
    return rows


def read_pairs(
    root: Path, rows: list[Row], skipped: Collection[str] = ()
) -> tuple[tuple[str, str], ...] | None:
    """The (fixed, moving) names of pairs.csv in its order, or None without that file.

    skipped: names of cases that were left out; their pairs are left out as well.
    Raises InputError on unknown names, a case paired with itself, duplicates, and on pairs whose
    cases are of different splits (a test case must not be seen in training).
    """
    table = root / "pairs.csv"
    if not table.exists():
        return None
    splits = {row.name: row.split for row in rows}
    pairs: list[tuple[str, str]] = []
    for line, cells in read_table(table, required=("fixed", "moving")):
        where, pair = f"{table}, line {line}", (cells["fixed"], cells["moving"])
        if set(pair) & set(skipped):
            continue
        for name in pair:
            if name not in splits:
                close = difflib.get_close_matches(name, splits, 1)
                hint = f"; did you mean {close[0]!r}?" if close else ""
                raise InputError(f"{where}: no case {name!r} in cases.csv{hint}")
        if pair[0] == pair[1]:
            raise InputError(f"{where}: case {pair[0]!r} is paired with itself")
        if pair in pairs:
            raise InputError(f"{where}: the pair {pair[0]},{pair[1]} is there twice")
        if splits[pair[0]] != splits[pair[1]]:
            raise InputError(
                f"{where}: {pair[0]} is {splits[pair[0]]} and {pair[1]} is {splits[pair[1]]}; both "
                "cases of a pair must be of one split"
            )
        pairs.append(pair)
    return tuple(pairs) or None


def _bare_folder(root: Path) -> list[Row]:
    images = sorted(p for p in root.iterdir() if p.name.endswith(IMAGES) and p.name[0] != ".")
    names = [path.name.removesuffix(".gz").removesuffix(".nii") for path in images]
    if not images:
        raise InputError(f"{root}: holds neither cases.csv nor a .nii or .nii.gz image")
    for first, second in itertools.pairwise(names):
        if first == second:
            raise InputError(f"{root}: {first}.nii and {first}.nii.gz are one case twice; remove one")
    return [Row(_checked_name(n, str(root)), "train", p) for n, p in zip(names, images, strict=True)]


def _checked_name(name: str, where: str) -> str:
    """Case names become file names of results, so they must not lead elsewhere."""
    if not name or name.startswith(".") or any(c in '/\\:"' or not c.isprintable() for c in name):
        raise InputError(f"{where}: case name {name!r}; letters, digits, '-', '_' and '.' are safe")
    return name


def _file(root: Path, cell: str, where: str, column: str, allow_outside_root: bool) -> Path:
    path = PurePosixPath(cell)
    absolute = path.is_absolute() or bool(PureWindowsPath(cell).drive)
    if not allow_outside_root and (absolute or ".." in path.parts):
        raise InputError(
            f"{where}: {column} {cell} lies outside {root}; put or link the file below that "
            "folder, or read the cohort with allow_outside_root=True"
        )
    full = root / path
    try:
        there = full.is_file()
    except OSError as error:  # A name longer than the system takes.
        raise InputError(f"{where}: {column} {cell!r} is no file name ({error.strerror})") from None
    if not there:
        raise MissingFile(f"{where}: {column} {full} does not exist")
    return full


def _warn_of_columns(table: Path) -> None:
    """A misspelt optional column would silently drop every landmark."""
    known = ("case", "split", *FILES)
    first = table.read_text(encoding="utf-8-sig").splitlines()[0]
    for column in (cell.strip().strip('"').lower() for cell in first.split(",")):
        close = difflib.get_close_matches(column, known, 1, cutoff=0.8)
        if column not in known and close:
            raise InputError(f"{table}: column {column!r}; did you mean {close[0]!r}?")
        if column and column not in known:
            log.warning("%s: column %r is not used", table, column)
