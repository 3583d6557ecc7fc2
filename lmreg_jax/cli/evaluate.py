"""`lmreg evaluate`: how well a transform, or none, brings two scans together."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from lmreg_jax._records import plain, versions
from lmreg_jax.cli.console import Clock
from lmreg_jax.errors import InputError, printed

DESCRIPTION = """Landmark error, overlap and regularity of a transform (T as lmreg register writes
it: fixed mm -> moving mm), beside the same of the scans as they lie, with no transform."""
EXAMPLE = """example:
  lmreg evaluate --fixed inhale.nii.gz --moving exhale.nii.gz --transform aligned/transform.h5 \\
                 --fixed-landmarks inhale.csv --moving-landmarks exhale.csv --output figures.json"""
ROWS = {  # key in the JSON: (heading, digits)
    "tre_mm.mean": ("TRE mean (mm)", 2),
    "tre_mm.sd": ("TRE sd (mm)", 2),
    "tre_mm.median": ("TRE median (mm)", 2),
    "tre_mm.percentile_95": ("TRE 95th percentile (mm)", 2),
    "tre_mm.hardest_30": ("TRE, mean of the hardest 30 (mm)", 2),
    "tre_mm.maximum": ("TRE largest (mm)", 2),
    "dice": ("Dice", 4),
    "hausdorff95_mm": ("HD95 (mm)", 2),
    "mean_surface_mm": ("mean surface distance (mm)", 2),
    "folding_percent": ("folding (%)", 4),
    "folding_percent_mask": ("folding in the fixed mask (%)", 4),
    "sd_log_jacobian": ("sd log Jacobian", 4),
    "sd_log_jacobian_mask": ("sd log Jacobian in the fixed mask", 4),
}


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the subcommand and its options."""
    parser = subparsers.add_parser(
        "evaluate",
        help="landmark error, Dice, surface distance and folding of a transform",
        description=DESCRIPTION,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--fixed", metavar="F", required=True, help="the fixed scan")
    parser.add_argument("--moving", metavar="M", required=True, help="the moving scan")
    parser.add_argument("--transform", metavar="T", help="transform.h5 or another that ITK reads")
    for side in ("fixed", "moving"):
        parser.add_argument(
            f"--{side}-landmarks", metavar="P", help=f"points in the {side} scan: .csv .fcsv .mrk.json"
        )
        parser.add_argument(f"--{side}-mask", metavar="K", help=f"mask or labels on the {side} scan's grid")
    parser.add_argument(
        "--points-unit",
        choices=("mm", "voxel"),
        help="unit of .csv points (default: RAS mm with names, voxel without a header)",
    )
    parser.add_argument("--output", metavar="FILE.json", help="write all figures there as well")
    parser.add_argument("--force", action="store_true", help="replace FILE.json where it exists")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Prints the table and writes the JSON file. Raises InputError."""
    from lmreg_jax.io.outputs import new_file

    _check(args)
    if not args.output:
        print(table(evaluate(args)))
        printed()
        return
    with new_file(args.output, force=args.force) as file:
        result = evaluate(args)
        file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(table(result))


def _check(args: argparse.Namespace) -> None:
    for kind in ("landmarks", "mask"):
        given = [side for side in ("fixed", "moving") if getattr(args, f"{side}_{kind}")]
        if len(given) == 1:
            missing = "moving" if given == ["fixed"] else "fixed"
            raise InputError(f"--{missing}-{kind} is missing: they are compared with --{given[0]}-{kind}")
    if not (args.fixed_landmarks or args.fixed_mask or args.transform):
        raise InputError("nothing to evaluate: give landmarks or masks of both scans, or a --transform")


def evaluate(args: argparse.Namespace) -> dict[str, Any]:
    """All figures, ready for JSON; what is not known is None. Raises InputError."""
    from lmreg_jax.api.evaluation import evaluate as measured

    columns = measured(
        args.fixed,
        args.moving,
        args.transform,
        fixed_landmarks=args.fixed_landmarks,
        moving_landmarks=args.moving_landmarks,
        fixed_mask=args.fixed_mask,
        moving_mask=args.moving_mask,
        points_unit=args.points_unit,
        say=Clock(quiet=not sys.stderr.isatty()).say,
    )
    result = {
        "fixed": args.fixed,
        "moving": args.moving,
        "transform_file": args.transform,
        **columns,
        "versions": versions(),
    }
    answer: dict[str, Any] = plain(result)
    return answer


def table(result: dict[str, Any]) -> str:
    """The figures as text: a row each, a column for identity and for the transform."""
    columns = [key for key in ("identity", "transform") if key in result]
    lines = [f"{'':36}" + "".join(f"{key:>12}" for key in columns)]
    for key, (heading, digits) in ROWS.items():
        values = [_looked_up(result[column], key) for column in columns]
        if any(value is not None for value in values):
            cells = ["" if value is None else f"{value:.{digits}f}" for value in values]
            lines.append(f"{heading:36}" + "".join(f"{cell:>12}" for cell in cells))
    for label in result[columns[0]].get("dice_labels") or {}:
        cells = [f"{result[column]['dice_labels'][label]:.4f}" for column in columns]
        lines.append(f"{'Dice of label ' + label:36}" + "".join(f"{cell:>12}" for cell in cells))
    count = _looked_up(result[columns[0]], "tre_mm.n")
    return "\n".join([*lines, f"{count} points" if count else ""]).rstrip()


def _looked_up(column: dict[str, Any], key: str) -> Any:
    head, _, rest = key.partition(".")
    value = column.get(head)
    return _looked_up(value, rest) if rest and value is not None else value
