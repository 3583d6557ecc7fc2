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

from lmreg_jax.imaging.inverse import inverse_points, invert
from lmreg_jax.imaging.transforms import (
    Transform,
    dense_displacement,
    jacobian,
    transform_points,
    warp_image,
    warp_labels,
)
from lmreg_jax.imaging.volume import Volume, apply_affine
from lmreg_jax.io.read import read_scan
from lmreg_jax.io.transforms import read_transform, write_displacement, write_itk
from tests import spaces
from tests.spaces import LPS_SIGNS

AIR = -1000.0
pytestmark = pytest.mark.usefixtures("several_slabs")


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


def test_dense_field_is_the_motion_of_each_voxel(tmp_path: Path) -> None:
    """In LPS mm, rounded to 1/1024 mm; its gzip stream of many parts is one that others read."""
    t, shape = spaces.backward(spaces.transform()), (18, 40, 31)
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


def test_a_linear_field_is_an_affine_map_inside() -> None:
    """Closed form: d(x) = L x gives T(x) = A (I + L) x, det A det(I + L), on an oblique grid."""
    shape = (9, 8, 10)
    grid_affine = spaces.rotation((20, 10, -30)) @ spaces.grid(shape, (10.0, 12, 14))
    slope = np.array([[0.1, -0.2, 0.05], [0.15, -0.1, 0.1], [0.0, 0.2, 0.2]])
    nodes = apply_affine(grid_affine, np.indices(shape).reshape(3, -1).T)
    field = (nodes @ slope.T).reshape(*shape, 3).astype(np.float32)
    post = spaces.transform().post
    t = Transform(np.eye(4), field, grid_affine, post)
    points = spaces.some_points(200, 25.0)
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


@pytest.mark.parametrize("form", [lambda t: t, spaces.backward])
def test_inverse_undoes_the_transform(form: Any) -> None:
    t = form(spaces.transform())
    points = spaces.some_points()
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
    points = spaces.some_points(reach=80.0)
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
