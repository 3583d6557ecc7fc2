"""A thorax known in closed form, as scans on any grid, and the shipped model."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from lmreg_jax.model import weights
from lmreg_jax.registration import scans

EXTENT = (420.0, 340.0, 420.0)  # mm: the whole body and air around it, also when turned


def inside(points: np.ndarray, centre: Any, axes: Any) -> np.ndarray:
    """An ellipsoid with a soft edge, 1 inside, at points [..., 3] in mm."""
    scaled = (points - np.float32(centre)) / np.float32(axes)
    radius = np.sqrt(np.einsum("...i,...i", scaled, scaled))
    return 1 / (1 + np.exp(np.clip((radius - 1) * np.float32(min(axes) / 2.5), -40, 40)))


def thorax(points: np.ndarray, subject: float) -> np.ndarray:
    """HU of a body with two lungs and some vessels, at points in RAS mm; known everywhere."""
    centre = subject * np.array([3.0, -4.0, 5.0])
    hu = -1000 + 1040 * inside(points, centre, (165 * (1 + 0.06 * subject), 115, 170))
    for side in (-1, 1):
        middle = centre + np.array((side * (68 + 3 * subject), -5 + 4 * subject, 10 - 6 * subject))
        lung = inside(points, middle, (48 + 3 * subject, 72 - 4 * subject, 105 + 8 * subject))
        hu = hu * (1 - lung) - 850 * lung
        for j in range(4):
            place = (side * (60 + 4 * subject + 7 * j), -20 + 14 * j, -50 + 30 * j + 5 * subject)
            vessel = inside(points, centre + place, (6, 6, 22))
            hu = hu * (1 - vessel) + 20 * vessel
    return hu


def stored(path: Path, subject: float, how: tuple[Any, Any], code: str = "RAS") -> Path:
    """The subject on a grid turned by three angles in degrees, of some voxel size, axes named by `code`."""
    degrees, spacing = how
    (a, b, c), cos, sin = np.deg2rad(degrees), np.cos, np.sin
    turn = np.array([[1, 0, 0], [0, cos(a), -sin(a)], [0, sin(a), cos(a)]])
    turn = turn @ [[cos(b), 0, sin(b)], [0, 1, 0], [-sin(b), 0, cos(b)]]
    turn = turn @ [[cos(c), -sin(c), 0], [sin(c), cos(c), 0], [0, 0, 1]]
    size = np.rint(np.array(EXTENT) / spacing).astype(int)
    affine = np.eye(4)
    affine[:3, :3] = turn * spacing
    affine[:3, 3] = (5, -3, 8) - affine[:3, :3] @ ((size - 1) / 2)
    index = np.moveaxis(np.indices(size, np.float32), 0, -1)
    hu = thorax(index @ np.float32(affine[:3, :3].T) + np.float32(affine[:3, 3]), subject)
    image = nib.Nifti1Image(np.rint(hu).astype(np.int16), affine)
    axes = nib.orientations.axcodes2ornt(code)
    turned = nib.orientations.ornt_transform(nib.io_orientation(image.affine), axes)
    image.as_reoriented(turned).to_filename(path)
    return path


@cache
def shipped_model() -> Any:
    """Once: each one loaded compiles anew."""
    return scans.load_model(weights.DEFAULT)
