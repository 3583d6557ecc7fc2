"""Reading cohorts: geometry against the truth, splits and pairs."""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from lmreg_jax.affine import elastix
from lmreg_jax.affine import moments as alignment
from lmreg_jax.cohort.cohort import (
    held_out_pairs,
    split_names,
    training_pairs,
    tre_before_affine,
    with_validation,
)
from lmreg_jax.errors import InputError
from lmreg_jax.imaging.volume import Volume, apply_affine
from lmreg_jax.io.nifti import read_volume, write_volume
from lmreg_jax.io.points import read_points, write_points
from tests.tiny_cohort import GRID, LANDMARKS, SHAPE, cut_off_below, edit, random_pull, read, subject


def test_the_common_grid_and_what_lies_on_it(cohort_folder):
    cohort = read(cohort_folder)
    assert cohort.shape == (24, 18, 26) and cohort.spacing_mm == (12.0, 12.0, 12.0)
    assert cohort.landmark_names == tuple(LANDMARKS) and cohort.alignment == "moments"
    assert split_names(cohort, "train") == ["c0", "c1", "c2"] and cohort.reference in (
        "c0",
        "c1",
        "c2",
    )
    for case in cohort.cases:
        assert case.image.shape == cohort.shape and case.image.dtype == np.float32
        assert case.image.min() >= 0 and case.image.max() <= 1 and case.image[0, 0, 0] == 0
        assert case.lungs.dtype == np.uint8 and set(np.unique(case.lungs)) == {0, 1, 2}
        # left: smaller x
        centres = ndimage.center_of_mass(np.ones(cohort.shape), case.lungs, [1, 2])
        assert centres[0][0] < centres[1][0]
        mm = apply_affine(case.scan_from_grid, case.landmarks)
        np.testing.assert_allclose(mm, case.landmarks_mm, atol=1e-3)
        np.testing.assert_allclose(
            case.landmarks_mm[0], read_points(cohort_folder / f"landmarks/{case.name}.csv")["carina"]
        )
        assert case.points.shape == (0, 3) and case.lobes is None
    reference = cohort.case(cohort.reference)
    np.testing.assert_array_equal(reference.scan_from_grid, cohort.affine)
    box = np.argwhere(reference.lungs)
    middle = (box.min(0) + box.max(0)) / 2
    np.testing.assert_allclose(middle, (np.array(cohort.shape) - 1) / 2, atol=0.51)


def test_landmarks_lie_on_the_same_anatomy_as_in_the_scan(cohort_folder):
    """The resampled image at a landmark shows what the scan shows there, read independently."""
    cohort = read(cohort_folder, spacing_mm=8.0, shape=(36, 26, 36))
    for case in cohort.cases:
        scan = read_volume(cohort_folder / f"images/{case.name}.nii.gz")
        index = apply_affine(np.linalg.inv(scan.affine), case.landmarks_mm)
        smooth = ndimage.gaussian_filter(scan.data.astype(float), 2)
        want = (ndimage.map_coordinates(smooth, index.T, order=1) + 1000) / 1400
        image = ndimage.gaussian_filter(case.image.astype(float), 2)
        got = ndimage.map_coordinates(image, case.landmarks.T, order=1)
        np.testing.assert_allclose(got, want, atol=0.06)  # the affine step scales the blur


def test_moments_bring_landmarks_closer_and_lungs_over_each_other(cohort_folder):
    shifted, aligned = read(cohort_folder, alignment="none"), read(cohort_folder)
    for fixed, moving in [("c0", "c1"), ("c3", "c4")]:
        errors = []
        for cohort in (shifted, aligned):
            a, b = cohort.case(fixed), cohort.case(moving)
            errors.append(np.mean(np.linalg.norm(12 * (a.landmarks - b.landmarks), axis=1)))
        before = tre_before_affine(aligned, fixed, moving)
        want = [np.linalg.norm(p - q) for p, q in zip(*known_landmarks(fixed, moving), strict=True)]
        np.testing.assert_allclose(before, want, atol=1e-3)
        assert errors[1] < errors[0] < before.mean()
    inside = [np.mean((case.lungs > 0) == (aligned.cases[0].lungs > 0)) for case in aligned.cases]
    assert min(inside) > 0.96


def known_landmarks(*names):
    return [list(subject(random_pull(int(name[1:])))[2].values()) for name in names]


@pytest.mark.skipif(not elastix.installed(), reason="needs the extra lmreg_jax[elastix]")
@pytest.mark.slow
def test_elastix_recovers_the_subjects_affine_maps(cohort_folder):
    cohort = read(cohort_folder, alignment="auto", spacing_mm=8.0, shape=(36, 26, 36))
    assert cohort.alignment == "elastix" and {c.alignment for c in cohort.cases} == {"elastix", "reference"}
    for fixed, moving in training_pairs(cohort):
        a, b = cohort.case(fixed), cohort.case(moving)
        # the subjects are affine images of one model, at 8 mm voxels: half a voxel may remain
        assert np.linalg.norm(8 * (a.landmarks - b.landmarks), axis=1).mean() < 4


def test_elastix_that_fails_falls_back_by_case_and_says_so(cohort_folder, monkeypatch, caplog):
    def fails(*_):
        raise RuntimeError("went astray")

    monkeypatch.setattr(elastix, "installed", lambda: True)
    monkeypatch.setattr(elastix, "align", fails)
    cohort = read(cohort_folder, alignment="elastix", reference="c1")
    assert [c.alignment for c in cohort.cases] == ["moments", "reference", *["moments"] * 3]
    assert "c0: affine by elastix failed (went astray): aligned by the lungs' moments only" in caplog.text


def test_oblique_lps_scans_with_their_own_grids_agree_with_ras_ones(root):
    """Case c1 stored flipped, permuted and on a finer, rotated grid: the same subject arrives."""
    want = read(root).case("c1")
    ct, lungs, _ = subject(random_pull(1))
    turn = nib.orientations.axcodes2ornt("PSL")
    for folder, volume in (("images", ct), ("lungs", lungs)):
        image = nib.Nifti1Image(volume.data, volume.affine).as_reoriented(
            nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), turn)
        )
        nib.save(image, root / f"{folder}/c1.nii.gz")
    got = read(root).case("c1")
    np.testing.assert_allclose(got.image, want.image, atol=1e-5)
    np.testing.assert_array_equal(got.lungs, want.lungs)
    np.testing.assert_allclose(got.landmarks, want.landmarks, atol=1e-4)
    # a rotated, finer mask grid of its own
    angle = np.deg2rad(12)
    affine = np.diag([5.0, 5.0, 5.0, 1.0])
    affine[:2, :2] = 5 * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    affine[:3, 3] = -affine[:3, :3] @ (35, 30, 30)
    _, fine, _ = subject(random_pull(1), (70, 60, 60), affine)
    write_volume(root / "lungs/c1.nii.gz", fine)
    mask = read(root).case("c1").lungs
    assert 2 * np.sum((mask > 0) & (want.lungs > 0)) / np.sum((mask > 0) * 1 + (want.lungs > 0)) > 0.93


def test_reference_is_named_or_central_but_never_a_test_case(root):
    assert read(root, reference="c4").reference == "c4"  # asked for by name
    moments = [alignment.mask_moments(read_volume(root / f"lungs/c{i}.nii.gz")) for i in range(3)]
    sums = [sum(alignment.shape_distance(a, b) for b in moments) for a in moments]
    assert read(root).reference == f"c{int(np.argmin(sums))}"
    edit(root / "cases.csv", ",train,", ",test,")
    with pytest.raises(InputError, match="all cases are test cases"):
        read(root)


def test_lungs_that_the_scan_cuts_off_do_not_become_the_reference(root):
    central = read(root).reference
    cut_off_below(root, central, 1 / 3)
    assert read(root).reference != central


def test_cut_off_lungs_are_not_stretched_over_the_reference(root):
    """Plain moments give a z scale of 0.78 here, and 5.1 mm of error."""
    cut_off_below(root, "c1", 0.35)
    cohort = read(root, reference="c0")
    whole, cut = cohort.case("c0"), cohort.case("c1")
    pull = cut.scan_from_grid @ np.linalg.inv(cohort.affine)
    truth = random_pull(1) @ np.linalg.inv(random_pull(0))
    np.testing.assert_allclose(pull[2, 2], truth[2, 2], atol=0.03)
    error = np.linalg.norm(12 * (whole.landmarks - cut.landmarks), axis=1)
    assert np.isfinite(error).sum() == 3 and np.nanmean(error) < 4


def test_other_formats_give_the_same_case(root):
    """NRRD on axes of its own, 3D Slicer's markups in LPS."""
    sitk = pytest.importorskip("SimpleITK")
    want = read(root).case("c1")
    image = sitk.DICOMOrient(sitk.ReadImage(str(root / "images/c1.nii.gz")), "PLS")
    sitk.WriteImage(image, str(root / "images/c1.nrrd"))
    write_points(root / "landmarks/c1.mrk.json", read_points(root / "landmarks/c1.csv"))
    edit(root / "cases.csv", "images/c1.nii.gz", "images/c1.nrrd")
    edit(root / "cases.csv", "landmarks/c1.csv", "landmarks/c1.mrk.json")
    got = read(root).case("c1")
    np.testing.assert_allclose(got.image, want.image, atol=1e-5)
    np.testing.assert_allclose(got.landmarks, want.landmarks, atol=1e-3)


def test_a_bare_folder_of_scans_is_a_training_cohort(cohort_folder, tmp_path, caplog):
    for i in range(2):
        shutil.copy(cohort_folder / f"images/c{i}.nii.gz", tmp_path / f"s{i}.nii.gz")
    cohort = read(tmp_path)
    assert [(c.name, c.split) for c in cohort.cases] == [("s0", "train"), ("s1", "train")]
    assert cohort.landmark_names == () and cohort.cases[0].landmarks.shape == (0, 3)
    assert all(case.lungs is not None for case in cohort.cases)  # segmented: it looks like CT
    with caplog.at_level(logging.WARNING):
        plain = read(tmp_path, lungs="none")
    assert all(case.lungs is None and case.image.max() > 0.7 for case in plain.cases)
    assert "have no lung mask" in caplog.text and plain.cases[1].alignment == "centres"
    middle = apply_affine(GRID, (np.array([40, 30, 36]) - 1) / 2)
    np.testing.assert_allclose(
        apply_affine(plain.cases[1].scan_from_grid, (np.array(plain.shape) - 1) / 2),
        middle,
        atol=1e-3,
    )


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda hu: hu + 1000, {}, "values from 0 to 1040, none below 0, where the window"),
        (
            lambda hu: hu,
            {"window": (2000, 4000)},
            "values from -1000 to 40, all beyond the window",
        ),
    ],
)
def test_values_in_another_unit_than_the_window_are_refused(root, change, options, message):
    """Stored values without the rescale intercept look like a body in a body: nothing there is air."""
    path = root / "images/c1.nii.gz"
    image = read_volume(path)
    write_volume(path, Volume(change(image.data), image.affine))
    with pytest.raises(InputError, match=f"images/c[0-2].nii.gz: {message}"):
        read(root, **options)
    if not options:
        assert list(read(root, policy="skip").skipped) == ["c1"]
        read(root, window=(0, 1400))  # a window of these values; the mask comes from a file


def test_other_modalities_by_percentiles_without_lungs(root):
    for i in range(5):
        volume = read_volume(root / f"images/c{i}.nii.gz")
        data = (volume.data + 1000) * (0.5 + i) + np.random.default_rng(i).random(volume.data.shape)
        write_volume(root / f"images/c{i}.nii.gz", Volume(data, volume.affine))
        (root / f"landmarks/c{i}.csv").write_text("name,x,y,z\nliver,1,2,3\n", encoding="utf-8")
    edit(root / "cases.csv", ",lungs,", ",other,")
    cohort = read(root, window=(1, 99), window_kind="percentile")
    assert cohort.landmark_names == ("liver",)
    assert all(case.lungs is None for case in cohort.cases)
    assert all(0.95 < case.image.max() <= 1 for case in cohort.cases)


def test_masks_of_any_label_and_identity_alignment(root):
    volume = read_volume(root / "lungs/c0.nii.gz")
    write_volume(root / "lungs/c0.nii.gz", Volume((volume.data > 0) * np.int16(255), volume.affine))
    cohort = read(root, alignment="identity")
    assert set(np.unique(cohort.case("c0").lungs)) == {0, 1, 2}  # the sides are told from the picture
    assert all(np.array_equal(case.scan_from_grid, cohort.affine) for case in cohort.cases)


def test_what_lies_on_the_grid_already_is_not_interpolated(root):
    cohort = read(root, alignment="identity", shape=SHAPE, spacing_mm=8.0)
    for case in cohort.cases:
        scan = read_volume(root / f"images/{case.name}.nii.gz")
        np.testing.assert_array_equal(cohort.affine, scan.affine)
        np.testing.assert_allclose(case.image, np.clip((scan.data + 1000) / 1400, 0, 1), atol=1e-6)


def test_missing_landmarks_are_nan_and_names_can_be_chosen(root):
    edit(root / "landmarks/c1.csv", "left_tip", "else")
    cohort = read(root)
    assert cohort.landmark_names == (*LANDMARKS, "else")
    missing = np.isnan(cohort.case("c1").landmarks).any(axis=1)
    assert missing.tolist() == [False, True, False, False, False, False]
    assert np.isnan(cohort.case("c0").landmarks_mm[5]).all()
    chosen = read(root, landmark_names=("right_tip", "carina"))
    np.testing.assert_allclose(chosen.case("c0").landmarks, cohort.case("c0").landmarks[[2, 0]])


def test_landmarks_beyond_the_grid_but_in_the_scan_are_kept(root):
    cohort = read(root, shape=(8, 8, 8))
    assert np.isfinite(cohort.case("c0").landmarks).all() and cohort.case("c0").landmarks.max() > 8


def test_further_points_and_lobes(root):
    shutil.copytree(root / "landmarks", root / "points")
    shutil.copytree(root / "lungs", root / "lobes")
    rows = [
        f"c{i},train,images/c{i}.nii.gz,lungs/c{i}.nii.gz,lobes/c{i}.nii.gz,"
        f"landmarks/c{i}.csv,points/c{i}.csv"
        for i in range(3)
    ]
    header = "case,split,image,lungs,lobes,landmarks,points"
    (root / "cases.csv").write_text("\n".join([header, *rows]), encoding="utf-8")
    cohort = read(root, landmark_names=("carina",))
    assert cohort.point_names == tuple(LANDMARKS) and cohort.case("c2").points.shape == (5, 3)
    np.testing.assert_array_equal(cohort.case("c2").lobes, cohort.case("c2").lungs)


# Splits and pairs


def test_pairs_default_to_all_in_training_and_a_ring_elsewhere(cohort_folder):
    cohort = read(cohort_folder)
    assert len(training_pairs(cohort)) == 6 and ("c2", "c0") in training_pairs(cohort)
    assert held_out_pairs(cohort, "test") == [("c3", "c4"), ("c4", "c3")]
    assert held_out_pairs(cohort, "validation") == []
    assert held_out_pairs(cohort, "train") == [("c0", "c1"), ("c1", "c2"), ("c2", "c0")]


def test_given_pairs_are_those_of_their_split(root):
    (root / "pairs.csv").write_text("fixed,moving\nc4,c3\nc0,c2\n", encoding="utf-8")
    cohort = read(root)
    assert cohort.pairs == (("c4", "c3"), ("c0", "c2"))
    assert held_out_pairs(cohort, "test") == [("c4", "c3")]
    assert training_pairs(cohort) == [("c0", "c2")]


def test_validation_cases_are_taken_from_training_by_seed(root):
    edit(root / "cases.csv", "c3,test", "c3,train")
    cohort = read(root)
    moved = [split_names(with_validation(cohort, 2, seed), "validation") for seed in range(20)]
    assert all(len(names) == 2 and cohort.reference not in names for names in moved)
    assert len({tuple(names) for names in moved}) > 1
    assert moved[3] == split_names(with_validation(cohort, 2, 3), "validation")
    assert split_names(with_validation(cohort, 2, 0), "test") == ["c4"]
    held = with_validation(cohort, 1, 0)
    assert with_validation(held, 1, 5) is held  # there are some already
    for count in (3, 4, -1):
        with pytest.raises(InputError, match="fewer than 2 to train on"):
            with_validation(cohort, count, 0)


def test_single_cases_make_no_pair(root):
    edit(root / "cases.csv", "c4,test", "c4,validation")
    cohort = read(root)
    with pytest.raises(InputError, match="one test case, c3; a pair needs two"):
        held_out_pairs(cohort, "test")
    single = replace(cohort, cases=cohort.cases[:1])
    with pytest.raises(InputError, match="1 train cases; a pair needs two"):
        training_pairs(single)
    with pytest.raises(InputError, match="split 'tests'"):
        split_names(cohort, "tests")
    with pytest.raises(InputError, match="no case 'c9'"):
        cohort.case("c9")


def test_a_table_of_one_case_can_be_read(root):
    (root / "cases.csv").write_text("case,image\nonly,images/c0.nii.gz\n", encoding="utf-8")
    cohort = read(root, lungs="none")
    assert cohort.reference == "only" and cohort.cases[0].split == "train"
