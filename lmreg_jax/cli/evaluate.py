"""`lmreg evaluate`: how well a transform, or none, brings two scans together."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from lmreg_jax._records import plain, versions
from lmreg_jax.cli.console import Clock
from lmreg_jax.errors import InputError, printed

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lmreg_jax.imaging.transforms import Transform
    from lmreg_jax.imaging.volume import Volume
    from lmreg_jax.io.scan import Scan

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
    from lmreg_jax.imaging.transforms import identity_transform
    from lmreg_jax.io.read import read_scan
    from lmreg_jax.io.transforms import read_transform

    clock = Clock(quiet=not sys.stderr.isatty())
    clock.say("reading")
    fixed, moving = read_scan(args.fixed), read_scan(args.moving)
    transform = read_transform(args.transform) if args.transform else None
    points = _points(args, fixed, moving) if args.fixed_landmarks else None
    masks = None
    if args.fixed_mask:
        masks = _mask(args.fixed_mask, fixed), _mask(args.moving_mask, moving)
    clock.say("without the transform")
    columns = {"identity": _measure(identity_transform(), fixed, points, masks)}
    if transform is not None:
        clock.say("with the transform")
        columns["transform"] = _measure(transform, fixed, points, masks, args.transform)
    result = {
        "fixed": args.fixed,
        "moving": args.moving,
        "transform_file": args.transform,
        **columns,
        "versions": versions(),
    }
    answer: dict[str, Any] = plain(result)
    return answer


def _mask(path: str, scan: Scan) -> Volume:
    """A mask on the grid of its scan; that of two lungs checked against a CT."""
    import numpy as np

    from lmreg_jax.anatomy.sides import given_lungs
    from lmreg_jax.imaging.intensity import looks_like_ct
    from lmreg_jax.io.read import read_mask

    mask = read_mask(path, scan)
    if set(np.unique(mask.data).tolist()) != {0, 1, 2} or not looks_like_ct(scan.volume):
        return mask
    lungs, notes = given_lungs(path, mask, scan.volume)
    for note in notes:
        print(f"note: {path}: {note}", file=sys.stderr)
    return lungs


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


def _points(
    args: argparse.Namespace, fixed: Scan, moving: Scan
) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    from lmreg_jax.io.points import check_points, read_points

    sides = []
    for path, scan in ((args.fixed_landmarks, fixed), (args.moving_landmarks, moving)):
        points = read_points(path, scan, args.points_unit)
        check_points(path, points, scan)
        sides.append(points)
    a, b = sides
    numbered = all(name.isdigit() for name in (*a, *b))
    if numbered and len(a) != len(b):
        raise InputError(
            f"{args.fixed_landmarks} has {len(a)} points, {args.moving_landmarks} {len(b)}; points without "
            "names are matched line by line and must be as many"
        )
    return a, b


def _measure(
    transform: Transform,
    fixed: Scan,
    points: tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]] | None,
    masks: tuple[Volume, Volume] | None,
    name: str = "",
) -> dict[str, Any]:
    """The figures of one transform."""
    from lmreg_jax.evaluation import transform as pair_metrics

    out: dict[str, Any] = {}
    if points is not None:
        errors = pair_metrics.point_errors(transform, *points, name=name)
        out["tre_mm"] = pair_metrics.summarise(errors)._asdict()
        out["landmarks_mm"] = errors
    if masks is not None:
        out |= pair_metrics.overlap(transform, *masks)._asdict()
        out["dice_labels"] = {str(label): value for label, value in out["dice_labels"].items()}
    mask = masks[0] if masks else None
    out |= pair_metrics.regularity(transform, fixed.volume, mask)._asdict()
    return out
