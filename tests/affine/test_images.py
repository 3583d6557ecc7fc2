"""The affine step by intensities: known answers, two people's worth of difference, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from lmreg_jax.affine import images
from lmreg_jax.affine.moments import translation
from lmreg_jax.imaging.resampling import resample
from lmreg_jax.imaging.volume import Volume, apply_affine
from tests.affine.test_elastix import blobs_and_known_affine


@pytest.mark.parametrize("masked", [False, True])
def test_a_known_affine_is_found_in_the_right_direction(masked: bool) -> None:
    fixed, moving, truth, points = blobs_and_known_affine()
    mask = Volume((fixed.data > 0.02).astype(np.uint8), fixed.affine) if masked else None
    found = images.align(fixed, moving, mask, None, translation((0, 0, 0), (8.0, -8.0, 8.0)))
    error = np.linalg.norm(apply_affine(found, points) - apply_affine(truth, points), axis=1)
    assert error.max() < 0.3  # the images are blurred to 6 mm and were read linearly twice


def test_the_start_hardly_matters() -> None:
    fixed, moving, _, points = blobs_and_known_affine()
    ends = []
    for shift in ((8.0, -8.0, 8.0), (14.0, -2.0, 10.0), (5.0, -10.0, 16.0)):
        start = translation((0, 0, 0), shift)
        ends.append(apply_affine(images.align(fixed, moving, None, None, start), points))
    assert max(np.abs(end - ends[0]).max() for end in ends) < 0.2


def test_what_worsens_the_lungs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    fixed, moving, _, _ = blobs_and_known_affine()
    mask = Volume((fixed.data > 0.5).astype(np.uint8), fixed.affine)
    for bad, reason in (
        (translation((0, 0, 0), (60, 0, 0)), "Dice fell"),
        (np.diag([3.0, 1.0, 1.0, 1.0]), "stretches"),
        (np.full((4, 4), np.nan), "not all"),
    ):
        monkeypatch.setattr(images, "descended", lambda _, bad=bad: bad)
        with pytest.raises(RuntimeError, match=reason):
            images.align(fixed, moving, mask, mask, np.eye(4))


def test_the_slope_is_that_of_the_objective() -> None:
    """By central differences, for each of the twelve numbers."""
    rng = np.random.default_rng(1)
    f, m = (ndimage.gaussian_filter(rng.standard_normal((20, 18, 16)), 2).astype(np.float32) for _ in "fm")
    weight = np.zeros(f.shape, np.float32)
    weight[4:-4, 4:-4, 4:-4] = 1
    change = 0.3 * rng.standard_normal((3, 4)).astype(np.float32)

    def mean(change: np.ndarray) -> float:
        values, weights, _ = images._slabs(f, m, weight, change.astype(np.float32), 10.0)
        return float(np.asarray(values, np.float64).sum() / np.asarray(weights, np.float64).sum())

    _, weights, slopes = images._slabs(f, m, weight, change, 10.0)
    slope = np.asarray(slopes, np.float64).sum(axis=0) / np.asarray(weights, np.float64).sum()
    step = 0.01
    for i in np.ndindex(3, 4):
        by = np.zeros((3, 4))
        by[i] = step
        expected = (mean(change + by) - mean(change - by)) / (2 * step)
        assert slope[i] == pytest.approx(expected, rel=0.05, abs=0.02 * np.abs(slope).max())


def test_the_grid_has_few_sizes_and_keeps_its_voxels() -> None:
    fixed = Volume(np.zeros((50, 60, 70), np.float32), np.diag([2.1, 2.0, 3.0, 1.0]))
    mask = Volume(np.zeros((50, 60, 70), np.uint8), fixed.affine)
    mask.data[10:40, 20:50, 30:60] = 1
    pair = images.paired(fixed, fixed, mask, mask, np.eye(4))
    assert all(n % images.SIZES == 0 for n in pair.fixed.shape)
    assert pair.affine[0, 0] == images.GRID_MM and pair.mask is not None
    # Where to compare: the mask and MARGIN_MM around it, in the frame.
    seen = resample(mask, pair.fixed.shape, pair.affine, order=0, fill=0) > 0
    away = ndimage.distance_transform_edt(~seen) * images.GRID_MM
    assert pair.mask[seen].all() and away[pair.mask].max() <= images.MARGIN_MM
