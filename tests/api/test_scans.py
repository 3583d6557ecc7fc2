"""The public surface on two scans: whatever kind of image comes in, the same transform comes out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

import lmreg_jax as lm
from lmreg_jax.imaging.volume import Volume
from lmreg_jax.io.nifti import write_volume
from tests.tiny_cohort import random_pull, subject

SETTINGS: dict[str, Any] = {"model": None, "refine": 4, "affine": "moments"}


@pytest.fixture(scope="module")
def pair() -> tuple[tuple[Any, Any, Any], tuple[Any, Any, Any]]:
    """Two tiny subjects: (CT, lungs, landmarks) each, the moving one moved affinely."""
    return subject(np.eye(4)), subject(random_pull(5, 1.5))


@pytest.fixture(scope="module")
def result(pair: Any, tmp_path_factory: pytest.TempPathFactory) -> lm.Result:
    """Registered from files, with masks and landmarks."""
    root = tmp_path_factory.mktemp("scans")
    for name, (ct, lungs, landmarks) in zip(("f", "m"), pair, strict=True):
        write_volume(root / f"{name}.nii.gz", ct)
        write_volume(root / f"{name}_lungs.nii.gz", lungs)
        lm.write_points(root / f"{name}.csv", landmarks)
    return lm.register_scans(
        root / "f.nii.gz",
        root / "m.nii.gz",
        fixed_mask=root / "f_lungs.nii.gz",
        moving_mask=root / "m_lungs.nii.gz",
        fixed_landmarks=root / "f.csv",
        moving_landmarks=root / "m.csv",
        **SETTINGS,
    )


def image(volume: Volume) -> nib.Nifti1Image:
    """The volume as nibabel has it, its axes turned to L, P, S."""
    turned = nib.orientations.axcodes2ornt("LPS")
    return nib.Nifti1Image(volume.data, volume.affine).as_reoriented(
        nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), turned)
    )


def test_landmarks_of_a_moved_subject_are_found(pair: Any, result: lm.Result) -> None:
    """The moving subject is an affine image of the fixed one: the moments find that map."""
    names = list(pair[0][2])
    p, q = (np.array([side[2][name] for name in names]) for side in pair)
    errors = np.linalg.norm(result.transform(p) - q, axis=-1)
    assert errors.mean() < 2.5 < np.linalg.norm(p - q, axis=-1).mean()
    np.testing.assert_allclose(list(result.metrics["landmarks"]["mm"]["after"]), errors, atol=1e-4)
    np.testing.assert_allclose(result.inverse(result.transform(p)), p, atol=0.2)


@pytest.mark.slow
def test_nibabel_images_give_the_transform_of_files(pair: Any, result: lm.Result) -> None:
    images = [image(side[0]) for side in pair]
    masks = [image(side[1]) for side in pair]
    other = lm.register_scans(*images, fixed_mask=masks[0], moving_mask=masks[1], **SETTINGS)
    points = np.array(list(pair[0][2].values()))
    np.testing.assert_allclose(other.transform(points), result.transform(points), atol=1e-3)
    assert nib.aff2axcodes(other.warped.affine) == ("L", "P", "S")
    back = nib.as_closest_canonical(other.warped)
    np.testing.assert_array_equal(np.asarray(back.dataobj), np.asarray(result.warped.dataobj))


def test_simpleitk_images_come_back_as_such(pair: Any, result: lm.Result, tmp_path: Path) -> None:
    """Its own resampling through the exported transform gives the warped image."""
    sitk = pytest.importorskip("SimpleITK")
    images = []
    for (ct, _, _), name in zip(pair, "fm", strict=True):
        write_volume(tmp_path / f"{name}.nii.gz", ct)
        images.append(sitk.ReadImage(str(tmp_path / f"{name}.nii.gz")))
    warped = result.transform.warp(images[1], images[0])
    assert isinstance(warped, sitk.Image)
    assert warped.GetOrigin() == images[0].GetOrigin()
    theirs = sitk.Resample(images[1], images[0], result.transform.to_sitk(), sitk.sitkLinear, -1000.0)
    difference = sitk.GetArrayFromImage(warped).astype(float) - sitk.GetArrayFromImage(theirs)
    assert np.abs(difference[1:-1, 1:-1, 1:-1]).max() <= 1.0  # rounding to whole HU


def test_a_saved_transform_is_the_transform(pair: Any, result: lm.Result, tmp_path: Path) -> None:
    pytest.importorskip("SimpleITK")
    result.transform.save(tmp_path / "t.h5")
    again = lm.read_transform(tmp_path / "t.h5", pair_image := image(pair[0][0]))
    points = np.array(list(pair[0][2].values()))
    np.testing.assert_allclose(again(points), result.transform(points), atol=1e-3)
    np.testing.assert_allclose(again.inverse()(again(points)), points, atol=0.05)
    jacobian = np.asarray(again.jacobian(pair_image).dataobj)
    assert jacobian.shape == pair_image.shape and jacobian.min() > 0
    labels = again.warp_labels(image(pair[1][1]))
    assert set(np.unique(np.asarray(labels.dataobj))) <= set(np.unique(pair[1][1].data))


def test_a_result_shows_itself_and_saves_what_the_command_writes(result: lm.Result, tmp_path: Path) -> None:
    assert result._repr_png_().startswith(b"\x89PNG")
    assert "Dice" in repr(result) and len(repr(result)) < 200
    folder = result.save(tmp_path / "aligned")
    assert (folder / "warped.nii.gz").is_file() and (folder / "report.json").is_file()
    with pytest.raises(lm.InputError, match="exists"):
        result.save(folder)


def test_the_same_figures_by_evaluate(pair: Any, result: lm.Result) -> None:
    images, masks = ([image(side[i]) for side in pair] for i in (0, 1))
    found = lm.evaluate(
        *images,
        result.transform,
        fixed_landmarks=pair[0][2],
        moving_landmarks=pair[1][2],
        fixed_mask=masks[0],
        moving_mask=masks[1],
    )
    after = result.metrics["landmarks"]["mean_mm"]["after"]
    assert found["transform"]["tre_mm"]["mean"] == pytest.approx(after, abs=1e-3)
    assert found["transform"]["dice"] > found["identity"]["dice"]


def test_arrays_and_lists_are_sent_to_the_right_function(pair: Any) -> None:
    with pytest.raises(lm.InputError, match=r"ndarray; expected a path, a nibabel image"):
        lm.register_scans(pair[0][0].data, pair[1][0].data)
    with pytest.raises(lm.InputError, match="of one scan only"):
        lm.register_scans(image(pair[0][0]), image(pair[1][0]), fixed_landmarks={}, **SETTINGS)
    with pytest.raises(lm.InputError, match="nothing to evaluate"):
        lm.evaluate(image(pair[0][0]), image(pair[1][0]))
    with pytest.raises(lm.InputError, match=r"points have shape \(4,\)"):
        lm.Transform(lm.register_scans)([1, 2, 3, 4])  # type: ignore[arg-type]
