"""Transforms on disk: what ITK, ANTs and 3D Slicer read and write, in LPS mm.

A composite transform (.h5, .tfm) holds T exactly, as affine and displacement field; a dense
displacement field (.nii.gz, .mha, .nrrd) holds T(x) - x at the voxels of one grid only.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from lmreg_jax.errors import InputError
from lmreg_jax.imaging._slabs import slabs
from lmreg_jax.imaging.transforms import Transform, affine_transform, displacement_component
from lmreg_jax.io import headers
from lmreg_jax.io.nifti import DAMAGE, check_claim, whole
from lmreg_jax.io.nifti_stream import NIFTI, header_of, write_nifti
from lmreg_jax.io.scan import ITK_IMAGES, LPS, itk_affine, itk_reason, simpleitk
from lmreg_jax.io.tables import reason, replacing

Array = NDArray[Any]

ITK_TRANSFORMS = (".h5", ".hdf5", ".tfm", ".txt", ".mat", ".xfm")
HDF5 = (".h5", ".hdf5")
WRITTEN = (".h5", ".hdf5", ".tfm")
FIELD_PRECISION = 8192  # of the composite's field: its derivatives count, too
HDF5_CHUNK = 2**16  # numbers that are deflated together
PRECISION = 1024  # dense fields are rounded to 1/1024 mm: the zeros compress, nobody misses the rest
VECTOR, DISPLACEMENT = 1007, 1006  # NIfTI intents; ITK takes the first as LPS, the second as RAS
SIGNS = LPS.diagonal()[:3]


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
    sitk = simpleitk(f"{path}: writing an ITK transform")
    packed = path.name.endswith(HDF5) and importlib.util.find_spec("h5py") is not None
    if packed:  # The field itself follows in float32: ITK would hold it in float64, several times over.
        stand_in = np.full((2, 2, 2, 3), transform.displacement.any(), np.float32)
        composite = itk_composite(transform._replace(displacement=stand_in))
    else:
        composite = itk_composite(transform)
    with replacing(path) as temporary:
        try:
            sitk.WriteTransform(composite, str(temporary))
            if packed and transform.displacement.any():
                _put_field(temporary, transform.displacement)
        except RuntimeError as error:  # h5py's, too: a disk that fills shows when the file is closed
            raise OSError(f"{path}: could not be written ({itk_reason(error)})") from error


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

    Raises InputError where the file cannot be read, or is neither affine nor affine parts around
    one displacement field.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such transform")
    name = path.name.lower()
    if name.endswith(NIFTI):
        transform = _read_nifti_field(path)
    elif name.endswith(ITK_IMAGES):
        transform = _read_itk_field(path)
    elif name.endswith(ITK_TRANSFORMS):
        transform = _read_itk_transform(path)
    else:
        raise InputError(
            f"{path}: not a kind of transform that can be read; an ITK transform "
            f"({' '.join(ITK_TRANSFORMS)}) or a displacement field (.nii.gz .mha .nrrd) is needed"
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
    if path.suffix.lower() in HDF5:
        _check_in_a_child(path)
    try:
        parts = _flat(sitk.ReadTransform(str(path)).Downcast())
    except (RuntimeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a readable ITK transform ({itk_reason(error)})") from error
    if any(part.GetDimension() != 3 for part in parts):
        raise InputError(f"{path}: a transform of {parts[0].GetDimension()}-D points; 3-D is needed")
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
    return _of_field(sitk, field.GetDisplacementField())._replace(post=_product(post), pre=_product(pre))


def _check_in_a_child(path: Path) -> None:
    """ITK's HDF5 reader crashes over some damaged files: let it do so in a process of its own."""
    program = "import sys, SimpleITK; SimpleITK.ReadTransform(sys.argv[1])"
    answer = subprocess.run([sys.executable, "-c", program, str(path.absolute())], capture_output=True)
    if answer.returncode < 0:
        raise InputError(f"{path}: damaged HDF5: its reader crashes over it; copy or make the file again")


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


def _of_field(sitk: Any, image: Any) -> Transform:
    vectors = sitk.GetArrayFromImage(image).transpose(2, 1, 0, 3) * SIGNS
    return Transform(np.eye(4), vectors.astype(np.float32), itk_affine(image), np.eye(4))


def _read_itk_field(path: Path) -> Transform:
    sitk = simpleitk(f"{path}: reading this format")
    try:
        image = headers.information(sitk, path).Execute()
    except (RuntimeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a readable field ({itk_reason(error)})") from error
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 3:
        raise InputError(f"{path}: no displacement field: 3-D with three numbers a voxel is needed")
    return _of_field(sitk, image)


def _read_nifti_field(path: Path) -> Transform:
    try:
        image: Any = nib.load(path)
        shape = tuple(image.shape)
        if len(shape) != 5 or shape[3:] != (1, 3) or min(shape[:3]) < 2:
            raise InputError(
                f"{path}: shape {shape}; no displacement field of ITK: [X, Y, Z, 1, 3] is needed"
            )
        if image.get_data_dtype().kind not in "iuf":
            raise InputError(f"{path}: voxels of type {image.get_data_dtype()}; real numbers are needed")
        check_claim(path, image)
        vectors = np.asarray(whole(path, image), np.float32)[..., 0, :]
    except DAMAGE as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: not a readable displacement field ({reason(error)})") from error
    intent = int(image.header["intent_code"])
    if intent not in (VECTOR, DISPLACEMENT):
        raise InputError(
            f"{path}: NIfTI intent {intent}; {VECTOR} (vector, as ITK and ANTs write it) is needed "
            "to know that it holds displacements in LPS mm"
        )
    signs = SIGNS if intent == VECTOR else np.ones(3)
    grid = np.array(image.affine, np.float64)
    return Transform(np.eye(4), vectors * signs.astype(np.float32), grid, np.eye(4))
