"""Scans that end within the grid: where they have data, and what is shown where they have none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from lmreg_jax.affine import reference
from lmreg_jax.anatomy.chest import Side, read_side
from lmreg_jax.cohort import batches
from lmreg_jax.cohort.case import images_of_pair
from lmreg_jax.cohort.cohort import Cohort, read_cohort
from lmreg_jax.errors import InputError
from lmreg_jax.evaluation import cohort as evaluation
from lmreg_jax.imaging import intensity
from lmreg_jax.imaging.intensity import fill_missing
from lmreg_jax.imaging.resampling import inside, resample
from lmreg_jax.imaging.transforms import transform_points
from lmreg_jax.imaging.volume import Volume, apply_affine
from lmreg_jax.io.nifti import write_volume
from lmreg_jax.registration import scans
from tests.analytic_thorax import shipped_model, stored

SHAPE = (20, 16, 24)


def written(root: Path) -> Path:
    """Two scans of one scene, bright by position; the second lacks its lower third."""
    x, y, z = np.meshgrid(*map(np.arange, SHAPE), indexing="ij")
    scene = (-900 + 20 * x + 7 * y + 13 * z).astype(np.int16)
    for name, first in (("whole", 0), ("cut", 8)):
        affine = np.diag([2.0, 2.0, 2.0, 1.0])
        affine[2, 3] = 2.0 * first
        write_volume(root / f"{name}.nii.gz", Volume(scene[:, :, first:], affine))
    return root


@pytest.fixture
def cohort(tmp_path: Path) -> Cohort:
    return read_cohort(
        written(tmp_path), shape=SHAPE, spacing_mm=2.0, alignment="identity", lungs="none",
        reference="whole", progress=False,
    )  # fmt: skip


def test_a_cut_scan_knows_where_it_has_data(cohort: Cohort) -> None:
    cut, whole = cohort.case("cut"), cohort.case("whole")
    assert whole.inside is None
    assert cut.inside is not None
    np.testing.assert_array_equal(cut.inside.any((0, 1)), np.arange(24) >= 8)
    assert not cut.image[~cut.inside].any()


def test_the_other_scan_is_shown_there(cohort: Cohort) -> None:
    fixed, moving = images_of_pair(cohort.case("cut"), cohort.case("whole"))
    np.testing.assert_array_equal(fixed, moving)  # One scene: nothing is left that asks for motion.
    cut, whole = cohort.case("cut"), cohort.case("whole")
    batch = batches.assemble([(cut, whole), (whole, cut)])
    np.testing.assert_array_equal(batch.fixed, np.stack([fixed, fixed]))
    np.testing.assert_array_equal(batch.moving, batch.fixed)


def test_the_evaluation_shows_the_same(cohort: Cohort) -> None:
    seen = []

    def register(fixed: np.ndarray, moving: np.ndarray) -> evaluation.Registration:
        seen.append((fixed, moving))
        return evaluation.identity_register(fixed, moving)

    evaluation.evaluate_pairs(register, cohort, [("cut", "whole")], progress=False)
    for fixed, moving in seen:
        np.testing.assert_array_equal(fixed, moving)


def test_what_both_lack_stays(cohort: Cohort) -> None:
    a, b = np.full(3, 0.1), np.full(3, 0.2)
    got = fill_missing(a, b, np.array([True, False, False]), np.array([False, True, False]))
    np.testing.assert_allclose(got, [[0.1, 0.2, 0.1], [0.1, 0.2, 0.2]])


def test_inside_is_where_resample_does_not_fill() -> None:
    generator = np.random.default_rng(0)
    volume = Volume(generator.uniform(1, 2, (9, 8, 7)).astype(np.float32), np.diag([2.0, 3.0, 1.0, 1.0]))
    affine = np.eye(4)
    affine[:3, :3] += generator.normal(0, 0.2, (3, 3))
    affine[:3, 3] = (-3, 4, -2)
    pull = np.eye(4)
    pull[:3, 3] = (1, -2, 0.5)
    values = resample(volume, (15, 20, 9), affine, fill=-1.0, pull=pull)
    np.testing.assert_array_equal(inside(volume, (15, 20, 9), affine, pull=pull), values > 0)


def test_reference_lungs_are_those_of_a_box(cohort: Cohort, tmp_path: Path) -> None:
    """A box of n voxels of edge s has sd s n / sqrt(12): the voxels' own extent counts."""
    lungs = np.zeros(SHAPE, np.uint8)
    lungs[4:8, 2:14, 5:15] = 1
    case = replace(cohort.cases[0], lungs=lungs)
    found = reference.of_masks([case.lungs, cohort.cases[1].lungs], cohort.spacing_mm)
    assert found is not None
    np.testing.assert_allclose(found.mean_mm, [11.0, 15.0, 19.0])
    np.testing.assert_allclose(found.sd_mm, 2 * np.array([4, 12, 10]) / np.sqrt(12))
    reference.write(tmp_path, found)
    np.testing.assert_array_equal(reference.read(tmp_path), found)
    assert reference.of_masks([], cohort.spacing_mm) is None
    assert reference.read(tmp_path / "none") is None


@pytest.mark.parametrize("text", ["{", "{}", '{"mean_mm": [0, 0], "sd_mm": [1, 1, 1]}',
                                  '{"mean_mm": [0, 0, 0], "sd_mm": [1, 0, 1]}'])  # fmt: skip
def test_damaged_reference_lungs_are_named(tmp_path: Path, text: str) -> None:
    (tmp_path / reference.FILE).write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=reference.FILE):
        reference.read(tmp_path)


@pytest.mark.slow
def test_a_cut_off_base_does_not_pull_the_lungs_through_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One subject twice, in other voxels: what moves is the network's doing, with and without its base."""
    files = [stored(tmp_path / f"{i}.nii.gz", 0.0, ((0, 0, 0), (mm,) * 3)) for i, mm in enumerate((3.0, 2.9))]
    whole = [read_side(file) for file in files]
    cut = []
    for file, slices in zip(files, (62, 64), strict=True):  # 8 of 21 cm of lung are gone
        nib.load(file).slicer[:, :, slices:].to_filename(tmp_path / f"cut_{file.name}")
        cut.append(read_side(tmp_path / f"cut_{file.name}"))
    seen_by_all = scans.lung_points(cut[0].lungs)

    def motion(fixed: Side, moving: Side) -> float:
        """Mean mm that the network moves what both scans see of the lungs."""
        found = scans.register_sides(fixed, moving, shipped_model(), affine="moments")
        there = transform_points(found.forward, seen_by_all)
        return float(np.linalg.norm(there - apply_affine(found.affine.pull, seen_by_all), axis=1).mean())

    still = motion(*whole)  # 2.0: the network was not trained on this thorax
    assert motion(whole[0], cut[1]) < still + 0.6
    assert motion(cut[0], whole[1]) < still + 0.6
    monkeypatch.setattr(intensity, "fill_missing", lambda fixed, moving, *_: (fixed, moving))
    assert motion(cut[0], whole[1]) > 2 * still  # The wall of air pulls.
