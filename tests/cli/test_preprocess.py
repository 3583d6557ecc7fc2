"""`lmreg preprocess`: a cohort on one grid that the trainer reads, and every step to undo it."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from lmreg_jax.anatomy.segmentation import segment_lungs
from lmreg_jax.cli import preprocess
from lmreg_jax.cli.main import main
from lmreg_jax.cohort.cohort import read_cohort
from lmreg_jax.cohort.table import case_name
from lmreg_jax.errors import exits_cleanly
from lmreg_jax.evaluation.metrics import dice
from lmreg_jax.imaging.volume import Volume, apply_affine
from lmreg_jax.io.nifti import read_volume, write_volume
from lmreg_jax.io.points import read_points, write_points
from tests.tiny_cohort import LANDMARKS, random_pull, subject

SHAPE = (40, 30, 40)


def lmreg(*arguments: object) -> None:
    parser = argparse.ArgumentParser()
    preprocess.add(parser.add_subparsers())
    args = parser.parse_args(["preprocess", *map(str, arguments), "--quiet"])
    exits_cleanly(preprocess.run)(args)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three subjects in three orientations, prepared with moments on an 8 mm grid."""
    root = tmp_path_factory.mktemp("raw")
    for i in range(3):
        ct, lungs, landmarks = subject(random_pull(i))
        write_points(root / f"s{i}.mrk.json", landmarks)
        axes = [(0, 1, 2), (2, 0, 1), (1, 2, 0)][i]
        turn = np.zeros((4, 4))
        turn[[*axes, 3], [0, 1, 2, 3]] = 1
        for volume, name in ((ct, f"s{i}"), (lungs, f"s{i}_lungs")):
            data = np.ascontiguousarray(volume.data.transpose(axes))
            write_volume(root / f"{name}.nii.gz", Volume(data, volume.affine @ turn))
    lmreg(
        *(root / f"s{i}.nii.gz" for i in range(3)),
        *("--masks", *(root / f"s{i}_lungs.nii.gz" for i in range(2)), "-"),
        *("--output", root / "cohort", "--spacing", 8, "--shape", *SHAPE, "--affine", "moments"),
        *("--reference", "s1", "--landmarks", root / "s0.mrk.json", "-", root / "s2.mrk.json"),
    )
    return root / "cohort"


def test_the_trainer_reads_it(cohort: Path) -> None:
    read = read_cohort(cohort, shape=SHAPE, spacing_mm=8.0, alignment="identity", progress=False)
    assert [case.name for case in read.cases] == ["s0", "s1", "s2"]
    lungs = [case.lungs for case in read.cases]
    assert all(mask is not None for mask in lungs)
    # 8 mm voxels, a rounding for each of two resamplings: nearly aligned is all that can be asked for.
    assert dice(lungs[0], lungs[1]) > 0.85
    assert dice(lungs[2], lungs[1]) > 0.85


def test_every_step_can_be_undone(cohort: Path) -> None:
    """A landmark of the raw scan, carried through steps.json, lies where the others' lie."""
    steps = json.loads((cohort / "steps.json").read_text(encoding="utf-8"))
    assert steps["reference"] == "s1"
    carried = []
    for i in range(3):
        case = steps["cases"][f"s{i}"]
        points = apply_affine(random_pull(i), np.array(list(LANDMARKS.values())))
        stored = apply_affine(np.linalg.inv(case["stored"]["affine_voxel_to_ras_mm"]), points)
        voxels = apply_affine(case["stored_voxel_to_grid_voxel"], stored)
        back = apply_affine(case["grid_voxel_to_stored_voxel"], voxels)
        np.testing.assert_allclose(back, stored, atol=1e-8)
        np.testing.assert_allclose(apply_affine(case["grid_voxel_to_scan_ras_mm"], voxels), points)
        carried.append(voxels * 8.0)
    # Moments do not see a rotation: subjects that differ by some degrees stay up to 12 mm apart at
    # landmarks 100 mm from the centre. (A wrong axis or sign would be ten times that.)
    assert np.linalg.norm(carried[0] - carried[1], axis=1).max() < 12
    assert np.linalg.norm(carried[2] - carried[1], axis=1).max() < 12
    assert [steps["cases"][f"s{i}"]["lungs"]["source"] for i in range(3)] == ["given", "given", "segmented"]
    assert steps["cases"]["s1"]["affine"]["method"] == "reference"
    assert 1.0 < steps["cases"]["s0"]["lungs"]["litres"][0] < 3.0


def test_files_are_complete(cohort: Path) -> None:
    for i in range(3):
        image, lungs = (read_volume(cohort / folder / f"s{i}.nii.gz") for folder in ("images", "lungs"))
        assert image.data.shape == lungs.data.shape == SHAPE
        assert image.data.dtype == np.int16
        np.testing.assert_allclose(image.affine, lungs.affine)
        assert image.data.min() == -1000
        assert -900 < image.data[lungs.data > 0].mean() < -700
        assert (cohort / "qc" / f"s{i}.png").stat().st_size > 10_000
    assert not list(cohort.parent.glob(".writing*"))


def test_transforms_agree_with_the_record(cohort: Path) -> None:
    sitk = pytest.importorskip("SimpleITK")
    steps = json.loads((cohort / "steps.json").read_text(encoding="utf-8"))
    case = steps["cases"]["s0"]
    transform = sitk.ReadTransform(str(cohort / case["transforms"][0]))
    x = np.array([10.0, -20.0, 30.0])
    lps = np.array([-1.0, -1.0, 1.0])
    expected = apply_affine(case["affine"]["reference_to_scan_ras_mm"], x)
    np.testing.assert_allclose(transform.TransformPoint(x * lps) * lps, expected, atol=1e-9)


def test_the_record_makes_the_same_image_again(cohort: Path) -> None:
    """Clip, smooth, and then transforms/s0.h5: by scipy and SimpleITK alone, from what the files say."""
    sitk = pytest.importorskip("SimpleITK")
    case = json.loads((cohort / "steps.json").read_text(encoding="utf-8"))["cases"]["s0"]
    raw = sitk.ReadImage(case["path"], sitk.sitkFloat32)
    intensities = case["intensities"]
    sigma = intensities["smoothed_by_sigma_ras_voxels"]  # s0 is stored in RAS+
    assert max(sigma) > 0  # of 8 mm voxels, one axis stretched
    values = np.clip(sitk.GetArrayFromImage(raw), *intensities["clipped_to_hu"])
    smooth = sitk.GetImageFromArray(ndimage.gaussian_filter(values, sigma[::-1], mode="nearest"))
    smooth.CopyInformation(raw)
    grid = sitk.ReadImage(str(cohort / "images" / "s0.nii.gz"))
    transform = sitk.ReadTransform(str(cohort / case["transforms"][0]))
    made = sitk.Resample(smooth, grid, transform, sitk.sitkLinear, intensities["outside_the_scan_hu"])
    lungs = read_volume(cohort / "lungs" / "s0.nii.gz").data > 0
    difference = np.abs(sitk.GetArrayFromImage(made) - sitk.GetArrayFromImage(grid)).transpose()
    assert difference[lungs].max() < 0.51  # HU: only the rounding to whole numbers remains


def test_masks_go_there_and_back(cohort: Path, tmp_path: Path) -> None:
    """`lmreg warp` with the written transforms: the lungs of the cohort, and those of the raw scan."""
    pytest.importorskip("SimpleITK")
    raw, there = cohort.parent / "s0_lungs.nii.gz", cohort / "lungs" / "s0.nii.gz"
    for mask, name, reference, expected in [
        (raw, "s0", cohort / "images" / "s0.nii.gz", there),
        (there, "s0_inverse", cohort.parent / "s0.nii.gz", raw),
    ]:
        out = tmp_path / f"{name}.nii.gz"
        transform = cohort / "transforms" / f"{name}.h5"
        main(["warp", "--labels", *map(str, (mask, "--transform", transform)), "--reference", str(reference),
              "--output", str(out)])  # fmt: skip
        found, wanted = (read_volume(path).data > 0 for path in (out, expected))
        # Nearest on nearest, 8 mm voxels: one way it is the same rule, back the border is rounded twice.
        assert dice(found, wanted) > (0.999 if name == "s0" else 0.93)


def test_bad_input_leaves_nothing(cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = cohort.parent
    write_volume(tmp_path / "flat.nii.gz", Volume(np.zeros((40, 40, 40), np.int16), np.diag([8, 8, 8, 1.0])))
    (tmp_path / "sub").mkdir()
    write_volume(tmp_path / "sub" / "s0.nii.gz", read_volume(raw / "s1.nii.gz"))
    copy = shutil.copy(raw / "s0.nii.gz", tmp_path / "copy.nii.gz")
    new, grid = tmp_path / "new", ("--spacing", 8, "--shape", *SHAPE)
    for arguments, message in [
        ((raw / "s0.nii.gz", tmp_path / "flat.nii.gz", "--output", new, *grid), "the image is empty"),
        ((raw / "s0.nii.gz", tmp_path / "sub" / "s0.nii.gz", "--output", new, *grid), "both are named 's0'"),
        ((raw / "s0.nii.gz", copy, "--output", new, *grid), "copy.nii.gz: identical images"),
        ((raw / "s0.nii.gz", "--output", cohort, *grid), "exists already"),
        ((raw / "s0.nii.gz", "--output", new, "--reference", "x", *grid), "no such case"),
        ((raw / "s0.nii.gz", "--output", new, "--masks", "-", "-", *grid), "--masks: 2 for 1 scans"),
        ((raw / "s0.nii.gz", "--output", new, "--points", "-", "-", *grid), "--points: 2 for 1 scans"),
        ((cohort, raw / "s0.nii.gz", "--output", new, *grid), "no other scan next to it"),
        ((cohort, "--output", new, "--landmarks", "-", *grid), "its table names these files"),
        ((raw / "s0.nii.gz", "--output", new, "--spacing", -1), "16 voxels an axis"),
    ]:
        with pytest.raises(SystemExit) as stopped:
            lmreg(*arguments)
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err
        assert not new.exists()
    assert not list(tmp_path.glob(".writing*"))


def test_landmarks_come_along(cohort: Path) -> None:
    """From a file in LPS to RAS mm of the common grid, by the recorded affine; "-" has none."""
    steps = json.loads((cohort / "steps.json").read_text(encoding="utf-8"))["cases"]
    assert sorted(path.name for path in (cohort / "landmarks").iterdir()) == ["s0.csv", "s2.csv"]
    for name, seed in (("s0", 0), ("s2", 2)):
        truth = apply_affine(random_pull(seed), np.array(list(LANDMARKS.values())))
        pull = np.array(steps[name]["affine"]["reference_to_scan_ras_mm"])
        written = read_points(cohort / "landmarks" / f"{name}.csv")
        assert list(written) == list(LANDMARKS)
        np.testing.assert_allclose(apply_affine(pull, np.array(list(written.values()))), truth, atol=1e-3)
    read = read_cohort(cohort, shape=SHAPE, spacing_mm=8.0, alignment="identity", progress=False)
    assert read.landmark_names == tuple(LANDMARKS)
    assert [bool(np.isfinite(case.landmarks).all()) for case in read.cases] == [True, False, True]


def test_a_cohort_keeps_its_tables_and_errors(root: Path, tmp_path: Path) -> None:
    """Splits, lobes, points and pairs come along; the error after the affine is the raw cohort's."""
    (root / "pairs.csv").write_text("fixed,moving\nc0,c1\nc3,c4\n", encoding="utf-8")
    shutil.copytree(root / "lungs", root / "lobes")
    shutil.copytree(root / "landmarks", root / "points")
    table = (root / "cases.csv").read_text(encoding="utf-8").splitlines()
    lines = [f"{row},{'points' if i == 0 else f'points/c{i - 1}.csv'}" for i, row in enumerate(table)]
    lines = [f"{row},{'lobes' if i == 0 else f'lobes/c{i - 1}.nii.gz'}" for i, row in enumerate(lines)]
    (root / "cases.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    lmreg(root, "--output", tmp_path / "out", "--spacing", 8, "--shape", *SHAPE, "--affine", "moments")
    options = {"shape": SHAPE, "spacing_mm": 8.0, "progress": False}
    raw = read_cohort(root, **options, alignment="moments")  # type: ignore[arg-type]
    ready = read_cohort(tmp_path / "out", **options, alignment="identity")  # type: ignore[arg-type]
    assert [(case.name, case.split) for case in ready.cases] == [
        (case.name, case.split) for case in raw.cases
    ]
    assert ready.pairs == raw.pairs == (("c0", "c1"), ("c3", "c4"))
    assert ready.landmark_names == raw.landmark_names and ready.point_names == raw.point_names
    for fixed, moving in raw.pairs or ():
        errors = [
            8 * np.linalg.norm(c.case(fixed).landmarks - c.case(moving).landmarks, axis=1)
            for c in (raw, ready)
        ]
        np.testing.assert_allclose(errors[1], errors[0], atol=1e-2)
        assert errors[0].max() > 1
    for before, after in zip(raw.cases, ready.cases, strict=True):
        np.testing.assert_array_equal(after.lungs, before.lungs)
        np.testing.assert_array_equal(after.lobes, before.lobes)
        np.testing.assert_allclose(after.points, before.points, atol=1e-3)
        np.testing.assert_allclose(after.image, before.image, atol=1e-3)  # rounded to whole HU


def test_each_scan_is_segmented_once(cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(volume: Volume, *measured: Any) -> Volume:
        calls.append(volume.data.shape)
        return segment_lungs(volume, *measured)

    monkeypatch.setattr("lmreg_jax.anatomy.chest.segment_lungs", counted)
    scans = [cohort.parent / f"s{i}.nii.gz" for i in range(3)]
    lmreg(*scans, "--output", tmp_path / "out", "--spacing", 8, "--shape", *SHAPE, "--affine", "moments")
    assert len(calls) == 3


def test_names() -> None:
    assert case_name("/a/b/Case 1.nii.gz") == "Case_1"
    assert case_name("dicom/patient7/::1.2.3") == "patient7"
