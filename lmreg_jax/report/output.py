"""Everything that `lmreg register` leaves on disk, whole or not at all."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmreg_jax._records import plain, versions
from lmreg_jax.anatomy.chest import Side
from lmreg_jax.errors import InputError
from lmreg_jax.imaging.transforms import jacobian, warp_image
from lmreg_jax.imaging.volume import spacing
from lmreg_jax.io.nifti import write_native
from lmreg_jax.io.nifti_stream import rounded
from lmreg_jax.io.transforms import write_displacement, write_itk
from lmreg_jax.registration import measures, velocity
from lmreg_jax.registration.scans import Model, Registered
from lmreg_jax.report import overview, page

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


@contextmanager
def new_folder(output: Path, *, force: bool, known: Sequence[str] = tuple(FILES)) -> Iterator[Path]:
    """A temporary folder beside `output`, renamed to it at the end, removed on any failure.

    Raises InputError where `output` exists, unless `force`; and even then where it holds anything that
    is not ours (`known` names): nobody's files are deleted.
    """
    check_output(output, force=force, known=known)
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".writing-{os.getpid()}-{secrets.token_hex(4)}-{output.name}")
    temporary.mkdir()
    try:
        yield temporary
        if output.exists():
            old = temporary.with_name(temporary.name + "-old")
            os.replace(output, old)
            os.replace(temporary, output)
            shutil.rmtree(old)
        else:
            os.replace(temporary, output)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def check_output(output: Path, *, force: bool, known: Sequence[str]) -> None:
    """InputError where a new folder `output` must not be made; called before any work is done."""
    if not output.name:
        raise InputError(f"{output}: name a new folder for the results")
    if not output.exists():
        return
    if not output.is_dir():
        raise InputError(f"{output}: is a file; name a new folder for the results")
    if not force:
        raise InputError(f"{output}: exists already; name another folder, or --force to replace it")
    foreign = sorted(entry.name for entry in output.iterdir() if entry.name not in known)
    if foreign:
        raise InputError(
            f"{output}: holds {foreign[0]}{' and more' if len(foreign) > 1 else ''}, which this command"
            " did not write; --force replaces results only: name another folder"
        )


def write_results(
    folder: Path,
    fixed: Side,
    moving: Side,
    found: Registered,
    *,
    command: str,
    model: Model | None = None,
    landmarks: tuple[Points, Points] | None = None,
    seconds: Mapping[str, float] | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Writes FILES into `folder`; the report as it stands in report.json.

    landmarks: (fixed, moving), RAS mm by name. Without SimpleITK the .h5 files are left out, and the
    notes say so.
    """
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
    notes += _write_transforms(folder, fixed, moving, found)
    determinant = jacobian(found.forward, shape, affine)
    summary = measures.summary(found, fixed, moving, landmarks, determinant)
    gap = summary["motion"]["inverse_error"]["p95_mm"]
    if gap > velocity.INVERSE_WANTED_MM:
        # First: the picture has room for a few.
        notes.insert(0, f"forward and inverse differ by {gap:.2f} mm in the lungs (95th percentile)")
    say("jacobian and uncertainty")
    write_native(folder / "jacobian.nii.gz", fixed.scan, rounded(determinant, MAP_BITS))
    del determinant
    sd = measures.uncertainty_on(found, shape, affine)
    write_native(folder / "uncertainty.nii.gz", fixed.scan, rounded(sd, MAP_BITS))
    inside = sd[(fixed.lungs.data != 0) & (sd >= 0)]
    mean_sd = float(inside.mean()) if inside.size else None
    del sd, inside
    say("report")
    picture = overview.pictured(fixed, moving, found)
    numbers: dict[str, Any] = {
        "notes": notes,
        "command": command,
        "method": found.method,
        **summary,
        "mean_difference_hu_lungs": _differences(picture),
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
        "files": {name: text for name, text in FILES.items() if _is_there(folder, name)},
    }
    overview.draw(folder / "report.png", picture, headline(numbers, fixed, moving))
    numbers = plain(numbers)
    title = f"{Path(moving.scan.path).name} onto {Path(fixed.scan.path).name}"
    text = page.page(title, numbers, folder / "report.png")
    (folder / "report.html").write_text(text, encoding="utf-8")
    (folder / "report.json").write_text(
        json.dumps(numbers, indent=2, allow_nan=False) + "\n", encoding="utf-8"
    )
    return numbers


def _write_transforms(folder: Path, fixed: Side, moving: Side, found: Registered) -> list[str]:
    """Both directions, dense and as ITK composites; what had to be left out, in words."""
    for name, transform, side in (("", found.forward, fixed), ("inverse_", found.inverse, moving)):
        path = folder / f"{name}displacement.nii.gz"
        write_displacement(path, transform, side.scan.shape, side.scan.affine)
    try:
        write_itk(folder / "transform.h5", found.forward)
        write_itk(folder / "inverse_transform.h5", found.inverse)
    except InputError:
        return [
            "transform.h5 and inverse_transform.h5 are not written, since SimpleITK is not installed:"
            ' pip install "lmreg_jax[itk]"'
        ]
    return []


def headline(numbers: Mapping[str, Any], fixed: Side, moving: Side) -> list[str]:
    """The text over the picture: what was registered, and the numbers that matter most."""
    both, regular = numbers["dice"]["both"], numbers["regularity"]
    motion = numbers["motion"]
    lines = [
        f"{Path(moving.scan.path).name} onto {Path(fixed.scan.path).name}: {numbers['method']}",
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


def _differences(picture: overview.Picture) -> dict[str, float | None]:
    """Mean |fixed - moving| in the fixed lungs, HU (within SHOWN_HU), before and after."""
    lungs = picture.lungs_fixed
    if not lungs.any():
        return {}
    low, high = overview.SHOWN_HU
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


def _is_there(folder: Path, name: str) -> bool:
    return name.startswith("report.") or (folder / name).exists()
