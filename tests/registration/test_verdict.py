"""The verdict: the worst of its figures, in words."""

from __future__ import annotations

import numpy as np
import pytest

from lmreg_jax.imaging.transforms import affine_transform
from lmreg_jax.registration import verdict as module
from lmreg_jax.registration.verdict import airway_distance, verdict

GOOD = {
    "airway_mm": 2.0,
    "lung_dice": 0.96,
    "side_dice": 0.95,
    "folding_percent": 0.0,
    "sd_log_jacobian": 0.3,
    "seen_percent": 99.0,
}
LINE = np.column_stack([np.zeros(40), np.zeros(40), np.linspace(0, 80, 40)])


def test_good_figures_make_a_good_result_without_reasons() -> None:
    assert verdict(GOOD)[:2] == ("good", ())


@pytest.mark.parametrize("name", module.LIMITS)
def test_each_figure_can_make_a_result_check_or_poor(name: str) -> None:
    check, poor = module.LIMITS[name]
    step = 1e-3 * np.sign(poor - check)
    for value, expected in ((check - step, "good"), (check + step, "check"), (poor + step, "poor")):
        found = verdict({**GOOD, name: value})
        assert found.value == expected, (name, value)
        assert len(found.reasons) == (expected != "good")


def test_the_worst_reason_comes_first() -> None:
    found = verdict({**GOOD, "lung_dice": 0.9, "airway_mm": 20.0}, doubts=("the scans look unlike",))
    assert found.value == "poor" and found.reasons[0] == "the airways lie 20.0 mm apart"
    assert len(found.reasons) == 3


def test_nothing_is_good_whose_inside_was_not_checked() -> None:
    found = verdict({**GOOD, "airway_mm": float("nan")})
    assert found.value == "check" and "only the lungs' outline" in found.reasons[0]
    assert verdict({**GOOD, "airway_mm": float("nan"), "landmark_mm": 2.0}).value == "good"


def test_airways_are_as_far_apart_as_the_transform_leaves_them() -> None:
    """Two parallel lines, 7 mm apart across; one half of the other, and further branches count nothing."""
    shift = np.eye(4)
    shift[0, 3] = 3.0
    there, back = affine_transform(shift), affine_transform(np.linalg.inv(shift))
    moving = np.add(LINE, (10.0, 0, 0))
    assert airway_distance(there, back, LINE, moving) == pytest.approx(7.0)
    branch = moving[-1] + np.linspace(0, 60, 30)[:, None] * (1, 0, 0)
    assert airway_distance(there, back, LINE, np.concatenate([moving, branch])) == pytest.approx(7.0)
    assert np.isnan(airway_distance(there, back, LINE[:5], moving))
