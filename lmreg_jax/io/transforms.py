"""Transforms on disk: what ITK, ANTs and 3D Slicer read and write, in LPS mm.

A composite transform (.h5, .tfm) holds T exactly, as affine and displacement field; a dense
displacement field (.nii.gz, .mha, .nrrd) holds T(x) - x at the voxels of one grid only.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmreg_jax.errors import InputError
from lmreg_jax.imaging._slabs import slabs
from lmreg_jax.imaging.transforms import Transform, affine_transform, displacement_component
from lmreg_jax.imaging.volume import apply_affine
from lmreg_jax.io import headers
from lmreg_jax.io.nifti import DAMAGE, open_nifti, placement, whole
from lmreg_jax.io.nifti_stream import NIFTI, header_of, write_nifti
from lmreg_jax.io.scan import ITK_IMAGES, LPS, itk_affine, itk_reason, simpleitk
from lmreg_jax.io.tables import reason, replacing

log = logging.getLogger(__name__)

Array = NDArray[Any]

ITK_TRANSFORMS = (".h5", ".hdf5", ".tfm", ".txt", ".mat")
FOREIGN = {".xfm": "MINC", ".lta": "FreeSurfer", ".m3z": "FreeSurfer", ".mgz": "FreeSurfer", ".x5": "X5"}
CONVERT = "convert it to an ITK transform (.h5, .tfm), or a displacement field in LPS mm as ITK writes it"
HDF5 = (".h5", ".hdf5")
WRITTEN = (".h5", ".hdf5", ".tfm")
FIELD_PRECISION = 8192  # of the composite's field: its derivatives count, too
HDF5_CHUNK = 2**16  # numbers that are deflated together
PRECISION = 1024  # dense fields are rounded to 1/1024 mm: the zeros compress, nobody misses the rest
VECTOR, DISPLACEMENT = 1007, 1006  # NIfTI intents; ITK takes the first as LPS, the second as RAS
OTHER_INTENTS = {  # of FSL
    2006: "an FSL FNIRT displacement field, in FSL's own coordinates",
    **dict.fromkeys((2007, 2008, 2009), "FSL FNIRT coefficients"),
    **dict.fromkeys((2016, 2017, 2018), "an FSL topup field"),
}
NIFTYREG = "NREG_TRANS"  # the intent's name; intent_p1 says which of these, all in RAS mm of the sform
NIFTYREG_POSITIONS, NIFTYREG_DISPLACEMENTS = 0, 1
NIFTYREG_KINDS = (
    *("a deformation field", "a displacement field", "a cubic spline grid", "a velocity field of positions"),
    *("a velocity field", "a spline grid of a velocity", "a linear spline grid"),
)
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
    composite = sitk.CompositeTransform(3)
    # ITK applies the part that was added last first.
    if not np.array_equal(transform.post, np.eye(4)):
        composite.AddTransform(_itk_matrix(sitk, transform.post))
    if transform.displacement.any():
        field = transform.displacement
        vectors = ((field[:2, :2, :2] if packed else field) * SIGNS).transpose(2, 1, 0, 3)
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
    with replacing(path) as temporary:
        try:
            sitk.WriteTransform(composite, str(temporary))
            if packed and transform.displacement.any():
                _put_field(temporary, transform.displacement)
        except RuntimeError as error:  # h5py's, too: a disk that fills shows when the file is closed
            raise OSError(f"{path}: could not be written ({itk_reason(error)})") from error


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
    dense = name.endswith((*NIFTI, *ITK_IMAGES))
    if name.endswith(NIFTI):
        transform = _read_nifti_field(path)
    elif dense:
        transform = _read_itk_field(path)
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
    if dense:
        _check_displacements(path, transform)
    return transform


def _check_displacements(path: Path, field: Transform) -> None:
    """InputError where vectors say where points go, not by how much: they grow by 1 mm a mm.

    As displacements they would scale a body by two, or, in RAS for LPS, flatten it.
    """
    picked = [np.unique(np.linspace(0, n - 1, 12).astype(int)) for n in field.displacement.shape[:3]]
    index = np.stack(np.meshgrid(*picked, indexing="ij"), axis=-1).reshape(-1, 3)
    x = apply_affine(field.grid, index)
    design = np.column_stack([x - x.mean(axis=0), np.ones(len(x))])
    slope = np.linalg.lstsq(design, field.displacement[tuple(index.T)], rcond=None)[0][:3]
    if any(np.abs(slope - np.diag(signs)).max() < 0.3 for signs in (np.ones(3), SIGNS)):
        raise InputError(
            f"{path}: its vectors are positions (a deformation field, as of SPM or NiftyReg), not"
            f" displacements; {CONVERT}"
        )


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
    return _of_field(sitk, field.GetDisplacementField())._replace(post=_product(post), pre=_product(pre))


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


def _of_field(sitk: Any, image: Any) -> Transform:
    vectors = sitk.GetArrayFromImage(image).transpose(2, 1, 0, 3) * SIGNS
    return Transform(np.eye(4), vectors.astype(np.float32), itk_affine(image), np.eye(4))


def _read_itk_field(path: Path) -> Transform:
    sitk = simpleitk(f"{path}: reading this format")
    fields = headers.read_header(str(path))
    try:
        image = sitk.ReadImage(str(path))
    except (RuntimeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a readable field ({itk_reason(error)})") from error
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 3:
        raise InputError(f"{path}: no displacement field: expected 3-D with three numbers a voxel")
    if "float" not in image.GetPixelIDTypeAsString():
        raise InputError(
            f"{path}: voxels of {image.GetPixelIDTypeAsString()} (colours?); expected floats"
        )
    notes = headers.orientation_notes(str(path), fields)
    if notes:
        raise InputError(f"{path}: {notes[0].partition(':')[0]}; {CONVERT}")
    space = fields.get("space", "LPS")
    if space.lower() not in ("left-posterior-superior", "lps"):
        raise InputError(f"{path}: NRRD space {space}, so its vectors may be other than LPS mm; {CONVERT}")
    return _of_field(sitk, image)


def _read_nifti_field(path: Path) -> Transform:
    image = open_nifti(path)
    header, shape = image.header, tuple(image.shape)
    intent = int(header["intent_code"])
    name = bytes(header["intent_name"]).rstrip(b"\0 ").decode("latin-1")
    if intent in OTHER_INTENTS:
        raise InputError(f"{path}: {OTHER_INTENTS[intent]} (NIfTI intent {intent}); {CONVERT}")
    if len(shape) != 5 or shape[3:] != (1, 3) or min(shape[:3]) < 2:
        bare = "; four axes hold voxels as often as mm (Learn2Reg)" * (len(shape) == 4 and shape[3] == 3)
        raise InputError(
            f"{path}: shape {shape}{bare}: no displacement field of ITK, expected [X, Y, Z, 1, 3]; {CONVERT}"
        )
    if image.get_data_dtype().kind not in "iuf":
        raise InputError(f"{path}: voxels of type {image.get_data_dtype()}; expected real numbers")
    if intent not in (VECTOR, DISPLACEMENT):
        raise InputError(
            f"{path}: NIfTI intent {intent}; expected {VECTOR} (vector, as ITK and ANTs write it), which says"
            " that it holds displacements in LPS mm"
        )
    kind = int(header["intent_p1"])
    if name == NIFTYREG and kind not in (NIFTYREG_POSITIONS, NIFTYREG_DISPLACEMENTS):
        said = NIFTYREG_KINDS[kind] if 0 <= kind < len(NIFTYREG_KINDS) else f"kind {kind}"
        raise InputError(
            f"{path}: NiftyReg's {said}; make a deformation or displacement field of it (reg_transform -def)"
        )
    if name not in ("", NIFTYREG):
        known = " (of SPM: positions in mm)" if name == "Mapping" else ""
        raise InputError(f"{path}: a field of the kind {name!r}{known}, not ITK's; {CONVERT}")
    grid, notes = placement(image)
    for note in notes:
        log.warning("%s: %s", path, note)
    try:
        vectors = np.asarray(whole(path, image), np.float32)[..., 0, :]
    except DAMAGE as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: not a readable displacement field ({reason(error)})") from error
    if name == NIFTYREG:
        if notes:
            raise InputError(f"{path}: {notes[0]}")
        log.warning("%s: NiftyReg's %s, RAS mm", path, NIFTYREG_KINDS[kind].partition(" ")[2])
        if kind == NIFTYREG_POSITIONS:
            voxels = np.stack(np.meshgrid(*map(np.arange, shape[:3]), indexing="ij"), axis=-1)
            vectors = (vectors - apply_affine(grid, voxels)).astype(np.float32)
    elif intent == VECTOR:
        vectors = vectors * SIGNS.astype(np.float32)
    return Transform(np.eye(4), vectors, grid, np.eye(4))
