"""The border to files: orientation, resampling against closed forms, and every refusal's words."""

from __future__ import annotations

import gzip
import re
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from lmreg_jax.errors import InputError
from lmreg_jax.imaging.resampling import resample
from lmreg_jax.imaging.volume import Volume, apply_affine, spacing
from lmreg_jax.io import nifti_stream
from lmreg_jax.io.nifti import read_volume, write_volume
from lmreg_jax.io.points import read_points, write_points
from tests.shared_data import shared


def ramp(shape, affine):
    """An image whose value is 100 + 2 x - 3 y + z of the RAS mm: linear, so smoothing keeps it."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    return Volume((100 + apply_affine(affine, index) @ (2.0, -3.0, 1.0)).astype(np.float32), affine)


def affine_of(spacing_mm=(2.0, 3.0, 4.0), origin=(-10.0, 5.0, 7.0)):
    affine = np.diag([*spacing_mm, 1.0])
    affine[:3, 3] = origin
    return affine


def rotated(degrees=(10.0, -7.0, 15.0)):
    out = np.eye(4)
    for axis, angle in enumerate(np.deg2rad(degrees)):
        turn = np.eye(4)
        a, b = [i for i in range(3) if i != axis]
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
        out = out @ turn
    return out


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR", "SAL", "IRA"])
def test_every_orientation_reads_to_the_same_ras_image(tmp_path, codes):
    truth = ramp((5, 6, 7), affine_of())
    turn = nib.orientations.axcodes2ornt(codes)
    stored = nib.as_closest_canonical(nib.Nifti1Image(truth.data, truth.affine)).as_reoriented(turn)
    assert "".join(nib.aff2axcodes(stored.affine)) != "RAS" or codes == "RAS"
    nib.save(stored, tmp_path / "a.nii.gz")
    read = read_volume(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(read.data, truth.data)
    np.testing.assert_allclose(read.affine, truth.affine, atol=1e-5)


def test_written_images_come_back_exactly(tmp_path):
    volume = Volume(np.arange(60, dtype=np.int16).reshape(3, 4, 5) - 30, affine_of() @ rotated())
    write_volume(tmp_path / "deep" / "a.nii.gz", volume)
    read = read_volume(tmp_path / "deep" / "a.nii.gz")
    assert read.data.dtype == np.int16
    np.testing.assert_array_equal(read.data, volume.data)
    np.testing.assert_allclose(read.affine, volume.affine, atol=1e-5)  # the header is float32
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a.nii.gz"]  # no leftovers


def test_writing_rounds_and_clips_to_integers_and_narrows_the_rest(tmp_path):
    data = np.array([-1e6, -0.6, 0.4, 0.6, 1e6, 2, 2, 2]).reshape(2, 2, 2)
    write_volume(tmp_path / "a.nii", Volume(data, np.eye(4)), dtype=np.int16)
    assert read_volume(tmp_path / "a.nii").data.ravel()[:5].tolist() == [-32768, -1, 0, 1, 32767]
    for given, stored in ((bool, np.uint8), (np.int64, np.int32), (np.float64, np.float32)):
        write_volume(tmp_path / "b.nii", Volume(np.ones((2, 2, 2), given), np.eye(4)))
        assert nib.load(tmp_path / "b.nii").get_data_dtype() == stored


def test_header_scaling_units_and_trailing_axes_are_applied(tmp_path):
    image = nib.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4, 1), np.eye(4))
    image.header.set_slope_inter(2.0, -5.0)
    image.header.set_xyzt_units("meter")
    image.set_sform(np.diag([0.001, 0.002, 0.003, 1.0]), 1)
    nib.save(image, tmp_path / "a.nii")
    read = read_volume(tmp_path / "a.nii")
    assert read.data.dtype == np.float32 and read.data.shape == (2, 3, 4)
    np.testing.assert_allclose(spacing(read.affine), (1.0, 2.0, 3.0), rtol=1e-6)
    np.testing.assert_array_equal(read.data.ravel(), 2 * np.arange(24) - 5)


def test_resampling_a_linear_image_through_an_oblique_pull_is_exact_inside():
    source = ramp((44, 42, 40), affine_of() @ rotated())
    pull = rotated((-4.0, 6.0, 3.0))
    pull[:3, 3] = (1.5, -2.0, 0.5)
    middle = np.linalg.inv(pull) @ np.append(apply_affine(source.affine, (21.5, 20.5, 19.5)), 1)
    target = affine_of((1.7, 2.1, 2.9), middle[:3] - (8, 8, 8))
    for order in (1, 3):
        got = resample(source, (9, 8, 6), target, order=order, fill=np.nan, pull=pull)
        index = np.stack(np.meshgrid(range(9), range(8), range(6), indexing="ij"), -1)
        want = 100 + apply_affine(pull @ target, index) @ (2.0, -3.0, 1.0)
        np.testing.assert_allclose(got, want, atol=2e-3)  # float32 of values about 200


def test_the_own_grid_gives_the_image_itself_to_the_last_voxel():
    source = Volume(np.random.default_rng(0).standard_normal((6, 5, 4)), affine_of((0.7, 0.9, 1.1)))
    got = resample(source, (6, 5, 4), source.affine, fill=np.nan)
    np.testing.assert_allclose(got, source.data, atol=1e-6)


def test_outside_the_scan_is_fill_and_voxels_are_boxes():
    source = Volume(np.full((4, 4, 4), 7.0), np.eye(4))
    shifted = affine_of((1.0, 1.0, 1.0), (-1.4, 0.0, 0.0))
    got = resample(source, (8, 4, 4), shifted, fill=-1.0)[:, 0, 0]
    # centres at -1.4, -0.4, ... 5.6; the scan's voxels span -0.5 to 3.5
    assert got.tolist() == [-1, 7, 7, 7, 7, -1, -1, -1]
    far = resample(source, (3, 3, 3), affine_of((1.0, 1.0, 1.0), (99.0, 0.0, 0.0)), fill=-1.0)
    assert np.all(far == -1)


def test_a_coarser_grid_averages_instead_of_picking_voxels():
    rng = np.random.default_rng(1)
    noise = Volume(rng.standard_normal((64, 64, 64)).astype(np.float32), np.eye(4))
    coarse = resample(noise, (14, 14, 14), np.diag([4.0, 4.0, 4.0, 1.0]), fill=0.0)
    # Gaussian of sigma s: variance (2 s sqrt(pi))^-3; here s = sqrt(15) / 2.355 = 1.64
    assert np.std(coarse[2:-2, 2:-2, 2:-2]) == pytest.approx((2 * 1.645 * np.pi**0.5) ** -1.5, rel=0.1)
    labels = resample(noise, (14, 14, 14), np.diag([4.0, 4.0, 4.0, 1.0]), order=0, fill=0.0)
    np.testing.assert_array_equal(labels, noise.data[:53:4, :53:4, :53:4])


def test_points_round_trip_and_missing_ones_are_left_out(tmp_path):
    path = tmp_path / "p.csv"
    write_points(path, {"a": np.array([1.5, -2.25, 3.0]), "gone": np.full(3, np.nan)})
    assert list(read_points(path)) == ["a"]
    np.testing.assert_allclose(read_points(path)["a"], (1.5, -2.25, 3.0))
    path.write_text("\ufeffX, name ,y,z,note\r\n1,a,2,3,ok\r\n\r\n,b,,\r\n", encoding="utf-8")
    points = read_points(path)
    assert list(points) == ["a"] and points["a"].tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name,x,y\na,1,2\n", "column z is missing"),
        ("", "column name, x, y, z is missing"),
        ("name,x,y,z\na,1,2,3\na,1,2,3\n", "line 3: landmark 'a' is there twice"),
        ("name,x,y,z\na,1,two,3\n", "three finite numbers"),
        ("name,x,y,z\na,1,2\n", "three finite numbers"),
        ("name,x,y,z\na,1,nan,3\n", "three finite numbers"),
        ("name,x,y,z\na,inf,2,3\n", "three finite numbers"),
        ("name,x,y,z\n,1,2,3\n", "without a name"),
        ("name,x,y,z\na,1,5,2,5,3\n", "decimal comma"),
        ("name,x,x,y,z\na,1,1,2,3\n", "a column is there twice"),
    ],
)
def test_bad_landmark_files_are_refused_by_name(tmp_path, text, words):
    path = tmp_path / "p.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=re.escape(words)) as caught:
        read_points(path)
    assert str(path) in str(caught.value)


def test_landmark_files_that_are_no_text(tmp_path):
    with pytest.raises(InputError, match="no such table"):
        read_points(tmp_path / "none.csv")
    (tmp_path / "b.csv").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(InputError, match="not a readable CSV"):
        read_points(tmp_path / "b.csv")


def save(path, data, affine=None, edit=lambda header: None):
    image = nib.Nifti1Image(data, np.eye(4) if affine is None else affine)
    edit(image.header)
    nib.save(image, path)
    return path


def refused(path, words):
    with pytest.raises(InputError, match=words) as caught:
        read_volume(path)
    assert str(path) in str(caught.value)


def test_images_that_are_missing_or_no_images(tmp_path):
    refused(tmp_path / "none.nii.gz", "no such image")
    refused(tmp_path, "not a file")
    for name in ("a.nii", "a.nii.gz"):
        (tmp_path / name).write_bytes(b"")
        refused(tmp_path / name, "not a readable NIfTI")
        (tmp_path / name).write_bytes(b"junk" * 200)
        refused(tmp_path / name, "not a readable NIfTI")


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_truncated_images_are_refused_wherever_they_end(tmp_path, name):
    data = np.random.default_rng(0).integers(-1000, 1000, (20, 20, 20)).astype(np.int16)
    whole = save(tmp_path / name, data).read_bytes()
    for size in (len(whole) - 9, len(whole) // 2, 500):
        (tmp_path / name).write_bytes(whole[:size])
        refused(tmp_path / name, "truncated|damaged")


def test_damaged_compression_is_refused(tmp_path):
    data = np.random.default_rng(0).integers(-1000, 1000, (20, 20, 20)).astype(np.int16)
    path = save(tmp_path / "a.nii.gz", data)
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 0xFF
    path.write_bytes(bytes(whole))
    refused(path, "truncated or damaged|not a readable")


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_a_header_that_claims_terabytes_is_refused_before_allocating(tmp_path, name):
    header = nib.Nifti1Header()
    header.set_data_dtype(np.int16)
    header["dim"][:4] = (3, 30000, 30000, 30000)
    header["pixdim"][1:4] = 1
    header["vox_offset"], header["magic"] = 352, b"n+1"
    header["sform_code"] = 1
    header.set_sform(np.eye(4), 1)
    raw = header.binaryblock + b"\0" * 4
    (tmp_path / name).write_bytes(gzip.compress(raw) if name.endswith("gz") else raw)
    refused(tmp_path / name, "more than the .* bytes of the file can hold")


def test_images_of_another_kind_are_refused(tmp_path):
    refused(save(tmp_path / "b.nii", np.zeros((4, 4, 4, 2), np.float32)), "a 3-D image is needed")
    refused(save(tmp_path / "c.nii", np.zeros((4, 4), np.float32)), "a 3-D image is needed")
    refused(save(tmp_path / "d.nii", np.zeros((4, 4, 1), np.float32)), "at least 2 voxels")
    refused(save(tmp_path / "e.nii", np.zeros((4, 4, 4), np.complex64)), "one real number")


def test_voxels_that_are_no_numbers_are_counted(tmp_path):
    data = np.zeros((4, 4, 4), np.float32)
    data[0, 0, :2] = np.nan, np.inf
    refused(save(tmp_path / "a.nii", data), "2 voxels are NaN or infinite")


@pytest.mark.parametrize(
    ("affine", "words"),
    [
        (np.diag([1.0, 0.0, 1.0, 1.0]), "spacing"),
        (np.diag([1.0, 1e9, 1.0, 1.0]), "spacing"),
        ([[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]], "singular"),
        ([[1, 0, 0, np.nan], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]], "not finite"),
    ],
)
def test_affines_that_place_nothing_are_refused(tmp_path, affine, words):
    def edit(header):
        for row, name in enumerate(("srow_x", "srow_y", "srow_z")):
            header[name] = np.asarray(affine)[row]
        header["sform_code"] = 1

    path = tmp_path / "a.nii"
    save(path, np.zeros((4, 4, 4), np.float32))
    raw = bytearray(path.read_bytes())
    header = nib.Nifti1Header(bytes(raw[:348]), check=False)
    edit(header)
    raw[:348] = header.binaryblock
    path.write_bytes(bytes(raw))
    refused(path, words)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("size", [0.0, -2.0, np.nan])
@pytest.mark.parametrize("qform_code", [0, 1])
def test_voxel_sizes_of_zero_and_below_are_refused(tmp_path, suffix, size, qform_code):
    """nibabel would read 0 as 1 mm, and -2 as 2."""
    image = nib.Nifti1Image(np.zeros((4, 4, 4), np.int16), affine_of())
    image.set_sform(None, code=0)
    image.set_qform(affine_of(), code=qform_code)
    path = tmp_path / f"a{suffix}"
    nib.save(image, path)
    assert np.allclose(spacing(read_volume(path).affine), (2, 3, 4))
    content = bytearray(gzip.decompress(path.read_bytes()) if suffix == ".nii.gz" else path.read_bytes())
    content[84:88] = np.float32(size).tobytes()  # pixdim[2]
    path.write_bytes(gzip.compress(bytes(content)) if suffix == ".nii.gz" else bytes(content))
    refused(path, "voxel spacing 2 x .* in the header; it must be above 0")


def test_sheared_axes_are_read_as_they_are_and_told(tmp_path, caplog):
    affine = affine_of((2.0, 2.0, 2.0))
    affine[0, 2] = 2 * np.sin(np.radians(5))
    affine[2, 2] = 2 * np.cos(np.radians(5))
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), np.int16), affine), tmp_path / "a.nii")
    np.testing.assert_allclose(read_volume(tmp_path / "a.nii").affine, affine, atol=1e-6)
    assert "a.nii: sheared: two of its axes are at 85.0 degrees" in caplog.text
    caplog.clear()
    turn = rotated() @ affine_of((0.7, 0.7, 5.0))
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), np.int16), turn), tmp_path / "b.nii")
    read_volume(tmp_path / "b.nii")
    assert not caplog.text


def test_other_formats_and_names_are_refused(tmp_path):
    with pytest.raises(InputError, match="written as"):
        write_volume(tmp_path / "a.mha", Volume(np.zeros((2, 2, 2)), np.eye(4)))
    nib.save(nib.MGHImage(np.zeros((4, 4, 4), np.float32), np.eye(4)), tmp_path / "a.mgz")
    refused(tmp_path / "a.mgz", "convert it")


@pytest.mark.parametrize("name", ["lidc_0314", "pyradiomics_lung2", "cip_ct64"])
def test_real_scans_stored_as_lps_arrive_as_ras(name):
    volume = read_volume(shared(f"chest_ct/{name}.nii.gz"))
    assert nib.aff2axcodes(volume.affine) == ("R", "A", "S")
    assert np.all(volume.affine[:3, :3].diagonal() > 0) and volume.data.dtype == np.int16


def test_numbers_are_rounded_to_bits_of_mantissa() -> None:
    random = np.random.default_rng(0)
    numbers = (random.normal(size=3000) * 10.0 ** random.integers(-6, 6, 3000)).astype(np.float32)
    out = nifti_stream.rounded(numbers, 12)
    assert np.max(np.abs(out / numbers - 1)) <= 2.0**-13
    assert not np.any(out.view(np.uint32) & (2**11 - 1))  # 23 - 12 bits are zero
    exact = np.float32([0, 1, -1, -0.5, 3, 1 - 2.0**-24])
    np.testing.assert_array_equal(nifti_stream.rounded(exact, 12), [0, 1, -1, -0.5, 3, 1])


@pytest.mark.parametrize("packer", ["zlib", "isal"])
def test_both_packers_write_what_gzip_and_nibabel_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packer: str
) -> None:
    if packer == "zlib":
        monkeypatch.setitem(sys.modules, "isal", None)
    else:
        pytest.importorskip("isal")
    assert packer in nifti_stream.deflater()[0].__name__
    data = np.random.default_rng(0).integers(-1024, 1000, (400, 300, 50), np.int16)  # three slabs
    assert len(list(nifti_stream.in_parts(data))) > 2
    write_volume(tmp_path / "a.nii.gz", Volume(data, np.eye(4)))
    with gzip.open(tmp_path / "a.nii.gz") as file:  # checks sum and length
        content = file.read()
    assert content[nifti_stream.HEADER_BYTES :] == data.tobytes(order="F")
    np.testing.assert_array_equal(np.asarray(nib.load(tmp_path / "a.nii.gz").dataobj), data)
