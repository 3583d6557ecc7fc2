"""A case's lung mask: from its file, or by segmentation."""

from __future__ import annotations

import logging
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lmreg_jax.affine.moments import Moments, mask_moments
from lmreg_jax.anatomy.field_of_view import measured
from lmreg_jax.anatomy.lungs import LEFT, RIGHT, cut_off, lung_report
from lmreg_jax.anatomy.segmentation import segment_lungs
from lmreg_jax.anatomy.sides import given_lungs
from lmreg_jax.cohort.options import Options
from lmreg_jax.cohort.table import Row
from lmreg_jax.errors import InputError
from lmreg_jax.imaging import intensity
from lmreg_jax.imaging.volume import Volume, cropped
from lmreg_jax.io.nifti import read_volume
from lmreg_jax.io.read import whole_labels

log = logging.getLogger(__name__)

Array = NDArray[Any]


class Lungs(NamedTuple):
    """A lung mask, cropped to its box; whether the scan cuts the lungs off; their moments."""

    mask: Volume
    cut_off: bool
    moments: Moments


class PackedLungs(NamedTuple):
    """Lungs as they wait for their turn, the mask compressed: a hundredth of its size or less."""

    mask: bytes
    shape: tuple[int, ...]
    affine: Array
    cut_off: bool
    moments: Moments

    def unpacked(self) -> Lungs:
        """What `packed` was given."""
        data = np.frombuffer(zlib.decompress(self.mask), np.uint8).reshape(self.shape)
        return Lungs(Volume(data, self.affine), self.cut_off, self.moments)


def packed(lungs: Lungs) -> PackedLungs:
    """Lungs for keeping, of every case of a cohort."""
    data = np.ascontiguousarray(lungs.mask.data, np.uint8)
    return PackedLungs(
        zlib.compress(data.data, 1), data.shape, lungs.mask.affine, lungs.cut_off, lungs.moments
    )


def read_lungs(row: Row, options: Options) -> Lungs | None:
    """The case's lungs from its file, or segmented, or None.

    Labels 1 left and 2 right where the file holds both, else 1. Raises InputError on an empty mask.
    """
    if row.lungs is not None and options.lungs in ("auto", "file"):
        mask = whole_labels(row.lungs, read_volume(row.lungs))
        if not np.any(mask.data):
            raise InputError(f"{row.lungs}: the lung mask is empty; leave its cell empty instead")
        image = read_volume(row.image)
        if intensity.looks_like_ct(image):
            mask, notes = given_lungs(str(row.lungs), mask, image)
            for note in notes:
                log.warning("%s: %s", row.lungs, note)
        else:
            mask = Volume(_sided(mask.data), mask.affine)
        return _described(mask, row.lungs)
    if options.lungs in ("none", "file"):
        return None
    image = read_volume(row.image)
    if options.lungs == "auto" and not intensity.looks_like_ct(image):
        return None
    try:
        shown = measured(image)
        mask = segment_lungs(image, shown)
    except InputError as error:
        if options.lungs == "segment":
            raise InputError(f"{row.image}: {error}") from error
        log.warning("%s: %s", row.image, error)
        return None
    for doubt in lung_report(mask, shown).warnings:
        log.warning("%s: lung segmentation: %s", row.image, doubt)
    return _described(mask, row.image, shown)


def _described(mask: Volume, path: Path, shown: Array | None = None) -> Lungs:
    small = cropped(mask)
    try:
        return Lungs(small, bool(cut_off(mask, shown)), mask_moments(small))
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _sided(labels: Array) -> Array:
    if set(np.unique(labels)) == {0, LEFT, RIGHT}:
        return labels.astype(np.uint8)
    return (labels != 0).astype(np.uint8)
