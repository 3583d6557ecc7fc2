"""NIfTI images: read where ITK places them, written slab by slab.

A NIfTI header may place its voxels twice (sform, qform) or not at all. ITK, ANTs and 3D Slicer do not
choose as nibabel, FSL and SPM do; transforms are written for ITK, so its choice is taken, and reported
where it matters. Nothing is ever interpolated here.
"""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import DTypeLike, NDArray

from lmreg_jax.errors import InputError
from lmreg_jax.imaging.volume import Volume, apply_affine, spacing
from lmreg_jax.io import nifti_stream
from lmreg_jax.io.headers import NO_ORIENTATION
from lmreg_jax.io.scan import LPS, Scan, make_scan, storage
from lmreg_jax.io.tables import reason

Array = NDArray[Any]

MILLIMETRES = {"meter": 1e3, "micron": 1e-3}  # NIfTI's length units other than mm
SCANNER = 1  # sform_code: scanner coordinates
AGREE_MM = 0.1  # a qform keeps an orientation as a quaternion in float32
ORTHONORMAL = 1e-4  # of R R^T, as in ITK

DAMAGE = (  # what nibabel, gzip and zlib raise on damaged files
    OSError,
    EOFError,
    ValueError,
    OverflowError,
    MemoryError,  # a header that claims terabytes
    zlib.error,
    struct.error,
    ImageFileError,
    HeaderDataError,
)


def read_nifti(path: str | os.PathLike[str]) -> Scan:
    """A 3-D NIfTI image as a `Scan`, its axes permuted and flipped to the closest RAS+.

    Raises InputError, naming the file, where it is missing, damaged, truncated, not 3-D, not finite, or
    without a usable affine.
    """
    path = Path(path)
    image = open_nifti(path)
    shape, dtype = tuple(int(n) for n in image.shape), image.get_data_dtype()
    if dtype.kind not in "iufb":
        raise InputError(f"{path}: voxels of type {dtype}; expected one real number a voxel")
    if len(shape) < 3 or any(n != 1 for n in shape[3:]):
        raise InputError(f"{path}: shape {shape}; expected a 3-D image (save one volume or channel of it)")
    affine, notes = placement(image)
    data = voxels(path, image)
    scaled = image.dataobj.slope != 1 or image.dataobj.inter != 0
    stored = storage(data) if scaled else np.dtype(dtype.newbyteorder("="))
    return make_scan(str(path), data.reshape(shape[:3]), affine, stored, notes)


def read_volume(path: str | os.PathLike[str]) -> Volume:
    """The voxels of `read_nifti` with their place in space."""
    return read_nifti(path).volume


def open_nifti(path: Path) -> Any:
    """The nibabel image of a file, its header checked, its voxels not read. Raises InputError."""
    if not path.exists():
        raise InputError(f"{path}: no such image")
    if not path.is_file():
        raise InputError(f"{path}: not a file; name one .nii or .nii.gz image")
    try:
        image: Any = nib.load(path)
    except DAMAGE as error:
        raise InputError(f"{path}: not a readable NIfTI image ({reason(error)})") from error
    if not isinstance(image, nib.nifti1.Nifti1Pair):
        raise InputError(f"{path}: a {type(image).__name__}, not NIfTI; convert it to .nii.gz")
    kind = type(image.header)
    holder = image.file_map.get("header", image.file_map["image"])  # Two files (.hdr, .img), or one.
    with holder.get_prepare_fileobj("rb") as file:
        header = kind(file.read(kind.template_dtype.itemsize), check=False)  # nibabel corrects silently
    steps = header["pixdim"][1:4]
    if not int(header["sform_code"]) and not (steps > 0).all():
        sizes = " x ".join(f"{step:.4g}" for step in steps)
        raise InputError(f"{path}: voxel spacing {sizes} mm in the header; it must be above 0")
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if (slope == 0 or not math.isfinite(slope)) and math.isfinite(intercept) and intercept != 0:
        raise InputError(
            f"{path}: the header's scl_slope is {slope:g} (no scaling), but scl_inter {intercept:g}: programs"
            " disagree whether to add it; export the image again"
        )
    return image


def voxels(path: Path, image: Any) -> Array:
    """The voxels of a nibabel image: as stored where the header asks for no scaling, else scaled, float32.

    A .gz file is read to its end, where its sum stands: nibabel, having all it needs, never gets there, and
    a damaged copy would go unnoticed. Raises InputError.
    """
    proxy = image.dataobj
    try:
        if path.suffix == ".gz":
            with gzip.open(path) as file:
                raw = file.read(int(proxy.offset) + math.prod(image.shape) * proxy.dtype.itemsize)
                while file.read(2**20):
                    pass
            proxy = type(image).from_bytes(raw).dataobj
        scaled = proxy.slope != 1 or proxy.inter != 0
        return np.asarray(proxy, np.float32) if scaled else np.asarray(proxy.get_unscaled())
    except DAMAGE as error:
        raise InputError(
            f"{path}: cannot be read to its end ({reason(error)}); it looks truncated or damaged: copy or"
            " export it again"
        ) from error


def placement(image: Any) -> tuple[Array, tuple[str, ...]]:
    """Voxel -> RAS mm [4, 4] of a NIfTI image as ITK (5.2 and later) has it, and notes on what is doubtful.

    The sform where it is of the scanner (code 1) and orthonormal, or where there is no qform; else the
    qform; identity in LPS where there is neither.
    """
    header = image.header
    codes = int(header["sform_code"]), int(header["qform_code"])
    try:
        unit = MILLIMETRES.get(header.get_xyzt_units()[0], 1.0)
    except KeyError:  # nibabel, at a code that NIfTI does not define
        unit = 1.0
    scale = np.diag([unit, unit, unit, 1.0])
    if codes == (0, 0):
        return scale @ LPS @ np.diag([*header["pixdim"][1:4].astype(float), 1.0]), (
            f"the header holds no orientation (sform_code and qform_code are 0): {NO_ORIENTATION}",
        )
    affine = scale @ np.array(image.affine, np.float64)  # the sform, if there is one
    if 0 in codes or not np.isfinite(affine).all() or spacing(affine).min() == 0:
        return affine, ()
    qform = scale @ np.array(header.get_qform(), np.float64)
    corners = np.indices((2, 2, 2)).reshape(3, -1).T * (np.array(image.shape[:3]) - 1)
    distance = np.linalg.norm(apply_affine(affine, corners) - apply_affine(qform, corners), axis=1).max()
    if distance <= AGREE_MM:
        return affine, ()
    axes = affine[:3, :3] / spacing(affine)
    orthonormal = np.abs(axes @ axes.T - np.eye(3)).max() < ORTHONORMAL
    taken = "sform" if codes[0] == SCANNER and orthonormal else "qform"
    mirror = bool(np.linalg.det(affine) * np.linalg.det(qform) < 0)
    note = (
        f"sform (code {codes[0]}) and qform (code {codes[1]}) place its voxels up to {distance:.1f} mm apart"
        f"{', one the mirror image of the other' * mirror}. The {taken} is taken, as in ITK, ANTs and 3D"
        " Slicer; nibabel, FSL and SPM take the sform. Where that is wrong, make both the same (nibabel:"
        " set_sform, set_qform; FSL: fslorient -copysform2qform or -copyqform2sform)"
    )
    return (affine if taken == "sform" else qform), (note,)


def write_volume(path: str | os.PathLike[str], volume: Volume, dtype: DTypeLike | None = None) -> None:
    """Writes .nii or .nii.gz under a temporary name, then renames: never half a file at `path`.

    An integer `dtype` rounds and clips. Without one, types that NIfTI programs do not all read are
    narrowed (bool to uint8, int64 to int32, float64 and float16 to float32).
    """
    data = np.asarray(volume.data)
    narrow = {"b": np.uint8, "f": np.float32, "i": np.int32, "u": np.uint32}
    common = data.dtype in (np.uint8, np.int16, np.uint16, np.int32, np.float32)
    target = np.dtype(dtype or (data.dtype if common else narrow[data.dtype.kind]))
    parts = nifti_stream.in_parts(data)
    if target.kind in "iu" and data.dtype != target and data.dtype.kind != "b":
        limits = np.iinfo(target.name)
        parts = (np.clip(np.rint(part), limits.min, limits.max) for part in parts)
    nifti_stream.write_nifti(path, nifti_stream.header_of(volume.affine, data.shape, target), parts)


def write_native(
    path: str | os.PathLike[str], scan: Scan, array: Array, dtype: DTypeLike | None = None
) -> None:
    """Writes an array [X, Y, Z] on the RAS+ grid of `scan` to .nii[.gz], on the file's own grid.

    `dtype` as in `write_volume`.
    """
    write_volume(path, Volume(scan.to_native(array), scan.affine), dtype)
