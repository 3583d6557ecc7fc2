"""`lmreg landmarks`: airway landmarks and lung apices of chest CT, found without an expert."""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmreg_jax.cli.console import Clock
from lmreg_jax.errors import InputError

if TYPE_CHECKING:
    from lmreg_jax.anatomy.landmarks import Landmark, Landmarks

FORMATS = ("csv", "mrk.json", "fcsv")
TABLE, SUMMARY = "table.csv", "table.md"
COLUMNS = ("scan", "name", "x", "y", "z", "confidence", "reason")
EXAMPLE = """example:
  lmreg landmarks scans/*.nii.gz --output landmarks
  lmreg landmarks inhale.nii.gz --output points --format csv mrk.json

DIR/SCAN.csv holds name,x,y,z,confidence (RAS mm); a point below --confidence has no coordinates there.
Look at DIR/SCAN.png. DIR/table.md says what was not found, and why; DIR/table.csv holds every point."""


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the subcommand to `lmreg`."""
    parser = subparsers.add_parser(
        "landmarks",
        help="find airway landmarks and lung apices in chest CT",
        description="Carina, lobar bronchi, trachea points and lung apices, each with a confidence.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "scans", nargs="+", metavar="SCAN", help="chest CT in HU (.nii.gz, .mha, DICOM folder)"
    )
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="a new folder")
    parser.add_argument(
        "--format",
        nargs="+",
        choices=FORMATS,
        default=("csv",),
        help="of the points (default csv; csv is always written)",
    )
    parser.add_argument(
        "--confidence", type=float, default=0.5, metavar="C", help="least confidence of a point (default 0.5)"
    )
    parser.add_argument("--force", action="store_true", help="replace the results of an earlier run")
    parser.add_argument("--quiet", action="store_true", help="no progress on the screen")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Writes the folder. Raises InputError, after all other scans, where some cannot be used."""
    from lmreg_jax.cohort.preprocess import sources
    from lmreg_jax.io.outputs import new_folder, resolved

    if not 0 <= args.confidence <= 1:
        raise InputError(f"--confidence {args.confidence:g}: expected a number from 0 to 1")
    rows, _ = sources(args.scans)
    known = _known(resolved(args.output), [row.name for row in rows])
    clock = Clock(quiet=args.quiet)
    found: dict[str, Landmarks | InputError] = {}
    with new_folder(args.output, force=args.force, known=known) as folder:
        for row in rows:
            clock.say(row.name)
            try:
                found[row.name] = _one(str(row.image), row.name, folder, args)
            except InputError as error:
                found[row.name] = error
                print(f"error: {error}", file=sys.stderr)
        failed = [error for error in found.values() if isinstance(error, InputError)]
        if len(failed) == len(rows):
            raise failed[0] if len(failed) == 1 else InputError("none of the scans can be used (see above)")
        _write_tables(folder, found, args.confidence)
    for name, result in found.items():
        for note in [] if isinstance(result, InputError) else result.notes:
            print(f"note: {name}: {note}", file=sys.stderr)
    done, output = len(rows) - len(failed), resolved(args.output)
    print(f"{output}: {done} scans in {clock.total():.0f} s; see {SUMMARY} there")
    if failed:
        raise InputError(
            f"{len(failed)} of {len(rows)} scans cannot be used (see above); the others are done"
        )


def _known(output: Path, names: list[str]) -> list[str]:
    """File names of this run, and of the earlier one whose table lies in `output`."""
    from lmreg_jax.io.tables import read_table

    table = output / TABLE
    earlier = [row["scan"] for _, row in read_table(table, ("scan",))] if table.is_file() else []
    return [TABLE, SUMMARY] + [f"{n}.{end}" for n in {*names, *earlier} for end in (*FORMATS, "png")]


def _one(path: str, name: str, folder: Path, args: argparse.Namespace) -> Landmarks:
    """Reads a scan, finds its landmarks, writes its files."""
    from lmreg_jax.anatomy.chest import check_ct
    from lmreg_jax.anatomy.landmarks import find_landmarks
    from lmreg_jax.io.points import write_points
    from lmreg_jax.io.read import read_scan
    from lmreg_jax.report.landmarks import landmark_figure

    scan = read_scan(path)
    check_ct(scan)
    try:
        found = find_landmarks(scan.volume)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    _write_csv(folder / f"{name}.csv", found, args.confidence)
    accepted = found.accepted(args.confidence)
    for ending in args.format:
        if ending != "csv" and accepted:
            write_points(folder / f"{name}.{ending}", accepted)
    landmark_figure(folder / f"{name}.png", scan.volume, found, name)
    return found


def _write_csv(path: Path, found: Landmarks, least: float) -> None:
    """name,x,y,z,confidence; without coordinates where a point is missing or below `least`."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("name", "x", "y", "z", "confidence"))
        writer.writerows(
            (p.name, *_cells(p, p.confidence >= least), f"{p.confidence:.2f}") for p in found.points
        )


def _cells(point: Landmark, shown: bool = True) -> tuple[str, ...]:
    if point.point is None or not shown:
        return ("", "", "")
    return tuple(f"{value:.2f}" for value in point.point)


def _write_tables(folder: Path, found: dict[str, Any], least: float) -> None:
    """table.csv: every point of every scan; table.md: a line a scan, and what is missing and why."""
    with open(folder / TABLE, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for scan, result in found.items():
            if isinstance(result, InputError):
                writer.writerow((scan, "", "", "", "", "", str(result)))
                continue
            for p in result.points:
                writer.writerow((scan, p.name, *_cells(p), f"{p.confidence:.2f}", p.reason))
    (folder / SUMMARY).write_text("\n".join(_summary(found, least)) + "\n", encoding="utf-8")


def _summary(found: dict[str, Any], least: float) -> list[str]:
    from lmreg_jax.anatomy.landmarks import NAMES
    from lmreg_jax.report.landmarks import short

    lines = [f"Confidence of each point, where it is at least {least:g}; RAS mm are in {TABLE}.", ""]
    lines += [f"| scan | {' | '.join(short(n) for n in NAMES)} |", "| --- " + "| ---: " * len(NAMES) + "|"]
    why = []
    for scan, result in found.items():
        if isinstance(result, InputError):
            lines.append(f"| {scan} " + "| - " * len(NAMES) + "|")
            why.append(f"- {scan}: {result}")
            continue
        shown = [
            f"{p.confidence:.2f}" if p.point is not None and p.confidence >= least else "-"
            for p in result.points
        ]
        lines.append(f"| {scan} | {' | '.join(shown)} |")
        why += [f"- {scan}: {note}" for note in result.notes]
        why += [
            f"- {scan}: {p.name}: {p.reason or 'below the confidence asked for'}"
            for p, cell in zip(result.points, shown, strict=True)
            if cell == "-"
        ]
    return [*lines, "", "Not found, and notes:", "", *(why or ["- nothing is missing"])]
