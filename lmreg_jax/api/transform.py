"""A spatial transform with its methods, for people who have images and points, not arrays.

T takes a point of the fixed scan to the point of the moving scan that corresponds to it (RAS mm), so that
warped(x) = moving(T(x)): points are pushed, images are pulled.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lmreg_jax.errors import InputError
from lmreg_jax.imaging import inverse as inversion
from lmreg_jax.imaging import transforms
from lmreg_jax.imaging.transforms import Transform as Deformation
from lmreg_jax.io import transforms as files
from lmreg_jax.io.images import as_scan, image_of
from lmreg_jax.io.read import whole_labels
from lmreg_jax.io.scan import Scan

Array = NDArray[Any]

AIR_HU = -1000.0
HU_BELOW = -500.0  # an image with values below holds HU


@dataclass(frozen=True)
class Transform:
    """T: fixed RAS mm -> moving RAS mm.

    mapping: its numbers (`imaging.transforms.Transform`). grid: the fixed scan, on whose grid images are
    warped where no other reference is named. back: the mapping of the inverse, where it is at hand.
    """

    mapping: Deformation = field(repr=False)
    grid: Scan | None = field(default=None, repr=False)
    back: Deformation | None = field(default=None, repr=False)
    back_grid: Scan | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        shape = self.mapping.displacement.shape[:3]
        kind = f"{shape[0]} x {shape[1]} x {shape[2]} displacements" if self._deforms else "affine"
        return f"Transform({kind}, fixed RAS mm -> moving RAS mm)"

    @property
    def _deforms(self) -> bool:
        return bool(self.mapping.displacement.any())

    def __call__(self, points_mm: ArrayLike) -> Array:
        """T(points) [..., 3] in moving RAS mm of points in fixed RAS mm; NaN stays NaN.

        Raises InputError where a dense displacement field ends before a point.
        """
        points = np.asarray(points_mm, np.float64)
        if points.shape[-1:] != (3,):
            raise InputError(f"points have shape {points.shape}, expected [..., 3] in RAS mm")
        defined = transforms.covers(self.mapping, np.nan_to_num(points))
        if not defined.all():
            count = np.count_nonzero(~defined)
            raise InputError(f"the displacement field ends before {count} of {defined.size} points")
        return transforms.transform_points(self.mapping, points)

    def inverse(self) -> Transform:
        """T^-1: moving RAS mm -> fixed RAS mm; computed where a file held only T."""
        back = self.back or inversion.invert(self.mapping)
        return Transform(back, self.back_grid, self.mapping, self.grid)

    def warp(self, image: Any, reference: Any = None, *, fill: float | None = None) -> Any:
        """image(T(x)) on the grid of `reference` (default: the fixed scan), trilinear.

        image, reference: a path, nibabel or SimpleITK image. Returns a SimpleITK image for one, else a
        nibabel image, of the image's own type. fill: value outside the image (default: -1000 in HU, else
        its lowest value).
        """
        scan, grid = as_scan(image, "image"), self._reference(reference)
        data = scan.volume.data
        if fill is None:
            fill = AIR_HU if data.min() < HU_BELOW else float(data.min())
        shape, affine = grid.volume.data.shape, grid.volume.affine
        warped = transforms.warp_image(self.mapping, scan.volume, shape, affine, fill=fill)
        if scan.dtype.kind in "iu":
            limits = np.iinfo(scan.dtype)
            warped = np.clip(np.rint(warped), limits.min, limits.max).astype(scan.dtype)
        return image_of(grid, warped, image)

    def warp_labels(self, labels: Any, reference: Any = None) -> Any:
        """A mask or label map pulled to the grid of `reference` by the nearest voxel; 0 outside."""
        scan, grid = as_scan(labels, "labels"), self._reference(reference)
        volume = whole_labels(scan.path, scan.volume)
        shape, affine = grid.volume.data.shape, grid.volume.affine
        return image_of(grid, transforms.warp_labels(self.mapping, volume, shape, affine), labels)

    def jacobian(self, reference: Any = None) -> Any:
        """det DT on the grid of `reference` (default: the fixed scan): above 1 where tissue expands
        on its way to the moving scan, at or below 0 where T folds."""
        grid = self._reference(reference)
        shape, affine = grid.volume.data.shape, grid.volume.affine
        return image_of(grid, transforms.jacobian(self.mapping, shape, affine), reference)

    def save(self, path: str | os.PathLike[str], reference: Any = None) -> None:
        """Writes T for ITK, ANTs and 3D Slicer: .h5 or .tfm (exact, a composite transform), or .nii.gz, a
        dense displacement field on the grid of `reference` (default: the fixed scan), LPS mm."""
        if Path(path).name.lower().endswith((".nii", ".nii.gz")):
            grid = self._reference(reference)
            files.write_displacement(path, self.mapping, grid.shape, grid.affine)
        else:
            files.write_itk(path, self.mapping)

    def to_sitk(self) -> Any:
        """The same as a `SimpleITK.CompositeTransform` of LPS mm."""
        return files.itk_composite(self.mapping)

    def on(self, reference: Any) -> Transform:
        """The same transform, with the grid of `reference` as the one that images are warped to."""
        return replace(self, grid=as_scan(reference, "reference"))

    def _reference(self, reference: Any) -> Scan:
        if reference is not None:
            return as_scan(reference, "reference")
        if self.grid is None:
            raise InputError("no grid to warp to: give reference=, the scan whose grid the result lies on")
        return self.grid


def read_transform(path: str | os.PathLike[str], reference: Any = None) -> Transform:
    """The transform of a file: ITK's .h5 .tfm .txt .mat, or a displacement field (.nii.gz .mha .nrrd).

    reference: the fixed scan, for later `warp`s. Raises InputError on what cannot be read or used.
    """
    grid = None if reference is None else as_scan(reference, "reference")
    return Transform(files.read_transform(path), grid)
