"""Scans of several formats end up in the same place, and what cannot be trusted is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from lmreg_jax.errors import InputError
from lmreg_jax.imaging.volume import Volume, apply_affine
from lmreg_jax.io.nifti import write_native
from lmreg_jax.io.read import read_mask, read_scan
from tests import spaces

OBLIQUE = spaces.rotation((10, -7, 15)) @ spaces.grid()


@pytest.mark.parametrize("orientation", spaces.ORIENTATIONS[::5], ids=str)
def test_results_go_back_to_the_files_own_grid(orientation: Any, tmp_path: Path) -> None:
    """Read, turned to RAS+, given back: the same voxels in the same places in mm."""
    volume = spaces.ct(affine=OBLIQUE)
    path = spaces.save(tmp_path / "a.nii.gz", volume, orientation)
    scan = read_scan(path)
    stored: Any = nib.load(path)
    np.testing.assert_array_equal(scan.volume.data, volume.data)
    np.testing.assert_allclose(scan.volume.affine, volume.affine, atol=1e-4)
    assert (scan.shape, scan.dtype) == (stored.shape, np.int16)
    np.testing.assert_array_equal(scan.to_native(scan.volume.data), np.asarray(stored.dataobj))
    np.testing.assert_array_equal(scan.to_ras(np.asarray(stored.dataobj)), volume.data)
    vectors = np.random.default_rng(0).normal(size=(*volume.data.shape, 3))
    np.testing.assert_array_equal(scan.to_ras(scan.to_native(vectors)), vectors)
    write_native(tmp_path / "b.nii.gz", scan, scan.volume.data)
    again: Any = nib.load(tmp_path / "b.nii.gz")
    np.testing.assert_allclose(again.affine, stored.affine, atol=1e-4)
    np.testing.assert_array_equal(np.asarray(again.dataobj), np.asarray(stored.dataobj))


@pytest.mark.parametrize("suffix", [".mha", ".mhd", ".nrrd"])
def test_other_formats_are_read_as_itk_means_them(suffix: str, tmp_path: Path) -> None:
    sitk = pytest.importorskip("SimpleITK")
    volume = spaces.ct(affine=OBLIQUE)
    path = spaces.save(tmp_path / "a.nii.gz", volume, spaces.ORIENTATIONS[29])
    sitk.WriteImage(sitk.ReadImage(str(path)), str(tmp_path / f"a{suffix}"))
    ours, reference = read_scan(tmp_path / f"a{suffix}"), read_scan(path)
    np.testing.assert_array_equal(ours.volume.data, reference.volume.data)
    np.testing.assert_allclose(ours.volume.affine, reference.volume.affine, atol=1e-3)
    np.testing.assert_allclose(ours.affine, reference.affine, atol=1e-3)
    assert (ours.shape, ours.dtype) == (reference.shape, reference.dtype)


def test_hounsfield_units_behind_a_scale_factor_are_stored_as_int16(tmp_path: Path) -> None:
    """uint16 with intercept -1024 holds no -1000 when written without it: what is kept is the HU."""
    volume = spaces.ct()
    image = nib.Nifti1Image((volume.data + 1024).astype(np.uint16), volume.affine)
    raw = bytearray(image.to_bytes())
    raw[112:120] = np.array([1, -1024], "<f4").tobytes()  # scl_slope, scl_inter: nibabel would rescale
    path = tmp_path / "a.nii"
    path.write_bytes(bytes(raw))
    scan = read_scan(path)
    np.testing.assert_array_equal(scan.volume.data, volume.data)
    assert scan.dtype == np.int16


def test_masks_are_checked_against_their_scan(tmp_path: Path) -> None:
    volume = spaces.ct()
    scan = read_scan(spaces.save(tmp_path / "scan.nii.gz", volume))
    lungs = Volume((volume.data < -600).astype(np.uint8), volume.affine)
    turned = spaces.save(tmp_path / "mask.nii.gz", lungs, spaces.ORIENTATIONS[17])
    np.testing.assert_array_equal(read_mask(turned, scan).data, lungs.data)
    wrong = {
        "shifted": (Volume(lungs.data, spaces.grid(centre=3.0)), "on another grid"),
        "smaller": (Volume(lungs.data[:-1], lungs.affine), "on another grid"),
        "empty": (Volume(0 * lungs.data, lungs.affine), "is empty"),
        "soft": (Volume(lungs.data * np.float32(0.5), lungs.affine), "with fractions"),
        "negative": (Volume(-lungs.data.astype(np.int16), lungs.affine), "negative"),
    }
    for name, (mask, said) in wrong.items():
        path = spaces.save(tmp_path / f"{name}.nii.gz", mask)
        with pytest.raises(InputError, match=rf"{name}\.nii\.gz.*{said}"):
            read_mask(path, scan)


def test_unknown_kinds_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("SimpleITK")
    (tmp_path / "a.jpg").write_bytes(b"x")
    (tmp_path / "a.mha").write_bytes(b"x")
    for name, said in [
        ("none.nii", "no such"),
        ("a.jpg", "not a kind of image"),
        ("a.mha", "not a readable"),
    ]:
        with pytest.raises(InputError, match=said):
            read_scan(tmp_path / name)


def test_the_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.mha").write_bytes(b"x")
    monkeypatch.setitem(__import__("sys").modules, "SimpleITK", None)
    with pytest.raises(InputError, match=r'pip install "lmreg_jax\[itk\]"'):
        read_scan(tmp_path / "a.mha")


class Series:
    """A DICOM series, written by SimpleITK: [columns, rows, slices] HU, rescale intercept -1024."""

    pixel_mm = (2.5, 2.0)  # between columns, between rows
    step = np.array([0.0, 0.0, 4.0])  # LPS mm from slice to slice
    origin = np.array([-40.0, -30.0, 100.0])

    def __init__(self, folder: Path, uid: str = "1.2.3.4") -> None:
        self.folder, self.uid = folder, uid
        folder.mkdir(exist_ok=True)
        self.data = spaces.ct((20, 24, 9), spaces.grid((20, 24, 9), (14.0, 10.0, 30.0))).data

    def write(
        self, skip: tuple[int, ...] = (), shift: dict[int, float] | None = None, tilt: float = 0.0
    ) -> Path:
        """Without the slices `skip`; some shifted along z, all sheared by `tilt` degrees."""
        sitk = pytest.importorskip("SimpleITK")
        writer = sitk.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        step = self.step + np.array([0, np.tan(np.radians(tilt)) * self.step[2], 0])
        for k in range(self.data.shape[2]):
            if k in skip:
                continue
            image = sitk.GetImageFromArray(np.ascontiguousarray(self.data[..., k].T))
            image.SetSpacing(self.pixel_mm)
            position = self.origin + k * step + np.array([0, 0, (shift or {}).get(k, 0.0)])
            tags = {
                "0008|0016": "1.2.840.10008.5.1.4.1.1.2",
                "0008|0060": "CT",
                "0008|103e": f"chest {self.uid}",
                "0008|0018": f"{self.uid}.{k + 1}",
                "0020|000e": self.uid,
                "0020|000d": "1.2.3",
                "0020|0013": str(k + 1),
                "0020|0032": "\\".join(f"{x:.6f}" for x in position),
                "0020|0037": "1\\0\\0\\0\\1\\0",
                "0018|0050": "4",
                "0028|1052": "-1024",
                "0028|1053": "1",
                "0028|0103": "1",
            }
            for key, value in tags.items():
                image.SetMetaData(key, value)
            writer.SetFileName(str(self.folder / f"{self.uid}_{99 - k:03}.dcm"))  # names in no order
            writer.Execute(image)
        return self.folder


def test_dicom_series_is_read_in_place(tmp_path: Path) -> None:
    series = Series(tmp_path / "ct")
    scan = read_scan(series.write())
    assert (scan.shape, scan.dtype) == ((20, 24, 9), np.int16)
    native = scan.to_native(scan.volume.data)
    np.testing.assert_array_equal(native, series.data)
    last = apply_affine(scan.affine, [19, 23, 8]) * spaces.LPS_SIGNS
    expected = series.origin + np.array([19 * 2.5, 23 * 2.0, 8 * 4.0])
    np.testing.assert_allclose(last, expected, atol=1e-4)


def test_one_of_several_series_is_asked_for(tmp_path: Path) -> None:
    first, second = Series(tmp_path / "ct", "1.2.3.4"), Series(tmp_path / "ct", "1.2.3.5")
    second.data = second.data + 7
    first.write()
    second.write(skip=(8,))
    with pytest.raises(InputError) as caught:
        read_scan(tmp_path / "ct")
    for part in ("2 DICOM series", "9 slices, chest 1.2.3.4", "8 slices, chest 1.2.3.5", "::UID"):
        assert part in str(caught.value)
    names = [word for word in str(caught.value).replace(";", " ").split() if word.startswith("1.2.3.5")]
    scan = read_scan(f"{tmp_path / 'ct'}::{names[0]}")
    np.testing.assert_array_equal(scan.to_native(scan.volume.data), second.data[..., :8])
    with pytest.raises(InputError, match="no series 9"):
        read_scan(f"{tmp_path / 'ct'}::9")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"skip": (4,)}, "1 slice missing between 1.2.3.4_096.dcm and 1.2.3.4_094.dcm"),
        ({"skip": (3, 4)}, "2 slices missing"),
        ({"shift": {5: 1.3}}, "uneven spacing between"),
        ({"shift": {5: -4.0}}, "lie in one place"),
        ({"skip": tuple(range(1, 9))}, "a single slice"),
    ],
    ids=str,
)
def test_stacks_with_gaps_are_refused(change: Any, said: str, tmp_path: Path) -> None:
    folder = Series(tmp_path / "ct").write(**change)
    with pytest.raises(InputError, match=said):
        read_scan(folder)


def test_no_series_at_all(tmp_path: Path) -> None:
    pytest.importorskip("SimpleITK")
    with pytest.raises(InputError, match="no DICOM series in this folder"):
        read_scan(tmp_path)


@pytest.mark.parametrize(
    ("pattern", "value", "message"),
    [
        # Group 28, elements 10 and 11 (rows, columns) and 30 (spacing), each with its length before it.
        (rb"\x28\0[\x10\x11]\0\x02\0\0\0()..", b"\xff\xff", "claims 65535 x 65535 pixels, more than"),
        (rb"\x28\0\x30\0\x06\0\0\0()2\\2\.5 ", rb"-2\2.5", "pixel spacing -2 x 2.5 mm"),
    ],
    ids=["more pixels than bytes", "a negative spacing"],
)
def test_a_slice_that_lies_is_refused(pattern: bytes, value: bytes, message: str, tmp_path: Path) -> None:
    folder = Series(tmp_path / "ct").write()
    file = sorted(folder.iterdir())[0]
    content = bytearray(file.read_bytes())
    places = [found.start(1) for found in re.finditer(pattern, bytes(content), re.DOTALL)]
    assert places
    for place in places:
        content[place : place + len(value)] = value
    file.write_bytes(bytes(content))
    with pytest.raises(InputError, match=message):
        read_scan(folder)


def test_a_tilted_gantry_is_undone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A vertical rod in the body, seen by tilted slices, must be a vertical rod in the scan.

    The rod wanders through the columns of the stored stack by one tilted step a slice. In mm it
    stays where it is: its middle, found to a fraction of a pixel, is compared with that place.
    """
    series = Series(tmp_path / "ct")
    degrees = 18.0
    drift = np.tan(np.radians(degrees)) * series.step[2]  # mm a slice, along the rows' axis (y)
    rod = series.origin[1] + 2.0 * 13  # LPS y of the rod
    rows = np.arange(24)[:, None] * 2.0 + series.origin[1] + drift * np.arange(9)  # y of each row
    profile = np.exp(-((rows - rod) ** 2) / (2 * 4.0**2))
    series.data = (np.broadcast_to(profile, (20, 24, 9)) * 900 - 1000).astype(np.int16)
    scan = read_scan(series.write(tilt=degrees))
    assert "gantry tilted by 18.0 degrees" in caplog.text
    assert scan.notes == ("gantry tilted by 18.0 degrees: resampled to upright slices",)
    data = scan.volume.data.astype(float) + 1000
    linear = scan.volume.affine[:3, :3]
    np.testing.assert_allclose(linear, np.diag(np.diag(linear)), atol=1e-6)  # upright
    y = scan.volume.affine[1, 3] + linear[1, 1] * np.arange(data.shape[1])
    inner = data[10]  # [rows, slices]
    middle = (y @ inner) / inner.sum(axis=0)
    np.testing.assert_allclose(middle, -rod, atol=0.1)
    z = apply_affine(scan.volume.affine, [0, 0, 8])[2]
    np.testing.assert_allclose(z, series.origin[2] + 8 * 4.0, atol=1e-4)
