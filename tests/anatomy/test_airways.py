"""The flood, the wave fronts and the spur against forms that are known exactly."""

from __future__ import annotations

import numpy as np
import pytest

from lmreg_jax.anatomy._flood import flood
from lmreg_jax.anatomy._fronts import neighbour_graph, wave_fronts
from lmreg_jax.anatomy._lumen import Lumen
from lmreg_jax.anatomy._naming import bifurcation
from lmreg_jax.anatomy.airways import spur, trees
from lmreg_jax.phantom.raster import Tubes
from lmreg_jax.phantom.spurs import clearance
from lmreg_jax.phantom.spurs import spur as exact_spur

EDGE = 1.25


def test_the_flood_stops_at_the_highest_ridge() -> None:
    height = np.array([0, 1, 2, 5, 3, 9, 2, 1, 0, 4], float).reshape(1, 1, -1)
    first, second = np.zeros((2, 1, 1, 10), bool)
    first[0, 0, 0] = second[0, 0, 8] = True
    inside = flood(height, first, second, np.ones(height.shape, bool))
    assert inside.ravel()[:5].all()  # over the ridge of 5, up to the one of 9
    assert not inside.ravel()[6:].any()


def test_the_flood_takes_the_lower_pass_not_the_shorter_way() -> None:
    rng = np.random.default_rng(0)
    height = rng.random((9, 8, 7))
    first, second = np.zeros((2, 9, 8, 7), bool)
    first[0, 0, 0] = second[-1, -1, -1] = True
    mask = rng.random(height.shape) < 0.9
    mask[0, 0, 0] = mask[-1, -1, -1] = True
    height[0, 0, 0] = height[-1, -1, -1] = 0
    got = flood(height, first, second, mask)

    def passes(start: tuple[int, int, int]) -> np.ndarray:
        """The lowest possible highest voxel on the way from `start`, by relaxation."""
        cost = np.full(height.shape, np.inf)
        cost[start] = -np.inf
        for _ in range(60):
            padded = np.pad(cost, 1, constant_values=np.inf)
            around = [np.roll(padded, s, a)[1:-1, 1:-1, 1:-1] for a in range(3) for s in (-1, 1)]
            cost = np.where(mask, np.minimum(cost, np.maximum(np.min(around, 0), height)), np.inf)
            cost[start] = -np.inf
        return cost

    one, two = passes((0, 0, 0)), passes((-1, -1, -1))
    assert got[one < two].all()
    assert not got[two < one].any()


def test_fronts_of_a_straight_tube_are_one_chain_of_equal_sections() -> None:
    x, y, _ = np.indices((15, 15, 40)) - 7
    graph = neighbour_graph(x**2 + y**2 <= 25)
    fronts = wave_fronts(graph, np.ones(len(graph.voxels), bool), graph.voxels[:, 2] == 39, 2.0)
    assert len(fronts.voxels) == 20
    assert sorted(fronts.parent.tolist()) == [-1, *range(19)] or len(set(fronts.parent.tolist())) == 20
    assert {len(v) for v in fronts.voxels} == {2 * int((x[:, :, 0] ** 2 + y[:, :, 0] ** 2 <= 25).sum())}


def y_shape(degrees: float, tilt: float = 0.0) -> tuple[Lumen, np.ndarray]:
    """A trachea of radius 8 mm that parts into two bronchi of 6.5 mm; the exact spur."""
    half = np.radians(degrees / 2)
    down = [np.array((s * np.sin(half) + tilt, -0.15, -np.cos(half))) for s in (1, -1)]
    down = [d / np.linalg.norm(d) for d in down]
    top = np.array((0.3, 0.4, 70.0))
    tubes = Tubes(
        np.stack([top, np.zeros(3), np.zeros(3)]),
        np.stack([np.zeros(3), 60 * down[0], 60 * down[1]]),
        np.array([[8, 8], [6.5, 6.5], [6.5, 6.5]], float),
    )
    low = np.array((-62.0, -25.0, -62.0))
    shape = (100, 38, 107)
    places = low + EDGE * np.moveaxis(np.indices(shape), 0, -1).reshape(-1, 3)
    outside = np.concatenate([clearance(part, tubes) for part in np.array_split(places, 40)]).reshape(shape)
    hu = np.clip(-650 + 350 * outside, -1000, 40).astype(np.float32)
    affine = np.diag((EDGE, EDGE, EDGE, 1.0))
    affine[:3, 3] = low
    seed = (outside < -2) & (places[:, 2].reshape(shape) > 20)
    ways = [np.arange(0, 50, 0.1)[:, None] * d for d in down]
    return Lumen(hu, hu < -150, seed, affine), exact_spur(*ways, tubes)


@pytest.mark.parametrize(
    ("degrees", "tilt", "most_mm"), [(60, 0.0, 1.25), (95, 0.15, 0.7), (137, 0.0, 1.2), (137, 0.1, 3.0)]
)
def test_the_spur_of_a_y_is_where_its_lumens_part(degrees: float, tilt: float, most_mm: float) -> None:
    lumen, exact = y_shape(degrees, tilt)
    tree = trees(lumen)[2]  # at -650 HU, where the wall lies
    fork = bifurcation(tree)
    assert fork is not None
    # Half a voxel; one where the septum is thinner than that. On a flat ridge a tilt of the bisector by a
    # few degrees moves the highest point by some mm.
    assert np.linalg.norm(spur(tree, fork.right, fork.left) - exact) < most_mm


def test_a_leak_is_cut_off() -> None:
    lumen, _ = y_shape(80)
    x, y, z = np.moveaxis(lumen.affine[:3, 3] + EDGE * np.moveaxis(np.indices(lumen.hu.shape), 0, -1), -1, 0)
    ball = (x - 40) ** 2 + y**2 + (z + 42) ** 2 < 20**2
    leaky = lumen._replace(hu=np.where(ball, -900, lumen.hu).astype(np.float32), inside=lumen.inside | ball)
    tree = trees(leaky)[2]
    kept = sorted({k for children in tree.children for k in children})
    assert tree.spread[kept].max() < 16
