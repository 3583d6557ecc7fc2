"""Cohorts that cannot be read, each refused in words that name file and value."""

from __future__ import annotations

import re
import shutil

import numpy as np
import pytest

from lmreg_jax.affine import elastix
from lmreg_jax.errors import InputError
from lmreg_jax.imaging.volume import Volume, apply_affine
from lmreg_jax.io.nifti import read_volume, write_volume
from lmreg_jax.io.points import read_points
from tests.tiny_cohort import edit, read, subject


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
def test_bad_options_are_refused(cohort_folder, options, words):
    with pytest.raises(InputError, match=re.escape(words)):
        read(cohort_folder, **options)


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


def test_elastix_asked_for_but_not_installed(cohort_folder, monkeypatch):
    monkeypatch.setattr(elastix, "installed", lambda: False)
    assert read(cohort_folder, alignment="auto").alignment == "moments"
    with pytest.raises(InputError, match="needs the package itk-elastix"):
        read(cohort_folder, alignment="elastix")
