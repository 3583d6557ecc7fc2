"""Transforms in mm, held against SimpleITK, elastix and ANTs, which share no code with this package."""

from __future__ import annotations

import gzip
import logging
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from lmreg_jax import elastix, slabs
from lmreg_jax.errors import InputError
from lmreg_jax.scans import LPS, read_scan
from lmreg_jax.transform_files import read_transform, write_displacement, write_itk
from lmreg_jax.transform_inverse import inverse_points, invert
from lmreg_jax.transforms import (
    Transform,
    affine_transform,
    covers,
    dense_displacement,
    jacobian,
    transform_points,
    warp_image,
    warp_labels,
)
from lmreg_jax.volumes import Volume, apply_affine
from tests import spaces
from tests.spaces import LPS_SIGNS

AIR = -1000.0


@pytest.fixture(autouse=True)
def several_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small grids, too, are worked through in several slabs, the last of them thinner."""
    monkeypatch.setattr(slabs, "SLAB_VOXELS", 40 * 34 * 7)


def itk_points(transform: Any, points: spaces.Array) -> spaces.Array:
    moved = [transform.TransformPoint(p) for p in (points * LPS_SIGNS).tolist()]
    return np.array(moved) * LPS_SIGNS


def some_points(count: int = 300, reach: float = 190.0) -> spaces.Array:
    return np.random.default_rng(5).uniform(-reach, reach, (count, 3))


def backward(t: Transform) -> Transform:
    """A Transform of the inverse's form: field after affine (not the inverse itself)."""
    return Transform(np.linalg.inv(t.post), -t.displacement, t.grid, np.eye(4))


@pytest.mark.parametrize("form", [lambda t: t, backward, lambda t: affine_transform(t.post)])
@pytest.mark.parametrize("suffix", [".h5", ".tfm"])
def test_itk_moves_points_as_we_do(form: Any, suffix: str, tmp_path: Path) -> None:
    sitk = pytest.importorskip("SimpleITK")
    t = form(spaces.transform())
    write_itk(tmp_path / f"t{suffix}", t)
    points = some_points()  # inside the field's grid and far outside
    ours = transform_points(t, points)
    theirs = itk_points(sitk.ReadTransform(str(tmp_path / f"t{suffix}")), points)
    # .tfm holds float32's decimals; both are far below the 0.05 mm that is wanted.
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    np.testing.assert_allclose(
        transform_points(read_transform(tmp_path / f"t{suffix}"), points), ours, atol=1e-4
    )


@pytest.mark.parametrize("h5py", [True, False])
def test_a_composite_is_a_quarter_of_the_size(
    h5py: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without h5py ITK writes its eight bytes a number, and the same transform."""
    sitk = pytest.importorskip("SimpleITK")
    if not h5py:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    t = spaces.transform()
    write_itk(tmp_path / "t.h5", t)
    size = (tmp_path / "t.h5").stat().st_size / t.displacement.size
    assert size < 3 if h5py else size > 8
    theirs = sitk.CompositeTransform(sitk.ReadTransform(str(tmp_path / "t.h5"))).GetNthTransform(1)
    field = sitk.GetArrayFromImage(sitk.DisplacementFieldTransform(theirs).GetDisplacementField())
    wanted = t.displacement.transpose(2, 1, 0, 3) * spaces.LPS_SIGNS
    np.testing.assert_allclose(field, wanted, atol=0.5 / 8192 + 1e-7)


def test_the_edge_of_a_field_is_where_itk_has_it(tmp_path: Path) -> None:
    """Half a voxel beyond the last centre the edge value ends, and nothing moves."""
    sitk = pytest.importorskip("SimpleITK")
    field = np.broadcast_to(np.float32([3, -2, 5]), (4, 4, 4, 3)).copy()
    t = Transform(np.eye(4), field, spaces.grid((4, 4, 4), (2.0, 3.0, 4.0)), np.eye(4))
    write_itk(tmp_path / "t.h5", t)
    offsets = np.array([-0.9, -0.51, -0.49, 0, 1.3, 3.0, 3.49, 3.51, 5])
    index = np.array([[o if a == axis else 1.5 for a in range(3)] for o in offsets for axis in range(3)])
    points = apply_affine(t.grid, index)
    theirs = itk_points(sitk.ReadTransform(str(tmp_path / "t.h5")), points)
    np.testing.assert_allclose(transform_points(t, points), theirs, atol=1e-6)
    moved = np.abs(theirs - points).max(axis=1) > 1
    np.testing.assert_array_equal(covers(t, points), moved)
    assert 0 < moved.sum() < len(moved)


@pytest.mark.parametrize("number", [0, 13, 22, 35, 47])
@pytest.mark.parametrize("oblique", [False, True])
def test_itk_warps_the_raw_image_as_we_do(number: int, oblique: bool, tmp_path: Path) -> None:
    """Fixed and moving stored in different orientations, anisotropic and oblique; both exports."""
    sitk = pytest.importorskip("SimpleITK")
    turn = spaces.rotation((10, -7, 15)) if oblique else np.eye(4)
    t = spaces.transform()
    moving = spaces.ct((44, 36, 28), turn @ spaces.grid((44, 36, 28), (5.5, 7.5, 9)))
    frame = Volume(np.zeros(spaces.SHAPE, np.int16), turn.T @ spaces.grid())
    spaces.save(tmp_path / "fixed.nii.gz", frame, spaces.ORIENTATIONS[number])
    spaces.save(tmp_path / "moving.nii.gz", moving, spaces.ORIENTATIONS[47 - number])
    fixed_scan, moving_scan = read_scan(tmp_path / "fixed.nii.gz"), read_scan(tmp_path / "moving.nii.gz")
    ours = warp_image(t, moving_scan.volume, fixed_scan.volume.data.shape, fixed_scan.volume.affine, fill=AIR)
    ours = fixed_scan.to_native(ours)
    write_itk(tmp_path / "t.h5", t)
    write_displacement(tmp_path / "d.nii.gz", t, fixed_scan.shape, fixed_scan.affine)
    field = sitk.ReadImage(str(tmp_path / "d.nii.gz"), sitk.sitkVectorFloat64)
    for itk_transform in (
        sitk.ReadTransform(str(tmp_path / "t.h5")),
        sitk.DisplacementFieldTransform(field),
    ):
        theirs = sitk.Resample(
            sitk.ReadImage(str(tmp_path / "moving.nii.gz"), sitk.sitkFloat32),
            sitk.ReadImage(str(tmp_path / "fixed.nii.gz")),
            itk_transform,
            sitk.sitkLinear,
            AIR,
        )
        difference = np.abs(sitk.GetArrayFromImage(theirs).T - ours)
        # The dense field is rounded to 1/1024 mm; times 300 HU a mm at the skin. The affines of NIfTI
        # are float32, which on the outermost faces decides what is outside, in a few voxels.
        assert np.mean(difference) < 0.05
        assert np.percentile(difference, 99.5) < 0.2
    assert np.std(ours) > 300


@pytest.mark.slow  # loading itk takes most of it
def test_transformix_takes_the_displacement_field(tmp_path: Path) -> None:
    if not elastix.installed():
        pytest.skip("needs itk-elastix")
    itk = pytest.importorskip("itk")
    t = spaces.transform()
    moving = spaces.ct()
    spaces.save(tmp_path / "moving.nii.gz", moving, spaces.ORIENTATIONS[30])
    shape, affine = (36, 30, 28), spaces.grid((36, 30, 28), (6.5, 7.5, 8.0))
    write_displacement(tmp_path / "d.nii.gz", t, shape, affine)
    parameters = itk.ParameterObject.New()
    lps = LPS @ affine
    parameters.AddParameterMap(
        {
            "Transform": ["DeformationFieldTransform"],
            "DeformationFieldFileName": [str(tmp_path / "d.nii.gz")],
            "DeformationFieldInterpolationOrder": ["1"],
            "NumberOfParameters": ["0"],
            "InitialTransformParameterFileName": ["NoInitialTransform"],
            "HowToCombineTransforms": ["Compose"],
            "FixedImageDimension": ["3"],
            "MovingImageDimension": ["3"],
            "FixedInternalImagePixelType": ["float"],
            "MovingInternalImagePixelType": ["float"],
            "Size": [str(n) for n in shape],
            "Index": ["0", "0", "0"],
            "Spacing": [str(s) for s in np.diag(affine)[:3]],
            "Origin": [str(x) for x in lps[:3, 3]],
            "Direction": [str(x) for x in np.diag(LPS_SIGNS).ravel()],
            "ResampleInterpolator": ["FinalLinearInterpolator"],
            "Resampler": ["DefaultResampler"],
            "DefaultPixelValue": [str(AIR)],
            "ResultImagePixelType": ["float"],
        }
    )
    image = itk.imread(str(tmp_path / "moving.nii.gz"), itk.F)
    theirs = itk.transformix_filter(image, transform_parameter_object=parameters, log_to_console=False)
    ours = warp_image(t, moving, shape, affine, fill=AIR)
    difference = np.abs(itk.array_from_image(theirs).T - ours)
    assert np.mean(difference) < 0.2  # rounded to 1/1024 mm in the file
    assert np.percentile(difference, 99.5) < 1


@pytest.mark.slow  # loading ants takes most of it
def test_ants_applies_both_exports(tmp_path: Path) -> None:
    ants = pytest.importorskip("ants")
    t = spaces.transform()
    moving = spaces.ct()
    shape, affine = (36, 30, 28), spaces.grid((36, 30, 28), (6.5, 7.5, 8.0))
    spaces.save(tmp_path / "moving.nii.gz", moving, spaces.ORIENTATIONS[9])
    spaces.save(tmp_path / "fixed.nii.gz", Volume(np.zeros(shape, np.int16), affine))
    write_displacement(tmp_path / "d.nii.gz", t, shape, affine)
    write_itk(tmp_path / "t.h5", t)
    ours = warp_image(t, moving, shape, affine, fill=AIR)
    images = [ants.image_read(str(tmp_path / name)) for name in ("fixed.nii.gz", "moving.nii.gz")]
    for name in ("t.h5", "d.nii.gz"):
        warped = ants.apply_transforms(
            *images, [str(tmp_path / name)], interpolator="linear", defaultvalue=AIR
        )
        difference = np.abs(warped.numpy() - ours)
        assert np.mean(difference) < 0.2
        assert np.percentile(difference, 99.5) < 1


def test_dense_field_is_the_motion_of_each_voxel(tmp_path: Path) -> None:
    """In LPS mm, rounded to 1/1024 mm; its gzip stream of many parts is one that others read."""
    t, shape = backward(spaces.transform()), (18, 40, 31)
    affine = spaces.rotation((5, 9, -20)) @ spaces.grid(shape, (7.0, 5, 6))
    x = apply_affine(affine, np.indices(shape).reshape(3, -1).T).reshape(*shape, 3)
    expected = transform_points(t, x) - x
    np.testing.assert_allclose(
        np.concatenate(list(dense_displacement(t, shape, affine)), axis=2), expected, atol=1e-4
    )
    for name in ("d.nii.gz", "d.nii"):
        write_displacement(tmp_path / name, t, shape, affine)
        image: Any = nib.load(tmp_path / name)
        assert image.shape == (*shape, 1, 3)
        assert image.header.get_intent()[0] == "vector"
        np.testing.assert_allclose(image.affine, affine, atol=1e-4)
        stored = np.asarray(image.dataobj)[..., 0, :] * LPS_SIGNS
        np.testing.assert_allclose(stored, expected, atol=0.51 / 1024 + 1e-4)
    with gzip.open(tmp_path / "d.nii.gz") as file:  # to the end: the check sum is looked at
        assert file.read() == (tmp_path / "d.nii").read_bytes()
    again = transform_points(read_transform(tmp_path / "d.nii.gz"), x.reshape(-1, 3))
    np.testing.assert_allclose(again, transform_points(t, x.reshape(-1, 3)), atol=2e-3)


def test_a_bit_changed_in_a_field_is_noticed(tmp_path: Path) -> None:
    """A field that was read wrong moves a patient's landmarks by anything up to 1e38 mm."""
    path = tmp_path / "d.nii.gz"
    write_displacement(path, spaces.transform(), (18, 40, 31), spaces.grid((18, 40, 31), (7.0, 5, 6)))
    whole, first = path.read_bytes(), read_transform(path).displacement
    random = np.random.default_rng(0)
    refused = 0
    for place in random.integers(0, len(whole), 60):
        content = bytearray(whole)
        content[place] ^= 1 << random.integers(8)
        path.write_bytes(bytes(content))
        try:  # What changes nothing: the time in gzip's header, the bits between two of its parts.
            np.testing.assert_array_equal(read_transform(path).displacement, first)
        except InputError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused > 50


def test_a_linear_field_is_an_affine_map_inside() -> None:
    """Closed form: d(x) = L x gives T(x) = A (I + L) x, det A det(I + L), on an oblique grid."""
    shape = (9, 8, 10)
    grid_affine = spaces.rotation((20, 10, -30)) @ spaces.grid(shape, (10.0, 12, 14))
    slope = np.array([[0.1, -0.2, 0.05], [0.15, -0.1, 0.1], [0.0, 0.2, 0.2]])
    nodes = apply_affine(grid_affine, np.indices(shape).reshape(3, -1).T)
    field = (nodes @ slope.T).reshape(*shape, 3).astype(np.float32)
    post = spaces.transform().post
    t = Transform(np.eye(4), field, grid_affine, post)
    points = some_points(200, 25.0)
    np.testing.assert_allclose(
        transform_points(t, points), apply_affine(post, points @ (np.eye(3) + slope).T), atol=1e-4
    )
    fine = spaces.grid((12, 11, 13), (3.0, 3.5, 2.5))
    expected = np.linalg.det(post[:3, :3]) * np.linalg.det(np.eye(3) + slope)
    np.testing.assert_allclose(jacobian(t, (12, 11, 13), fine), expected, rtol=1e-4)


def test_jacobian_is_itks_of_the_dense_field(tmp_path: Path) -> None:
    """On the grid of d itself, where both take the same central differences."""
    sitk = pytest.importorskip("SimpleITK")
    t = spaces.transform()
    shape = t.displacement.shape[:3]
    # Stored along L, P, S: ITK's filter forgets the direction of the axes that it differentiates along.
    turn = np.diag([-1.0, -1, 1, 1])
    turn[:2, 3] = shape[0] - 1, shape[1] - 1
    write_displacement(tmp_path / "d.nii.gz", t, shape, t.grid @ turn)
    field = sitk.ReadImage(str(tmp_path / "d.nii.gz"))
    theirs = sitk.GetArrayFromImage(sitk.DisplacementFieldJacobianDeterminant(field)).T[::-1, ::-1]
    ours = jacobian(t, shape, t.grid)
    inner = (slice(1, -1),) * 3  # ITK's border mode differs
    np.testing.assert_allclose(ours[inner], theirs[inner], atol=1e-3)
    assert ours.std() > 0.02
    far = jacobian(t, (3, 3, 3), spaces.grid((3, 3, 3), centre=900.0))
    np.testing.assert_allclose(far, np.linalg.det(t.post[:3, :3]), rtol=1e-6)


@pytest.mark.parametrize("form", [lambda t: t, backward])
def test_inverse_undoes_the_transform(form: Any) -> None:
    t = form(spaces.transform())
    points = some_points()
    there = transform_points(t, points)
    np.testing.assert_allclose(inverse_points(t, there), points, atol=0.01)
    # Between the voxels of the inverse's grid it is interpolated, and d has kinks: the error of that.
    inverse = invert(t, step_mm=4.0)
    error = np.linalg.norm(transform_points(inverse, there) - points, axis=1)
    assert error.max() < 0.3 and np.percentile(error, 95) < 0.1
    error = np.linalg.norm(transform_points(t, transform_points(inverse, points)) - points, axis=1)
    assert error.max() < 0.3 and np.percentile(error, 95) < 0.1


def test_inverse_of_a_dense_field_with_a_large_affine_part(tmp_path: Path) -> None:
    """Read from a file that knows nothing of the affine; inside the part of space that it covers."""
    t = spaces.transform()
    write_displacement(tmp_path / "d.nii.gz", t, spaces.SHAPE, spaces.grid())
    dense = read_transform(tmp_path / "d.nii.gz")
    points = some_points(reach=80.0)
    there = transform_points(dense, points)
    np.testing.assert_allclose(inverse_points(dense, there), points, atol=0.02)
    np.testing.assert_allclose(transform_points(invert(dense, step_mm=4.0), there), points, atol=0.3)


def test_folding_is_said(caplog: pytest.LogCaptureFixture) -> None:
    t = spaces.transform(peak_mm=90.0)
    assert jacobian(t, t.displacement.shape[:3], t.grid).min() < 0
    with caplog.at_level(logging.WARNING):
        invert(t, step_mm=8.0)
    assert "folds" in caplog.text


def test_labels_by_vote_are_the_largest_of_their_interpolated_masks() -> None:
    """Against the definition: each label's mask interpolated by itself, the largest wins."""
    rng = np.random.default_rng(2)
    smooth = ndimage.gaussian_filter(rng.normal(size=spaces.SHAPE), 3)
    labels = np.digitize(smooth, np.quantile(smooth, [0.3, 0.5, 0.8])).astype(np.uint8) * 7
    moving = Volume(labels, spaces.grid())
    t, shape, affine = spaces.transform(), (30, 28, 26), spaces.grid((30, 28, 26), (7.0, 7.5, 8))
    masks = [
        warp_image(t, Volume((labels == v).astype(np.float32), moving.affine), shape, affine, fill=0.0)
        for v in (0, 7, 14, 21)
    ]
    shares = np.sort(masks, axis=0)
    clear = (shares[-1] - shares[-2] > 1e-4) & (np.sum(masks, axis=0) > 0.5)
    expected = np.argmax(masks, axis=0) * 7
    ours = warp_labels(t, moving, shape, affine, vote=True)
    np.testing.assert_array_equal(ours[clear], expected[clear])
    assert ours.dtype == np.uint8 and set(np.unique(ours)) == {0, 7, 14, 21}
    nearest = warp_labels(t, moving, shape, affine)
    assert set(np.unique(nearest)) == {0, 7, 14, 21}
    assert 0.8 < np.mean(nearest == ours) < 1


def test_nearest_is_itks_nearest(tmp_path: Path) -> None:
    sitk = pytest.importorskip("SimpleITK")
    labels = np.random.default_rng(3).integers(0, 5, spaces.SHAPE).astype(np.uint8)
    moving = Volume(labels, spaces.grid())
    t = spaces.transform()
    write_itk(tmp_path / "t.h5", t)
    spaces.save(tmp_path / "m.nii.gz", moving)
    image = sitk.ReadImage(str(tmp_path / "m.nii.gz"))
    itk_transform = sitk.ReadTransform(str(tmp_path / "t.h5"))
    theirs = sitk.Resample(image, image, itk_transform, sitk.sitkNearestNeighbor, 0)
    ours = warp_labels(t, moving, spaces.SHAPE, spaces.grid())
    # Noise: a half-way position that rounds the other way shows; there are next to none.
    assert np.mean(ours != sitk.GetArrayFromImage(theirs).T) < 1e-3


def test_transforms_of_other_programs_are_read(tmp_path: Path) -> None:
    """Linear kinds and a composite of many parts, with centres of rotation; .tfm, .mat, .h5, .mha, .nrrd."""
    sitk = pytest.importorskip("SimpleITK")
    t = spaces.transform()
    euler = sitk.Euler3DTransform((10.0, 20, -5), 0.2, -0.1, 0.3, (4.0, 5, 6))
    shift = sitk.TranslationTransform(3, (7.0, -8, 9))
    scale = sitk.ScaleVersor3DTransform((1.1, 0.9, 1.2), (0.0, 0.1, 0.2), 0.3, (1.0, 2, 3))
    field = Transform(np.eye(4), t.displacement, t.grid, np.eye(4))
    write_itk(tmp_path / "field.h5", field)
    read = sitk.ReadTransform(str(tmp_path / "field.h5"))
    mixed = sitk.CompositeTransform([euler, shift, read, scale])
    mixed.FlattenTransform()
    points = some_points()
    for suffix, transform in {".tfm": euler, ".mat": euler, ".txt": shift, ".h5": mixed}.items():
        sitk.WriteTransform(transform, str(tmp_path / f"other{suffix}"))
        ours = transform_points(read_transform(tmp_path / f"other{suffix}"), points)
        np.testing.assert_allclose(ours, itk_points(transform, points), atol=1e-4)
    image = sitk.DisplacementFieldTransform(
        sitk.CompositeTransform(read).GetNthTransform(0).Downcast()
    ).GetDisplacementField()
    for suffix in (".mha", ".nrrd"):
        sitk.WriteImage(image, str(tmp_path / f"f{suffix}"))
        ours = transform_points(read_transform(tmp_path / f"f{suffix}"), points)
        np.testing.assert_allclose(ours, itk_points(read, points), atol=1e-4)


def broken(folder: Path, what: str) -> Path:
    """A file that is no usable transform."""
    sitk = pytest.importorskip("SimpleITK")
    path = folder / f"{what.replace(' ', '_')}.h5"
    if what == "missing":
        return folder / "missing.h5"
    if what == "garbage":
        path.write_bytes(b"no transform" * 50)
    elif what == "b-spline":
        image = sitk.Image((8, 8, 8), sitk.sitkFloat32)
        sitk.WriteTransform(sitk.BSplineTransformInitializer(image, (4, 4, 4)), str(path))
    elif what == "two dimensions":
        sitk.WriteTransform(sitk.AffineTransform(2), str(path))
    elif what == "two fields":
        write_itk(path, spaces.transform())
        parts = sitk.ReadTransform(str(path))
        both = sitk.CompositeTransform([parts, parts])
        both.FlattenTransform()
        sitk.WriteTransform(both, str(path))
    elif what == "singular":
        sitk.WriteTransform(sitk.ScaleTransform(3, (1.0, 0.0, 1.0)), str(path))
    elif what == "other kind":
        path = folder / "points.csv"
        path.write_text("name,x,y,z\n", encoding="utf-8")
    else:
        path = path.with_suffix(".nii.gz")
        data: Any = np.zeros((4, 5, 6, 1, 3), np.float32)
        if what == "an image":
            data = data[..., 0, 0]
        if what == "not finite":
            data[1, 1, 1] = np.nan
        if what == "colours":
            data = np.zeros((4, 5, 6, 1, 3), [(c, np.uint8) for c in "RGB"])
        image = nib.Nifti1Image(data, np.eye(4))
        image.header.set_intent("none" if what == "no intent" else "vector")
        nib.save(image, path)
        if what == "truncated":
            path.write_bytes(path.read_bytes()[:-40])
    return path


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("missing", "no such transform"),
        ("garbage", "not a readable ITK transform"),
        ("b-spline", "BSplineTransform; one displacement field"),
        ("two dimensions", "2-D"),
        ("two fields", "DisplacementFieldTransform, DisplacementFieldTransform"),
        ("singular", "singular"),
        ("other kind", "not a kind of transform"),
        ("an image", "no displacement field"),
        ("colours", "real numbers are needed"),
        ("not finite", "not finite"),
        ("no intent", "intent 0"),
        ("truncated", "not a readable displacement field"),
    ],
)
def test_what_is_no_transform_is_refused(what: str, said: str, tmp_path: Path) -> None:
    path = broken(tmp_path, what)
    with pytest.raises(InputError) as caught:
        read_transform(path)
    assert said in str(caught.value) and path.name in str(caught.value)


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    """The disk is full half-way through: neither a half file nor a temporary one stays behind."""
    t = spaces.transform()
    affine = np.array(spaces.grid())
    with pytest.raises(InputError, match=r"written as \.nii"):
        write_displacement(tmp_path / "d.mha", t, spaces.SHAPE, affine)
    with pytest.raises(InputError, match=r"written as \.h5"):
        write_itk(tmp_path / "t.xyz", t)
    bad = t._replace(displacement=t.displacement[..., :2])  # breaks once the header is written
    with pytest.raises(ValueError):
        write_displacement(tmp_path / "d.nii.gz", bad, spaces.SHAPE, affine)
    assert list(tmp_path.iterdir()) == []
