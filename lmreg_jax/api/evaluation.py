"""How well a transform, or none, brings two scans together: what `lmreg evaluate` does, for Python."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmreg_jax.anatomy.lungs import LEFT, RIGHT
from lmreg_jax.anatomy.sides import given_lungs
from lmreg_jax.api.transform import Transform
from lmreg_jax.errors import InputError
from lmreg_jax.evaluation import transform as figures
from lmreg_jax.imaging.intensity import looks_like_ct
from lmreg_jax.imaging.transforms import Transform as Deformation
from lmreg_jax.imaging.transforms import identity_transform
from lmreg_jax.imaging.volume import Volume
from lmreg_jax.io.images import as_scan
from lmreg_jax.io.points import check_points, read_points
from lmreg_jax.io.read import read_mask
from lmreg_jax.io.scan import Scan
from lmreg_jax.io.transforms import read_transform

log = logging.getLogger(__name__)

Points = Mapping[str, NDArray[Any]]


def evaluate(
    fixed: Any,
    moving: Any,
    transform: Any = None,
    *,
    fixed_landmarks: Any = None,
    moving_landmarks: Any = None,
    fixed_mask: Any = None,
    moving_mask: Any = None,
    points_unit: str | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, dict[str, Any]]:
    """{"identity": figures[, "transform": figures]}: TRE, Dice, HD95, folding, sd log J; mm and %.

    fixed, moving, *_mask: paths or images; transform: a `Transform` or a file; *_landmarks: a points file
    or {name: [3] RAS mm}, of both scans or of none. points_unit: "mm" or "voxel", for .csv only.
    Raises InputError on input that does not fit together, and where there is nothing to evaluate.
    """
    for what, one, two in (
        ("landmarks", fixed_landmarks, moving_landmarks),
        ("masks", fixed_mask, moving_mask),
    ):
        if (one is None) != (two is None):
            raise InputError(f"{what} of one scan only: they are compared, give those of both")
    if fixed_landmarks is None and fixed_mask is None and transform is None:
        raise InputError("nothing to evaluate: give landmarks or masks of both scans, or a transform")
    say("reading")
    scans = as_scan(fixed, "fixed"), as_scan(moving, "moving")
    mapping, name = _mapping(transform)
    points = None
    if fixed_landmarks is not None:
        points = _points((fixed_landmarks, moving_landmarks), scans, points_unit)
    masks = None
    if fixed_mask is not None:
        masks = _mask(fixed_mask, scans[0]), _mask(moving_mask, scans[1])
    say("without the transform")
    columns = {"identity": _figures(identity_transform(), scans[0], points, masks)}
    if mapping is not None:
        say("with the transform")
        columns["transform"] = _figures(mapping, scans[0], points, masks, name)
    return columns


def _mapping(transform: Any) -> tuple[Deformation | None, str]:
    if transform is None or isinstance(transform, Transform):
        return None if transform is None else transform.mapping, "the transform"
    return read_transform(transform), os.fspath(transform)


def _mask(source: Any, scan: Scan) -> Volume:
    """A mask on the grid of its scan; that of two lungs is checked against a CT, and its sides with it."""
    drawn = as_scan(source, "mask")
    mask = read_mask(drawn, scan)
    if set(np.unique(mask.data).tolist()) != {0, LEFT, RIGHT} or not looks_like_ct(scan.volume):
        return mask
    lungs, notes = given_lungs(drawn.path, mask, scan.volume)
    for note in notes:
        log.warning("%s: %s", drawn.path, note)
    return lungs


def _points(sources: tuple[Any, Any], scans: tuple[Scan, Scan], unit: str | None) -> tuple[Points, Points]:
    sets: list[Points] = []
    for source, scan in zip(sources, scans, strict=True):
        is_file = isinstance(source, str | os.PathLike)
        points = read_points(source, scan, unit) if is_file else dict(source)
        check_points(Path(source) if is_file else "landmarks", points, scan)
        sets.append(points)
    if all(name.isdigit() for points in sets for name in points) and len(sets[0]) != len(sets[1]):
        raise InputError(
            f"{sources[0]} has {len(sets[0])} points, {sources[1]} {len(sets[1])}; points without names are"
            " matched line by line and must be as many"
        )
    return sets[0], sets[1]


def _figures(
    transform: Deformation,
    fixed: Scan,
    points: tuple[Points, Points] | None,
    masks: tuple[Volume, Volume] | None,
    name: str = "",
) -> dict[str, Any]:
    """The figures of one transform."""
    out: dict[str, Any] = {}
    if points is not None:
        errors = figures.point_errors(transform, *points, name=name)
        out["tre_mm"] = figures.summarise(errors)._asdict()
        out["landmarks_mm"] = errors
    if masks is not None:
        out |= figures.overlap(transform, *masks)._asdict()
        out["dice_labels"] = {str(label): value for label, value in out["dice_labels"].items()}
    out |= figures.regularity(transform, fixed.volume, masks[0] if masks else None)._asdict()
    return out
