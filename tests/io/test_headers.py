"""Headers that contradict themselves, or hold no orientation, are read as ITK reads them, with a note."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from lmreg_jax.errors import InputError
from lmreg_jax.io.nifti import read_volume, write_native
from lmreg_jax.io.read import read_mask, read_scan
from lmreg_jax.io.scan import itk_affine
from lmreg_jax.io.transforms import read_transform
from tests import spaces

SHAPE = (12, 10, 14)
AFFINE = spaces.rotation((4, -3, 5)) @ spaces.grid(SHAPE, (2.0, 3.0, 4.0))
SHIFT = np.eye(4)
SHIFT[2, 3] = 60
MIRROR = np.diag([-1.0, 1, 1, 1])


@pytest.fixture
def sitk() -> Any:
    return pytest.importorskip("SimpleITK")


def data() -> np.ndarray:
    return np.random.default_rng(0).integers(-1000, 1000, SHAPE).astype(np.int16)


def nifti(path: Path, sform: Any, sform_code: int, qform: Any, qform_code: int) -> Path:
    image = nib.Nifti1Image(data(), sform)
    image.set_sform(sform, sform_code, update_affine=False)
    image.set_qform(qform, qform_code, update_affine=False)
    raw = bytearray(image.to_bytes())
    raw[252:256] = struct.pack("<hh", qform_code, sform_code)  # nibabel puts codes where both are 0
    path.write_bytes(bytes(raw))
    return path


def itk_image(sitk: Any, path: Path) -> Any:
    return itk_affine(sitk.ReadImage(str(path)))


@pytest.mark.parametrize("change", [SHIFT, MIRROR], ids=["shift", "mirror"])
@pytest.mark.parametrize("codes", [(1, 1), (1, 2), (2, 1), (2, 2), (3, 1), (4, 1)], ids=str)
def test_sform_and_qform_that_disagree_are_read_as_itk_does(
    sitk: Any, codes: tuple[int, int], change: Any, tmp_path: Path
) -> None:
    path = nifti(tmp_path / "a.nii", AFFINE, codes[0], change @ AFFINE, codes[1])
    scan = read_scan(path)
    np.testing.assert_allclose(scan.affine, itk_image(sitk, path), atol=1e-4)
    (note,) = scan.notes
    assert f"sform (code {codes[0]}) and qform (code {codes[1]})" in note
    assert ("60.0 mm" in note) == (change is SHIFT) and ("mirror" in note) == (change is MIRROR)
    write_native(tmp_path / "b.nii", scan, scan.volume.data)
    assert read_scan(tmp_path / "b.nii").notes == ()
    np.testing.assert_allclose(itk_image(sitk, tmp_path / "b.nii"), scan.affine, atol=1e-4)
    np.testing.assert_allclose(nib.load(tmp_path / "b.nii").affine, scan.affine, atol=1e-4)


@pytest.mark.parametrize("codes", [(1, 0), (2, 0), (0, 1), (1, 1), (2, 1), (0, 0)], ids=str)
def test_headers_without_contradiction_agree_with_itk(
    sitk: Any, codes: tuple[int, int], tmp_path: Path
) -> None:
    """Codes 0 and 0 hold no orientation: ITK's LPS, and a note; nibabel would turn front to back."""
    path = nifti(tmp_path / "a.nii", AFFINE, codes[0], AFFINE, codes[1])
    scan = read_scan(path)
    np.testing.assert_allclose(scan.affine, itk_image(sitk, path), atol=1e-3)
    assert len(scan.notes) == (codes == (0, 0))
    assert all("no orientation" in note for note in scan.notes)


def test_a_sheared_sform_beside_a_qform(sitk: Any, tmp_path: Path) -> None:
    shear = np.eye(4)
    shear[0, 2] = 0.2
    path = nifti(tmp_path / "a.nii", AFFINE @ shear, 1, AFFINE, 1)
    scan = read_scan(path)
    np.testing.assert_allclose(scan.affine, itk_image(sitk, path), atol=1e-4)
    assert "The qform is taken" in scan.notes[0]


def test_a_contradictory_mask_is_refused_with_the_reason(tmp_path: Path) -> None:
    scan = read_scan(nifti(tmp_path / "scan.nii", AFFINE, 1, AFFINE, 1))
    mask = nifti(tmp_path / "mask.nii", AFFINE, 2, SHIFT @ AFFINE, 1)
    with pytest.raises(InputError, match=r"another grid.*mask\.nii: sform \(code 2\) and qform"):
        read_mask(mask, scan)


@pytest.mark.parametrize("slope", [0.0, np.nan])
def test_an_intercept_without_a_slope_is_refused(slope: float, tmp_path: Path) -> None:
    """ITK adds it, nibabel does not."""
    path = nifti(tmp_path / "a.nii", AFFINE, 1, AFFINE, 1)
    raw = bytearray(path.read_bytes())
    raw[112:120] = struct.pack("<ff", slope, -1024)
    path.write_bytes(bytes(raw))
    with pytest.raises(InputError, match="scl_inter -1024"):
        read_volume(path)
    raw[112:120] = struct.pack("<ff", slope, 0)
    path.write_bytes(bytes(raw))
    assert read_volume(path).data.dtype == np.int16


META = (
    "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\n{}DimSize = 12 10 14\n"
    "ElementSpacing = 4 4 4\nElementType = MET_SHORT\nElementDataFile = LOCAL\n"
)
RRD = "NRRD0004\ntype: short\ndimension: 3\nsizes: 12 10 14\nencoding: raw\nendian: little\n{}\n"
UNIT = "TransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = 1 2 3\n"
DIRECTIONS = "space directions: (4,0,0) (0,4,0) (0,0,4)\nspace origin: (0,0,0)\n"


@pytest.mark.parametrize(
    ("suffix", "lines", "note"),
    [
        (".nrrd", "spacings: 4 4 4\n", "names no space"),
        (".nrrd", "space dimension: 3\n" + DIRECTIONS, "names no space"),
        (".nrrd", "space: scanner-xyz\n" + DIRECTIONS, "scanner-xyz, is not of the patient"),
        (".nrrd", "space: LPS\n" + DIRECTIONS, None),
        (".nrrd", "space: right-anterior-superior\n" + DIRECTIONS, None),
        (".mha", "", "no orientation"),
        (".mha", "AnatomicalOrientation = LPI\n", "LPI alone is not obeyed"),
        (".mha", UNIT + "AnatomicalOrientation = LPI\n", "LPI contradicts the TransformMatrix (RAI)"),
        (".mha", UNIT + "AnatomicalOrientation = RAI\n", None),
        (".mha", UNIT + "AnatomicalOrientation = LPS\n", None),
        (".mha", "Orientation = 0 0 1 1 0 0 0 1 0\nAnatomicalOrientation = IRA\n", None),
    ],
)
def test_what_says_nothing_of_orientation_gets_a_note(
    sitk: Any, suffix: str, lines: str, note: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / f"a{suffix}"
    header = (META if suffix == ".mha" else RRD).format(lines)
    path.write_bytes(header.encode() + data().tobytes(order="F"))
    scan = read_scan(path)
    np.testing.assert_array_equal(scan.to_native(scan.volume.data), data())
    assert len(scan.notes) == (note is not None)
    if note:
        assert note in scan.notes[0] and f"{path}: {scan.notes[0]}" in caplog.text


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("suffix", [".mha", ".mhd", ".nrrd", ".nhdr"])
def test_whole_files_are_read_and_cut_ones_refused(
    sitk: Any, suffix: str, compressed: bool, tmp_path: Path
) -> None:
    path = tmp_path / f"a{suffix}"
    image = sitk.GetImageFromArray(np.ascontiguousarray(data().T))
    sitk.WriteImage(image, str(path), useCompression=compressed)
    scan = read_scan(path)
    np.testing.assert_array_equal(scan.to_native(scan.volume.data), data())
    assert scan.notes == ()
    held = next(p for p in (*tmp_path.glob("*raw*"), path) if p != path or suffix in (".mha", ".nrrd"))
    held.write_bytes(held.read_bytes()[:-200])
    with pytest.raises(InputError, match=path.name):
        read_scan(path)
    if held != path:
        held.unlink()
        with pytest.raises(InputError, match=path.name):
            read_scan(path)


@pytest.mark.parametrize("value", ["0", "-2"])
def test_spacings_of_zero_and_below_are_refused(sitk: Any, value: str, tmp_path: Path) -> None:
    """ITK reads -2 as 2."""
    path = tmp_path / "a.mha"
    text = META.format(UNIT).replace("Spacing = 4", f"Spacing = {value}")
    path.write_bytes(text.encode() + data().tobytes())
    for read in (read_scan, read_transform):
        with pytest.raises(InputError, match=f"voxel spacing {value} mm in the header"):
            read(path)
