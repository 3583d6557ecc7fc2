"""Scans seen on a coarse grid: the same whatever axes they are stored on."""

from __future__ import annotations

import numpy as np

from lmreg_jax.imaging.resampling import FWHM, downsample, inside
from lmreg_jax.imaging.volume import Volume
from tests.spaces import rotation

SHAPE, EDGES = (7, 6, 8), (8.0, 6.0, 7.0)
WIDTH = np.array([7.0, 9.0, 8.0])  # sd of a blob in mm


def blob(degrees: tuple[float, float, float], edge: float) -> Volume:
    """exp(-sum((x / WIDTH)^2) / 2) on a turned grid around the origin."""
    size = np.rint(np.array([84, 80, 88]) / edge).astype(int)
    affine = rotation(degrees) @ np.diag([edge, edge, edge, 1.0])
    affine[:3, 3] = -affine[:3, :3] @ ((size - 1) / 2) + 0.3
    mm = np.moveaxis(np.indices(size), 0, -1) @ affine[:3, :3].T + affine[:3, 3]
    return Volume(np.exp(-np.sum((mm / WIDTH) ** 2, axis=-1) / 2).astype(np.float32), affine)


def coarse() -> np.ndarray:
    affine = np.diag([*EDGES, 1.0])
    affine[:3, 3] = -np.array(EDGES) * (np.array(SHAPE) - 1) / 2 + 1.0
    return affine


def test_turned_axes_give_the_same_as_the_closed_form() -> None:
    affine = coarse()
    mm = np.moveaxis(np.indices(SHAPE), 0, -1) * EDGES + affine[:3, 3]
    # A Gaussian smoothed by a Gaussian: variances add. Reading between voxels blurs by about what the
    # filter takes off for the scan's own voxel, 2 mm.
    total = WIDTH**2 + np.array(EDGES) ** 2 / FWHM**2
    truth = np.prod(WIDTH / np.sqrt(total)) * np.exp(-np.sum(mm**2 / total, axis=-1) / 2)
    plain = downsample(blob((0, 0, 0), 2.0), SHAPE, affine, fill=0.0)
    turned = downsample(blob((25, -35, 40), 2.0), SHAPE, affine, fill=0.0)
    np.testing.assert_allclose(plain, truth, atol=0.006)
    np.testing.assert_allclose(turned, plain, atol=0.003)


def test_a_scan_that_ends_is_not_darkened_at_its_edge() -> None:
    ones = Volume(np.ones((20, 30, 30), np.float32), np.diag([2.0, 2.0, 2.0, 1.0]))
    affine = np.diag([6.0, 6.0, 6.0, 1.0])
    out = downsample(ones, (12, 8, 8), affine, fill=0.0)
    known = inside(ones, (12, 8, 8), affine)
    assert known[:7].all() and not known[7:].any()
    np.testing.assert_allclose(out, known, atol=1e-6)


def test_a_grid_as_fine_as_the_scan_is_read_as_it_is() -> None:
    scan = blob((0, 0, 0), 2.0)
    out = downsample(scan, scan.data.shape, scan.affine, fill=0.0)
    np.testing.assert_allclose(out, scan.data, atol=1e-6)
