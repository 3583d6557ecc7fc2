"""The subject that a cohort is aligned to: its choice, the common grid around it, the affine to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lmreg_jax.affine import moments
from lmreg_jax.affine.pairwise import Affine, align_pair
from lmreg_jax.cohort.case import windowed_scan
from lmreg_jax.cohort.options import Options
from lmreg_jax.cohort.subject import Subject
from lmreg_jax.cohort.table import SPLITS
from lmreg_jax.errors import InputError
from lmreg_jax.imaging.volume import Volume, centred_grid, image_centre, lung_centred_grid
from lmreg_jax.io.read import read_scan

Array = NDArray[Any]


class Reference(NamedTuple):
    """The subject whose RAS mm the common grid lives in; affine [4, 4]: voxel of the grid -> mm.

    hu: its scan; image: the same, windowed where elastix compares it.
    """

    subject: Subject
    affine: Array
    hu: Volume
    image: Volume
    mask: Volume | None


def choose_reference(subjects: Sequence[Subject], name: str = "") -> int:
    """The index of the named subject, or of the most central training one (of those with lungs, if any).

    Central: the smallest sum of Wasserstein distances between lung moments; the first of equals.
    Lungs that the scan cuts off are passed over while there are complete ones. Validation cases serve
    where there is no training case; a test case only where it is named.
    """
    if name:
        names = [subject.name for subject in subjects]
        if name not in names:
            raise InputError(f"reference {name!r} was skipped: it cannot be read; name another one")
        return names.index(name)
    for split in SPLITS[:2]:
        members = [i for i, subject in enumerate(subjects) if subject.row.split == split]
        lungs = {i: mask for i in members if (mask := subjects[i].lungs) is not None}
        complete = {i: mask for i, mask in lungs.items() if not mask.cut_off}
        candidates = complete or lungs
        if candidates:
            central = moments.most_central([mask.moments for mask in candidates.values()])
            return list(candidates)[central]
        if members:
            return members[0]
    raise InputError(
        "all cases are test cases, and the common grid must not come from one: give the split "
        "'train' to a case, or name a case as reference"
    )


def read_reference(subject: Subject, options: Options) -> Reference:
    """The common grid: centred on the reference's lungs, or on its image where it has none.

    With alignment "identity", a reference on a grid of the wanted shape and spacing keeps that grid:
    what was prepared before is not interpolated a second time.
    """
    scan = read_scan(subject.row.image)
    hu = scan.volume
    spacing_mm = np.array(options.spacing_mm)
    mask = None if subject.lungs is None else subject.lungs.mask()
    if mask is None:
        affine = centred_grid(image_centre(hu), options.shape, spacing_mm)
    else:
        affine = lung_centred_grid(mask, options.shape, spacing_mm)
    on_grid = hu.data.shape == options.shape and np.allclose(hu.affine[:3, :3], np.diag(spacing_mm))
    if options.alignment == "identity" and on_grid:
        affine = hu.affine
    image = windowed_scan(scan, options) if options.alignment == "elastix" else hu
    return Reference(subject, affine, hu, image, mask)


def align(subject: Subject, scan: Volume, image: Volume, reference: Reference, options: Options) -> Affine:
    """The affine from the reference's RAS mm to the subject's; image: its windowed scan.

    The surface within a voxel is taken from the HU where both masks were segmented from them. A mask
    from a file is taken as it is.
    """
    if subject.name == reference.subject.name:
        return Affine(np.eye(4), "reference", ())
    if options.alignment == "identity":
        return Affine(np.eye(4), "identity", ())
    segmented = all(s.lungs and s.lungs.source == "segmented" for s in (subject, reference.subject))
    mask = None if subject.lungs is None else subject.lungs.mask()
    scans = (reference.hu, scan) if segmented else None
    try:
        return align_pair(reference.image, image, reference.mask, mask, options.alignment, scans)
    except InputError as error:
        raise InputError(f"{subject.name}: {error}") from error
