"""Two chest CTs in, one transform in millimetres out: what `lmreg register` does, for Python.

result = register_scans("inhale.nii.gz", "exhale.nii.gz")
result.transform([[12.0, -40.5, 101.0]])      # fixed RAS mm -> moving RAS mm
result.save("aligned")                        # the folder that `lmreg register` writes
"""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray

from lmreg_jax.anatomy import landmarks
from lmreg_jax.anatomy.chest import Side, check_ct, read_side
from lmreg_jax.anatomy.landmarks import Landmarks
from lmreg_jax.api.transform import AIR_HU, Transform
from lmreg_jax.errors import InputError
from lmreg_jax.io.images import as_scan
from lmreg_jax.io.outputs import new_folder, resolved
from lmreg_jax.io.points import check_points, read_points
from lmreg_jax.io.scan import Scan
from lmreg_jax.model.weights import DEFAULT
from lmreg_jax.registration import measures, refinement
from lmreg_jax.registration.scans import Model, Registered, load_model, register_sides
from lmreg_jax.registration.verdict import Verdict, judged
from lmreg_jax.report import output, overview

Points = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Result:
    """A registered pair. transform: fixed -> moving; inverse: moving -> fixed, both in RAS mm.

    notes: doubts and decisions. settings: how the refinement was made.
    """

    transform: Transform
    fixed: Side = field(repr=False)
    moving: Side = field(repr=False)
    registered: Registered = field(repr=False)
    model: Model | None = field(repr=False)
    landmarks: tuple[Points, Points] | None = field(repr=False)
    airways: tuple[NDArray[Any], NDArray[Any]] | None = field(repr=False)
    seconds: Mapping[str, float] = field(repr=False)
    like: Any = field(repr=False)  # the moving image as it was given: `warped` is of its kind

    def __repr__(self) -> str:
        dice = self.metrics["dice"]["both"]["after"]
        folding = self.metrics["regularity"]["folding_percent"]
        method, verdict = self.registered.method, self.verdict.value
        return f"Result({verdict}: {method}; lung Dice {dice:.3f}, folding {folding:.2g} %)"

    @property
    def inverse(self) -> Transform:
        """moving RAS mm -> fixed RAS mm."""
        return self.transform.inverse()

    @property
    def notes(self) -> tuple[str, ...]:
        """Doubts about the scans and decisions on the way."""
        doubts = [f"{role}: {text}" for role in ("fixed", "moving") for text in getattr(self, role).warnings]
        return (*self.registered.notes, *doubts)

    @cached_property
    def warped(self) -> Any:
        """The moving scan on the fixed scan's grid, HU, of the moving scan's type."""
        scan = self.moving.scan
        image = self.transform.warp(scan if self.like is None else self.like, fill=AIR_HU)
        return image

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """Overlap, regularity, motion and (with landmarks) TRE; see `registration.measures`."""
        return measures.summary(self.registered, self.fixed, self.moving, self.landmarks)

    @cached_property
    def verdict(self) -> Verdict:
        """`good`, `check` or `poor`, with reasons in plain words and the figures behind them."""
        return judged(self.metrics, self.registered, self.fixed, self.moving, self.airways)

    def save(
        self, folder: str | os.PathLike[str], *, extras: Collection[str] = (), force: bool = False
    ) -> Path:
        """Writes what `lmreg register` writes; extras: "displacement", "jacobian", "uncertainty".

        Raises InputError where `folder` exists, unless force.
        """
        with new_folder(folder, force=force, known=tuple(output.FILES)) as temporary:
            written = output.write_results(
                temporary,
                self.fixed,
                self.moving,
                self.registered,
                command=shlex.join(sys.argv),
                model=self.model,
                landmarks=self.landmarks,
                airways=self.airways,
                save=extras,
                seconds=self.seconds,
            )
        place = resolved(folder)
        output.write_page(place, written, self.fixed, self.moving)
        return place

    def _repr_png_(self) -> bytes:
        """The picture of the report, in a notebook."""
        picture = overview.pictured(self.fixed, self.moving, self.registered)
        with tempfile.TemporaryDirectory() as folder:
            return overview.draw(Path(folder) / "picture.png", picture, [repr(self)]).read_bytes()


def read_scan(image: Any) -> Scan:
    """A checked image in RAS+, with the grid that its file stores: `.volume.data`, `.volume.affine`.

    image: a path (.nii .nii.gz .mha .mhd .nrrd, DICOM folder), a nibabel or a SimpleITK image. Raises
    InputError on what cannot be read, is not 3-D or not finite, or has a geometry that cannot be trusted.
    """
    return as_scan(image, "scan")


def find_landmarks(scan: Any) -> Landmarks:
    """Named points of a chest CT, RAS mm, each with its confidence: `.accepted()` gives those to rely on.

    scan: a path, nibabel or SimpleITK image, or a `Scan`, in HU. Raises InputError where it is no chest CT.
    """
    checked = as_scan(scan, "scan")
    check_ct(checked)
    return landmarks.find_landmarks(checked.volume)


def register_scans(
    fixed: Any,
    moving: Any,
    *,
    fixed_mask: Any = None,
    moving_mask: Any = None,
    fixed_landmarks: Any = None,
    moving_landmarks: Any = None,
    model: str | os.PathLike[str] | Model | None = DEFAULT,
    refine: int = 60,
    guidance: Literal["auto", "none", "given"] = "auto",
    affine: str = "auto",
    say: Callable[[str], None] = lambda _: None,
    progress: refinement.Progress = iter,
    **settings: Any,
) -> Result:
    """Aligns a moving chest CT to a fixed one, affinely and then by network and refinement.

    fixed, moving: paths (.nii .nii.gz .mha .nrrd, DICOM folder), nibabel or SimpleITK images, HU.
    *_mask: lungs on the scan's grid (1 left, 2 right, or all 1); segmented where None.
    *_landmarks: a points file or {name: [3] RAS mm}, for the metrics.
    guidance: points that affine step and refinement bring together: found in both scans ("auto"), the
    landmarks ("given"), or "none".
    model: a training's or model's folder; None: no network. refine: steps of refinement on this pair.
    settings: further keywords of `registration.scans.register_sides`.
    say: told what is being done; progress: wraps the counts of refinement steps.

    Raises InputError on scans that are no chest CT in HU, identical scans, masks that do not fit, landmarks
    outside their scan or without a common name.
    """
    paths = [image for image in (fixed, moving) if isinstance(image, str | os.PathLike)]
    if len(paths) == 2 and all(map(os.path.exists, paths)) and os.path.samefile(*paths):
        raise InputError(f"{fixed} and {moving}: one and the same; give two different scans")
    start, seconds = time.perf_counter(), {}
    if guidance not in ("auto", "none", "given"):
        raise InputError(f'guidance {guidance!r}: expected "auto", "none" or "given"')
    if guidance == "given" and (fixed_landmarks is None or moving_landmarks is None):
        raise InputError('guidance "given": give the landmarks of both scans')

    def read(role: str, image: Any, mask: Any) -> tuple[Side, Landmarks | None]:
        side = read_side(as_scan(image, role), mask)
        return side, landmarks.find_landmarks(side.scan.volume, side.lungs) if guidance == "auto" else None

    say("both scans, their lungs and airways" if guidance == "auto" else "both scans and their lungs")
    with ThreadPoolExecutor(max_workers=2) as pool:  # what takes the time there leaves Python's lock
        both = pool.map(read, ("fixed", "moving"), (fixed, moving), (fixed_mask, moving_mask))
        (fixed_side, fixed_found), (moving_side, moving_found) = both
    sides = fixed_side, moving_side
    seconds["reading"] = time.perf_counter() - start
    points = _landmarks((fixed_landmarks, moving_landmarks), (sides[0].scan, sides[1].scan))
    loaded = model if model is None or isinstance(model, Model) else load_model(model)
    airways, guide = None, None
    if guidance == "given" and points is not None:
        guide = tuple({name: (p, 1.0) for name, p in side.items()} for side in points)
    elif fixed_found is not None and moving_found is not None:
        airways = fixed_found.centreline(), moving_found.centreline()
        guide = fixed_found.weighted(), moving_found.weighted()
    start = time.perf_counter()
    registered = register_sides(
        sides[0],
        sides[1],
        loaded,
        refine=refine,
        affine=affine,
        guide=guide,  # type: ignore[arg-type]
        say=say,
        progress=progress,
        **settings,
    )
    seconds["registering"] = time.perf_counter() - start
    transform = Transform(registered.forward, sides[0].scan, registered.inverse, sides[1].scan)
    like = None if isinstance(moving, str | os.PathLike) else moving
    return Result(transform, sides[0], sides[1], registered, loaded, points, airways, seconds, like)


def _landmarks(sources: tuple[Any, Any], scans: tuple[Scan, Scan]) -> tuple[Points, Points] | None:
    """Both sets, checked against their scans; None where neither is given."""
    if all(source is None for source in sources):
        return None
    if any(source is None for source in sources):
        raise InputError("landmarks of one scan only: give those of both, or of none")
    sets = []
    for source, scan in zip(sources, scans, strict=True):
        points = read_points(source, scan) if isinstance(source, str | os.PathLike) else dict(source)
        check_points(source if isinstance(source, str | os.PathLike) else "landmarks", points, scan)
        sets.append(points)
    if not set(sets[0]) & set(sets[1]):
        names = ", ".join(list(sets[0])[:3]), ", ".join(list(sets[1])[:3])
        raise InputError(
            f"the landmarks share no landmark name ({names[0]} ... and {names[1]} ...): names must match"
        )
    return sets[0], sets[1]
