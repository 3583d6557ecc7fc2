"""NIfTI images: read with every doubt about the file spoken, written slab by slab.

Inside the package an image is a `Volume` in RAS+ order; nothing is ever interpolated here.
"""

from __future__ import annotations

import gzip
import logging
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
from lmreg_jax.imaging.volume import SPACING_LIMITS, Volume, check_axes, spacing
from lmreg_jax.io import nifti_stream
from lmreg_jax.io.scan import Scan
from lmreg_jax.io.tables import reason

log = logging.getLogger(__name__)

Array = NDArray[Any]


MAX_VOXELS = 2**31  # 1290 voxels a side; a header that claims more is taken for a broken one
MAX_EXTENSION = 2**24  # bytes of a NIfTI header extension
MAX_INFLATION = 1032  # deflate cannot do better than 1032 : 1, so a .gz bounds what it can hold
MILLIMETRES = {"meter": 1e3, "micron": 1e-3}  # NIfTI's length units other than mm


DAMAGE = (  # what nibabel, gzip and zlib raise on damaged files
    OSError,
    EOFError,
    ValueError,
    OverflowError,
    zlib.error,
    struct.error,
    ImageFileError,
    HeaderDataError,
)


def read_volume(path: str | os.PathLike[str]) -> Volume:
    """A 3-D NIfTI image, its axes permuted and flipped to the closest RAS+ (never interpolated).

    Integers keep their type, all else becomes float32. Raises InputError, naming the file, where it
    is missing, damaged, truncated, not 3-D, not finite, or without a usable affine.
    """
    path = Path(path)
    image = _open(path)
    shape = _checked_shape(path, image)
    affine = _checked_affine(path, image)
    try:
        data = _voxels(path, image).reshape(shape)
    except MemoryError:
        raise InputError(f"{path}: no memory for {shape} voxels; resample it first") from None
    except DAMAGE as error:
        raise InputError(
            f"{path}: cannot be read to its end ({reason(error)}); it looks truncated or damaged: "
            "copy or export it again"
        ) from error
    if data.dtype.kind not in "iu":
        data = data.astype(np.float32, copy=False)
        broken = data.size - int(np.isfinite(data).sum())
        if broken:
            raise InputError(
                f"{path}: {broken} voxels are NaN or infinite; replace them (with air, -1000 HU, in a CT)"
            )
    turn = nib.orientations.io_orientation(affine)
    affine = affine @ nib.orientations.inv_ornt_aff(turn, shape)
    return Volume(nib.orientations.apply_orientation(data, turn), affine)


def _voxels(path: Path, image: Any) -> Array:
    """As stored where the header asks for no scaling (labels, HU), else scaled, float32."""
    proxy = whole(path, image)
    scaled = proxy.slope != 1 or proxy.inter != 0
    return np.asarray(proxy, np.float32) if scaled else np.asarray(proxy.get_unscaled())


def whole(path: Path, image: Any) -> Any:
    """The `dataobj` of a NIfTI image of nibabel's, from a file that has been read to its end.

    gzip checks its sum only at the very end, which nibabel, having all it needs, never reaches: a
    flipped bit would go unnoticed. So .gz is read here, once and wholly; raises one of DAMAGE.
    """
    proxy = image.dataobj
    if path.suffix != ".gz":
        return proxy
    with gzip.open(path) as file:
        raw = file.read(int(proxy.offset) + math.prod(image.shape) * proxy.dtype.itemsize)
        while file.read(2**20):
            pass
    return type(image).from_bytes(raw).dataobj


def _open(path: Path) -> Any:
    if not path.exists():
        raise InputError(f"{path}: no such image")
    if not path.is_file():
        raise InputError(f"{path}: not a file; name one .nii or .nii.gz image")
    try:
        _check_extension(path)
        image: Any = nib.load(path)
    except DAMAGE as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: not a readable NIfTI image ({reason(error)})") from error
    if not isinstance(image, nib.nifti1.Nifti1Pair):
        raise InputError(f"{path}: a {type(image).__name__}, not NIfTI; convert it to .nii.gz")
    return image


def _check_extension(path: Path) -> None:
    """Refuses a header extension of a size that no program writes: nibabel would ask for all of it."""
    if not path.name.endswith((".nii", ".nii.gz")):
        return
    with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
        start = file.read(360)
    big = start[:2] == b"\0\0"  # of the first field, the header's size
    size = int.from_bytes(start[352:356], "big" if big else "little", signed=True)
    nifti = start[344:346] in (b"n+", b"ni")  # Else it is none, and refused as such.
    if nifti and start[348:349] not in (b"", b"\0") and size > MAX_EXTENSION:
        raise InputError(f"{path}: the header claims an extension of {size} bytes; it is damaged")


def _checked_shape(path: Path, image: Any) -> tuple[int, int, int]:
    shape = tuple(int(n) for n in image.shape)
    dtype = image.get_data_dtype()
    if dtype.kind not in "iufb":
        raise InputError(f"{path}: voxels of type {dtype}; one real number a voxel is needed")
    if len(shape) < 3 or any(n != 1 for n in shape[3:]):
        raise InputError(f"{path}: shape {shape}; a 3-D image is needed (save one volume or channel of it)")
    if min(shape[:3]) < 2:
        raise InputError(f"{path}: shape {shape}; at least 2 voxels along each axis are needed")
    check_claim(path, image)
    return shape[0], shape[1], shape[2]


def check_claim(path: Path, image: Any) -> None:
    """InputError where the header claims more than its file can hold.

    Before anything is allocated: a damaged or hostile header must not ask for terabytes.
    """
    shape, dtype = tuple(int(n) for n in image.shape), image.get_data_dtype()
    voxels = math.prod(shape)
    data_path = Path(image.file_map["image"].filename or path)
    size = data_path.stat().st_size if data_path.exists() else 0
    packed = data_path.suffix.lower() in (".gz", ".bz2", ".zst")
    needed = int(image.dataobj.offset) + voxels * dtype.itemsize
    if voxels > MAX_VOXELS or needed > size * (MAX_INFLATION if packed else 1):
        raise InputError(
            f"{path}: the header claims {shape} voxels of {dtype}, more than the {size} bytes of "
            "the file can hold; it is truncated or its header is damaged: copy or export it again"
        )


def unit_mm(image: Any) -> float:
    """The header's unit of length in mm; mm where it gives none or one that is not known."""
    try:
        return MILLIMETRES.get(image.header.get_xyzt_units()[0], 1.0)
    except KeyError:  # nibabel, at a code that NIfTI does not define
        return 1.0


def _checked_affine(path: Path, image: Any) -> Array:
    if not int(image.header["sform_code"]):
        _check_steps(path, image)
    affine = np.array(image.affine, np.float64)
    affine[:3] *= unit_mm(image)
    if not np.isfinite(affine).all():
        raise InputError(f"{path}: the header's affine is not finite; export the image again")
    edges = spacing(affine)
    if edges.min() < SPACING_LIMITS[0] or edges.max() > SPACING_LIMITS[1]:
        raise InputError(
            f"{path}: voxel spacing {_numbers(edges)} mm; zero, tiny and huge spacings are refused"
        )
    check_axes(path, affine)
    if not (int(image.header["sform_code"]) or int(image.header["qform_code"])):
        log.warning("%s: the header holds no orientation; taken as %s", path, nib.aff2axcodes(affine))
    return affine


def _check_steps(path: Path, image: Any) -> None:
    """Refuses voxel sizes of 0 and below, from which nibabel makes 1 and their absolute value."""
    kind = type(image.header)
    holder = image.file_map.get("header", image.file_map["image"])  # Two files (.hdr, .img), or one.
    with holder.get_prepare_fileobj("rb") as file:
        steps = kind(file.read(kind.template_dtype.itemsize), check=False)["pixdim"][1:4]
    if not (steps > 0).all():
        raise InputError(f"{path}: voxel spacing {_numbers(steps)} mm in the header; it must be above 0")


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


def _numbers(values: Array) -> str:
    return " x ".join(f"{value:.4g}" for value in values)


def write_native(
    path: str | os.PathLike[str], scan: Scan, array: Array, dtype: DTypeLike | None = None
) -> None:
    """Writes an array [X, Y, Z] on the RAS+ grid of `scan` to .nii[.gz], on the file's own grid.

    `dtype` as in `volumes.write_volume`.
    """
    write_volume(path, Volume(scan.to_native(array), scan.affine), dtype)
