"""From two raw scans to one transform in mm: grids, affine step, integration, and both directions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from lmreg_jax.affine import elastix, pairwise
from lmreg_jax.affine import moments as alignment
from lmreg_jax.anatomy.chest import Side, check_ct, check_pair, read_side
from lmreg_jax.errors import InputError
from lmreg_jax.imaging import intensity
from lmreg_jax.imaging.transforms import jacobian
from lmreg_jax.imaging.volume import Volume, apply_affine
from lmreg_jax.io.nifti import write_volume
from lmreg_jax.io.scan import make_scan
from lmreg_jax.registration import grid, measures, refinement, velocity
from lmreg_jax.registration.scans import register_sides
from tests.shared_data import shared
from tests.tiny_cohort import GRID, LANDMARKS, SHAPE, random_pull, subject


def side(ct: Volume, lungs: Volume) -> Side:
    return Side(make_scan("scan", ct.data, ct.affine, ct.data.dtype), lungs, "given", (1.0, 1.0), ())


def sides(pull: np.ndarray) -> tuple[Side, Side]:
    """The model subject, and the same taken through `pull` (its RAS mm -> the other's)."""
    return tuple(side(*subject(p)[:2]) for p in (np.eye(4), pull))  # type: ignore[return-value]


CORNERS = np.array([[x, y, z] for x in (-120.0, 120.0) for y in (-90.0, 90.0) for z in (-60.0, 90.0)])


def cut(volume: Volume, first: int) -> Volume:
    """The scan without its lowest `first` slices."""
    affine = volume.affine.copy()
    affine[:3, 3] = apply_affine(volume.affine, np.array([0, 0, first]))
    return Volume(volume.data[:, :, first:], affine)


@pytest.mark.parametrize("which", ["fixed", "moving"])
def test_affine_of_cut_off_lungs_is_that_of_the_whole(which: str) -> None:
    pull = random_pull(2)
    lungs = [subject(np.eye(4))[1], subject(pull)[1]]
    index = ["fixed", "moving"].index(which)
    lungs[index] = cut(lungs[index], 12)  # 96 of 290 mm: the lower third of the lungs
    found, parts = pairwise.align_masks(*lungs)
    assert max(part.data.shape[2] for part in parts) <= 24
    height = np.array([[0.0, 0.0, z] for z in (-40.0, 0.0, 60.0, 90.0)])
    error = apply_affine(found, height)[:, 2] - apply_affine(pull, height)[:, 2]
    plain = alignment.align_moments(*lungs)
    spoilt = apply_affine(plain, height)[:, 2] - apply_affine(pull, height)[:, 2]
    # Voxels of 8 mm, stretches in steps of 5 %: 8 mm is what can be asked for.
    assert np.abs(error).max() < 12
    assert np.abs(spoilt).max() > 20
    x = np.array([[-80.0, 0.0, 30.0], [80.0, 0.0, 30.0]])
    np.testing.assert_allclose(apply_affine(found, x)[:, :2], apply_affine(pull, x)[:, :2], atol=12)


def test_small_voxels_do_not_change_the_affine_of_cut_off_lungs() -> None:
    lungs = [subject(np.eye(4))[1], cut(subject(random_pull(2))[1], 12)]
    fine = [stored_as_cubes(mask, 4) for mask in lungs]  # 2 mm: the search leaves out nothing
    finer = [stored_as_cubes(mask, 8) for mask in lungs]  # 1 mm: it sees every third voxel
    assert pairwise.thinned(fine[0]).data.shape == fine[0].data.shape
    few = pairwise.thinned(finer[0])
    assert few.data.size * 26 < finer[0].data.size
    last = np.array(few.data.shape) - 1
    np.testing.assert_allclose(apply_affine(few.affine, last), apply_affine(finer[0].affine, last * 3))
    expected, found = (pairwise.align_masks(*masks)[0] for masks in (fine, finer))
    # The same cubes of 8 mm: only what the moments of a stack of boxes add differs, (2^2 - 1^2) / 12 mm^2.
    np.testing.assert_allclose(apply_affine(found, CORNERS), apply_affine(expected, CORNERS), atol=0.05)


def stored_as_cubes(mask: Volume, parts: int) -> Volume:
    """The same body, each voxel as parts^3 small ones."""
    to_old = np.diag([1 / parts] * 3 + [1.0])
    to_old[:3, 3] = 0.5 / parts - 0.5
    data = mask.data.repeat(parts, 0).repeat(parts, 1).repeat(parts, 2)
    return Volume(data, mask.affine @ to_old)


def test_whole_lungs_keep_the_moments() -> None:
    fixed, moving = (subject(p)[1] for p in (np.eye(4), random_pull(4)))
    found, _ = pairwise.align_masks(fixed, moving)
    np.testing.assert_allclose(found, alignment.align_moments(fixed, moving), atol=1e-9)


def deformed(size_mm: float) -> Side:
    """The model subject with the right lung pushed down at its base by a smooth bump of `size_mm`."""
    ct, lungs, _ = subject(np.eye(4))
    index = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), -1)
    mm = apply_affine(GRID, index)
    bump = size_mm * np.exp(-np.sum(((mm - (72, 0, -70)) / (60, 60, 60)) ** 2, -1) / 2)

    where = index + np.stack([0 * bump, 0 * bump, bump / 8.0], -1)
    data = ndimage.map_coordinates(
        ct.data.astype(np.float32), np.moveaxis(where, -1, 0), order=1, mode="nearest"
    )
    mask = ndimage.map_coordinates(lungs.data, np.moveaxis(where, -1, 0), order=0, mode="nearest")
    return side(Volume(data.astype(np.int16), ct.affine), Volume(mask, lungs.affine))


@pytest.mark.slow
def test_without_a_model_it_is_affine_and_refinement() -> None:
    fixed, moving = sides(np.eye(4))[0], deformed(40.0)
    still = register_sides(fixed, moving, None, affine="moments")
    with pytest.raises(InputError, match="refine_around 'netwrok'"):
        register_sides(fixed, moving, None, refine=1, refine_around="netwrok")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="refine_objective 'rough'"):
        register_sides(fixed, moving, None, refine=1, refine_objective="rough")  # type: ignore[arg-type]
    with pytest.raises(InputError, match='objective "trained": there is no'):
        register_sides(fixed, moving, None, refine=1, refine_objective="trained")
    assert still.method == "affine"
    assert not still.forward.displacement.any()
    assert any("affine alignment only" in note for note in still.notes)
    np.testing.assert_allclose(still.inverse.post @ still.forward.post, np.eye(4), atol=1e-9)
    found = register_sides(fixed, moving, None, affine="moments", refine=24)
    assert found.outcome is not None
    assert found.outcome.after["total"] < 0.6 * found.outcome.before["total"]
    dice = measures.dice(fixed, moving, {"affine": still.forward, "after": found.forward})
    assert dice["both"]["after"] > dice["both"]["affine"] + 0.02
    motion = measures.motion(found, fixed)
    assert motion["inverse_error"]["p95_mm"] < 0.2
    determinant = jacobian(found.forward, fixed.scan.shape, fixed.scan.affine)
    assert determinant.min() > 0
    assert measures.regularity(determinant, fixed)["folding_percent"] == 0
    sd = measures.uncertainty_on(found, fixed.scan.shape, fixed.scan.affine)
    assert (sd[fixed.lungs.data > 0] > 0).all()


@pytest.mark.slow
def test_a_cut_off_base_does_not_pull_the_lung() -> None:
    """The same subject, its lower third missing in one scan: nothing to move, and nothing moves."""
    whole = sides(np.eye(4))[0]
    ct, lungs = (cut(v, 12) for v in (whole.scan.volume, whole.lungs))
    missing = side(ct, lungs)
    for fixed, moving in ((whole, missing), (missing, whole)):
        frame = grid.free_frame(fixed.lungs, moving.lungs, np.eye(4), 8.0)
        windowed = [
            Volume(intensity.window(s.scan.volume.data, (-1000, 400)), s.scan.volume.affine)
            for s in (fixed, moving)
        ]
        images = grid.on_frame(windowed[0], windowed[1], np.eye(4), frame)
        outcome = refinement.refine(
            images, velocity.no_motion(frame).velocity, objective=refinement.Objective(precision=1.0), steps=5
        )
        # Resampled grids differ by rounding only: a thousandth of what a wall of air would pull.
        assert outcome.before["image"] < 0.05
        assert np.abs(np.asarray(outcome.velocity)).max() * 16 < 0.5  # mm


def test_dice_counts_only_what_both_scans_show() -> None:
    whole = sides(np.eye(4))[0]
    ct, lungs = (cut(v, 12) for v in (whole.scan.volume, whole.lungs))
    missing = side(ct, lungs)
    identity = velocity.affine_transforms(np.eye(4))[0]
    assert measures.dice(whole, missing, {"now": identity})["both"]["now"] == pytest.approx(1.0)


def test_what_is_no_chest_ct_is_refused(tmp_path: Path) -> None:
    ct, _, _ = subject(np.eye(4))

    def scan(data: np.ndarray, affine: np.ndarray = GRID):
        return make_scan("x.nii.gz", data, affine, data.dtype)

    check_ct(scan(ct.data))
    stored = (ct.data + 1024).clip(0).astype(np.uint16)
    for data, affine, message in [
        (stored, GRID, "rescale intercept"),
        (((ct.data + 1000) / 1040).astype(np.float32), GRID, "normalised"),
        (np.full(SHAPE, 7, np.int16), GRID, "empty"),
        (ct.data, GRID @ np.diag([0.1, 0.1, 0.1, 1]), "in mm"),
        (ct.data, GRID @ np.diag([10.0, 10.0, 10.0, 1]), "in mm"),
        ((ct.data * 30).astype(np.int32), GRID, "no CT in HU"),
    ]:
        with pytest.raises(InputError, match=message):
            check_ct(scan(data, affine))
    with pytest.raises(InputError, match="identical images"):
        check_pair(scan(ct.data), scan(ct.data))
    head = np.where(ct.data == -850, 40, ct.data).astype(np.int16)  # a body without lungs
    write_volume(tmp_path / "head.nii.gz", Volume(head, ct.affine))
    with pytest.raises(InputError, match=r"head\.nii\.gz: no lungs found.*a scan of head"):
        read_side(tmp_path / "head.nii.gz")


@pytest.mark.slow
@pytest.mark.skipif(not elastix.installed(), reason="needs the extra lmreg_jax[elastix]")
def test_elastix_finds_a_table_shift_of_tens_of_millimetres() -> None:
    """A translation of 40, -60 and 80 mm and a small affine: two thirds of the body's depth and more."""
    pull = random_pull(2)
    (ct, lungs, _), landmarks = subject(np.eye(4)), np.array(list(LANDMARKS.values()))
    shifted = pull.copy()
    shifted[:3, 3] += (40, -60, 80)
    moved = [Volume(volume.data, volume.affine.copy()) for volume in subject(pull)[:2]]
    for volume in moved:
        volume.affine[:3, 3] += (40, -60, 80)
    images = [Volume(intensity.window(scan.data, (-1000, 400)), scan.affine) for scan in (ct, moved[0])]
    found = pairwise.align_pair(*images, lungs, moved[1], "elastix", (ct, moved[0]))
    assert found.method == "elastix"
    off = apply_affine(found.pull, landmarks) - apply_affine(shifted, landmarks)
    # 8 mm voxels; moments alone, which see no rotation, leave up to 12 mm.
    assert np.linalg.norm(off, axis=1).max() < 4


def test_a_sheared_scan_is_told_in_the_report(tmp_path: Path) -> None:
    ct, lungs, _ = subject(np.eye(4))
    shear = np.eye(4)
    shear[0, 2] = np.tan(np.radians(5))
    write_volume(tmp_path / "ct.nii.gz", Volume(ct.data, ct.affine @ shear))
    write_volume(tmp_path / "mask.nii.gz", Volume(lungs.data, lungs.affine @ shear))
    warnings = read_side(tmp_path / "ct.nii.gz", tmp_path / "mask.nii.gz").warnings
    assert warnings[0].startswith("sheared: two of its axes are at 85.0 degrees")


def test_masks_that_cannot_be_lungs_are_refused(tmp_path: Path) -> None:
    ct, lungs, _ = subject(np.eye(4))
    image, mask = tmp_path / "ct.nii.gz", tmp_path / "mask.nii.gz"
    write_volume(image, ct)
    write_volume(mask, lungs)
    assert read_side(image, mask).source == "given"
    for data, affine, message in [
        (np.zeros(SHAPE, np.uint8), GRID, "mask is empty"),
        (np.ones(SHAPE, np.uint8), GRID, "100 % of the scan"),
        (lungs.data[1:], GRID, "another grid"),
        (lungs.data, GRID @ np.diag([1.1, 1, 1, 1]), "another grid"),
        (np.roll(lungs.data, 12, axis=1) * (ct.data > -100), GRID, "does not lie on the lungs"),
    ]:
        write_volume(mask, Volume(data.astype(np.uint8), affine))
        with pytest.raises(InputError, match=message):
            read_side(image, mask)


def test_a_brain_is_no_chest_ct(tmp_path: Path) -> None:
    data = np.load(shared("voxelmorph/test_vol.npz"))["vol_data"]
    write_volume(tmp_path / "brain.nii.gz", Volume(data.astype(np.float32), np.diag([1.0, 1.0, 1.0, 1.0])))
    with pytest.raises(InputError, match="no CT in HU: values from 0 to 0.976.*normalised"):
        read_side(tmp_path / "brain.nii.gz")
