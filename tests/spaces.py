"""Scans, points and transforms in physical space for tests: small, smooth, and nowhere symmetric."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from lmreg_jax.imaging.transforms import Transform
from lmreg_jax.imaging.volume import Volume

Array = NDArray[np.float64]

SHAPE = (40, 34, 30)
EDGES = (6.0, 7.0, 8.5)  # mm, all different: a swapped axis cannot hide
LPS_SIGNS = np.array([-1.0, -1.0, 1.0])
ORIENTATIONS = [
    np.column_stack([order, signs])
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]  # all 48 ways to store the axes of an image


def grid(shape: tuple[int, ...] = SHAPE, edges: tuple[float, ...] = EDGES, centre: float = 0.0) -> Array:
    """An axis-aligned RAS+ affine around (centre, centre, centre) mm."""
    affine = np.diag([*edges, 1.0])
    affine[:3, 3] = centre - np.array(edges) * (np.array(shape) - 1) / 2
    return affine


def rotation(degrees: tuple[float, float, float]) -> Array:
    """[4, 4]: about x, then y, then z, in RAS."""
    out = np.eye(4)
    for axis, angle in enumerate(np.radians(degrees)):
        a, b = [i for i in range(3) if i != axis]
        turn = np.eye(4)
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
        out = turn @ out
    return out


def ct(shape: tuple[int, ...] = SHAPE, affine: Array | None = None, seed: int = 0) -> Volume:
    """A body with two lungs in air, HU, int16, with a smooth texture; off the middle in every axis."""
    affine = grid(shape) if affine is None else affine
    index = np.indices(shape).reshape(3, -1).T
    mm = (index @ affine[:3, :3].T + affine[:3, 3]).reshape(*shape, 3)
    texture = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.5)
    data = np.full(shape, -1000.0)
    data[np.sum(((mm - [4, -3, 0]) / [105, 90, 150]) ** 2, axis=-1) < 1] = 30
    for x in (-45, 52):
        data[np.sum(((mm - [x, -5, 8]) / [36, 55, 85]) ** 2, axis=-1) < 1] = -820
    data += 150 * texture * (data > -999)
    return Volume(np.rint(data).astype(np.int16), affine)


def transform(seed: int = 0, peak_mm: float = 12.0) -> Transform:
    """An affine map with shear after a smooth field that is zero on the border of its own grid."""
    shape, edges = (24, 20, 26), (11.0, 13.0, 10.0)
    noise = np.random.default_rng(seed).normal(size=(*shape, 3))
    field = ndimage.gaussian_filter(noise, (3, 3, 3, 0))
    for axis, size in enumerate(shape):
        window = np.sin(np.pi * np.arange(size) / (size - 1)) ** 2
        field *= window.reshape([-1 if a == axis else 1 for a in range(4)])
        field[(slice(None),) * axis + (slice(-1, None),)] = 0
    field *= peak_mm / np.abs(field).max()
    post = rotation((3, -5, 8)) @ np.diag([1.05, 0.93, 1.1, 1.0])
    post[:3, 3] = [7, -11, 16]
    return Transform(np.eye(4), field.astype(np.float32), grid(shape, edges), post)


def stored(volume: Volume, orientation: Array) -> nib.Nifti1Image:
    """The same image with its axes stored in another order and direction."""
    turn = orientation.astype(float)
    data = nib.orientations.apply_orientation(volume.data, turn)
    affine = volume.affine @ nib.orientations.inv_ornt_aff(turn, volume.data.shape)
    image = nib.Nifti1Image(np.ascontiguousarray(data), affine)
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    return image


def save(path: Path, volume: Volume, orientation: Array | None = None) -> Path:
    """Writes the image as NIfTI, RAS+ or in the orientation given."""
    nib.save(stored(volume, ORIENTATIONS[0] if orientation is None else orientation), path)
    return path


def itk_points(transform: Any, points: Array) -> Array:
    """RAS mm points [K, 3] moved by an ITK transform, which speaks LPS."""
    moved = [transform.TransformPoint(p) for p in (points * LPS_SIGNS).tolist()]
    return np.array(moved) * LPS_SIGNS


def some_points(count: int = 300, reach: float = 190.0) -> Array:
    """RAS mm [count, 3] within `reach` of the origin along each axis."""
    return np.random.default_rng(5).uniform(-reach, reach, (count, 3))


def backward(t: Transform) -> Transform:
    """A Transform of the inverse's form: field after affine (not the inverse itself)."""
    return Transform(np.linalg.inv(t.post), -t.displacement, t.grid, np.eye(4))
