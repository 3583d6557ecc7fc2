"""The surface of a lung within its voxels: moments against closed forms, whatever the voxels."""

from __future__ import annotations

import numpy as np
import pytest

from lmreg_jax.affine.moments import mask_moments
from lmreg_jax.anatomy import segmentation
from lmreg_jax.anatomy.surface import surface_excess
from lmreg_jax.imaging.intensity import AIR_HU
from lmreg_jax.imaging.volume import Volume
from tests.spaces import rotation

AXES = np.array([24.0, 33.0, 41.0])  # mm
CENTRE = np.array([3.0, -4.0, 7.0])
GRIDS = {
    "even": ((2.0, 2.0, 2.0), (0.0, 0.0, 0.0)),
    "flat": ((1.2, 1.2, 3.0), (0.0, 0.0, 0.0)),
    "oblique": ((2.0, 2.0, 2.0), (8.0, -5.0, 12.0)),
    "thick and oblique": ((0.9, 0.9, 4.0), (-6.0, 9.0, 5.0)),
}


def lung(spacing: tuple[float, ...], degrees: tuple[float, ...], edge_mm: float) -> Volume:
    """HU of an ellipsoid of lung in tissue, its surface `edge_mm` wide, midway at AIR_HU on the ellipsoid."""
    affine = rotation((degrees[0], degrees[1], degrees[2])) @ np.diag([*spacing, 1.0])
    shape = np.ceil(2 * (AXES + 13) / spacing).astype(int)
    affine[:3, 3] = CENTRE + 0.37 - affine[:3, :3] @ ((shape - 1) / 2)
    index = np.moveaxis(np.indices(shape), 0, -1)
    mm = index @ affine[:3, :3].T + affine[:3, 3] - CENTRE
    # |x / a| - 1 over its slope: the distance to the surface in mm, to first order.
    radius = np.linalg.norm(mm / AXES, axis=-1)
    slope = np.linalg.norm(mm / AXES**2, axis=-1) / np.maximum(radius, 1e-3)
    distance = (radius - 1) / np.maximum(slope, 1e-6)
    return Volume((AIR_HU + 445 * np.clip(2 * distance / edge_mm, -1, 1)).astype(np.int16), affine)


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("edge_mm", [4.0, 8.0])
def test_moments_of_an_ellipsoid_do_not_see_the_grid(name: str, edge_mm: float) -> None:
    scan = lung(*GRIDS[name], edge_mm)
    mask = Volume((scan.data < AIR_HU).astype(np.uint8), scan.affine)
    moments = mask_moments(mask, scan)
    np.testing.assert_allclose(moments.mean, CENTRE, atol=0.02)  # 0.015 in slices of 4 mm
    # Mean square of a coordinate over an ellipsoid: a^2 / 5. In mm, at the ellipsoid's surface:
    stretch = np.sqrt(5 * np.diag(moments.covariance)) - AXES
    np.testing.assert_allclose(stretch, 0, atol=0.015 * max(GRIDS[name][0]))
    np.testing.assert_allclose(moments.covariance, np.diag(AXES**2 / 5), atol=1.2)


def test_only_the_surface_of_air_is_moved() -> None:
    hu = np.full((12, 9, 9), 40.0)
    hu[:6] = -850
    hu[6] = -500  # 100 below the level, 540 from tissue
    mask = hu < AIR_HU
    mask[6:, 4, 4] = True  # a vessel closed over: its surface is not that of the air
    mask[:, :, 0] = False  # an airway left out beside it
    index, excess = surface_excess(mask, hu)
    found = np.zeros(hu.shape)
    found[index] = excess
    assert not found[8:, 4, 4].any() and not found[:5, :, 0].any()
    assert found[6, 6, 6] == pytest.approx(0.5 + 100 / 540 - 1)
    assert found[7, 6, 6] == pytest.approx(max(0.5 - 440 / 540, 0))


def test_a_slice_that_ends_the_scan_is_no_surface() -> None:
    scan = lung((2.0, 2.0, 2.0), (0.0, 0.0, 0.0), 3.0)
    cut = Volume(scan.data[:, :, 25:], scan.affine)
    mask = Volume((cut.data < AIR_HU).astype(np.uint8), cut.affine)
    whole, shared = mask_moments(mask), mask_moments(mask, cut)
    np.testing.assert_allclose(shared.mean, whole.mean, atol=0.05)


def test_a_mask_from_a_coarser_grid_is_not_moved_to_one_side() -> None:
    """In voxels of 3/4 of the coarser ones shares of just a quarter abound: rounding must not decide."""
    scan = lung((1.5, 1.5, 1.5), (5.0, -8.0, 4.0), 8.0)
    coarse = segmentation.working_scan(scan)
    labels = Volume((coarse.data < AIR_HU).astype(np.uint8), coarse.affine)
    mask = segmentation._on_grid_of(scan, labels)
    # 0.0008 mm; with bounds at 1/4 and 3/4 0.0066 mm, and in other grids up to 0.05 mm.
    np.testing.assert_allclose(mask_moments(mask, scan).mean, CENTRE, atol=0.003)
