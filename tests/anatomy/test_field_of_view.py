"""What was not measured is no air: lungs are closed there, and the warnings say so."""

from __future__ import annotations

import numpy as np
import pytest

from lmreg_jax.anatomy.field_of_view import measured
from lmreg_jax.anatomy.lungs import cut_off, cut_sides, lung_report
from lmreg_jax.anatomy.segmentation import segment_lungs
from lmreg_jax.imaging.volume import Volume
from tests.anatomy.small_thorax import beyond, dice, lungs, scan
from tests.tiny_cohort import subject

SHAPES = ["circle", "wedge", "turned box"]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("value", [-3024, -1024, -1000, 0])
def test_padding_is_told_from_air_to_a_voxel(shape: str, value: int) -> None:
    ct, out = scan(), beyond(shape, -10.0)
    ct.data[out] = value
    shown = measured(ct)
    assert shown is not None
    assert np.mean(shown == out) < 0.003  # air of exactly the padding's value next to it


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("value", "margin"), [(-2000, 2.0), (-1024, 2.0), (-2000, -10.0), (-1000, -10.0), (0, -10.0)]
)
def test_lungs_end_where_the_field_of_view_does(shape: str, value: int, margin: float) -> None:
    whole = segment_lungs(scan()).data
    ct, out = scan(), beyond(shape, margin)
    ct.data[out] = value
    found = segment_lungs(ct, measured(ct)).data
    for label in (1, 2):
        # Where the wall ends at the padding between lung and air, a slice of 5 mm may go: 0.9895.
        assert dice(found == label, (whole == label) & ~out) > 0.985


@pytest.mark.parametrize("crop", [np.s_[14:], np.s_[:64], np.s_[:, 17:], np.s_[:, :38]])
def test_lungs_end_where_the_frame_does(crop: tuple[slice, ...]) -> None:
    whole = segment_lungs(scan()).data[crop]
    found = segment_lungs(Volume(scan().data[crop], scan().affine)).data
    assert np.any(whole[[0, -1]]) or np.any(whole[:, [0, -1]])
    assert dice(found > 0, whole > 0) > 0.97


def test_noiseless_air_is_measured() -> None:
    ct, _, _ = subject(np.eye(4))
    assert measured(ct) is None
    assert measured(Volume(ct.data[5:-5, :, 12:], ct.affine)) is None
    assert measured(scan()) is None


def test_what_is_missing_is_reported() -> None:
    mask, out = lungs(), beyond("wedge", -30.0)
    mask.data[out] = 0
    area = 25 * np.count_nonzero(mask.data[:, :, :-1].astype(bool) & out[:, :, 1:]) / 100
    assert cut_off(mask, ~out) == {"apex": pytest.approx(area)}
    assert cut_off(mask) == {}
    cut, share = cut_sides(mask, ~out)
    assert 0 < share < 0.2
    assert any(f"{cut:.0f} cm^2" in warning for warning in lung_report(mask, ~out).warnings)


def test_gas_and_stool_below_the_diaphragm_are_no_lung() -> None:
    ct, mask = scan(), lungs()
    base = np.flatnonzero(mask.data.any((0, 1)))[0]
    index = np.indices(ct.data.shape)
    bowel = (
        sum(((i - c) / r) ** 2 for i, c, r in zip(index, (50, 30, base - 6), (9, 9, 5.5), strict=True)) < 1
    )
    bowel &= mask.data == 0
    rng = np.random.default_rng(0)
    ct.data[bowel] = np.where(rng.random(bowel.sum()) < 0.6, -950, -450)
    assert bowel.sum() * 125e-6 > 0.15
    assert not segment_lungs(ct).data[bowel].any()


def test_the_lungs_of_an_infant_of_95_mm() -> None:
    small = Volume(scan().data, scan().affine @ np.diag([0.37, 0.37, 0.37, 1.0]))
    found = segment_lungs(small).data
    for label in (1, 2):
        assert dice(found == label, lungs().data == label) > 0.97
