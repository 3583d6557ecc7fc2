"""Elastix (B-splines, mutual information) and ANTs (SyN) on a pair of the common grid.

Both take fixed and moving [X, Y, Z] in [0, 1] on one grid, affinely aligned, and give u [X, Y, Z, 3]
in voxels, fixed -> moving. Needs `pip install "lmreg_jax[baselines]"`; each is imported on first use.
ITK calls its space LPS, but never looks: told the grid's spacing, an origin of 0 and identity
directions, both programs work along our own axes, and no sign has to be changed.
"""

from __future__ import annotations

import importlib
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from lmreg_jax.errors import InputError

Array = NDArray[Any]
Spacing = tuple[float, float, float]
Masks = tuple[Array | None, Array | None]  # lungs of fixed and moving, [X, Y, Z], 0 outside

INSTALL = 'is not installed; pip install -e ".[baselines]"'
SEED = 1


class ElastixSettings(NamedTuple):
    """B-splines, Mattes' mutual information, adaptive stochastic gradient descent."""

    spacing_mm: float = 48.0  # between control points, at the last level; halved level by level
    levels: int = 3  # of the pyramid; the images are smoothed and thinned by 2^level
    iterations: int = 500  # a level
    samples: int = 4096  # drawn anew each iteration
    bins: int = 32  # of the joint histogram
    bending: float = 100.0  # weight of the bending energy (mm), beside mutual information's 1; 0: none
    mask_mm: float | None = None  # samples come from the lungs widened by this; None: everywhere


class AntsSettings(NamedTuple):
    """Greedy symmetric normalisation [Avants 2008] from the identity, without an affine stage."""

    metric: str = "Mattes"  # Mattes (mutual information) | CC (local correlation) | Demons
    metric_option: int = 32  # Mattes: bins; CC: radius, voxels
    step: float = 0.2  # of the gradient, voxels
    flow_mm: float = 28.0  # sigma of the smoothing of each update
    total_mm: float = 0.0  # sigma of the smoothing of the whole field
    iterations: tuple[int, ...] = (100, 70, 40)  # a level, the coarsest first
    mask_mm: float | None = None  # as above


Settings = ElastixSettings | AntsSettings


class Answer(NamedTuple):
    """u [X, Y, Z, 3] voxels, fixed -> moving; wall-clock seconds, and those of all cores."""

    displacement: Array
    seconds: float
    cpu_seconds: float


def elastix(
    fixed: Array, moving: Array, spacing_mm: Spacing, settings: ElastixSettings, masks: Masks = (None, None)
) -> Answer:
    """u by elastix; the time from the two arrays to u, imports not counted.

    Raises InputError where itk-elastix is not installed, RuntimeError where elastix fails.
    """
    version("elastix")
    import itk

    for lazy in ("ElastixRegistrationMethod", "TransformixFilter", "ParameterObject"):
        getattr(itk, lazy)  # itk loads on first use: ten seconds that are not the registration's
    _checked(fixed, moving)
    with _stopwatch() as elapsed, tempfile.TemporaryDirectory() as folder:
        mask = _widened(masks, settings.mask_mm, spacing_mm)
        images = [_itk_image(itk, a.astype(np.float32), spacing_mm) for a in (fixed, moving)]
        # As many threads as the machine has. (A number given to itk-elastix 0.25 ends the process as
        # soon as there are two metrics.)
        _, result = itk.elastix_registration_method(
            *images,
            parameter_object=elastix_parameters(settings),
            log_to_console=False,
            **({} if mask is None else {"fixed_mask": _itk_image(itk, mask, spacing_mm)}),
        )
        field = itk.transformix_deformation_field(
            images[1], result, log_to_console=False, output_directory=folder
        )  # It writes a file, too, and into the current folder unless told.
        mm = np.asarray(itk.array_view_from_image(field)).transpose(2, 1, 0, 3)
        displacement = _in_voxels(mm, fixed, spacing_mm)
    return Answer(displacement, *elapsed())


def elastix_parameters(settings: ElastixSettings) -> Any:
    """The parameter object: elastix's own B-spline defaults, changed where lung CT asks for it."""
    import itk

    parameters = itk.ParameterObject.New()
    table = parameters.GetDefaultParameterMap("bspline", settings.levels, settings.spacing_mm)
    changed: dict[str, Any] = {
        "Registration": "MultiMetricMultiResolutionRegistration",
        "Metric": ("AdvancedMattesMutualInformation", "TransformBendingEnergyPenalty"),
        "Metric0Weight": 1.0,
        "Metric1Weight": settings.bending,
        "NumberOfHistogramBins": settings.bins,
        "MaximumNumberOfIterations": settings.iterations,
        "NumberOfSpatialSamples": settings.samples,
        "NewSamplesEveryIteration": "true",
        "ImageSampler": "RandomCoordinate",
        "RequiredRatioOfValidSamples": 0.05,  # 0.25 gives up where a mask and a large shift meet
        "MaximumNumberOfSamplingAttempts": 8,
        "AutomaticTransformInitialization": "false",
        "WriteResultImage": "false",
        "RandomSeed": SEED,
    }
    if not settings.bending:
        changed |= {"Registration": "MultiResolutionRegistration", "Metric": changed["Metric"][:1]}
        del changed["Metric0Weight"], changed["Metric1Weight"]
    for name, value in changed.items():
        table[name] = [str(v) for v in (value if isinstance(value, tuple) else (value,))]
    parameters.AddParameterMap(table)
    return parameters


def ants(
    fixed: Array, moving: Array, spacing_mm: Spacing, settings: AntsSettings, masks: Masks = (None, None)
) -> Answer:
    """u by ANTs' SyN; the time from the two arrays to u, imports not counted.

    Called as by its command line (antspyx' own presets fix the pyramid). Raises InputError where
    antspyx is not installed, RuntimeError where ANTs fails.
    """
    version("ants")
    program: Any = importlib.import_module("ants")

    _checked(fixed, moving)
    with _stopwatch() as elapsed, tempfile.TemporaryDirectory() as folder:
        mask = _widened(masks, settings.mask_mm, spacing_mm)
        images = [fixed, moving, *([] if mask is None else [mask])]
        files = [f"{folder}/{i}.nii" for i in range(len(images))]
        for data, path in zip(images, files, strict=True):
            data = np.ascontiguousarray(data, np.float32)
            program.image_write(program.from_numpy(data, spacing=list(spacing_mm)), path)
        status = program.registration(ants_arguments(settings, spacing_mm, files, f"{folder}/u"), None)
        file = Path(folder) / "u0Warp.nii.gz"
        if status or not file.exists():
            raise RuntimeError(f"antsRegistration ended with status {status}")
        displacement = _in_voxels(program.image_read(str(file)).numpy(), fixed, spacing_mm)
    return Answer(displacement, *elapsed())


def ants_arguments(settings: AntsSettings, spacing_mm: Spacing, images: list[str], prefix: str) -> list[str]:
    """antsRegistration's words. images: files of fixed, moving and perhaps the mask."""
    fixed, moving, *mask = images
    levels = range(len(settings.iterations) - 1, -1, -1)
    voxel = float(np.prod(spacing_mm)) ** (1 / 3)
    flow, total = (
        (mm / voxel) ** 2 for mm in (settings.flow_mm, settings.total_mm)
    )  # ANTs: variance, voxels
    return [
        *("--dimensionality", "3", "--float", "1", "--random-seed", str(SEED)),
        *("--metric", f"{settings.metric}[{fixed},{moving},1,{settings.metric_option}]"),
        *("--transform", f"SyN[{settings.step:g},{flow:g},{total:g}]"),
        *("--convergence", f"[{'x'.join(map(str, settings.iterations))},1e-7,10]"),
        *("--shrink-factors", "x".join(str(2**level) for level in levels)),
        *("--smoothing-sigmas", "x".join(map(str, levels)) + "vox"),
        *("--use-histogram-matching", "0", "--output", prefix),
        *(("--masks", f"[{mask[0]},NA]") if mask else ()),
    ]


PACKAGES = {"elastix": "itk-elastix", "ants": "antspyx"}
REGISTER: dict[str, Callable[..., Answer]] = {"elastix": elastix, "ants": ants}


def version(name: str) -> str:
    """The installed version of "elastix" or "ants"; InputError, with what to type, where there is none."""
    try:
        return metadata.version(PACKAGES[name])
    except metadata.PackageNotFoundError:
        raise InputError(f"{PACKAGES[name]} {INSTALL}") from None


def _widened(masks: Masks, reach_mm: float | None, spacing_mm: Spacing) -> Array | None:
    """uint8 [X, Y, Z]: both subjects' lungs and what lies within reach_mm of them; None: no mask."""
    known = [mask != 0 for mask in masks if mask is not None]
    if reach_mm is None or not known:
        return None
    lungs = np.logical_or.reduce(known)
    if not lungs.any():
        return None
    distance = ndimage.distance_transform_edt(~lungs, sampling=spacing_mm)
    return (distance <= reach_mm).astype(np.uint8)


def _itk_image(itk: Any, data: Array, spacing_mm: Spacing) -> Any:
    image = itk.image_from_array(np.ascontiguousarray(data.transpose(2, 1, 0)))
    image.SetSpacing([float(s) for s in spacing_mm])
    return image


def _in_voxels(mm: Array, fixed: Array, spacing_mm: Spacing) -> Array:
    """A field in mm as displacement in voxels; RuntimeError where it cannot be one."""
    if mm.shape != (*fixed.shape, 3):
        raise RuntimeError(f"a field of shape {mm.shape} was returned for an image {fixed.shape}")
    if not np.isfinite(mm).all():
        raise RuntimeError("the field returned has values that are not finite")
    return np.asarray(mm / np.asarray(spacing_mm, np.float64), np.float32)


def _checked(fixed: Array, moving: Array) -> None:
    if fixed.ndim != 3 or fixed.shape != moving.shape:
        raise InputError(
            f"moving has shape {moving.shape}, fixed has {fixed.shape}: two volumes [X, Y, Z] on one"
            " grid are needed"
        )
    if not (np.isfinite(fixed).all() and np.isfinite(moving).all()):
        raise InputError("fixed or moving has values that are NaN or infinite: replace them first")


@contextmanager
def _stopwatch() -> Iterator[Callable[[], tuple[float, float]]]:
    """Yields a function: (wall-clock seconds, seconds of all cores of this process) since."""
    wall, cpu = time.perf_counter(), time.process_time()
    yield lambda: (time.perf_counter() - wall, time.process_time() - cpu)
