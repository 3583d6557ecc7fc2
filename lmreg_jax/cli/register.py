"""`lmreg register`: two raw scans to a warped image, transforms in both directions, and a report."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmreg_jax.cli import host
from lmreg_jax.cli.console import Clock
from lmreg_jax.errors import InputError

if TYPE_CHECKING:
    from lmreg_jax.registration.scans import Model

VARIABLE = "LMREG_MODEL"  # the model to use where the command names none
EXAMPLE = """example:
  lmreg register inhale.nii.gz exhale.nii.gz --output aligned

FIXED and MOVING: chest CT in HU; .nii, .nii.gz, .mha, .nrrd, or the folder of a DICOM series.
The moving scan is brought onto the fixed one, on the fixed scan's own grid: affinely, by the network, by
airway landmarks that are found in both scans (--guidance), and by a refinement on this pair (--refine).
Each step can be left out: --model none, --guidance none, --refine 0. Written to --output:
  warped.nii.gz                      the moving scan, aligned (HU)
  transform.h5                       for resampling moving onto fixed (ITK, ANTs, 3D Slicer; LPS mm)
  inverse_transform.h5               for resampling fixed onto moving
  report.html, report.png, report.json
With --save, too:
  displacement.nii.gz, inverse_displacement.nii.gz    both transforms as dense fields on the scans' grids
  jacobian.nii.gz, uncertainty.nii.gz                 on the fixed grid

lmreg register --pairs pairs.csv --output study aligns many pairs, one after the other, in one process.

The verdict (good, check, poor) says whether the result can be used as it is, and why not.
Without --model (or LMREG_MODEL) the weights that come with the package are used, which have seen synthetic
lungs only."""


def add(subparsers: Any) -> None:
    """Adds the subcommand to `lmreg`."""
    parser = subparsers.add_parser(
        "register",
        help="align two raw chest CT scans",
        description="Aligns a moving chest CT to a fixed one and writes the transform in both directions.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("fixed", metavar="FIXED", nargs="?", help="scan that stays as it is")
    parser.add_argument("moving", metavar="MOVING", nargs="?", help="scan that is warped onto it")
    parser.add_argument(
        "--pairs",
        type=Path,
        metavar="CSV",
        help="many pairs instead: fixed,moving and, if wanted, name, fixed_mask, moving_mask,"
        " fixed_landmarks, moving_landmarks; a folder each in --output, and a summary, the worst first. The"
        " same command resumes a run that was cut off",
    )
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="a new folder")
    parser.add_argument(
        "--model", metavar="DIR", help="a training or model; 'none': no network (default: the shipped one)"
    )
    parser.add_argument(
        "--refine", type=int, default=60, metavar="N", help="steps of optimisation on this pair (default 60)"
    )
    parser.add_argument(
        "--refine-around",
        choices=("zero", "network"),
        default="zero",
        help="what --refine keeps smooth: the whole motion (zero, for a model that has not seen scans like"
        " these), or only its change (network, keeps what the model learned from landmarks)",
    )
    parser.add_argument(
        "--refine-objective",
        choices=("smooth", "correlation", "trained"),
        default="smooth",
        help="what --refine compares, and how it weighs smoothness: intensities, with more weight on"
        " smoothness than in training (smooth); local correlation, which contrast medium does not mislead"
        " (correlation: closer at vessels and airways, a rougher field); or intensities by the training's"
        " own lambda and sigma (trained: closer at the lungs' edge, the roughest field)",
    )
    parser.add_argument(
        "--affine",
        choices=("auto", "images", "elastix", "moments", "none"),
        default="auto",
        help="affine step: by intensities (images, the default), elastix (an extra), lung moments, or a"
        " shift only (none)",
    )
    for role in ("fixed", "moving"):
        parser.add_argument(
            f"--{role}-mask", metavar="M", help=f"lungs of the {role} scan, on its grid (else segmented)"
        )
        parser.add_argument(
            f"--{role}-landmarks",
            metavar="CSV",
            help=f"points of the {role} scan, for the report (and --guidance given)",
        )
    parser.add_argument(
        "--guidance",
        choices=("auto", "none", "given"),
        default="auto",
        help="points that the scans are brought together by: airway landmarks found in both (auto), none, or"
        " those of --fixed-landmarks and --moving-landmarks (given)",
    )
    parser.add_argument(
        "--save",
        nargs="+",
        choices=("displacement", "jacobian", "uncertainty"),
        default=(),
        metavar="WHAT",
        help="write these, too: displacement, jacobian, uncertainty",
    )
    parser.add_argument("--force", action="store_true", help="replace the results of an earlier run")
    parser.add_argument("--quiet", action="store_true", help="no progress on the screen")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Reads, registers, writes; prints where the results are and the numbers that matter."""
    from lmreg_jax.io.outputs import resolved

    _check(args)
    if args.pairs:
        from lmreg_jax.cli.batch import run_pairs

        run_pairs(args, _model, registered)
        return
    clock = Clock(quiet=args.quiet)
    numbers = registered(args, clock, lambda: _model(args.model))
    _tell(resolved(args.output), numbers, clock)


def registered(
    args: argparse.Namespace, clock: Clock, model_of: Callable[[], Model | None]
) -> dict[str, Any]:
    """Registers `args.fixed` and `args.moving` and writes the folder `args.output`; the report's numbers.

    model_of: the model, asked for once the output was tried out.
    """
    from lmreg_jax import _compilation_cache as compilation_cache
    from lmreg_jax.affine import elastix
    from lmreg_jax.io.outputs import new_folder, resolved
    from lmreg_jax.report.output import FILES, write_page, write_results

    def say(doing: str) -> None:
        if clock.doing == "affine alignment":
            elastix.stop()  # it holds as much memory as all that follows
        clock.say(doing)

    with new_folder(args.output, force=args.force, known=tuple(FILES)) as folder:
        host.check_devices()
        compilation_cache.enable()
        if args.affine == "elastix":
            elastix.start()  # it loads while the scans are read
        model = model_of()
        _check_refinement(args, model)
        from lmreg_jax.api.scans import register_scans

        result = register_scans(
            args.fixed,
            args.moving,
            fixed_mask=args.fixed_mask,
            moving_mask=args.moving_mask,
            fixed_landmarks=args.fixed_landmarks,
            moving_landmarks=args.moving_landmarks,
            model=model,
            guidance=args.guidance,
            refine=args.refine,
            refine_around=args.refine_around,
            refine_objective=args.refine_objective,
            affine=args.affine,
            say=say,
            progress=clock.progress,
        )
        written = write_results(
            folder,
            result.fixed,
            result.moving,
            result.registered,
            command=shlex.join(["lmreg", *sys.argv[1:]]),
            model=model,
            landmarks=result.landmarks,
            airways=result.airways,
            save=args.save,
            seconds=clock.seconds,
            say=say,
        )
    output = resolved(args.output)
    say("report")
    return write_page(output, written, result.fixed, result.moving)


def _check(args: argparse.Namespace) -> None:
    """Options that contradict each other, before any work."""
    if args.pairs and (args.fixed or args.fixed_mask or args.moving_mask or args.fixed_landmarks):
        raise InputError("--pairs: scans, masks and landmarks stand in its table, not beside it")
    if not args.pairs and not args.moving:
        raise InputError("give FIXED and MOVING, or --pairs CSV")
    if args.refine < 0:
        raise InputError(f"--refine {args.refine}: expected 0 or more steps")
    if bool(args.fixed_landmarks) != bool(args.moving_landmarks):
        raise InputError("--fixed-landmarks and --moving-landmarks belong together: give both or none")
    if args.refine_objective == "correlation" and not args.refine:
        raise InputError("--refine-objective correlation: give --refine N, too")
    if args.guidance == "given" and not (args.fixed_landmarks or args.pairs):
        raise InputError("--guidance given: give --fixed-landmarks and --moving-landmarks")


def _check_refinement(args: argparse.Namespace, model: Model | None) -> None:
    for option, value in (("around", "network"), ("objective", "trained")):
        if getattr(args, f"refine_{option}") == value and (model is None or not args.refine):
            raise InputError(f"--refine-{option} {value}: give a model and --refine N, too")
    if model is None and not args.refine:
        print(
            "no model: affine alignment only (--model DIR for a network, --refine N to deform)",
            file=sys.stderr,
        )


def _model(given: str | None) -> Model | None:
    from lmreg_jax.model.weights import DEFAULT
    from lmreg_jax.registration.scans import load_model

    name = given if given is not None else os.environ.get(VARIABLE, "")
    return None if name == "none" else load_model(Path(name) if name else DEFAULT)


def _tell(output: Path, numbers: dict[str, Any], clock: Clock) -> None:
    for note in numbers["notes"]:
        print(f"note: {note}", file=sys.stderr)
    print(f"verdict: {numbers['verdict']}" + "".join(f"; {reason}" for reason in numbers["reasons"]))
    dice = ", ".join(f"{name} {value:.3f}" for name, value in numbers["dice"]["both"].items() if value)
    print(f"lung Dice: {dice}; folding {numbers['regularity']['folding_percent']:.3g} %")
    if "refinement" in numbers:
        one, other = (numbers["refinement"][f"objective_{when}"]["total"] for when in ("before", "after"))
        moved = numbers["motion"].get("refinement", numbers["motion"]["deformation"])
        print(
            f"refinement: objective {one:.4g} -> {other:.4g}; it moved the lungs by {moved['mean_mm']:.1f} mm"
            f" in the mean, {moved['largest_mm']:.1f} mm at most"
        )
    if "landmarks" in numbers:
        means = numbers["landmarks"]["mean_mm"].items()
        print("landmarks, mean error: " + ", ".join(f"{name} {value:.2f} mm" for name, value in means))
    print(f"{output}: written in {clock.total():.0f} s; look at {output / 'report.html'}")
