"""`lmreg warp`: bring an image, a label map or points from one scan to the other."""

from __future__ import annotations

import argparse
import logging
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from lmreg_jax.cli.console import Clock
from lmreg_jax.errors import InputError

if TYPE_CHECKING:
    from lmreg_jax.imaging.transforms import Transform
    from lmreg_jax.io.scan import Scan

log = logging.getLogger(__name__)

DIRECTION = (
    "With transform.h5, images and labels of the MOVING scan are brought onto the FIXED scan's grid "
    "and points of the FIXED scan are taken to the MOVING scan; with inverse_transform.h5, or with "
    "transform.h5 and --inverse, images and labels go from FIXED to MOVING and points from MOVING to "
    "FIXED."
)
EXAMPLE = """example:
  lmreg warp --labels exhale_lobes.nii.gz --transform aligned/transform.h5 \\
             --reference inhale.nii.gz --output lobes_on_inhale.nii.gz
  lmreg warp --points nodules_in_inhale.fcsv --transform aligned/transform.h5 \\
             --output nodules_in_exhale.mrk.json"""
AIR_HU = -1000.0
HU_BELOW = -200  # an image with values below this holds HU


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the subcommand and its options."""
    parser = subparsers.add_parser(
        "warp",
        help="apply a transform to an image, a label map or points",
        description=textwrap.fill(DIRECTION, 78),
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--image", metavar="IN", help="an image; read trilinearly")
    what.add_argument("--labels", metavar="IN", help="a label map; no new labels appear")
    what.add_argument("--points", metavar="IN", help=".csv, .fcsv or .mrk.json")
    parser.add_argument(
        "--transform",
        metavar="T",
        required=True,
        help="ITK transform (.h5 .tfm .txt .mat) or displacement field (.nii.gz .mha .nrrd)",
    )
    parser.add_argument(
        "--reference",
        metavar="R",
        help="the scan that the result belongs to: its grid for images and labels; for points it is "
        "needed for voxel indices only",
    )
    parser.add_argument("--output", metavar="OUT", required=True, help=".nii.gz; .csv .fcsv .mrk.json")
    parser.add_argument("--inverse", action="store_true", help="apply the inverse of T")
    parser.add_argument(
        "--label-mode",
        choices=("nearest", "linear"),
        default="nearest",
        help="linear: the label with most trilinear weight wins, for smoother surfaces (default: nearest)",
    )
    parser.add_argument(
        "--fill", type=float, help="value outside an image (default: -1000 in HU, else lowest)"
    )
    parser.add_argument(
        "--source",
        metavar="S",
        help="the scan that the points of IN belong to: for voxel indices, and to check their place",
    )
    parser.add_argument(
        "--points-unit",
        choices=("mm", "voxel"),
        help="unit of .csv points, in and out (default: RAS mm with names, voxel without a header)",
    )
    parser.add_argument("--force", action="store_true", help="replace OUT where it exists")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Writes OUT atomically. Raises InputError."""
    from lmreg_jax.io.outputs import new_file
    from lmreg_jax.io.transforms import read_transform

    _check_output(args)
    clock = Clock(quiet=not sys.stderr.isatty())
    with new_file(args.output, force=args.force) as file:
        clock.say("transform")
        transform = read_transform(args.transform)
        clock.say(("inverse, " if args.inverse else "") + ("points" if args.points else "resampling"))
        if args.points:
            _warp_points(args, transform, file)
        else:
            _warp_grid(args, transform, file)


def _check_output(args: argparse.Namespace) -> None:
    """Before the work, not after it."""
    endings = (".csv", ".fcsv", ".mrk.json") if args.points else (".nii", ".nii.gz")
    if not args.output.lower().endswith(endings):
        raise InputError(f"{args.output}: written are {', '.join(endings)}; name the output so")
    if not args.points and not args.reference:
        raise InputError("--reference is missing: the scan whose grid the result lies on")


def _warp_points(args: argparse.Namespace, transform: Transform, file: Path) -> None:
    import numpy as np

    from lmreg_jax.imaging.inverse import inverse_points
    from lmreg_jax.imaging.transforms import covers, transform_points
    from lmreg_jax.io.points import check_points, holds_voxels, read_points, write_points
    from lmreg_jax.io.read import read_scan

    unit = "voxel" if holds_voxels(args.points, args.points_unit) else args.points_unit
    if unit == "voxel" and not (args.source and args.reference):
        raise InputError(
            f"{args.points}: holds voxel indices; name the scan that they belong to (--source) and the one "
            "that the result belongs to (--reference)"
        )
    source = read_scan(args.source) if args.source else None
    reference = read_scan(args.reference) if args.reference else None
    points = read_points(args.points, source, args.points_unit)
    if source is not None:
        check_points(args.points, points, source)
    values = np.array(list(points.values()))
    moved = inverse_points(transform, values) if args.inverse else transform_points(transform, values)
    defined = covers(transform, moved if args.inverse else values)
    if not defined.all():
        names = ", ".join([n for n, ok in zip(points, defined, strict=True) if not ok][:5])
        raise InputError(
            f"{args.transform}: a displacement field that ends before {np.count_nonzero(~defined)} of "
            f"{len(points)} points ({names}); use the composite transform (.h5), which holds everywhere"
        )
    write_points(file, dict(zip(points, moved, strict=True)), reference, unit)


def _warp_grid(args: argparse.Namespace, transform: Transform, file: Path) -> None:
    import numpy as np

    from lmreg_jax.imaging.inverse import invert
    from lmreg_jax.imaging.transforms import warp_image, warp_labels
    from lmreg_jax.io.nifti import write_native
    from lmreg_jax.io.read import read_scan, whole_labels

    name = args.image or args.labels
    scan, reference = read_scan(name), read_scan(args.reference)
    if args.inverse:
        transform = invert(transform)
    grid = reference.volume.data.shape, reference.volume.affine
    _warn_of_gaps(args.transform, transform, reference)
    if args.labels:
        labels = whole_labels(name, scan.volume)
        out = warp_labels(transform, labels, *grid, vote=args.label_mode == "linear")
        lost = labels.data.any() and not out.any()
    else:
        data = scan.volume.data
        fill = args.fill
        if fill is None:
            fill = AIR_HU if data.min() < HU_BELOW else float(data.min())
        out = warp_image(transform, scan.volume, *grid, fill=fill)
        lost = bool(data.min() != data.max() and np.all(out == np.float32(fill)))
    if lost:
        raise InputError(
            f"{name}: nothing of it lies on the grid of {args.reference} after {args.transform}; is the "
            "transform of this pair, and in this direction?"
        )
    write_native(file, reference, out, scan.dtype if args.image else None)


def _warn_of_gaps(name: str, transform: Transform, reference: Scan) -> None:
    """Where a dense field ends within the reference, ITK moves nothing, and so do we: said."""
    import numpy as np

    from lmreg_jax.imaging.transforms import covers
    from lmreg_jax.imaging.volume import apply_affine

    volume = reference.volume
    corners = np.indices((2, 2, 2)).reshape(3, -1).T * (np.array(volume.data.shape) - 1)
    if not covers(transform, apply_affine(volume.affine, corners)).all():
        log.warning("%s: a field that ends within %s; beyond, nothing is moved", name, reference.path)
