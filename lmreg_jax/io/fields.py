"""Dense displacement fields on disk: T(x) - x at the voxels of one grid, as ITK and NiftyReg keep them.

A file's shape does not say what its vectors mean. What ITK writes is taken for LPS mm, NiftyReg's fields by
what they say of themselves; everything else is refused by its name.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmreg_jax.errors import InputError
from lmreg_jax.imaging.transforms import Transform
from lmreg_jax.imaging.volume import apply_affine
from lmreg_jax.io import headers
from lmreg_jax.io.nifti import open_nifti, placement, voxels
from lmreg_jax.io.nifti_stream import NIFTI
from lmreg_jax.io.scan import ITK_IMAGES, LPS, itk_affine, itk_reason, simpleitk

log = logging.getLogger(__name__)

Array = NDArray[Any]

DENSE = (*NIFTI, *ITK_IMAGES)
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
CONVERT = "convert it to an ITK transform (.h5, .tfm), or a displacement field in LPS mm as ITK writes it"


def read_field(path: Path) -> Transform:
    """The Transform of a dense field, pre = post = I. Raises InputError."""
    field = _read_nifti(path) if path.name.lower().endswith(NIFTI) else _read_itk(path)
    if np.isfinite(field.displacement).all():
        _check_displacements(path, field)
    return field


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


def of_field(sitk: Any, image: Any) -> Transform:
    vectors = sitk.GetArrayFromImage(image).transpose(2, 1, 0, 3) * SIGNS
    return Transform(np.eye(4), vectors.astype(np.float32), itk_affine(image), np.eye(4))


def _read_itk(path: Path) -> Transform:
    sitk = simpleitk(f"{path}: reading this format")
    fields = headers.read_header(str(path))
    try:
        image = sitk.ReadImage(str(path))
    except (RuntimeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a readable field ({itk_reason(error)})") from error
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 3:
        raise InputError(f"{path}: no displacement field: expected 3-D with three numbers a voxel")
    if "float" not in image.GetPixelIDTypeAsString():
        raise InputError(f"{path}: voxels of {image.GetPixelIDTypeAsString()} (colours?); expected floats")
    notes = headers.orientation_notes(str(path), fields)
    if notes:
        raise InputError(f"{path}: {notes[0].partition(':')[0]}; {CONVERT}")
    space = fields.get("space", "LPS")
    if space.lower() not in ("left-posterior-superior", "lps"):
        raise InputError(f"{path}: NRRD space {space}, so its vectors may be other than LPS mm; {CONVERT}")
    return of_field(sitk, image)


def _read_nifti(path: Path) -> Transform:
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
    vectors = np.asarray(voxels(path, image), np.float32)[..., 0, :]
    if name == NIFTYREG:
        if notes:
            raise InputError(f"{path}: {notes[0]}")
        log.warning("%s: NiftyReg's %s, RAS mm", path, NIFTYREG_KINDS[kind].partition(" ")[2])
        if kind == NIFTYREG_POSITIONS:
            index = np.stack(np.meshgrid(*map(np.arange, shape[:3]), indexing="ij"), axis=-1)
            vectors = (vectors - apply_affine(grid, index)).astype(np.float32)
    elif intent == VECTOR:
        vectors = vectors * SIGNS.astype(np.float32)
    return Transform(np.eye(4), vectors, grid, np.eye(4))
