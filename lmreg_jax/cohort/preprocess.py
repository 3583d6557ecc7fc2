"""Raw scans to a cohort on one grid, every step recorded so that it can be applied again and undone.

DIR/cases.csv               the cohort that training reads (data.alignment=identity)
DIR/images/CASE.nii.gz      HU, on the common grid
DIR/lungs/CASE.nii.gz       1 left, 2 right (or all 1 where the given mask does not tell)
DIR/qc/CASE.png             three planes with the lungs' outlines
DIR/transforms/CASE.h5, CASE_inverse.h5   common grid's mm -> scan's mm, and back (ITK, LPS)
DIR/steps.json              what was done to each scan
"""

from __future__ import annotations

import csv
import json
import os
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lmreg_jax.affine import moments as alignment
from lmreg_jax.affine.pairwise import Affine, align_pair
from lmreg_jax.anatomy.chest import Side, read_side
from lmreg_jax.errors import InputError
from lmreg_jax.imaging import intensity
from lmreg_jax.imaging.intensity import WINDOW
from lmreg_jax.imaging.resampling import resample, smoothing
from lmreg_jax.imaging.transforms import affine_transform
from lmreg_jax.imaging.volume import Volume, cropped, lung_centred_grid
from lmreg_jax.io.nifti import write_volume
from lmreg_jax.io.transforms import write_itk

Array = NDArray[Any]
Say = Callable[[str], None]
Picture = Callable[[Path, Volume, Volume, str], object]  # file, image in HU, lungs, text

AIR_HU = -1000.0
CLIPPED_HU = (-1024.0, 3071.0)  # padding and metal beyond must not spread when voxels are averaged
SUFFIXES = (".nii.gz", ".nii", ".mha", ".mhd", ".nrrd", ".nhdr")
KNOWN = ("cases.csv", "images", "lungs", "qc", "transforms", "steps.json")


class Source(NamedTuple):
    """One scan to be prepared: its name in the cohort, its file, a lung mask's file or None."""

    name: str
    path: str
    mask: str | None


class Lungs(NamedTuple):
    """What the choice of the reference needs of a scan."""

    moments: alignment.Moments
    cut_off: bool


def sources(paths: Sequence[str], masks: Sequence[str] = ()) -> list[Source]:
    """Named after the files. masks: one for each path, "-" for none; or empty.

    Raises InputError on masks that do not match, on a scan given twice and on equal names.
    """
    if masks and len(masks) != len(paths):
        raise InputError(
            f"--masks: {len(masks)} for {len(paths)} scans; give one for each, in their order, - for none"
        )
    given = [None if mask == "-" else mask for mask in masks] or [None] * len(paths)
    out = [Source(case_name(path), path, mask) for path, mask in zip(paths, given, strict=True)]
    seen: dict[str, str] = {}
    for source in out:
        if source.name in seen:
            raise InputError(
                f"{seen[source.name]} and {source.path}: both are named {source.name!r}; rename one"
            )
        seen[source.name] = source.path
    return out


def case_name(path: str) -> str:
    """The file's or folder's name without its suffix, made safe for a cohort's table."""
    name = os.path.basename(os.path.normpath(path.split("::")[0]))
    for suffix in SUFFIXES:
        if name.lower().endswith(suffix):
            name = name[: -len(suffix)]
            break
    safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in name).lstrip(".")
    if not safe:
        raise InputError(f"{path}: no name can be made of it; rename the file")
    return safe


def prepare(
    given: Sequence[Source],
    folder: Path,
    *,
    reference: str = "",
    shape: tuple[int, int, int] = (160, 112, 208),
    spacing_mm: float = 2.0,
    affine: str = "auto",
    say: Say = lambda _: None,
    picture: Picture = lambda *_: None,
) -> dict[str, Any]:
    """Writes the cohort of `given` into `folder`; returns what steps.json holds.

    reference: a case's name; by default the one whose lungs are most like all others' and not cut off.
    Raises InputError, naming the file, on the first scan that cannot be used: nothing is left out.
    """
    if min(shape) < 16 or not 0.1 <= spacing_mm <= 20:
        raise InputError(
            f"grid of {' x '.join(map(str, shape))} voxels of {spacing_mm:g} mm: 16 voxels an axis at least,"
            " of 0.1 to 20 mm, are needed"
        )
    names = [source.name for source in given]
    if reference and reference not in names:
        raise InputError(f"--reference {reference}: no such case; there are {', '.join(names)}")
    if not reference:
        reference = names[0] if len(names) == 1 else most_central(_all_lungs(given, say))
    chosen = given[names.index(reference)]
    say(f"reference: {reference}")
    side = read_side(chosen.path, chosen.mask)
    grid = lung_centred_grid(side.lungs, shape, np.full(3, spacing_mm))
    image = Volume(intensity.window(side.scan.volume.data, WINDOW), side.scan.volume.affine)
    steps: dict[str, Any] = {}
    contents: dict[tuple[Any, ...], str] = {}
    for source in given:
        say(source.name)
        own = side if source is chosen else read_side(source.path, source.mask)
        data = own.scan.volume.data
        first = contents.setdefault((data.shape, zlib.crc32(np.ascontiguousarray(data).data)), source.path)
        if first != source.path:
            raise InputError(f"{first} and {source.path}: identical images; give each scan once")
        if source is chosen:
            found = Affine(np.eye(4), "reference", ())
        else:
            windowed = Volume(intensity.window(own.scan.volume.data, WINDOW), own.scan.volume.affine)
            scans = side.scan.volume, own.scan.volume
            shown = side.measured, own.measured
            found = align_pair(image, windowed, side.lungs, own.lungs, affine, scans, shown)
        steps[source.name] = _write_case(folder, source, own, found, shape, grid, picture)
    record = {
        "reference": reference,
        "grid": {"shape": list(shape), "spacing_mm": spacing_mm, "affine_voxel_to_ras_mm": grid.tolist()},
        "window_of_training_hu": list(WINDOW),
        "read_with": {"data.alignment": "identity", "data.shape": list(shape), "data.spacing_mm": spacing_mm},
        "cases": steps,
    }
    (folder / "steps.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    with open(folder / "cases.csv", "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["case", "image", "lungs"])
        rows.writerows([n, f"images/{n}.nii.gz", f"lungs/{n}.nii.gz"] for n in names)
    return record


def _all_lungs(given: Sequence[Source], say: Say) -> dict[str, Lungs]:
    out = {}
    for source in given:
        say(f"lungs of {source.name}")
        side = read_side(source.path, source.mask)
        out[source.name] = Lungs(alignment.mask_moments(cropped(side.lungs)), bool(side.cut_off))
    return out


def most_central(lungs: dict[str, Lungs]) -> str:
    """The name whose lungs' moments are least far from all others', of those not cut off, if any."""
    whole = {name: one.moments for name, one in lungs.items() if not one.cut_off}
    candidates = whole or {name: one.moments for name, one in lungs.items()}
    return list(candidates)[alignment.most_central(list(candidates.values()))]


def _write_case(
    folder: Path,
    source: Source,
    side: Side,
    found: Affine,
    shape: tuple[int, int, int],
    grid: Array,
    picture: Picture,
) -> dict[str, Any]:
    """Writes one case's files; its record."""
    scan = side.scan
    clipped = Volume(np.clip(scan.volume.data, *CLIPPED_HU), scan.volume.affine)
    image = resample(clipped, shape, grid, fill=AIR_HU, pull=found.pull)
    lungs = resample(side.lungs, shape, grid, order=0, fill=0, pull=found.pull).astype(np.uint8)
    del clipped
    write_volume(folder / "images" / f"{source.name}.nii.gz", Volume(image, grid), np.int16)
    write_volume(folder / "lungs" / f"{source.name}.nii.gz", Volume(lungs, grid))
    warnings = [*side.warnings, *found.notes]
    inside = np.count_nonzero(lungs) * abs(np.linalg.det(found.pull @ grid)) / 1e6
    if inside < 0.99 * sum(side.litres):
        warnings.append(f"the grid holds {inside:.2f} of {sum(side.litres):.2f} litres of lung")
    litres = " + ".join(f"{value:.2f}" for value in side.litres)
    title = f"{source.name}: lungs {side.source}, {litres} litres, aligned by {found.method}"
    picture(
        folder / "qc" / f"{source.name}.png",
        Volume(image, grid),
        Volume(lungs, grid),
        "\n".join([title, *(f"! {warning}" for warning in warnings)]),
    )
    transform = affine_transform(found.pull)
    files: list[str] | str = [f"transforms/{source.name}.h5", f"transforms/{source.name}_inverse.h5"]
    try:
        write_itk(folder / files[0], transform)
        write_itk(folder / files[1], affine_transform(np.linalg.inv(found.pull)))
    except InputError:
        files = 'not written: SimpleITK is not installed (pip install "lmreg_jax[itk]")'
    from_grid = found.pull @ grid
    return {
        "path": os.path.abspath(source.path),
        "stored": {
            "shape": list(scan.shape),
            "axes": scan.axes,
            "dtype": str(scan.dtype),
            "affine_voxel_to_ras_mm": scan.affine.tolist(),
        },
        "lungs": {"source": side.source, "mask": source.mask, "litres": list(side.litres)},
        "intensities": {
            "clipped_to_hu": list(CLIPPED_HU),
            "smoothed_by_sigma_ras_voxels": smoothing(np.linalg.inv(scan.volume.affine) @ from_grid).tolist(),
            "outside_the_scan_hu": AIR_HU,
        },
        "affine": {"method": found.method, "reference_to_scan_ras_mm": found.pull.tolist()},
        "grid_voxel_to_scan_ras_mm": from_grid.tolist(),
        "grid_voxel_to_stored_voxel": (np.linalg.inv(scan.affine) @ from_grid).tolist(),
        "stored_voxel_to_grid_voxel": (np.linalg.inv(from_grid) @ scan.affine).tolist(),
        "transforms": files,
        "warnings": warnings,
    }
