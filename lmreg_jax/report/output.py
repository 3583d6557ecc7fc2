"""Everything that `lmreg register` leaves on disk: results first (`write_results`), then `write_page`."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lmreg_jax._records import plain, versions
from lmreg_jax.anatomy.chest import Side
from lmreg_jax.errors import InputError
from lmreg_jax.imaging.transforms import jacobian, transform_points, warp_image
from lmreg_jax.imaging.volume import spacing
from lmreg_jax.io.nifti import write_native
from lmreg_jax.io.nifti_stream import rounded
from lmreg_jax.io.tables import replacing
from lmreg_jax.io.transforms import write_displacement, write_itk
from lmreg_jax.registration import measures, velocity, verdict
from lmreg_jax.registration.scans import Model, Registered
from lmreg_jax.report import page
from lmreg_jax.report.drawing import attempt, printable

if TYPE_CHECKING:
    from lmreg_jax.report.overview import Picture

Array = NDArray[Any]
Points = Mapping[str, Array]

AIR_HU = -1000.0  # what lies outside the moving scan
LINE = 260  # characters of the picture's text that fit beside each other
MAP_BITS = 12  # of mantissa in the Jacobian and the uncertainty: 0.012 %, half the size of all 23
FILES = {
    "warped.nii.gz": "moving scan on the fixed scan's grid, HU, its own type",
    "displacement.nii.gz": "fixed -> moving, whole transform, LPS mm, on the fixed scan's grid (ITK)",
    "transform.h5": "fixed -> moving, affine and field, ITK composite: resamples moving onto fixed",
    "inverse_displacement.nii.gz": "moving -> fixed, LPS mm, on the moving scan's grid (ITK)",
    "inverse_transform.h5": "moving -> fixed, ITK composite: resamples fixed onto moving",
    "jacobian.nii.gz": "determinant of the whole transform on the fixed grid; <= 0 where it folds",
    "uncertainty.nii.gz": "predicted sd of the displacement, mm; not calibrated; -1 where unknown",
    "report.png": "the page to look at",
    "report.html": "the same with all numbers; needs no other file",
    "report.json": "all numbers",
}
EXTRAS = {  # written on request
    "displacement": ("displacement.nii.gz", "inverse_displacement.nii.gz"),
    "jacobian": ("jacobian.nii.gz",),
    "uncertainty": ("uncertainty.nii.gz",),
}


class Written(NamedTuple):
    """What `write_results` leaves to `write_page`: the report, and what to draw (None: not possible)."""

    numbers: dict[str, Any]
    picture: Picture | None


def write_results(
    folder: Path,
    fixed: Side,
    moving: Side,
    found: Registered,
    *,
    command: str,
    model: Model | None = None,
    landmarks: tuple[Points, Points] | None = None,
    airways: tuple[Array, Array] | None = None,
    save: Collection[str] = (),
    seconds: Mapping[str, float] | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Written:
    """Writes FILES into `folder`, but for the page to look at, and of EXTRAS those named by `save`.

    landmarks: (fixed, moving), RAS mm by name; airways: both centrelines [N, 3], for the verdict. Without
    SimpleITK dense fields take the place of the .h5 files, and the notes say so. Raises InputError over a
    name that is not in EXTRAS.
    """
    if unknown := set(save) - set(EXTRAS):
        raise InputError(f"save {', '.join(sorted(unknown))}: expected some of {', '.join(EXTRAS)}")
    shape, affine = fixed.scan.volume.data.shape, fixed.scan.volume.affine
    notes = list(found.notes)
    for role, side in (("fixed", fixed), ("moving", moving)):
        notes += [f"{role}: {doubt}" for doubt in side.warnings]
    say("warped image")
    fill = _representable(AIR_HU, moving.scan.dtype)
    warped = warp_image(found.forward, moving.scan.volume, shape, affine, fill=fill)
    write_native(folder / "warped.nii.gz", fixed.scan, warped, moving.scan.dtype)
    del warped
    say("transforms")
    notes += _write_transforms(folder, fixed, moving, found, "displacement" in save)
    determinant = jacobian(found.forward, shape, affine)
    summary = measures.summary(found, fixed, moving, landmarks, determinant)
    gap = summary["motion"]["inverse_error"]["p95_mm"]
    if gap > velocity.INVERSE_WANTED_MM:
        # First: the picture has room for a few.
        notes.insert(0, f"forward and inverse differ by {gap:.2f} mm in the lungs (95th percentile)")
    if "jacobian" in save:
        write_native(folder / "jacobian.nii.gz", fixed.scan, rounded(determinant, MAP_BITS))
    del determinant
    sd = measures.uncertainty_on(found, shape, affine)
    if "uncertainty" in save:
        write_native(folder / "uncertainty.nii.gz", fixed.scan, rounded(sd, MAP_BITS))
    inside = sd[(fixed.lungs.data != 0) & (sd >= 0)]
    mean_sd = float(inside.mean()) if inside.size else None
    del sd, inside
    say("report")
    picture, trouble = attempt(_pictured, fixed, moving, found)
    notes += trouble
    judgement = verdict.judged(summary, found, fixed, moving, airways)
    numbers: dict[str, Any] = {
        "verdict": judgement.value,
        "reasons": judgement.reasons,
        "judged_by": dict(judgement.figures),
        "guidance": _guidance(found),
        "notes": notes,
        "command": command,
        "method": found.method,
        **summary,
        "mean_difference_hu_lungs": {} if picture is None else _differences(picture),
        "predicted_sd_lungs_mm": {"mean": mean_sd},
    }
    if found.outcome is not None:
        numbers["refinement"] = _refinement(found)
    numbers |= {
        "affine": {"method": found.affine.method, "fixed_to_moving_ras_mm": found.affine.pull.tolist()},
        "scans": {"fixed": _scan(fixed), "moving": _scan(moving)},
        "model": _model(model),
        "seconds": dict(seconds or {}),
        "versions": versions(),
        "files": {name: text for name, text in FILES.items() if (folder / name).exists()},
    }
    numbers = plain(numbers)
    _write_json(folder, numbers)
    return Written(numbers, picture)


def write_page(folder: Path, written: Written, fixed: Side, moving: Side) -> dict[str, Any]:
    """Adds report.png and report.html to results that lie in place; the report with what went wrong.

    Nothing that fails here takes anything from them: it is noted.
    """
    numbers, picture = written
    trouble: list[str] = []
    if picture is not None:
        _, trouble = attempt(_draw, folder / "report.png", picture, headline(numbers, fixed, moving))
    drawn = (folder / "report.png").exists()
    named = ("report.html", "report.json", *(("report.png",) if drawn else ()))
    files = {name: text for name, text in FILES.items() if name in numbers["files"] or name in named}
    numbers = {**numbers, "notes": [*numbers["notes"], *trouble], "files": files}
    title = f"{Path(moving.scan.path).name} onto {Path(fixed.scan.path).name}"
    _, more = attempt(_write_page, folder, title, numbers)
    numbers["notes"] += more
    attempt(_write_json, folder, numbers)
    return numbers


def _pictured(fixed: Side, moving: Side, found: Registered) -> Picture:
    from lmreg_jax.report import overview  # matplotlib, which numbers do not wait for

    return overview.pictured(fixed, moving, found)


def _draw(path: Path, picture: Picture, lines: list[str]) -> None:
    from lmreg_jax.report import overview

    overview.draw(path, picture, [printable(line) for line in lines])


def _write_page(folder: Path, title: str, numbers: Mapping[str, Any]) -> None:
    text = page.page(title, numbers, folder / "report.png")
    with replacing(folder / "report.html") as temporary:
        temporary.write_text(text, encoding="utf-8", errors="replace")


def _write_json(folder: Path, numbers: Mapping[str, Any]) -> None:
    with replacing(folder / "report.json") as temporary:
        temporary.write_text(json.dumps(numbers, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _write_transforms(folder: Path, fixed: Side, moving: Side, found: Registered, dense: bool) -> list[str]:
    """Both directions as ITK composites, and dense where wanted; notes on what had to be left out."""
    notes = []
    try:
        write_itk(folder / "transform.h5", found.forward)
        write_itk(folder / "inverse_transform.h5", found.inverse)
    except InputError:
        dense = True
        notes.append(
            "transform.h5 and inverse_transform.h5 are not written, since SimpleITK is not installed:"
            ' pip install "lmreg_jax[itk]"; displacement.nii.gz and its inverse hold the same on the grids of'
            " the scans"
        )
    for name, transform, side in (("", found.forward, fixed), ("inverse_", found.inverse, moving)):
        if dense:
            path = folder / f"{name}displacement.nii.gz"
            write_displacement(path, transform, side.scan.shape, side.scan.affine)
    return notes


def headline(numbers: Mapping[str, Any], fixed: Side, moving: Side) -> list[str]:
    """The text over the picture: what was registered, and the numbers that matter most."""
    both, regular = numbers["dice"]["both"], numbers["regularity"]
    motion = numbers["motion"]
    lines = [
        f"{Path(moving.scan.path).name} onto {Path(fixed.scan.path).name}: {numbers['method']};"
        f" verdict: {numbers['verdict']}" + "".join(f"; {reason}" for reason in numbers["reasons"][:2]),
        "lung Dice "
        + ", ".join(f"{name} {value:.3f}" for name, value in both.items())
        + f"   folding {regular['folding_percent']:.3g} %   Jacobian {regular['smallest_jacobian']:.2f} to"
        f" {regular['largest_jacobian']:.2f}   deformation in the lungs: mean"
        f" {motion['deformation']['mean_mm']:.1f} mm, largest {motion['deformation']['largest_mm']:.1f} mm",
    ]
    if "landmarks" in numbers and numbers["landmarks"]["names"]:
        means = numbers["landmarks"]["mean_mm"]
        lines.append(
            f"{len(numbers['landmarks']['names'])} landmarks, mean error: "
            + ", ".join(f"{name} {value:.2f} mm" for name, value in means.items())
        )
    lines += [f"! {note}" for note in numbers["notes"][:4]]
    made_with = [f"{name} {numbers['versions'][name]}" for name in ("lmreg_jax", "jax")]
    if numbers["model"]["used"]:
        made_with.append(f"model {numbers['model']['sha256'][:12]}")
    return [*lines, textwrap.shorten(f"{', '.join(made_with)}: {numbers['command']}", LINE)]


def _guidance(found: Registered) -> dict[str, Any]:
    """The points that guided, how far apart they ended, and what was not used."""
    guidance = found.guidance
    apart = np.linalg.norm(transform_points(found.forward, guidance.fixed) - guidance.moving, axis=1)
    return {
        "points": {
            name: {"weight": float(w), "apart_mm": float(mm)}
            for name, w, mm in zip(guidance.names, guidance.weights, apart, strict=True)
        },
        "dropped": dict(guidance.dropped),
    }


def _refinement(found: Registered) -> dict[str, Any]:
    outcome = found.outcome
    assert outcome is not None
    return {
        **found.settings,
        "best_step": outcome.step,
        "objective_before": outcome.before,
        "objective_after": outcome.after,
        "smallest_jacobian_before": outcome.smallest_jacobian[0],
        "smallest_jacobian_after": outcome.smallest_jacobian[1],
    }


def _differences(picture: Picture) -> dict[str, float | None]:
    """Mean |fixed - moving| in the fixed lungs, HU (within SHOWN_HU), before and after."""
    from lmreg_jax.report.overview import SHOWN_HU

    lungs = picture.lungs_fixed
    if not lungs.any():
        return {}
    low, high = SHOWN_HU
    fixed = picture.fixed[lungs]
    return {
        name: float(np.abs(image[lungs] - fixed).mean() * (high - low))
        for name, image in (("affine", picture.affine), ("after", picture.warped))
    }


def _scan(side: Side) -> dict[str, Any]:
    scan = side.scan
    return {
        "path": scan.path,
        "voxels": list(scan.shape),
        "spacing_mm": [round(float(s), 4) for s in spacing(scan.affine)],
        "lungs": side.source,
        "litres": [round(value, 3) for value in side.litres],
    }


def _model(model: Model | None) -> dict[str, Any]:
    if model is None:
        return {"used": False}
    return {
        "used": True,
        "folder": str(model.workdir),
        "checkpoint": model.register.source,
        "sha256": model.register.checksum,
    }


def _representable(value: float, dtype: np.dtype[Any]) -> float:
    """The value, or the nearest that the type holds (0 for air in an unsigned image)."""
    if dtype.kind not in "iu":
        return value
    limits = np.iinfo(dtype)
    return float(np.clip(value, limits.min, limits.max))
