"""Reading cohorts: geometry against the truth, caching, splits and pairs, and refusals in words."""

from __future__ import annotations

import json
import logging
import multiprocessing
import re
import shutil
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from lmreg_jax import alignment, cohort_prepare, elastix
from lmreg_jax.cohort import (
    held_out_pairs,
    read_cohort,
    split_names,
    training_pairs,
    tre_before_affine,
    with_validation,
)
from lmreg_jax.errors import InputError
from lmreg_jax.volumes import Volume, apply_affine, read_points, read_volume, write_volume
from tests.tiny_cohort import GRID, LANDMARKS, random_pull, subject, write_cohort

OPTIONS = {"shape": (24, 18, 26), "spacing_mm": 12.0, "alignment": "moments", "progress": False}


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    return write_cohort(tmp_path_factory.mktemp("cohort"))


@pytest.fixture
def root(template, tmp_path):
    return shutil.copytree(template, tmp_path / "cohort")


def read(root, **options):
    return read_cohort(root, **{**OPTIONS, **options})


def edit(path, old, new):
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_the_common_grid_and_what_lies_on_it(template):
    cohort = read(template)
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
            case.landmarks_mm[0], read_points(template / f"landmarks/{case.name}.csv")["carina"]
        )
        assert case.points.shape == (0, 3) and case.lobes is None
    reference = cohort.case(cohort.reference)
    np.testing.assert_array_equal(reference.scan_from_grid, cohort.affine)
    box = np.argwhere(reference.lungs)
    middle = (box.min(0) + box.max(0)) / 2
    np.testing.assert_allclose(middle, (np.array(cohort.shape) - 1) / 2, atol=0.51)


def test_landmarks_lie_on_the_same_anatomy_as_in_the_scan(template):
    """The resampled image at a landmark shows what the scan shows there, read independently."""
    cohort = read(template, spacing_mm=8.0, shape=(36, 26, 36))
    for case in cohort.cases:
        scan = read_volume(template / f"images/{case.name}.nii.gz")
        index = apply_affine(np.linalg.inv(scan.affine), case.landmarks_mm)
        smooth = ndimage.gaussian_filter(scan.data.astype(float), 2)
        want = (ndimage.map_coordinates(smooth, index.T, order=1) + 1000) / 1400
        image = ndimage.gaussian_filter(case.image.astype(float), 2)
        got = ndimage.map_coordinates(image, case.landmarks.T, order=1)
        np.testing.assert_allclose(got, want, atol=0.06)  # the affine step scales the blur


def test_moments_bring_landmarks_closer_and_lungs_over_each_other(template):
    shifted, aligned = read(template, alignment="none"), read(template)
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
def test_elastix_recovers_the_subjects_affine_maps(template):
    cohort = read(template, alignment="auto", spacing_mm=8.0, shape=(36, 26, 36))
    assert cohort.alignment == "elastix" and {c.alignment for c in cohort.cases} == {"elastix"}
    for fixed, moving in training_pairs(cohort):
        a, b = cohort.case(fixed), cohort.case(moving)
        # the subjects are affine images of one model, at 8 mm voxels: half a voxel may remain
        assert np.linalg.norm(8 * (a.landmarks - b.landmarks), axis=1).mean() < 4


def test_elastix_that_fails_falls_back_by_case_and_says_so(template, monkeypatch, caplog):
    def fails(*_):
        raise RuntimeError("went astray")

    monkeypatch.setattr(elastix, "installed", lambda: True)
    monkeypatch.setattr(elastix, "align", fails)
    cohort = read(template, alignment="elastix", reference="c1")
    assert [c.alignment for c in cohort.cases] == ["moments", "elastix", *["moments"] * 3]
    assert "c0: elastix failed (went astray); aligned by moments" in caplog.text


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
    for folder in ("images", "lungs"):
        volume = read_volume(root / f"{folder}/{central}.nii.gz")
        shift = volume.affine.copy()
        shift[:3, 3] = apply_affine(volume.affine, (0, 0, 12))
        write_volume(root / f"{folder}/{central}.nii.gz", Volume(volume.data[:, :, 12:], shift))
    (root / f"landmarks/{central}.csv").write_text("name,x,y,z\n", encoding="utf-8")
    assert read(root).reference != central


def test_a_bare_folder_of_scans_is_a_training_cohort(template, tmp_path, caplog):
    for i in range(2):
        shutil.copy(template / f"images/c{i}.nii.gz", tmp_path / f"s{i}.nii.gz")
    cohort = read(tmp_path)
    assert [(c.name, c.split) for c in cohort.cases] == [("s0", "train"), ("s1", "train")]
    assert cohort.landmark_names == () and cohort.cases[0].landmarks.shape == (0, 3)
    assert all(case.lungs is not None for case in cohort.cases)  # segmented: it looks like CT
    with caplog.at_level(logging.WARNING):
        plain = read(tmp_path, lungs="none")
    assert all(case.lungs is None and case.image.max() > 0.7 for case in plain.cases)
    assert "have no lung mask" in caplog.text and plain.cases[1].alignment == "none"
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
    assert set(np.unique(cohort.case("c0").lungs)) == {0, 1}
    assert all(np.array_equal(case.scan_from_grid, cohort.affine) for case in cohort.cases)


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


# The cache


def equal(a, b):
    for x, y in zip(a.cases, b.cases, strict=True):
        for name in ("image", "lungs", "landmarks", "landmarks_mm", "scan_from_grid"):
            np.testing.assert_array_equal(getattr(x, name), getattr(y, name))
        assert (x.name, x.split, x.alignment) == (y.name, y.split, y.alignment)
    assert (a.reference, a.landmark_names, a.point_names) == (
        b.reference,
        b.landmark_names,
        b.point_names,
    )
    np.testing.assert_array_equal(a.affine, b.affine)


def count_preparations(monkeypatch):
    calls = []
    original = cohort_prepare.prepare

    def counted(*arguments):
        calls.append(1)
        return original(*arguments)

    monkeypatch.setattr("lmreg_jax.cohort.prepare", counted)
    return calls


def test_the_cache_gives_the_same_cohort_without_reading_scans(root, tmp_path, monkeypatch):
    calls = count_preparations(monkeypatch)
    plain = read(root)
    first = read(root, cache=tmp_path / "cache")
    second = read(root, cache=tmp_path / "cache")
    assert len(calls) == 2  # without a cache, and once for it
    equal(plain, first)
    equal(plain, second)
    assert not second.cases[0].image.flags.writeable  # mapped from the file, never changed


def test_the_cache_notices_changed_files_and_options(root, tmp_path, monkeypatch):
    calls = count_preparations(monkeypatch)
    cache = tmp_path / "cache"
    read(root, cache=cache)
    read(root, cache=cache, window=(-900, 300))
    edit(root / "landmarks/c0.csv", "left_tip", "left_top")
    assert "left_top" in read(root, cache=cache).landmark_names
    edit(root / "cases.csv", "c3,test", "c3,validation")
    assert read(root, cache=cache).case("c3").split == "validation"
    assert len(calls) == 4


@pytest.mark.parametrize("damage", ["truncate", "remove", "json", "values"])
def test_a_damaged_cache_entry_is_made_anew(root, tmp_path, damage, caplog):
    cache = tmp_path / "cache"
    want = read(root, cache=cache)
    (entry,) = cache.iterdir()
    victim = entry / "image_0001.npy"
    if damage == "truncate":
        victim.write_bytes(victim.read_bytes()[:-100])
    elif damage == "remove":
        victim.unlink()
    elif damage == "json":
        (entry / "cohort.json").write_text("{", encoding="utf-8")
    else:
        (entry / "cohort.json").write_text(json.dumps({"sizes": {}}), encoding="utf-8")
    again = read(root, cache=cache)
    assert "made anew" in caplog.text
    equal(again, read(root))
    assert [path.name for path in cache.iterdir()] == [entry.name]
    equal(read(root, cache=cache), again)
    del want


def test_a_cache_that_cannot_be_written_is_only_a_warning(root, tmp_path, caplog):
    (tmp_path / "file").write_text("no folder", encoding="utf-8")
    cohort = read(root, cache=tmp_path / "file" / "cache")
    assert len(cohort.cases) == 5 and "could not be written" in caplog.text


def start(root, cache):
    cohort = read_cohort(root, cache=cache, **OPTIONS)
    assert len(cohort.cases) == 5


def test_two_processes_may_start_at_once(root, tmp_path):
    context = multiprocessing.get_context("spawn")
    cache = tmp_path / "cache"
    workers = [context.Process(target=start, args=(root, cache)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    assert len(list(cache.iterdir())) == 1  # one entry, no leftovers
    equal(read(root, cache=cache), read(root))


# Splits and pairs


def test_pairs_default_to_all_in_training_and_a_ring_elsewhere(template):
    cohort = read(template)
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


# Refusals


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("case,image\n", "no case in it"),
        ("", "column case, image is missing"),
        ("case,split\na,train\n", "column image is missing"),
        ("case,image\na,images/c0.nii.gz\na,images/c1.nii.gz\n", "'a' is already on line 2"),
        ("case,image\na,images/none.nii.gz\n", "does not exist"),
        ("case,image\na,\n", "names no image"),
        ("case,image,split\na,images/c0.nii.gz,training\n", "split 'training'"),
        ("case,image\na,../images/c0.nii.gz\n", "allow_outside_root=True"),
        ("case,image\na,/etc/hosts\n", "allow_outside_root=True"),
        ("case,image\na,C:/c0.nii.gz\n", "allow_outside_root=True"),
        ("case,image\n../a,images/c0.nii.gz\n", "case name"),
        ("case,image\n,images/c0.nii.gz\n", "case name"),
        ("case,image,landmark\na,images/c0.nii.gz,\n", "did you mean 'landmarks'"),
        ("case,image,points\na,images/c0.nii.gz,none.csv\n", "none.csv does not exist"),
    ],
)
def test_bad_case_tables_are_refused(root, table, words):
    (root / "cases.csv").write_text(table, encoding="utf-8")
    with pytest.raises(InputError, match=re.escape(words)) as caught:
        read(root)
    assert "cases.csv" in str(caught.value)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("fixed,moving\nc0,c9\n", "no case 'c9'"),
        ("fixed,moving\nc0,c0\n", "paired with itself"),
        ("fixed,moving\nc0,c1\nc0,c1\n", "there twice"),
        ("fixed,moving\nc0,c3\n", "must be of one split"),
        ("fixed\nc0\n", "column moving is missing"),
    ],
)
def test_bad_pair_tables_are_refused(root, table, words):
    (root / "pairs.csv").write_text(table, encoding="utf-8")
    with pytest.raises(InputError, match=re.escape(words)):
        read(root)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"shape": (16, 16)}, "three sizes"),
        ({"shape": (16, 16, 1)}, "three sizes"),
        ({"spacing_mm": (2.0, 0.0, 2.0)}, "spacing_mm"),
        ({"spacing_mm": (2.0, 2.0)}, "spacing_mm"),
        ({"window": (400, -1000)}, "low < high"),
        ({"window_kind": "percentil"}, "window_kind"),
        ({"window_kind": "percentile", "window": (-1, 50)}, "percentile"),
        ({"alignment": "affine"}, "alignment 'affine'"),
        ({"lungs": "yes"}, "lungs 'yes'"),
        ({"reference": "c9"}, "reference 'c9'"),
        ({"landmark_names": ("carina", "carina")}, "twice"),
        ({"landmark_names": ("Carina",)}, "names must match exactly"),
    ],
)
def test_bad_options_are_refused(template, options, words):
    with pytest.raises(InputError, match=re.escape(words)):
        read(template, **options)


def test_folders_that_are_no_cohort(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        read(tmp_path / "none")
    with pytest.raises(InputError, match=r"neither cases\.csv nor"):
        read(tmp_path)
    ct = subject(np.eye(4))[0]
    write_volume(tmp_path / "a.nii", ct)
    write_volume(tmp_path / "a.nii.gz", ct)
    with pytest.raises(InputError, match="one case twice"):
        read(tmp_path)


def test_landmark_names_that_no_two_cases_share(root):
    for i in range(5):
        (root / f"landmarks/c{i}.csv").write_text(f"name,x,y,z\nmark_{i},0,0,0\n", encoding="utf-8")
    with pytest.raises(InputError, match="shares no landmark name") as caught:
        read(root)
    assert "mark_0" in str(caught.value) and "mark_3" in str(caught.value)


def test_lps_landmarks_are_recognised(root):
    path = root / "landmarks/c2.csv"
    shift = np.eye(4)
    shift[:3, 3] = (400.0, 300.0, 0.0)  # scanner origins are seldom in the patient's middle
    for folder in ("images", "lungs"):
        volume = read_volume(root / f"{folder}/c2.nii.gz")
        write_volume(root / f"{folder}/c2.nii.gz", Volume(volume.data, shift @ volume.affine))
    points = {name: apply_affine(shift, p) for name, p in read_points(path).items()}
    ras = "".join(f"{n},{p[0]},{p[1]},{p[2]}\n" for n, p in points.items())
    lps = "".join(f"{n},{-p[0]},{-p[1]},{p[2]}\n" for n, p in points.items())
    path.write_text("name,x,y,z\n" + ras, encoding="utf-8")
    read(root)
    path.write_text("name,x,y,z\n" + lps, encoding="utf-8")
    with pytest.raises(InputError, match="seems to be LPS") as caught:
        read(root)
    assert str(path) in str(caught.value) and "5 of 5" in str(caught.value)


def test_a_landmark_far_outside_is_named_without_blaming_lps(root):
    path = root / "landmarks/c2.csv"
    path.write_text(path.read_text(encoding="utf-8") + "far,0,0,5000\n", encoding="utf-8")
    with pytest.raises(InputError, match="first 'far' at") as caught:
        read(root)
    assert "LPS" not in str(caught.value)


def test_masks_that_are_empty_or_elsewhere(root):
    mask = read_volume(root / "lungs/c1.nii.gz")
    write_volume(root / "lungs/c1.nii.gz", Volume(mask.data * 0, mask.affine))
    with pytest.raises(InputError, match=r"c1\.nii\.gz: the lung mask is empty"):
        read(root)
    away = mask.affine.copy()
    away[:3, 3] += 2000
    write_volume(root / "lungs/c1.nii.gz", Volume(mask.data, away))
    with pytest.raises(InputError, match="lies wholly outside"):
        read(root)


def test_a_broken_scan_among_many_is_named(root):
    path = root / "images/c3.nii.gz"
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(InputError, match=r"c3\.nii\.gz.*damaged"):
        read(root)


def test_paths_outside_the_root_where_they_are_allowed(root, tmp_path):
    shutil.move(root / "images", tmp_path / "images")
    edit(root / "cases.csv", ",images/", ",../images/")
    with pytest.raises(InputError, match="outside"):
        read(root)
    cohort = read(root, allow_outside_root=True, cache=tmp_path / "cache")
    assert len(cohort.cases) == 5


def test_elastix_asked_for_but_not_installed(template, monkeypatch):
    monkeypatch.setattr(elastix, "installed", lambda: False)
    assert read(template, alignment="auto").alignment == "moments"
    with pytest.raises(InputError, match="needs the package itk-elastix"):
        read(template, alignment="elastix")
