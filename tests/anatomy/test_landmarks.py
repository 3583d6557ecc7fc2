"""Landmarks against a chest whose spurs are known, and scans where they must not be found."""

from __future__ import annotations

import csv
import time
from pathlib import Path

import numpy as np
import pytest

from lmreg_jax.anatomy._apices import apices
from lmreg_jax.anatomy._lumen import chest_of
from lmreg_jax.anatomy._naming import Named
from lmreg_jax.anatomy._orientation import back_to_front
from lmreg_jax.anatomy.landmarks import NAMES, Landmarks, consensus, find_landmarks
from lmreg_jax.imaging.volume import Volume
from lmreg_jax.io.nifti import read_volume, write_volume
from lmreg_jax.io.read import read_scan
from lmreg_jax.phantom import thorax
from lmreg_jax.phantom.spurs import spurs
from tests import airway_tubes
from tests.shared_data import shared


@pytest.fixture(scope="module")
def found() -> Landmarks:
    return find_landmarks(*airway_tubes.chest())


def test_spurs_and_trachea_points_of_a_known_chest(found: Landmarks) -> None:
    points = found.accepted()
    assert found.notes == ()
    for name, exact in airway_tubes.truth().items():
        assert np.linalg.norm(points[name] - exact) < 1.6, name  # 0.6 of a voxel
    assert tuple(p.name for p in found.points) == NAMES
    assert all(0 <= p.confidence <= 1 for p in found.points)


def test_the_airways_come_with_the_points(found: Landmarks) -> None:
    tree = found.airways
    assert tree is not None
    carina = found.accepted()["carina"]
    assert np.linalg.norm(tree.centre - carina, axis=1).min() < 8
    assert tree.centre[:, 2].max() > 150


def test_axes_in_another_order_give_the_same_scan(tmp_path: Path) -> None:
    volume, _ = airway_tubes.chest()
    affine = volume.affine @ np.array(
        [
            [0, -1, 0, volume.data.shape[0] - 1],
            [0, 0, 1, 0],
            [-1, 0, 0, volume.data.shape[2] - 1],
            [0, 0, 0, 1],
        ]
    )
    turned = np.ascontiguousarray(volume.data[::-1, :, ::-1].transpose(2, 0, 1))
    write_volume(tmp_path / "turned.nii.gz", Volume(turned, affine))
    again = read_volume(tmp_path / "turned.nii.gz")  # the same array in the same place: the same points
    assert np.array_equal(again.data, volume.data)
    assert np.allclose(again.affine, volume.affine)


def test_a_mirrored_scan_is_noted_and_its_sides_are_not_trusted() -> None:
    volume, lungs = airway_tubes.chest()
    sides = np.array((0, 2, 1), np.uint8)[lungs.data[::-1]]
    result = find_landmarks(Volume(volume.data[::-1], volume.affine), Volume(sides, lungs.affine))
    assert any(note.startswith("looks mirrored") for note in result.notes)
    assert {"carina", "trachea_30mm"} <= set(result.accepted())
    assert not any("left" in name or "right" in name for name in result.accepted())


def test_front_and_back_exchanged_are_noted() -> None:
    volume, lungs = airway_tubes.chest()
    assert not back_to_front(chest_of(volume), lungs)
    turned, sides = (Volume(v.data[:, ::-1], v.affine) for v in (volume, lungs))
    assert back_to_front(chest_of(turned), sides)


def test_a_slab_of_lung_bases_gives_nothing_and_says_so() -> None:
    volume, lungs = (airway_tubes.part(v, -140, -35) for v in airway_tubes.chest())
    result = find_landmarks(volume, lungs)
    assert not result.accepted()
    assert any(note.startswith("no ") for note in result.notes)
    assert all(p.reason for p in result.points)


def test_a_scan_that_begins_below_the_carina_keeps_no_airway_point() -> None:
    volume, lungs = (airway_tubes.part(v, -140, -24) for v in airway_tubes.chest())
    assert not find_landmarks(volume, lungs).accepted()


def ball_lung(cut: float | None = None) -> tuple[Volume, Volume]:
    """Two lungs of radius 50 mm around z = 0, in tissue up to z = 90; cut: the scan ends there."""
    low, edge = np.array((-130.0, -60.0, -60.0)), 2.0
    x, y, z = np.moveaxis(low + edge * np.moveaxis(np.indices((131, 61, 76)), 0, -1), -1, 0)
    lungs = np.zeros(x.shape, np.uint8)
    lungs[(x - 60) ** 2 + y**2 + z**2 < 50**2] = 2
    lungs[(x + 60) ** 2 + y**2 + z**2 < 50**2] = 1
    affine = np.diag((edge, edge, edge, 1.0))
    affine[:3, 3] = low
    volumes = Volume(np.where(lungs > 0, -850, 40).astype(np.int16), affine), Volume(lungs, affine)
    if cut is None:
        return volumes
    return airway_tubes.part(volumes[0], -60, cut), airway_tubes.part(volumes[1], -60, cut)


def test_the_apex_is_the_height_above_which_a_lung_holds_one_millilitre() -> None:
    height = np.roots([-np.pi / 3, np.pi * 50, 0, -1000])  # of a cap: pi h^2 (3 R - h) / 3
    height = min(h.real for h in height if h.real > 0)
    for name, side in (("apex_left", -1), ("apex_right", 1)):
        apex = apices(*ball_lung())[name]
        assert apex.point is not None
        assert np.abs(apex.point - (side * 60, 0, 50 - height)).max() < 0.3
        assert apex.confidence > 0.8


@pytest.mark.parametrize("cut", [10.0, 40.0, 48.0, 52.0])
def test_no_apex_where_the_scan_ends_at_the_lung(cut: float) -> None:
    assert all(apex.point is None and apex.reason for apex in apices(*ball_lung(cut)).values())


def test_passes_that_agree_outvote_one_that_does_not() -> None:
    right, wrong = np.array((1.0, 2.0, 3.0)), np.array((30.0, 2.0, 3.0))
    passes = [{"carina": Named(right + 0.1 * k, 1.0)} for k in range(4)] + [{"carina": Named(wrong, 1.0)}]
    got = consensus("carina", passes, "none")
    assert got.point is not None and np.linalg.norm(got.point - right) < 0.5
    assert 0.75 < got.confidence <= 1
    split = consensus("carina", [{"carina": Named(right + 20 * k, 1.0)} for k in range(5)], "none")
    assert split.confidence < 0.5 and split.reason
    assert consensus("carina", [], "none").point is None


@pytest.mark.slow
def test_exact_spurs_of_a_synthetic_thorax() -> None:
    made = thorax(3, seed=5, shape=(140, 100, 160), spacing_mm=2.5)
    points = find_landmarks(Volume(made.image, made.affine), Volume(made.lungs, made.affine)).accepted()
    exact = spurs(3, seed=5)
    assert set(exact) == set(NAMES) - {"apex_left", "apex_right"}
    for name in ("carina", "right_upper_lobe_bronchus", "left_upper_lobe_bronchus"):
        below = made.landmarks[name][2] - exact[name][2]
        assert 2 < below < 20, name  # the node of the centrelines lies higher
    apart = {name: float(np.linalg.norm(points[name] - exact[name])) for name in exact if name in points}
    assert len(apart) >= 7 and max(apart.values()) < 4 and np.mean(list(apart.values())) < 1.2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cip_ct64", "lidc_0314", "pyradiomics_lung2"])
def test_people_with_points_set_by_hand(name: str) -> None:
    scan = read_scan(shared(f"chest_ct/{name}.nii.gz")).volume
    with open(shared(f"chest_ct/landmarks/{name}.csv"), newline="", encoding="utf-8") as file:
        exact = {r["name"]: np.array([float(r[f"{a}_mm"]) for a in "xyz"]) for r in csv.DictReader(file)}
    start = time.process_time()
    points = find_landmarks(scan).accepted()
    assert time.process_time() - start < 30  # three times what it takes on an idle machine
    apart = [float(np.linalg.norm(points[n] - exact[n])) for n in points if n in exact]
    assert len(apart) >= 8 and max(apart) < 6 and np.median(apart) < 2
