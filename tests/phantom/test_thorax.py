"""The embedded cohort: the same anatomy on any grid, true to its labels, the same bytes again."""

from __future__ import annotations

import csv
import filecmp
import subprocess
import sys
from itertools import permutations
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from lmreg_jax.errors import InputError
from lmreg_jax.phantom import LANDMARKS, Thorax, thorax, write_cohort
from lmreg_jax.phantom import scan as scan_module
from lmreg_jax.phantom.compose import curves
from lmreg_jax.phantom.raster import Grid, Tubes, block_mean, occupancy, render_tubes
from lmreg_jax.phantom.subject import flow, pull, push, subject
from lmreg_jax.phantom.trees import SEGMENTS, airways, arteries, lung_points, veins

COARSE = {"shape": (40, 28, 52), "spacing_mm": 8.0}
PAPER = {
    "carina",
    "left_upper_lobe_bronchus",
    "right_upper_lobe_bronchus",
    "right_middle_lobe_bronchus",
    "pulmonary_trunk",
    "left_pulmonary_artery",
    "right_pulmonary_artery",
    "trachea_1",
    "trachea_2",
    "trachea_3",
    "trachea_4",
}


@pytest.fixture(scope="module")
def few() -> list[Thorax]:
    return [thorax(index, **COARSE) for index in range(4)]


@pytest.fixture(scope="module")
def fine() -> Thorax:
    return thorax(1, shape=(80, 56, 104), spacing_mm=4.0)


def voxels(made: Thorax, points: np.ndarray) -> np.ndarray:
    inverse = np.linalg.inv(made.affine)
    return points @ inverse[:3, :3].T + inverse[:3, 3]


def test_types_shapes_and_names(few: list[Thorax]) -> None:
    for made in few:
        assert made.image.dtype == np.int16
        assert made.lungs.dtype == made.lobes.dtype == np.uint8
        assert made.image.shape == made.lungs.shape == made.lobes.shape == COARSE["shape"]
        assert set(made.landmarks) == set(LANDMARKS) == PAPER
        assert len(made.points) >= 200
        assert list(made.points) == list(few[0].points)
        assert not set(made.points) & PAPER
    at = np.array([*few[0].landmarks.values(), *few[0].points.values()])
    apart = np.linalg.norm(at[:, None] - at[None], axis=-1) + 9 * np.eye(len(at))
    assert apart.min() > 0.05, "every name is a place of its own"


def test_the_same_seed_gives_the_same_subject_and_another_another(few: list[Thorax]) -> None:
    again, other = thorax(1, **COARSE), thorax(1, seed=5, **COARSE)
    np.testing.assert_array_equal(again.image, few[1].image)
    np.testing.assert_array_equal(again.lungs, few[1].lungs)
    assert all(np.array_equal(again.points[n], few[1].points[n]) for n in again.points)
    assert np.linalg.norm(other.landmarks["carina"] - few[1].landmarks["carina"]) > 0.5


def test_anatomy_does_not_depend_on_the_grid(few: list[Thorax], fine: Thorax) -> None:
    for a, b in ((few[1].landmarks, fine.landmarks), (few[1].points, fine.points)):
        np.testing.assert_array_equal(list(a.values()), list(b.values()))
    volumes = [np.count_nonzero(m.lungs) * s**3 for m, s in ((few[1], 8), (fine, 4))]
    assert volumes[0] == pytest.approx(volumes[1], rel=0.01)


def test_points_lie_inside_the_image_and_on_their_side(few: list[Thorax]) -> None:
    for made in few:
        both = {**made.landmarks, **made.points}
        at = voxels(made, np.array(list(both.values())))
        assert (at >= 0).all() and (at <= np.array(made.image.shape) - 1).all()
        marks = made.landmarks
        for kind in ("upper_lobe_bronchus", "pulmonary_artery"):
            assert marks[f"left_{kind}"][0] < marks["carina"][0] < marks[f"right_{kind}"][0]
        heights = [marks[f"trachea_{i}"][2] for i in (1, 2, 3, 4)] + [marks["carina"][2]]
        assert np.all(np.diff(heights) < -10)
        assert marks["right_middle_lobe_bronchus"][2] < marks["right_upper_lobe_bronchus"][2]
        sides = np.sign(
            [both["airway_LB9"][0] - marks["carina"][0], both["airway_RB9"][0] - marks["carina"][0]]
        )
        assert sides.tolist() == [-1, 1]


def test_the_trachea_holds_air_and_the_pulmonary_trunk_blood(fine: Thorax) -> None:
    def hu(name: str) -> float:
        i, j, k = np.rint(voxels(fine, fine.landmarks[name])).astype(int)
        return float(fine.image[i, j, k])

    for name in ("trachea_1", "trachea_2", "trachea_3", "trachea_4", "carina"):
        assert hu(name) < -850
    for name in ("pulmonary_trunk", "right_pulmonary_artery"):
        assert 0 < hu(name) < 220


def test_lungs_and_lobes(few: list[Thorax], fine: Thorax) -> None:
    for made in few:
        left, right = (np.count_nonzero(made.lungs == k) * 0.512 / 1000 for k in (1, 2))
        assert 3.8 < left + right < 6.7, "litres"
        assert 1.0 < right / left < 1.4
        np.testing.assert_array_equal(made.lobes > 0, made.lungs > 0)
        np.testing.assert_array_equal(np.isin(made.lobes, (1, 2)), made.lungs == 1)
        share = np.bincount(made.lobes[made.lobes > 0], minlength=6)[1:] / (made.lobes > 0).sum()
        assert share.min() == share[3] and share[3] > 0.04, "the middle lobe is the smallest"
        x = [np.argwhere(made.lungs == k)[:, 0].mean() for k in (1, 2)]
        assert x[0] < x[1]
    inner = fine.image[fine.lungs > 0]
    assert -905 < np.median(inner) < -770
    assert 0.03 < np.mean(inner > -600) < 0.14, "vessels"


def test_tissues_have_their_hounsfield_units(fine: Thorax) -> None:
    image = fine.image.astype(float)
    assert image.min() >= -1024 and 350 < image.max() < 1000
    histogram = np.histogram(image, bins=np.arange(-1050, 1000, 20))
    centres = 0.5 * (histogram[1][1:] + histogram[1][:-1])
    soft = (centres > -20) & (centres < 100)
    fat = (centres > -150) & (centres < -60)
    lung = (centres > -950) & (centres < -700)
    for tissue, low, high in ((soft, 35, 65), (fat, -115, -90), (lung, -900, -770)):
        peak = centres[tissue][histogram[0][tissue].argmax()]
        assert low <= peak <= high


def test_a_coarse_scan_is_the_block_mean_of_a_fine_one(
    few: list[Thorax], fine: Thorax, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan_module, "NOISE_HU", 0.0)
    coarse = thorax(1, **COARSE).image.astype(float)
    mean = block_mean(thorax(1, shape=(80, 56, 104), spacing_mm=4.0).image.astype(np.float32), 2)
    # The two differ by the scanner's blur, which widens every edge by 0.8 mm at most.
    assert abs((coarse - mean).mean()) < 2
    assert np.sqrt(((coarse - mean) ** 2).mean()) < 20
    finer = few[1].image.astype(float) - coarse
    assert 1 < finer.std() < 10, "noise of an 8 mm voxel"


def test_occupancy_of_a_tube_is_its_section() -> None:
    """pi r^2 L for any radius against the voxel: thin tubes keep their mass."""
    for radius in (0.5, 1.0, 2.0, 2.6, 5.0):
        tube = Tubes(np.array([[0.3, 0.2, -60.0]]), np.array([[1.7, 1.1, 60.0]]), np.full((1, 2), radius))
        grid = Grid(np.array((-16.0, -16.0, -20.0)), 4.0, (9, 9, 11))
        section = render_tubes(tube, grid)[0].sum((0, 1)) * 16
        assert section.mean() == pytest.approx(np.pi * radius**2, rel=0.08)
    np.testing.assert_allclose(
        occupancy(np.float32([-9, -1, 0, 0.5, 9]), 2.0), [1, 1, 0.5, 0.25, 0], atol=1e-6
    )


def test_the_trees_are_trees_with_falling_diameters() -> None:
    for tree in (airways(), arteries(), veins()):
        child = np.flatnonzero(tree.parent >= 0)
        assert (tree.parent[child] < child).all()
        np.testing.assert_allclose(tree.start[child], tree.end[tree.parent[child]])
        deeper = tree.order[child] >= 0
        above = tree.radius[tree.parent[child]]
        assert (tree.radius[child][deeper] <= above[deeper]).all()
        mean = [tree.radius[tree.order == k].mean() for k in range(6)]
        assert np.all(np.diff(mean) < 0)
    tree = airways()
    depth = np.zeros(len(tree.parent), int)
    carina = tree.names.index("carina")
    for i in range(carina + 1, len(depth)):
        depth[i] = depth[tree.parent[i]] + 1
    assert depth.max() >= 5, "generations below the trachea"
    assert {n for n, k in zip(tree.names, tree.order, strict=True) if k == 0} == set(SEGMENTS)
    pieces = curves(tree, last=2)
    assert np.isfinite(pieces.start).all() and (pieces.radius > 0).all()


def test_subjects_are_diffeomorphisms_of_one_template() -> None:
    places = lung_points()[0][::97]
    for index in range(3):
        who = subject(index, 0)
        np.testing.assert_allclose(pull(who, push(who, places)), places, atol=0.01)
        slopes = [(flow(who, places + e) - flow(who, places - e)) / 2 for e in np.eye(3)]
        determinant = np.linalg.det(np.stack(slopes, -1))
        assert determinant.min() > 0.3 and determinant.max() < 3


def test_subjects_differ_after_an_affine_step(few: list[Thorax]) -> None:
    """TRE of the landmarks once the lungs' means and covariances agree (Gaussian transport)."""

    def root(matrix: np.ndarray, power: float = 0.5) -> np.ndarray:
        value, vector = np.linalg.eigh(matrix)
        return (vector * value**power) @ vector.T

    tre = []
    for fixed, moving in permutations(few, 2):
        lungs = [np.argwhere(m.lungs > 0) @ m.affine[:3, :3].T + m.affine[:3, 3] for m in (fixed, moving)]
        (a, b), (p, q) = [np.cov(x.T) for x in lungs], [x.mean(0) for x in lungs]
        matrix = root(a, -0.5) @ root(root(a) @ b @ root(a)) @ root(a, -0.5)
        moved = np.array([matrix @ (x - p) + q for x in fixed.landmarks.values()])
        tre.append(np.linalg.norm(moved - list(moving.landmarks.values()), axis=1).mean())
    assert 5 < np.mean(tre) < 13


def test_a_written_cohort_is_the_same_on_one_process_and_two(tmp_path: Path) -> None:
    tiny = {"shape": (20, 14, 26), "spacing_mm": 16.0, "progress": False}
    one = write_cohort(tmp_path / "one", cases=2, test=1, processes=1, **tiny)
    two = write_cohort(tmp_path / "two", cases=2, test=1, processes=2, **tiny)
    files = sorted(p.relative_to(one) for p in one.rglob("*") if p.is_file())
    assert len(files) == 1 + 5 * 2
    assert filecmp.cmpfiles(one, two, files, shallow=False) == (files, [], [])
    with open(one / "cases.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["split"] for row in rows] == ["train", "test"]
    image = nib.load(one / rows[0]["image"])
    assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
    made = thorax(0, shape=(20, 14, 26), spacing_mm=16.0)
    np.testing.assert_array_equal(np.asarray(image.dataobj), made.image)
    assert image.get_data_dtype() == np.int16
    with open(one / rows[0]["landmarks"], newline="", encoding="utf-8") as file:
        marks = {r["name"]: [float(r[a]) for a in "xyz"] for r in csv.DictReader(file)}
    np.testing.assert_allclose(marks["carina"], made.landmarks["carina"], atol=1e-4)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_a_cohort_that_cannot_be_written_says_why(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="exists"):
        write_cohort(tmp_path)
    with pytest.raises(InputError, match="test=3 of cases=3"):
        write_cohort(tmp_path / "new", cases=3, test=3)
    with pytest.raises(InputError, match="spacing"):
        thorax(0, shape=(20, 14, 26), spacing_mm=0.0)


@pytest.mark.slow
def test_a_program_on_standard_input_gets_its_cohort_too(tmp_path: Path) -> None:
    """Its worker processes cannot import it again: the cases are then made one after another."""
    program = (
        "from lmreg_jax import phantom\n"
        f"phantom.write_cohort({str(tmp_path / 'cohort')!r}, cases=2, test=1, seed=0, shape=(32, 24, 40),"
        " spacing_mm=11.0, processes=2, progress=False)\n"
    )
    subprocess.run(
        [sys.executable, "-"],
        input=program,
        text=True,
        check=True,
        capture_output=True,
        timeout=300,
        encoding="utf-8",
    )
    assert len(list((tmp_path / "cohort" / "images").iterdir())) == 2
