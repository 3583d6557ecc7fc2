"""The calibration's figures, on errors whose distribution is known."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import calibration

LANDMARKS, SAMPLES = 4000, 200


def known(scale: float, seed: int = 0) -> list[calibration.Row]:
    """Truths drawn from the predicted distribution, their distance from its mean times `scale`.

    Spreads differ from landmark to landmark by up to 16 times, and from axis to axis.
    """
    chance = np.random.default_rng(seed)
    sd = np.exp(chance.uniform(np.log(0.25), np.log(4), (LANDMARKS, 1))) * np.array([1.0, 0.5, 2.0])
    mean = chance.uniform(-50, 50, (LANDMARKS, 3))
    drawn = mean + sd * chance.standard_normal((SAMPLES, LANDMARKS, 3))
    truth = mean + scale * sd * chance.standard_normal((LANDMARKS, 3))
    names = [f"p{i}" for i in range(LANDMARKS)]
    return calibration.measure("a -> b", names, LANDMARKS // 2, mean, drawn, truth)


def test_a_calibrated_posterior_is_found_calibrated() -> None:
    found = calibration.summary(known(1.0))
    # The ratio's own sd: of 4000 landmarks with heavy-tailed sizes, about 2 %.
    assert found["error_over_predicted"] == pytest.approx(1, abs=0.06)
    for level, share in found["coverage"].items():
        p = float(level)
        # Four binomial standard deviations, and 1 % for the covariance's being of 200 draws.
        assert share == pytest.approx(p, abs=4 * np.sqrt(p * (1 - p) / LANDMARKS) + 0.01), level
    # Errors are random within each spread: sizes agree in rank, not in value.
    assert 0.7 < found["rank_correlation"] < 0.95


def test_an_overconfident_one_is_found_as_overconfident_as_it_is() -> None:
    found = calibration.summary(known(5.0))
    assert found["error_over_predicted"] == pytest.approx(5, rel=0.06)
    # chi-squared of 3 degrees: the 95 % ellipsoid holds P(25 x < 7.8) of the truths.
    assert found["coverage"]["0.95"] == pytest.approx(0.0417, abs=0.015)


def test_missing_landmarks_are_left_out() -> None:
    truth = np.zeros((3, 3))
    truth[1] = np.nan
    drawn = np.random.default_rng(0).standard_normal((20, 3, 3))
    rows = calibration.measure("a -> b", ["x", "y", "z"], 1, np.zeros((3, 3)), drawn, truth)
    assert [(r.landmark, r.trained) for r in rows] == [("x", True), ("z", False)]
    assert calibration.summary(rows)["rank_correlation"] is None  # All errors are 0.


def test_positions_spread_as_a_constant_velocity_does() -> None:
    """A velocity that is one number everywhere moves by itself: mean and sd are known.

    (Its log-variance is -50 but in one constant: the noise is drawn by voxel, so the spread of a
    sum over few voxels is checked, at a voxel of the field, where nothing is interpolated.)
    """
    shape, mean, sd = (16, 16, 16), np.array([1.0, -2.0, 0.5], np.float32), 0.01

    def register(*_: np.ndarray) -> SimpleNamespace:
        velocity = jnp.broadcast_to(jnp.asarray(mean) / 2, (8, 8, 8, 3))  # voxels of the coarse grid
        u = jnp.broadcast_to(jnp.asarray(mean), (*shape, 3))
        return SimpleNamespace(
            velocity_mean=velocity,
            velocity_log_variance=jnp.full((8, 8, 8, 3), 2 * np.log(sd)),
            displacement=u,
        )

    register.config = SimpleNamespace(objective=SimpleNamespace(integration_steps=7))  # type: ignore[attr-defined]
    points = np.array([[8.0, 8, 6], [6, 4, 8]])
    image = np.zeros(shape, np.float32)
    found, drawn = calibration.sampled_positions(register, image, image, points, jax.random.key(0), 300)  # type: ignore[arg-type]
    np.testing.assert_allclose(found, points + mean, atol=1e-5)
    np.testing.assert_allclose(drawn.mean(0), points + mean, atol=4 * 2 * sd / np.sqrt(300))
    # Along its way of at most one coarse voxel a point meets an average of independent noise: less
    # than one voxel's (2 sd in fine voxels), more than a quarter of it.
    spread = drawn.std(0)
    assert (spread < 2 * sd * 1.2).all() and (spread > 0.25 * 2 * sd).all()


def test_the_files_hold_every_landmark(tmp_path: Path) -> None:
    rows = known(2.0)[:50] + known(2.0)[-50:]
    results = calibration.write(tmp_path, rows, 64)
    assert json.loads((tmp_path / "calibration.json").read_text(encoding="utf-8")) == results
    assert results["trained landmarks"]["landmarks"] == results["further points"]["landmarks"] == 50
    with (tmp_path / "calibration.csv").open(newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert [float(row["error_mm"]) for row in table] == [row.error_mm for row in rows]
    assert (tmp_path / "calibration.png").read_bytes().startswith(b"\x89PNG")
