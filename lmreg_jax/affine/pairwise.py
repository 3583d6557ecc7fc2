"""The affine step of one pair: fixed RAS mm -> moving RAS mm, [4, 4], whatever the scans cut off.

Moments of whole against cut-off lungs would stretch the one until it fills the other. So where a
scan cuts the lungs off, both masks are first cut to the part that both scans show.
"""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lmreg_jax.affine import elastix, images, moments
from lmreg_jax.anatomy.lungs import NAMES, cut_off, cut_sides, lung_litres
from lmreg_jax.errors import InputError
from lmreg_jax.imaging.resampling import inside, resample
from lmreg_jax.imaging.volume import Volume, bounding_box_mm, cropped, image_centre, spacing

log = logging.getLogger(__name__)

Array = NDArray[Any]

STRETCHES = np.exp(np.linspace(np.log(0.7), np.log(1.4), 15))  # of z, moving over fixed: adults differ less
STRETCH_COST = 0.3  # Dice that a stretch by e must gain: what is cut off hardly tells the height of a lung
SEARCH_MM = 3.0  # voxels of the masks among which the stretch is chosen
ROUNDS = 3  # of cutting to the common part and matching moments
CUT_SHARE = 0.02  # of the lungs' surface at the sides of the field of view: more is cut to the common part
LOST = 1 / 3  # a lung whose volume fell to less, over the other lung's, is collapsed or cut off
DIFFERENT = 2 / 3  # litres of the same lung, the smaller over the larger: less is reported
SCALES = (0.7, 1.4)  # of an affine step between two adults, or two breaths

Measured = tuple[Array | None, Array | None]
Frame = tuple[Volume, Array | None]  # a scan's grid, and which of its voxels were measured


class Affine(NamedTuple):
    """pull [4, 4]: fixed RAS mm -> moving RAS mm; method: images, elastix, moments, centres; notes: words."""

    pull: Array
    method: str
    notes: tuple[str, ...]


def align_pair(
    fixed: Volume,
    moving: Volume,
    fixed_mask: Volume | None,
    moving_mask: Volume | None,
    method: str = "auto",
    scans: tuple[Volume, Volume] | None = None,
    measured: Measured = (None, None),
) -> Affine:
    """The affine of a pair from its windowed images and lung masks (on the scans' own grids).

    Without both masks the images' centres take the place of the lungs' moments. scans: both in HU, for
    the lungs' surface within a voxel (see `moments.mask_moments`). method: "auto" or "images"
    (`images.align`), "elastix", "moments" or "none" (shift of the lungs' centres). Where the images
    mislead, the pair falls back to the closed form, and a note says so. Raises InputError where "elastix"
    is not installed, or its process dies: that says nothing of the pair.
    """
    notes: list[str] = []
    parts: tuple[Volume | None, Volume | None] = (fixed_mask, moving_mask)
    closed_form, basis = "moments", "the lungs' moments"
    if fixed_mask is None or moving_mask is None:
        closed_form, basis = "centres", "the images' centres"
        initial = moments.translation(image_centre(fixed), image_centre(moving))
    else:
        labels = common_lungs(fixed_mask, moving_mask)
        notes += _differences(fixed_mask, moving_mask, labels)
        fixed_mask, moving_mask = _only(fixed_mask, labels), _only(moving_mask, labels)
        if method == "none":
            centres = (np.mean(bounding_box_mm(mask), axis=0) for mask in (fixed_mask, moving_mask))
            return Affine(moments.translation(*centres), "centres", tuple(notes))
        initial, parts = align_masks(fixed_mask, moving_mask, scans, measured)
        if any(map(_is_cut, (fixed_mask, moving_mask), measured)):
            notes.append("the lungs are cut off: the affine step compares the part that both scans show")
        scales = np.linalg.svd(initial[:3, :3], compute_uv=False)
        if scales.min() < SCALES[0] or scales.max() > SCALES[1]:
            notes.append(
                f"the affine step scales by {scales.min():.2f} to {scales.max():.2f}: are these lungs of two"
                " adults, whole, and is the voxel size right?"
            )
    if method in ("moments", "none"):
        return Affine(initial, closed_form, tuple(notes))
    if method == "elastix" and not elastix.installed():
        raise InputError(
            'affine alignment by elastix needs itk-elastix: pip install "lmreg_jax[elastix]"'
            " (or --affine images)"
        )
    method = "elastix" if method == "elastix" else "images"
    try:
        align = elastix.align if method == "elastix" else images.align
        return Affine(align(fixed, moving, *parts, initial), method, tuple(notes))
    except RuntimeError as error:
        if isinstance(error, elastix.WorkerDied):
            raise InputError(
                f"elastix: {error}; repair its installation, give it more memory, or align by 'images'"
            ) from error
        notes.append(f"affine by {method} failed ({error}): aligned by {basis} only")
        return Affine(initial, closed_form, tuple(notes))


def common_lungs(fixed: Volume, moving: Volume) -> tuple[int, ...]:
    """The labels (LEFT, RIGHT, or what masks without sides hold) of lungs that both scans show.

    A lung that lost more than LOST of its volume over the other one is not compared: its place in the
    chest is not what it was. Raises InputError where no lung is in both.
    """
    volumes = [{label: lung_litres(mask, label) for label in NAMES} for mask in (fixed, moving)]
    both = [label for label in NAMES if all(v[label] > 0 for v in volumes)]
    if not both:
        shown = [" and ".join(NAMES[label] for label in NAMES if v[label]) or "no" for v in volumes]
        raise InputError(
            f"the fixed scan shows the {shown[0]} lung, the moving one the {shown[1]} lung: nothing to"
            " compare"
        )
    if len(both) == 2:
        growth = {label: volumes[1][label] / volumes[0][label] for label in both}
        if min(growth.values()) < LOST * max(growth.values()):
            both.remove(max(both, key=lambda label: abs(np.log(growth[label]))))
    return tuple(both)


def _only(mask: Volume, labels: tuple[int, ...]) -> Volume:
    if set(labels) == set(NAMES):
        return mask
    return Volume(np.where(np.isin(mask.data, labels), mask.data, 0), mask.affine)


def _differences(fixed: Volume, moving: Volume, labels: tuple[int, ...]) -> list[str]:
    """What is to be reported of lungs that one scan lacks, or shows in another size."""
    notes = []
    for label, name in NAMES.items():
        volumes = [lung_litres(mask, label) for mask in (fixed, moving)]
        litres = f"{volumes[0]:.2f} litres in the fixed scan, {volumes[1]:.2f} in the moving one"
        if max(volumes) > 0 and label not in labels:
            notes.append(
                f"the {name} lung ({litres}) is not compared: removed, collapsed, full of fluid or cut off in"
                " one of the scans; there the result follows its surroundings"
            )
        elif min(volumes) < DIFFERENT * max(volumes):
            notes.append(f"the {name} lung holds {litres}: another breath, or is part of it missing?")
    return notes


def _is_cut(mask: Volume, measured: Array | None) -> bool:
    return bool(cut_off(mask, measured)) or cut_sides(mask, measured)[1] > CUT_SHARE


def align_masks(
    fixed: Volume,
    moving: Volume,
    scans: tuple[Volume, Volume] | None = None,
    measured: Measured = (None, None),
) -> tuple[Array, tuple[Volume, Volume]]:
    """Pull [4, 4] from two lung masks on their scans' own grids, and their parts that both show.

    Whole lungs: matched moments (`alignment.transport`). Lungs cut at the sides of the field of view: the
    same of what both show, found in ROUNDS. Lungs cut off above or below: the ends that both scans hold
    are laid on each other, a stretch along z is tried, both masks are cut to what both scans show and
    their moments matched; of all stretches the one whose parts overlap best is kept, the little ones
    before the large. The stretch is chosen on thinned masks; its moments are those of all voxels.
    """
    cuts = [cut_off(mask, shown) for mask, shown in zip((fixed, moving), measured, strict=True)]
    frames = (fixed, measured[0]), (moving, measured[1])
    small = cropped(fixed), cropped(moving)
    hu = scans or (None, None)
    plain = moments.transport(*map(moments.mask_moments, small, hu))
    if not any(cuts):
        if not any(map(_is_cut, (fixed, moving), measured)):
            return plain, small
        pull = plain
        for _ in range(ROUNDS):
            parts = common_part(small, frames, pull)
            pull = moments.transport(*map(moments.mask_moments, parts, hu))
        return pull, parts
    whole = [end for end in ("apex", "base") if not any(end in cut for cut in cuts)]
    if not whole:
        log.warning("no end of the lungs lies in both scans: aligned by what they show")
        return plain, small
    thin = thinned(small[0]), thinned(small[1])
    found: list[tuple[float, Array]] = []
    for stretch in STRETCHES:
        pull = _anchored(small, float(stretch), whole[0])
        try:
            for _ in range(ROUNDS):
                parts = common_part(thin, frames, pull)
                pull = _matched_in_plane(parts, pull)
        except InputError:  # nothing in common at this stretch
            continue
        score = images.overlap(*parts, pull) - STRETCH_COST * abs(np.log(stretch))
        found.append((score, pull))
    if not found:
        return plain, small
    _, pull = max(found, key=lambda one: one[0])
    try:
        parts = common_part(small, frames, pull)
        return _matched_in_plane(parts, pull, hu), parts
    except InputError:  # a sliver that thinned masks have in common
        return plain, small


def thinned(mask: Volume) -> Volume:
    """Every n-th voxel along each axis, n the largest that leaves voxels of at most SEARCH_MM, or 1."""
    every = np.maximum(np.floor(SEARCH_MM / spacing(mask.affine) + 1e-3), 1).astype(int)
    data = mask.data[:: every[0], :: every[1], :: every[2]]
    return Volume(data, mask.affine @ np.diag([*every, 1.0]))


def common_part(
    masks: tuple[Volume, Volume], frames: tuple[Frame, Frame], pull: Array
) -> tuple[Volume, Volume]:
    """Both masks (fixed, moving), less what the other scan, (its mask, what it measured), does not show."""
    out = []
    for mask, (frame, shown), matrix in zip(masks, frames[::-1], (pull, np.linalg.inv(pull)), strict=True):
        if shown is None:
            seen = inside(frame, mask.data.shape, mask.affine, pull=matrix)
        else:
            known = Volume(shown, frame.affine)
            seen = resample(known, mask.data.shape, mask.affine, order=0, fill=0, pull=matrix) > 0
        out.append(cropped_or_raise(Volume(np.where(seen, mask.data, 0), mask.affine)))
    return out[0], out[1]


def cropped_or_raise(mask: Volume) -> Volume:
    if not mask.data.any():
        raise InputError("the two scans show no common part of the lungs")
    return cropped(mask)


def _anchored(masks: tuple[Volume, Volume], stretch: float, end: str) -> Array:
    """Shift and stretch along z only that lays the `end` of the lungs on each other.

    In x and y the centres of the boxes are matched: the moments that follow do the rest.
    """
    (f_low, f_high), (m_low, m_high) = (bounding_box_mm(mask) for mask in masks)
    pull = np.eye(4)
    pull[2, 2] = stretch
    pull[:2, 3] = ((m_low + m_high) / 2 - (f_low + f_high) / 2)[:2]
    pull[2, 3] = m_high[2] - stretch * f_high[2] if end == "apex" else m_low[2] - stretch * f_low[2]
    return pull


def _matched_in_plane(
    parts: tuple[Volume, Volume], before: Array, hu: tuple[Volume, Volume] | tuple[None, None] = (None, None)
) -> Array:
    """The pull by the parts' moments, but the height of a point in the other scan stays as `before` had it.

    A stretch that is matched again and again to the part that it shows drifts to no stretch at all.
    """
    out = moments.transport(*map(moments.mask_moments, parts, hu))
    out[2] = before[2]
    return out
