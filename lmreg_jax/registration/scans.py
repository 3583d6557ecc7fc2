"""The registration of two checked scans, from the affine step to both transforms in mm.

found = register_sides(read_side("inhale.nii.gz"), read_side("exhale.nii.gz"), model, refine=60)
warped = warp_image(found.forward, moving.scan.volume, shape, affine, fill=-1000.0)
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from lmreg_jax.affine import reference
from lmreg_jax.affine.landmarks import with_landmarks
from lmreg_jax.affine.pairwise import Affine, align_pair, common_lungs
from lmreg_jax.affine.reference import ReferenceLungs
from lmreg_jax.anatomy.chest import Side, check_pair
from lmreg_jax.anatomy.lungs import NAMES
from lmreg_jax.cohort.case import windowed
from lmreg_jax.core.objective import Objective
from lmreg_jax.core.settings import own_settings
from lmreg_jax.errors import InputError
from lmreg_jax.imaging.intensity import WINDOW, window
from lmreg_jax.imaging.transforms import Transform
from lmreg_jax.imaging.volume import Volume
from lmreg_jax.model import config as configuration
from lmreg_jax.model.registrar import Registrar
from lmreg_jax.registration import grid, refinement, velocity
from lmreg_jax.registration.guidance import NONE, Guidance, Weighted, paired

Array = NDArray[Any]

# lambda of a refinement, ten times that of [Dalca]: nothing but this prior tells lung tissue from
# rubber here, and the fit to the lungs hardly suffers. Two people's scans, 60 steps from the network:
# Dice 0.974 for 0.978, sd log J in the lungs 0.30 for 0.61, smallest Jacobian 0.29 for 0.05, inverse
# within 0.14 mm for 0.35 (95th percentile).
# The image's sigma has a part in that: a smaller one, as the network is trained by, is not taken.
REFINE_PRECISION = 100.0
FREE_OBJECTIVE = Objective(
    reading="voxelmorph", precision=REFINE_PRECISION, image="ssd", image_sigma=0.05
)  # eq. 7 without a model
CORRELATION, CORRELATION_SIGMA = "lncc5", 0.1  # an image term that contrast medium does not mislead
LANDMARK_WEIGHT, LANDMARK_SIGMA_MM = 5.0, 4.0  # of the refinement; an automatic point repeats to 1 to 4 mm
COMPARED_MM = 8.0  # grid of what the network gave, which only the report compares
ANCHORS = 400  # points of the lungs that hold an affine map in its place while points move it
RefineObjective = Literal["smooth", "correlation", "trained"]


class Model(NamedTuple):
    """A trained network with what a raw pair needs besides: where the lungs lay in its training."""

    register: Registrar
    lungs: ReferenceLungs | None
    workdir: Path


class Registered(NamedTuple):
    """forward: fixed -> moving; inverse: moving -> fixed; network: forward before the refinement.

    uncertainty: sd of forward, mm of the moving scan, on the velocity's grid; method and notes: texts;
    settings of the refinement: its steps, the prior's mean, the image term and its sigma, lambda.
    """

    forward: Transform
    inverse: Transform
    affine: Affine
    network: Transform | None
    uncertainty: Volume | None
    outcome: refinement.Outcome | None
    frame: grid.Frame
    method: str
    notes: tuple[str, ...]
    settings: dict[str, Any] = {}  # noqa: RUF012, never changed
    guidance: Guidance = NONE


def load_model(workdir: str | os.PathLike[str]) -> Model:
    """The model of a training's folder. Raises InputError where there is none."""
    from lmreg_jax.model.registrar import load

    workdir = Path(workdir)
    return Model(load(workdir), reference.read(workdir), workdir)


@own_settings()
def register_sides(
    fixed: Side,
    moving: Side,
    model: Model | None,
    *,
    refine: int = 0,
    refine_around: Literal["zero", "network"] = "zero",
    refine_objective: RefineObjective = "smooth",
    affine: str = "auto",
    guide: tuple[Weighted, Weighted] | None = None,
    left_out: tuple[str, ...] = (),
    say: Callable[[str], None] = lambda _: None,
    progress: refinement.Progress = iter,
) -> Registered:
    """Both transforms of a pair. Without a model: the affine step, and `refine` from zero velocity.

    refine_around: the mean of the refinement's prior. Around the network's velocity what it learned
    from landmarks stays, and so does what it got wrong: for models that know scans like these.
    refine_objective: eq. 7 for it: the model's own ("trained"), with a lambda and an image's sigma of at
    least REFINE_PRECISION and FREE_OBJECTIVE's ("smooth"), or with such a lambda and CORRELATION as the
    image term, sigma CORRELATION_SIGMA ("correlation").
    guide: named points of the fixed and of the moving scan, RAS mm, with confidences, which affine step
    and refinement bring together; left_out: beginnings of names that are not used, to judge by.
    say: told what is being done; progress: wraps the counts of refinement steps. Raises InputError on
    identical images, and on a refinement by a model that is not there.
    """
    if refine < 0:
        raise InputError(f"{refine} steps of refinement: 0 or more are needed")
    if refine_around not in ("zero", "network"):
        raise InputError(f'refine_around {refine_around!r}: "zero" or "network" is needed')
    if refine_objective not in get_args(RefineObjective):
        names = ", ".join(get_args(RefineObjective))
        raise InputError(f"refine_objective {refine_objective!r}: one of {names} is needed")
    if model is None and refine_around == "network":
        raise InputError('refine_around "network": there is no model')
    if model is None and refine_objective == "trained":
        raise InputError('refine_objective "trained": there is no model')
    check_pair(fixed.scan, moving.scan)
    images = _windowed(fixed.scan.volume, model), _windowed(moving.scan.volume, model)
    say("affine alignment")
    scans = fixed.scan.volume, moving.scan.volume
    measured = fixed.measured, moving.measured
    found = align_pair(images[0], images[1], fixed.lungs, moving.lungs, affine, scans, measured)
    lost = _lost(fixed.lungs, moving.lungs)
    notes = [*found.notes, *_missing(fixed, moving)]
    guidance = NONE
    if guide is not None:
        anchors = lung_points(fixed.lungs, ANCHORS)
        guidance = paired(*guide, found.pull, anchors).without(left_out)
        pull = with_landmarks(found.pull, anchors, guidance.fixed, guidance.moving, guidance.weights)
        found = found._replace(pull=pull)
        notes += [f"point {name} is not used: {reason}" for name, reason in guidance.dropped.items()]

    placed: dict[bytes, grid.Pair] = {}  # the refinement begins on the network's grid

    def on_frame(frame: grid.Frame) -> grid.Pair:
        key = np.append(frame.affine, frame.shape).tobytes()
        if key not in placed:
            placed[key] = grid.on_frame(*images, found.pull, frame, guidance, measured, lost)
        return placed[key]

    if model is None:
        frame = grid.free_frame(fixed.lungs, moving.lungs, found.pull)
        notes.append("no model: " + ("refined from no motion" if refine else "affine alignment only"))
        if not refine:
            forward, inverse = velocity.affine_transforms(found.pull)
            return Registered(forward, inverse, found, None, None, None, frame, "affine", tuple(notes))
        field, objective, method = velocity.no_motion(frame), FREE_OBJECTIVE, "affine, refinement"
    else:
        say("network")
        config = model.register.config
        frame = _model_frame(fixed, moving, found.pull, model, notes)
        field = velocity.predicted(on_frame(frame), frame, model.register)
        objective, method = configuration.objective(config), "affine, network"
        if refine_objective != "trained":
            objective = objective._replace(
                precision=max(objective.precision, REFINE_PRECISION),
                image_sigma=max(objective.image_sigma, FREE_OBJECTIVE.image_sigma),
            )
        if refine:
            method += ", refinement" + (" around it" if refine_around == "network" else "")
    objective = objective._replace(landmark_weight=LANDMARK_WEIGHT, landmark_sigma=LANDMARK_SIGMA_MM)
    if refine_objective == "correlation":
        objective = objective._replace(image=CORRELATION, image_sigma=CORRELATION_SIGMA)
    outcome, network = None, None
    if refine:
        if model is not None:
            network, _ = velocity.transforms_of(field, found.pull, spacing_mm=COMPARED_MM)
        say(f"refinement, {refine} steps")
        frame = grid.finer(frame, grid.REFINE_MM)
        keep = refine_around == "network"
        field, outcome = refinement.refined(
            on_frame, frame, field, objective, refine, progress, around_start=keep
        )
    if outcome is not None and outcome.step == 0:
        notes.append("the refinement found nothing better that does not fold: its start is kept")
    say("integration")
    forward, inverse = velocity.transforms_of(field, found.pull, lung_points(fixed.lungs))
    sd = velocity.uncertainty(field, found.pull)
    settings = {
        "steps": refine,
        "around": refine_around,
        "image": objective.image,
        "lambda": objective.precision,
        "image_sigma": objective.image_sigma,
    }
    return Registered(
        forward, inverse, found, network, sd, outcome, frame, method, tuple(notes), settings, guidance
    )


def _windowed(volume: Volume, model: Model | None) -> Volume:
    if model is None:
        return Volume(window(volume.data, WINDOW), volume.affine)
    return windowed(volume, model.register.config.data)


def _model_frame(fixed: Side, moving: Side, pull: Array, model: Model, notes: list[str]) -> grid.Frame:
    data = model.register.config.data
    x, y, z = (int(n) for n in data.shape)
    if model.lungs is None:
        notes.append(
            f"{model.workdir} does not say where the lungs lay in its training (lungs.json): its grid is"
            " centred on the fixed lungs"
        )
    spacing = configuration.spacing_mm(model.register.config)
    scans = fixed.scan.volume, moving.scan.volume
    whole = bool(fixed.cut_off) and not moving.cut_off
    return grid.model_frame(
        fixed.lungs, moving.lungs, pull, (x, y, z), spacing, model.lungs, scans, moving_is_whole=whole
    )


def _lost(fixed: Volume, moving: Volume) -> tuple[Volume | None, Volume | None]:
    """The lungs of each scan that are not compared, since the other scan lacks them; None: none."""
    labels = [label for label in NAMES if label not in common_lungs(fixed, moving)]
    masks = [Volume(np.isin(mask.data, labels), mask.affine) for mask in (fixed, moving)] if labels else []
    first, second = (mask if mask.data.any() else None for mask in masks) if masks else (None, None)
    return first, second


def _missing(fixed: Side, moving: Side) -> list[str]:
    """Notes on lungs that a scan cuts off."""
    notes = []
    for role, side, other in (("fixed", fixed, "moving"), ("moving", moving, "fixed")):
        for end in side.cut_off:
            notes.append(
                f"the {role} scan cuts off the lungs' {end}: where it has no data nothing is compared,"
                f" and the {other} scan's tissue follows its surroundings there"
            )
    return notes


def lung_points(lungs: Volume, most: int = 20000) -> Array:
    """Centres of lung voxels, RAS mm [K, 3], evenly picked, at most about `most` of them."""
    index = np.argwhere(lungs.data)
    index = index[:: max(1, len(index) // most)]
    return index @ lungs.affine[:3, :3].T + lungs.affine[:3, 3]
