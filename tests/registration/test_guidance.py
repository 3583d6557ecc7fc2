"""Points that guide: paired by name, contradicted ones dropped."""

from __future__ import annotations

import numpy as np

from lmreg_jax.imaging.volume import apply_affine
from lmreg_jax.registration import guidance

RNG = np.random.default_rng(8)
LUNGS = RNG.uniform((-120, -90, -150), (120, 90, 150), (400, 3))
PULL = np.diag([1.1, 0.95, 1.05, 1.0])
NAMES = ("carina", "rul", "lul", "rml", "trachea_15mm", "trachea_30mm", "apex_left", "apex_right")
FIXED = dict(zip(NAMES, RNG.uniform(-50, 50, (8, 3)), strict=True))


def sides(shift: float = 3.0, **wrong: float) -> tuple[guidance.Weighted, guidance.Weighted]:
    """Both scans' points: the moving ones where PULL takes them, `shift` mm in x, some further off."""
    moving = {}
    for name, p in FIXED.items():
        off = (shift + wrong.get(name, 0.0), 0, 0)
        moving[name] = (np.add(apply_affine(PULL, p), off), 0.8)
    return {name: (p, 1.0) for name, p in FIXED.items()}, moving


def test_pairs_are_of_one_name_and_weigh_by_confidence_and_family() -> None:
    fixed, moving = sides()
    del moving["rml"]
    pairs = guidance.paired(fixed, moving, PULL, LUNGS)
    assert pairs.names == tuple(name for name in NAMES if name != "rml") and not pairs.dropped
    weights = dict(zip(pairs.names, pairs.weights, strict=True))
    assert weights["carina"] == 0.8 and weights["trachea_15mm"] == 0.2 and weights["apex_left"] == 0.4
    np.testing.assert_array_equal(pairs.fixed[0], FIXED["carina"])


def test_a_wrong_pair_is_dropped_and_reported_the_others_stay() -> None:
    pairs = guidance.paired(*sides(lul=70.0), PULL, LUNGS)
    assert set(pairs.dropped) == {"lul"} and "mm from where" in pairs.dropped["lul"]
    assert set(pairs.names) == set(NAMES) - {"lul"}


def test_a_common_motion_of_all_points_is_no_contradiction() -> None:
    pairs = guidance.paired(*sides(shift=30.0), PULL, LUNGS)
    assert len(pairs) == 8 and not pairs.dropped


def test_fewer_than_three_pairs_do_not_guide() -> None:
    fixed, moving = sides()
    few = {name: moving[name] for name in NAMES[:2]}
    assert guidance.paired(fixed, few, PULL, LUNGS) is guidance.NONE


def test_points_that_are_left_out_judge() -> None:
    pairs = guidance.paired(*sides(), PULL, LUNGS).without(("trachea", "apex_left"))
    assert pairs.names == ("carina", "rul", "lul", "rml", "apex_right")
    assert len(pairs.weights) == len(pairs.fixed) == 5


def test_predictions_are_weighted_means_of_the_others() -> None:
    """Two points at distance d: each is predicted as g v / (ridge + g) of the other."""
    points, vectors = np.array([[0.0, 0, 0], [30.0, 0, 0]]), np.array([[1.0, 2, 3], [4.0, 5, 6]])
    g = np.exp(-0.5 * (30 / guidance.KERNEL_MM) ** 2)
    expected = vectors[::-1] * g / (guidance.RIDGE + g)
    np.testing.assert_allclose(guidance.predictions(points, vectors, np.ones(2)), expected)


def test_on_a_grid_points_are_voxels_and_the_affine_is_taken_off() -> None:
    pairs = guidance.paired(*sides(shift=0.0), PULL, LUNGS)
    grid = np.diag([2.0, 4.0, 5.0, 1.0])
    grid[:3, 3] = (-90, -70, -100)
    points = guidance.on_grid(pairs, PULL, grid)
    assert points.fixed.shape == (guidance.MOST, 3)
    np.testing.assert_allclose(points.fixed, points.moving, atol=1e-4)
    np.testing.assert_allclose(apply_affine(grid, points.fixed[:8]), pairs.fixed, atol=1e-4)
    np.testing.assert_allclose(points.spacing_mm, (2, 4, 5))
    assert not np.asarray(points.weights[8:]).any()
