"""`lmreg preprocess`: raw chest CT to a cohort on one grid, lungs segmented, affinely aligned."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from lmreg_jax.cli.console import Clock

EXAMPLE = """example:
  lmreg preprocess scans/a.nii.gz scans/b.nii.gz --landmarks a.fcsv b.fcsv --output cohort
  python -m experiments.train --config=experiments/lung.py --config.data.root=cohort \\
         --config.data.alignment=identity --config.data.spacing_mm=2.0 \\
         "--config.data.shape=(160, 112, 208)"

IN may be one cohort instead (its folder or its cases.csv): split, lobes, landmarks, points and pairs.csv
come along. Look at cohort/qc/*.png: orange and blue lines are the left and the right lung. cohort/steps.json
holds every step; `lmreg warp --transform cohort/transforms/CASE_inverse.h5` takes results back to a scan."""


def add(subparsers: Any) -> None:
    """Adds the subcommand to `lmreg`."""
    parser = subparsers.add_parser(
        "preprocess",
        help="bring raw chest CT to one grid: lungs, affine alignment, resampling",
        description="Chest CT of any orientation, spacing and field of view to a cohort on one grid.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "scans", nargs="+", metavar="IN", help="scans in HU (.nii.gz, .mha, .nrrd, DICOM folder), or a cohort"
    )
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="a new folder")
    parser.add_argument(
        "--reference", default="", metavar="CASE", help="align to this one, by its file's name (else chosen)"
    )
    parser.add_argument("--spacing", type=float, default=2.0, metavar="MM", help="of the grid (default 2)")
    parser.add_argument(
        "--shape",
        type=int,
        nargs=3,
        default=(160, 112, 208),
        metavar=("X", "Y", "Z"),
        help="voxels of the grid (default 160 112 208)",
    )
    parser.add_argument(
        "--masks", nargs="+", default=(), metavar="M", help="lung masks, one for each scan, - for none"
    )
    for kind, use in (("landmarks", "for training"), ("points", "for evaluation only")):
        parser.add_argument(
            f"--{kind}",
            nargs="+",
            default=(),
            metavar="F",
            help=f"{kind} {use} (.csv, .fcsv, .mrk.json), one file for each scan, - for none",
        )
    parser.add_argument("--affine", choices=("auto", "images", "elastix", "moments", "none"), default="auto")
    parser.add_argument("--force", action="store_true", help="replace the results of an earlier run")
    parser.add_argument("--quiet", action="store_true", help="no progress on the screen")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Writes the cohort; reports what looks doubtful."""
    from lmreg_jax.affine import elastix
    from lmreg_jax.cohort.preprocess import KNOWN, preprocess, sources
    from lmreg_jax.io.outputs import new_folder, resolved
    from lmreg_jax.report.drawing import attempt

    rows, pairs = sources(args.scans, args.masks, args.landmarks, args.points)
    clock = Clock(quiet=args.quiet)
    x, y, z = args.shape
    missing: list[str] = []

    def picture(path: Path, *shown: Any) -> None:
        _, notes = attempt(_quality_picture, path, *shown)
        missing.extend(f"{path.name}: {note}" for note in notes)

    with new_folder(args.output, force=args.force, known=KNOWN) as folder:
        if args.affine == "elastix" and len(rows) > 1:
            elastix.start()  # it loads while the scans are read
        record = preprocess(
            rows,
            pairs,
            folder,
            reference=args.reference,
            shape=(x, y, z),
            spacing_mm=args.spacing,
            affine=args.affine,
            say=clock.say,
            picture=picture,
            progress=not args.quiet,
        )
    for name, case in record["cases"].items():
        for warning in case["warnings"]:
            print(f"note: {name}: {warning}", file=sys.stderr)
    for note in missing:
        print(f"note: {note}", file=sys.stderr)
    output = resolved(args.output)
    print(f"{output}: {len(rows)} cases in {clock.total():.0f} s; look at {output / 'qc'}")


def _quality_picture(path: Path, image: Any, lungs: Any, title: str) -> None:
    from lmreg_jax.report.drawing import printable
    from lmreg_jax.report.overview import quality_picture

    quality_picture(path, image, lungs, printable(title))
