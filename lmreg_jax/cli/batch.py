"""`lmreg register --pairs`: many pairs in one process, a folder each, and a summary with the worst first."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmreg_jax.cli.console import Clock
from lmreg_jax.errors import InputError

if TYPE_CHECKING:
    from lmreg_jax.registration.scans import Model

    Registered = Callable[[argparse.Namespace, Clock, Callable[[], Model | None]], dict[str, Any]]

REQUIRED = ("fixed", "moving")
OPTIONAL = ("name", "fixed_mask", "moving_mask", "fixed_landmarks", "moving_landmarks")


def run_pairs(
    args: argparse.Namespace, model: Callable[[str | None], Model | None], registered: Registered
) -> None:
    """Registers each pair of the table `args.pairs` by `registered`; writes and tells the summary.

    A pair whose folder holds a report already is not registered again, unless --force. One that cannot be
    registered is told, and the others go on; InputError, at the end, says how many.
    """
    from lmreg_jax.io.outputs import resolved
    from lmreg_jax.report.summary import write_summary

    root = resolved(args.output)
    if root.is_file():
        raise InputError(f"{root}: is a file; name a folder for the results")
    pairs = read_pairs(args.pairs)
    loaded = cache(lambda: model(args.model))
    reports: dict[str, dict[str, Any]] = {}
    failed: dict[str, str] = {}
    for count, (name, files) in enumerate(pairs.items(), start=1):
        done = root / name / "report.json"
        if done.exists() and not args.force:
            reports[name] = json.loads(done.read_text(encoding="utf-8"))
            continue
        print(f"{count} of {len(pairs)}: {name}", file=sys.stderr, flush=True)
        one = argparse.Namespace(**{**vars(args), **files, "output": root / name, "pairs": None})
        clock = Clock(quiet=args.quiet)
        try:
            reports[name] = registered(one, clock, loaded)
            print(f"{name}: {reports[name]['verdict']}, {clock.total():.0f} s", flush=True)
        except InputError as error:
            failed[name] = str(error)
            print(f"{name}: failed: {error}", file=sys.stderr, flush=True)
        write_summary(root, reports, failed)  # after each: what a run that is cut off leaves is complete
    if reports and not (root / "summary.html").exists():
        write_summary(root, reports, failed)
    print(f"{root}: {len(reports)} of {len(pairs)} pairs; look at {root / 'summary.html'}")
    if failed:
        raise InputError(f"{len(failed)} of {len(pairs)} pairs failed; first: {next(iter(failed.items()))}")


def read_pairs(table: Path) -> dict[str, dict[str, str | None]]:
    """{name: {column: path or None}} of a table; paths are relative to its folder.

    Raises InputError over a missing file, an unknown column, or a name that is no folder's or there twice.
    """
    from lmreg_jax.io.tables import read_table

    rows = read_table(table, REQUIRED)
    if not rows:
        raise InputError(f"{table}: no pairs")
    if unknown := set(rows[0][1]) - {*REQUIRED, *OPTIONAL, ""}:
        raise InputError(
            f"{table}: column {', '.join(sorted(unknown))}: expected {', '.join((*REQUIRED, *OPTIONAL))}"
        )
    pairs: dict[str, dict[str, str | None]] = {}
    for number, row in rows:
        files: dict[str, str | None] = {column: None for column in OPTIONAL if column != "name"}
        for column in files | dict.fromkeys(REQUIRED):
            text = row.get(column, "")
            path = table.parent / os.path.expanduser(text)
            if text and not path.exists():
                raise InputError(f"{table}, line {number}: {column} {path}: no such file")
            if not text and column in REQUIRED:
                raise InputError(f"{table}, line {number}: {column} is empty")
            files[column] = str(path) if text else None
        if bool(files["fixed_landmarks"]) != bool(files["moving_landmarks"]):
            raise InputError(f"{table}, line {number}: landmarks of one scan only: give both or none")
        name = row.get("name", "") or "_onto_".join(_stem(str(files[c])) for c in ("moving", "fixed"))
        if name in (".", "..") or "/" in name or os.sep in name:
            raise InputError(f"{table}, line {number}: name {name!r}: expected the name of a folder")
        if name in pairs:
            raise InputError(f"{table}, line {number}: {name!r} is there twice; give a column `name`")
        pairs[name] = files
    return pairs


def _stem(path: str) -> str:
    """The file's name without what follows its first point, or the folder's."""
    return Path(path).name.split(".")[0] or Path(path).name
