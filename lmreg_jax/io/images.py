"""Images that live in memory, next to those in files: nibabel's and SimpleITK's, in and out.

A `Scan` takes any of them in; `image_of` gives an array back on the scan's own grid, in the kind of
image that its user works with.
"""

from __future__ import annotations

import os
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from lmreg_jax.errors import InputError
from lmreg_jax.io.nifti_stream import header_of
from lmreg_jax.io.read import read_scan
from lmreg_jax.io.scan import LPS, Scan, itk_affine, make_scan, simpleitk

Array = NDArray[Any]


def as_scan(image: Any, name: str = "image") -> Scan:
    """The `Scan` of a path, a nibabel image, a SimpleITK image, or of a `Scan`, which passes through.

    name: what messages call an image without a file. Raises InputError on anything else, and on what
    `read_scan` and `make_scan` refuse.
    """
    if isinstance(image, Scan):
        return image
    if isinstance(image, str | os.PathLike):
        return read_scan(image)
    if isinstance(image, nib.spatialimages.SpatialImage):
        name = image.get_filename() or f"{name} (nibabel image)"
        if image.affine is None:
            raise InputError(f"{name}: no affine; expected one that takes voxels to RAS mm")
        data = np.asanyarray(image.dataobj)
        data = data.reshape(data.shape[:3] if all(n == 1 for n in data.shape[3:]) else data.shape)
        return make_scan(name, data, np.array(image.affine, np.float64), data.dtype)
    if is_simpleitk(image):
        count = image.GetNumberOfComponentsPerPixel()
        if count != 1:
            raise InputError(f"{name} (SimpleITK image): {count} values a voxel, expected 1")
        data = simpleitk(name).GetArrayFromImage(image).transpose()
        return make_scan(f"{name} (SimpleITK image)", data, itk_affine(image), data.dtype)
    raise InputError(
        f"{name}: a {type(image).__module__}.{type(image).__name__}; expected a path, a nibabel image or a"
        " SimpleITK image (arrays without a place in space: lmreg_jax.load()(fixed, moving))"
    )


def is_simpleitk(image: Any) -> bool:
    """Whether it is an image of SimpleITK, without importing that."""
    kind = type(image)
    return kind.__module__.split(".")[0] == "SimpleITK" and kind.__name__ == "Image"


def image_of(scan: Scan, array: Array, like: Any = None) -> Any:
    """An array [X, Y, Z] on the RAS+ grid of `scan` as an image on the grid that its file stores.

    A SimpleITK image where `like` is one, else a nibabel image.
    """
    native = scan.to_native(array)
    if not is_simpleitk(like):
        return nib.Nifti1Image(native, scan.affine, header_of(scan.affine, native.shape, native.dtype))
    sitk = simpleitk("a SimpleITK image")
    out = sitk.GetImageFromArray(np.ascontiguousarray(native.transpose()))
    affine = LPS @ scan.affine
    edges = np.linalg.norm(affine[:3, :3], axis=0)
    out.SetSpacing(edges.tolist())
    out.SetOrigin(affine[:3, 3].tolist())
    out.SetDirection((affine[:3, :3] / edges).ravel().tolist())
    return out
