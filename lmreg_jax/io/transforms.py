"""Transforms on disk: what ITK, ANTs and 3D Slicer read and write, in LPS mm.

A composite transform (.h5, .tfm) holds T exactly, as affine and displacement field; a dense
displacement field (.nii.gz, .mha, .nrrd) holds T(x) - x at the voxels of one grid only.
"""

from __future__ import annotations

import errno
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmreg_jax.errors import InputError
from lmreg_jax.imaging._slabs import slabs
from lmreg_jax.imaging.transforms import Transform, affine_transform, displacement_component
from lmreg_jax.io.fields import CONVERT, DENSE, SIGNS, VECTOR, of_field, read_field
from lmreg_jax.io.nifti_stream import header_of, write_nifti
from lmreg_jax.io.scan import LPS, itk_reason, simpleitk
from lmreg_jax.io.tables import replacing

Array = NDArray[Any]

ITK_TRANSFORMS = (".h5", ".hdf5", ".tfm", ".txt", ".mat")
FOREIGN = {".xfm": "MINC", ".lta": "FreeSurfer", ".m3z": "FreeSurfer", ".mgz": "FreeSurfer", ".x5": "X5"}
HDF5 = (".h5", ".hdf5")
WRITTEN = (".h5", ".hdf5", ".tfm")
FIELD_PRECISION = 8192  # of the composite's field: its derivatives count, too
PRECISION = 1024  # dense fields are rounded to 1/1024 mm: the zeros compress, nobody misses the rest
FULL_BYTES = 2**16  # a disk with less room is full
HDF5_CHUNK = 2**16  # numbers that are deflated together


def write_displacement(
    path: str | os.PathLike[str], transform: Transform, shape: Sequence[int], affine: Array
) -> None:
    """Writes T(x) - x on a grid as ITK reads it: NIfTI [X, Y, Z, 1, 3] float32, LPS mm, intent vector.

    affine: voxel of that grid -> fixed RAS mm. Slab by slab, under a temporary name, then renamed.
    Beyond its grid such a file says nothing (ITK: no motion); `write_itk` loses nothing.
    """
    header = header_of(affine, (*shape, 1, 3), np.float32)
    header.set_intent(VECTOR)

    def parts() -> Iterable[Array]:
        for c in range(3):  # NIfTI stores one component after the other
            for slab in displacement_component(transform, shape, affine, c):
                yield np.rint(slab * (SIGNS[c] * PRECISION)) / PRECISION

    write_nifti(path, header, parts())


def write_itk(path: str | os.PathLike[str], transform: Transform) -> None:
    """Writes T as an ITK composite transform (.h5, .tfm): affine, displacement field, affine.

    In LPS mm; parts that do nothing are left out. In HDF5 the field is float32, rounded to
    1 / FIELD_PRECISION mm and deflated, where h5py is installed: a quarter of the size, and no copies in
    float64. Without h5py, and as text, it is float64 as it is. Needs SimpleITK (InputError).
    """
    path = Path(path)
    if not path.name.endswith(WRITTEN):
        raise InputError(f"{path}: ITK transforms are written as {', '.join(WRITTEN)}")
    sitk = simpleitk(f"{path.name}: writing an ITK transform")
    packed = path.name.endswith(HDF5) and importlib.util.find_spec("h5py") is not None
    if packed:  # The field itself follows in float32: ITK would hold it in float64, several times over.
        stand_in = np.full((2, 2, 2, 3), transform.displacement.any(), np.float32)
        composite = itk_composite(transform._replace(displacement=stand_in))
    else:
        composite = itk_composite(transform)
    with replacing(path) as temporary:
        try:
            with _in_ascii(temporary) as name:
                sitk.WriteTransform(composite, name)
            if packed and transform.displacement.any():
                _put_field(temporary, transform.displacement)
        except RuntimeError as error:  # h5py's, too: a disk that fills shows when the file is closed
            full = shutil.disk_usage(path.parent).free < FULL_BYTES  # HDF5 does not say why it failed
            cause = os.strerror(errno.ENOSPC) if full else itk_reason(error)
            raise OSError(f"{path}: could not be written ({cause})") from error


def itk_composite(transform: Transform) -> Any:
    """T as a SimpleITK.CompositeTransform in LPS mm; parts that do nothing are left out."""
    sitk = simpleitk("an ITK transform")
    composite = sitk.CompositeTransform(3)
    # ITK applies the part that was added last first.
    if not np.array_equal(transform.post, np.eye(4)):
        composite.AddTransform(_itk_matrix(sitk, transform.post))
    if transform.displacement.any():
        vectors = (transform.displacement * SIGNS).transpose(2, 1, 0, 3)
        image = sitk.GetImageFromArray(np.ascontiguousarray(vectors, np.float64), isVector=True)
        grid = LPS @ transform.grid
        edges = np.linalg.norm(grid[:3, :3], axis=0)
        image.SetOrigin(grid[:3, 3].tolist())
        image.SetSpacing(edges.tolist())
        image.SetDirection((grid[:3, :3] / edges).ravel().tolist())
        composite.AddTransform(sitk.DisplacementFieldTransform(image))
    if not np.array_equal(transform.pre, np.eye(4)):
        composite.AddTransform(_itk_matrix(sitk, transform.pre))
    if composite.GetNumberOfTransforms() == 0:
        composite.AddTransform(sitk.AffineTransform(3))
    return composite


@contextmanager
def _in_ascii(path: Path) -> Iterator[str]:
    """A name for a file that every library takes: a folder that is not UTF-8 is reached through a link."""
    if str(path).isascii():
        yield str(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder) / "link"
        link.symlink_to(path.parent.absolute(), target_is_directory=True)
        yield str(link / path.name)


def _put_field(path: Path, displacement: Array) -> None:
    """Puts the whole field [X, Y, Z, 3], RAS mm, in the place of the corner that an ITK file holds.

    ITK keeps the voxel numbers of the grid first among a field's fixed parameters, and reads numbers of
    either width whatever the transform's type says.
    """
    import h5py

    with h5py.File(path, "r+") as file:
        groups = file["TransformGroup"].values()
        (group,) = (g for g in groups if g["TransformType"][0].startswith(b"DisplacementField"))
        fixed = group["TransformFixedParameters"]
        fixed[:3] = displacement.shape[:3]
        del group["TransformParameters"]
        numbers = group.create_dataset(
            "TransformParameters",
            (displacement.size,),
            "<f4",
            chunks=(min(displacement.size, HDF5_CHUNK),),
            compression="gzip",
            compression_opts=1,
            shuffle=True,
        )
        plane = displacement[:, :, 0].size
        for first, stop in slabs(displacement.shape):
            part = displacement[:, :, first:stop].transpose(2, 1, 0, 3) * (SIGNS * FIELD_PRECISION)
            numbers[first * plane : stop * plane] = (np.rint(part) / FIELD_PRECISION).ravel()


def read_transform(path: str | os.PathLike[str]) -> Transform:
    """A transform of ours, ITK, ANTs or Slicer: .h5 .tfm .txt .mat, or a dense displacement field.

    Dense fields: what ITK writes (.nii.gz .mha .nrrd), and NiftyReg's deformation and displacement fields.
    Raises InputError where the file cannot be read, holds another program's kind of field, or is neither
    affine nor affine parts around one displacement field.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such transform")
    name = path.name.lower()
    if name.endswith(DENSE):
        transform = read_field(path)
    elif name.endswith(ITK_TRANSFORMS):
        transform = _read_itk_transform(path)
    elif path.suffix.lower() in FOREIGN:
        raise InputError(f"{path}: a transform of {FOREIGN[path.suffix.lower()]}; {CONVERT}")
    else:
        raise InputError(
            f"{path}: not a kind of transform that can be read; expected an ITK transform "
            f"({' '.join(ITK_TRANSFORMS)}) or a displacement field (.nii.gz .mha .nrrd)"
        )
    for part in (transform.pre, transform.post, transform.displacement):
        if not np.isfinite(part).all():
            raise InputError(f"{path}: the transform holds numbers that are not finite; make it again")
    for matrix in (transform.pre, transform.post, transform.grid):
        if abs(np.linalg.det(matrix[:3, :3])) < 1e-9:
            raise InputError(f"{path}: the transform's affine part is singular; make it again")
    return transform


def _itk_matrix(sitk: Any, matrix: Array) -> Any:
    """A [4, 4] of RAS mm as ITK's affine transform of LPS mm."""
    lps = LPS @ matrix @ LPS
    out = sitk.AffineTransform(3)
    out.SetMatrix(lps[:3, :3].ravel().tolist())
    out.SetTranslation(lps[:3, 3].tolist())
    return out


def _read_itk_transform(path: Path) -> Transform:
    sitk = simpleitk(f"{path}: reading an ITK transform")
    if path.suffix.lower() not in HDF5:
        _check_text(path)
    try:
        parts = _flat(sitk.ReadTransform(str(path)).Downcast())
    except (RuntimeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a readable ITK transform ({itk_reason(error)})") from error
    if any(part.GetDimension() != 3 for part in parts):
        raise InputError(f"{path}: a transform of {parts[0].GetDimension()}-D points; expected 3-D")
    fields = [i for i, part in enumerate(parts) if not part.IsLinear()]
    if not fields:
        return affine_transform(_product(parts))
    kinds = [parts[i].GetName() for i in fields]
    if kinds != ["DisplacementFieldTransform"]:
        raise InputError(
            f"{path}: holds {', '.join(kinds)}; one displacement field between affine parts can be "
            "used: make one of it (SimpleITK: TransformToDisplacementField; ANTs: one composite)"
        )
    post, field, pre = parts[: fields[0]], parts[fields[0]], parts[fields[0] + 1 :]
    return of_field(sitk, field.GetDisplacementField())._replace(post=_product(post), pre=_product(pre))


def _check_text(path: Path) -> None:
    """InputError, with the name, over text that other programs keep in files of ITK's endings."""
    start = path.read_bytes()[:4000].decode("latin-1").strip()
    if start.startswith("("):
        raise InputError(f"{path}: a parameter file of elastix; {CONVERT}")
    words = start.split()
    try:
        bare = len(words) >= 9 and all(np.isfinite(float(word)) for word in words[:16])
    except ValueError:
        return
    if bare:
        raise InputError(
            f"{path}: a bare matrix (FSL flirt? NiftyReg?), which does not say in which coordinates, and in"
            f" which direction; {CONVERT}"
        )


def _flat(transform: Any) -> list[Any]:
    """The parts of a (nested) composite in ITK's order: the last is applied first."""
    if transform.GetName() != "CompositeTransform":
        return [transform]
    parts = [transform.GetNthTransform(i).Downcast() for i in range(transform.GetNumberOfTransforms())]
    return [leaf for part in parts for leaf in _flat(part)]


def _product(parts: Sequence[Any]) -> Array:
    """The [4, 4], RAS mm, of linear ITK transforms, the last of them applied first.

    Read off at four points, so that it holds for every kind of linear transform.
    """
    out = np.eye(4)
    for part in parts:
        zero, *images = (np.array(part.TransformPoint(p)) for p in np.eye(4, 3, -1).tolist())
        matrix = np.eye(4)
        matrix[:3, :3] = np.column_stack([image - zero for image in images])
        matrix[:3, 3] = zero
        out = out @ matrix
    return LPS @ out @ LPS
