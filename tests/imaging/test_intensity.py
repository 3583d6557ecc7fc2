"""Windows, grids, lung masks and affine alignment, against closed forms and real scans."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial import KDTree

from lmreg_jax.affine import moments
from lmreg_jax.anatomy._morphology import dilated, eroded
from lmreg_jax.anatomy.lungs import cut_off, lung_report
from lmreg_jax.anatomy.segmentation import segment_lungs
from lmreg_jax.errors import InputError
from lmreg_jax.imaging.intensity import looks_like_ct, window, window_percentile
from lmreg_jax.imaging.volume import Volume, apply_affine, lung_centred_grid
from lmreg_jax.io.nifti import read_volume
from tests.shared_data import shared
from tests.spaces import ct, grid
from tests.tiny_cohort import GRID, SHAPE, random_pull, subject


def dice(a, b):
    return 2 * np.sum(a & b) / (a.sum() + b.sum())


def test_window_is_linear_and_clipped():
    got = window(np.array([-3024, -1000, -300, 400, 3000], np.int16), (-1000, 400))
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, [0, 0, 0.5, 1, 1], rtol=1e-6)


def test_percentile_window_does_not_depend_on_the_unit():
    data = np.random.default_rng(0).gamma(2.0, size=(20, 20, 20))
    got = window_percentile(data, (1, 99))
    np.testing.assert_allclose(got, window_percentile(37 * data + 5, (1, 99)), atol=1e-5)
    assert np.mean(got == 0) == pytest.approx(0.01, abs=2e-3)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: window(np.zeros(3), (1, 1)), "low < high"),
        (lambda: window(np.zeros(3), (0, np.nan)), "finite"),
        (lambda: window_percentile(np.arange(9), (50, 101)), "percentiles"),
        (lambda: window_percentile(np.ones(9), (1, 99)), "constant"),
        (lambda: lung_centred_grid(Volume(np.zeros((3, 3, 3)), np.eye(4)), (8,) * 3, 1), "empty"),
    ],
)
def test_windows_and_masks_that_cannot_be_used(call, words):
    with pytest.raises(InputError, match=words):
        call()


def test_the_grid_is_centred_on_the_masks_box():
    mask = np.zeros((20, 20, 20), np.uint8)
    mask[2:7, 4, 9:12] = 1  # centres: 4, 4, 10
    affine = np.diag([2.0, 3.0, 4.0, 1.0])
    affine[:3, 3] = (100.0, 0.0, -50.0)
    grid = lung_centred_grid(Volume(mask, affine), (11, 8, 6), np.array([1.5, 2.0, 2.5]))
    middle = apply_affine(grid, (np.array([11, 8, 6]) - 1) / 2)
    np.testing.assert_allclose(middle, (108.0, 12.0, -10.0))
    np.testing.assert_allclose(grid[:3, :3], np.diag([1.5, 2.0, 2.5]))


def test_transport_is_the_scale_and_shift_between_two_boxes():
    a, b = np.zeros((2, 40, 40, 40), np.uint8)
    a[5:15, 5:25, 5:35] = 1
    b[10:30, 10:30, 10:25] = 1  # sides 10, 20, 30 -> 20, 20, 15
    pull = moments.align_moments(Volume(a, np.eye(4)), Volume(b, np.eye(4)))
    # variance of a side of n unit voxels: n^2 / 12 exactly
    np.testing.assert_allclose(pull[:3, :3], np.diag([2.0, 1.0, 0.5]), atol=1e-9)
    np.testing.assert_allclose(apply_affine(pull, (9.5, 14.5, 19.5)), (19.5, 19.5, 17.0))


def test_transport_matches_both_moments_and_never_mirrors():
    rng = np.random.default_rng(3)
    masks = [Volume(subject(random_pull(i, 3.0))[1].data, GRID @ random_pull(9)) for i in (1, 2)]
    fixed, moving = (moments.mask_moments(mask) for mask in masks)
    pull = moments.align_moments(*masks)
    linear = pull[:3, :3]
    np.testing.assert_allclose(linear @ fixed.covariance @ linear.T, moving.covariance, rtol=1e-6)
    np.testing.assert_allclose(apply_affine(pull, fixed.mean), moving.mean)
    np.testing.assert_allclose(linear, linear.T, atol=1e-12)
    assert np.linalg.eigvalsh(linear).min() > 0
    points = rng.standard_normal((4, 3))
    back = moments.align_moments(masks[1], masks[0])
    np.testing.assert_allclose(apply_affine(back, apply_affine(pull, points)), points, atol=1e-8)


def test_one_small_lung_does_not_pull_the_body_over():
    _, lungs, _ = subject(np.eye(4))
    small = lungs.data.copy()
    small[:, :, : SHAPE[2] // 2][small[:, :, : SHAPE[2] // 2] == 2] = 0
    fixed, moving = Volume(lungs.data, GRID), Volume(small, GRID)
    means = [moments.mask_moments(v).mean for v in (fixed, moving)]
    assert abs(means[0][0] - means[1][0]) < 2.0
    union = [moments.mask_moments(Volume((v.data > 0) * 1, GRID)).mean for v in (fixed, moving)]
    assert abs(union[0][0] - union[1][0]) > 10.0  # what counting voxels would do


def test_shape_distance_is_that_of_two_gaussians():
    a = moments.Moments(np.zeros(3), np.diag([4.0, 9.0, 16.0]))
    b = moments.Moments(np.ones(3), np.diag([9.0, 9.0, 1.0]))
    assert moments.shape_distance(a, b) == pytest.approx(np.sqrt(1 + 0 + 9))
    assert moments.shape_distance(a, a) == pytest.approx(0, abs=1e-6)


def test_moments_refuse_a_mask_of_three_voxels():
    mask = np.zeros((4, 4, 4))
    mask[0, 0, :3] = 1
    with pytest.raises(InputError, match="3 voxels"):
        moments.align_moments(Volume(mask, np.eye(4)), Volume(mask, np.eye(4)))


def test_model_lungs_are_segmented_with_their_sides():
    ct, lungs, _ = subject(np.eye(4))
    assert looks_like_ct(ct)
    got = segment_lungs(ct)
    for label in (1, 2):
        assert dice(got.data == label, lungs.data == label) > 0.95  # 8 mm voxels
    assert apply_affine(GRID, np.argwhere(got.data == 2)).mean(0)[0] > 0  # right: larger x in RAS


def test_joined_lungs_are_parted_and_gas_and_air_are_left_out():
    ct, lungs, _ = subject(np.eye(4), (80, 60, 72), GRID @ np.diag([0.5, 0.5, 0.5, 1.0]))
    data = ct.data.copy()
    data[36:44, 36:40, 36:44] = -850  # a bridge in front of the heart
    data[36:44, 26:34, 2:6] = -1000  # gas in the stomach
    got = segment_lungs(Volume(data, ct.affine))
    for label in (1, 2):
        assert dice(got.data == label, lungs.data == label) > 0.95
    assert not got.data[38:42, 28:32, 3:5].any()


@pytest.mark.parametrize(
    ("edges", "radius"),
    [((2.0, 2.0, 2.0), 3.0), ((1.5, 1.5, 5.0), 3.0), ((2.0, 2.5, 2.0), 8.0), ((4.0,) * 3, 3.0)],
)
def test_growing_and_shrinking_are_by_distance(edges, radius):
    """By a ball at each voxel or by a map of distances; a face of the scan is no background."""
    mask = np.random.default_rng(0).random((20, 18, 16)) < 0.02
    mask[0], mask[-1, 9, 8] = True, False
    at = np.indices(mask.shape).reshape(3, -1).T * edges
    nearest, _ = KDTree(at[mask.ravel()]).query(at)
    reached = (nearest <= radius).reshape(mask.shape)
    np.testing.assert_array_equal(dilated(mask, np.array(edges), radius), reached)
    np.testing.assert_array_equal(eroded(~mask, np.array(edges), radius), ~reached)


def test_no_lungs_in_water_or_air():
    water = Volume(np.full((20, 20, 20), 0, np.int16), np.diag([8.0, 8.0, 8.0, 1.0]))
    air = Volume(np.full((20, 20, 20), -1000, np.int16), np.diag([8.0, 8.0, 8.0, 1.0]))
    assert not looks_like_ct(water) and not looks_like_ct(air)
    with pytest.raises(InputError, match="no lungs found"):
        segment_lungs(water)
    with pytest.raises(InputError, match="no body found"):
        segment_lungs(air)


def test_doubts_are_told():
    _, lungs, _ = subject(np.eye(4))
    whole = lung_report(lungs)
    litres = [np.sum(lungs.data == label) * 512e-6 for label in (1, 2)]
    assert whole.left_litres == pytest.approx(litres[0])
    assert whole.right_litres == pytest.approx(litres[1]) and whole.warnings == ()
    cut = Volume(lungs.data[:, :, 15:], lungs.affine)
    assert set(cut_off(cut)) == {"base"} and any("base" in w for w in lung_report(cut).warnings)
    one = lung_report(Volume(lungs.data * (lungs.data == 2), lungs.affine))
    assert any("no left lung" in warning for warning in one.warnings)


def test_real_lungs_agree_with_the_published_mask():
    ct = read_volume(shared("chest_ct/cip_ct64.nii.gz"))
    mask = read_volume(shared("chest_ct/cip_ct64_lung_mask.nii.gz")).data > 0
    got = segment_lungs(ct)
    # That mask is a threshold without vessels: filled vessels alone cost 0.02 (measured: 0.979).
    assert dice(got.data > 0, mask) > 0.96
    assert (got.data[mask] > 0).mean() > 0.98
    report = lung_report(got)
    assert report.warnings == ()
    assert report.left_litres < report.right_litres


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "left", "right", "doubt"),
    [
        ("pyradiomics_lung2", 1.58, 2.35, None),
        ("pyradiomics_lung1_base_cut_off", 1.10, 1.77, "base is cut off"),
        ("lidc_0314", 1.92, 0.94, "0.49 times the left"),  # its right hemidiaphragm is raised
    ],
)
def test_real_lungs_of_other_scanners(name, left, right, doubt):
    """Volumes as they were when the outlines were looked at, in three planes, and found right."""
    report = lung_report(segment_lungs(read_volume(shared(f"chest_ct/{name}.nii.gz"))))
    assert report.left_litres == pytest.approx(left, rel=0.03)
    assert report.right_litres == pytest.approx(right, rel=0.03)
    assert (doubt is None) == (report.warnings == ())
    assert doubt is None or doubt in report.warnings[0]


@pytest.mark.slow
def test_a_narrow_field_of_view_that_cuts_the_lungs_keeps_them():
    scan = read_volume(shared("chest_ct/pyradiomics_lung2.nii.gz"))
    whole = segment_lungs(scan).data
    cut = segment_lungs(Volume(scan.data[27:218], scan.affine))  # 12 mm into either lung
    assert dice(cut.data > 0, whole[27:218] > 0) > 0.97
    for label in (1, 2):  # the trachea is lost there, so that the sides part less exactly
        assert dice(cut.data == label, whole[27:218] == label) > 0.92
    assert any("sides" in warning for warning in lung_report(cut).warnings)


@pytest.mark.parametrize("edge", [1.0, 1.5, 2.0])
def test_segmented_lungs_hold_the_same_litres_at_any_voxel_size(edge: float) -> None:
    """Two ellipsoids of 36 x 55 x 85 mm half axes, in scans that are segmented on 2 mm."""
    sizes = [int(n / edge) for n in (240, 200, 320)]
    lungs = segment_lungs(ct((sizes[0], sizes[1], sizes[2]), grid(sizes, (edge,) * 3)))
    litres = 4 / 3 * np.pi * 36 * 55 * 85 / 1e6
    for label in (1, 2):
        found = np.count_nonzero(lungs.data == label) * edge**3 / 1e6
        assert found == pytest.approx(litres, rel=0.005)
