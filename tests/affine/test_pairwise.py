"""The affine step of lungs that one scan lacks, or shows in part."""

from __future__ import annotations

import numpy as np
import pytest

from lmreg_jax.affine.pairwise import align_pair, common_lungs
from lmreg_jax.errors import InputError
from lmreg_jax.imaging.volume import Volume, apply_affine
from tests.anatomy.small_thorax import beyond, lungs, scan, subject


def aligned(moving: Volume, measured: np.ndarray | None = None) -> tuple[float, tuple[str, ...]]:
    """Mean landmark error of subject 0 onto subject 1, mm, and the notes."""
    found = align_pair(scan(0), scan(1), lungs(0), moving, "moments", measured=(None, measured))
    fixed, other = (np.array(list(subject(i).landmarks.values())) for i in (0, 1))
    return float(np.linalg.norm(apply_affine(found.pull, fixed) - other, axis=1).mean()), found.notes


@pytest.mark.parametrize("label", [1, 2])
def test_the_lung_that_both_scans_show_is_compared(label: int) -> None:
    whole, _ = aligned(lungs(1))
    moving = lungs(1)
    moving.data[moving.data == label] = 0
    error, notes = aligned(moving)
    assert error < 2 * whole  # 14 and 8 mm for 8; with both lungs onto one it was 60 mm
    assert "is not compared" in notes[0] and ("left", "right")[label - 1] in notes[0]


def test_a_collapsed_lung_is_not_compared() -> None:
    moving = lungs(1)
    moving.data[:, :, :65][moving.data[:, :, :65] == 2] = 0
    assert common_lungs(lungs(0), moving) == (1,)


def test_no_lung_in_common_is_refused() -> None:
    left, right = (Volume((lungs().data == i) * np.uint8(i), lungs().affine) for i in (1, 2))
    with pytest.raises(InputError, match="shows the left lung, the moving one the right"):
        common_lungs(left, right)


def test_litres_and_scales_that_differ_are_reported() -> None:
    half = Volume(lungs(1).data, lungs(1).affine @ np.diag([0.6, 0.6, 0.6, 1]))
    _, notes = aligned(half)
    assert sum("another breath" in note for note in notes) == 2
    assert any("scales by" in note for note in notes)


@pytest.mark.slow
def test_lungs_cut_at_the_sides_are_compared_where_both_scans_show_them() -> None:
    moving, out = lungs(1), beyond("left", -30.0)
    moving.data[out] = 0
    whole, (cut, notes), plain = aligned(lungs(1))[0], aligned(moving, ~out), aligned(moving)[0]
    assert abs(cut - whole) < 0.6 * abs(plain - whole)
    assert any("cut off" in note for note in notes)
