"""The methods of the comparison, each a function of a fixed and a moving case, and their results.

All see the same two images, those of `cohort.case.images_of_pair`, as in training and evaluation.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from experiments.comparison.settings import RefinementSettings
from experiments.comparison.store import Call, digest, stored
from lmreg_jax.cohort.case import Case, images_of_pair
from lmreg_jax.cohort.cohort import Cohort
from lmreg_jax.core import fields
from lmreg_jax.core.objective import displacement_of, field_stride
from lmreg_jax.evaluation import baselines, metrics
from lmreg_jax.evaluation.baselines import Answer
from lmreg_jax.evaluation.cohort import Registration, checked, timed
from lmreg_jax.evaluation.metrics import PairResult
from lmreg_jax.imaging.volume import apply_affine
from lmreg_jax.model import config
from lmreg_jax.model.registrar import Registrar
from lmreg_jax.registration import refinement
from lmreg_jax.registration.grid import Pair

log = logging.getLogger(__name__)

TITLES = {
    "before": "Before affine",
    "affine": "Affine only",
    "elastix": "Elastix",
    "ants": "ANTs (SyN)",
    "voxelmorph": "VoxelMorph",
    "ours": "Ours",
    "voxelmorph_refined": "VoxelMorph + refinement",
    "refined": "Ours + refinement",
}


class Method(NamedTuple):
    """answer(fixed, moving) raises what it likes; device: "cpu" or "gpu", "" where nothing runs."""

    name: str
    answer: Callable[[Case, Case], Answer]
    device: str = "cpu"

    @property
    def title(self) -> str:
        return TITLES[self.name]


class Result(NamedTuple):
    """A pair by a method: what was measured, or why there is nothing."""

    fixed: str
    moving: str
    measured: PairResult | None
    cpu_seconds: float = float("nan")
    error: str = ""

    @property
    def name(self) -> str:
        return f"{self.moving} -> {self.fixed}"


def run(
    method: Method, cohort: Cohort, pairs: Iterable[tuple[str, str]], *, progress: bool = True
) -> list[Result]:
    """The results of all pairs (fixed, moving), in order. A failure becomes a hole, and a warning."""
    results = []
    for names in tqdm(list(pairs), method.title, disable=not progress):
        fixed, moving = (cohort.case(name) for name in names)
        try:
            answer = method.answer(fixed, moving)
            u = checked(answer.displacement, fixed, moving)
            measured = metrics.measure(cohort, fixed, moving, u, answer.seconds)
            if method.name == "before":
                measured = _in_scanner_space(measured, fixed, moving)
            results.append(Result(fixed.name, moving.name, measured, answer.cpu_seconds))
        except Exception as error:  # whatever another's program raises is a hole
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            log.warning("%s, %s -> %s: %s", method.title, moving.name, fixed.name, reason)
            results.append(Result(fixed.name, moving.name, None, error=reason))
    return results


def before_affine(cohort: Cohort) -> Method:
    """The two scanners' millimetres taken for one space; errors are in those."""

    def answer(fixed: Case, moving: Case) -> Answer:
        index = np.stack(np.meshgrid(*map(np.arange, cohort.shape), indexing="ij"), -1)
        between = np.linalg.inv(moving.scan_from_grid) @ fixed.scan_from_grid
        u = apply_affine(between, index) - index
        return Answer(u.astype(np.float32), float("nan"), float("nan"))

    return Method("before", answer, "")


def _in_scanner_space(measured: PairResult, fixed: Case, moving: Case) -> PairResult:
    """A grid that was fitted to each case has its own millimetres; the scanner's are the true ones."""
    unseen = metrics.target_registration_error(None, fixed.points_mm, moving.points_mm)
    return measured._replace(tre_mm=measured.tre_before_affine_mm, tre_unseen_mm=unseen)


def affine_only(cohort: Cohort) -> Method:
    """What all others start from: u = 0."""
    zero = np.zeros((*cohort.shape, 3), np.float32)
    return Method("affine", lambda fixed, moving: Answer(zero, float("nan"), float("nan")), "")


def classical(name: str, settings: baselines.Settings, cohort: Cohort, folder: Path, call: Call) -> Method:
    """Elastix or ANTs ("elastix", "ants") by `call` (see `store.separate_process`)."""

    def answer(fixed: Case, moving: Case) -> Answer:
        masks = (fixed.lungs, moving.lungs) if settings.mask_mm is not None else (None, None)
        given = (*images_of_pair(fixed, moving), cohort.spacing_mm, settings, masks)
        key = digest(name, baselines.version(name), settings._asdict(), *given[:3], *masks)
        function = baselines.REGISTER[name]
        return stored(folder / name, _file(fixed, moving), key, lambda: call(function, *given))

    return Method(name, answer)


def learned(name: str, register: Registrar, folder: Path) -> Method:
    """A trained network ("voxelmorph", "ours")."""
    return _network(name, register, lambda pair: register(pair.fixed, pair.moving), {}, folder)


def refined(name: str, register: Registrar, settings: RefinementSettings, folder: Path) -> Method:
    """A network's velocity ("voxelmorph_refined", "refined"), then instance optimisation: on the pair's
    two images, no landmarks."""
    objective = config.objective(register.config)._replace(
        image=settings.image, image_sigma=settings.image_sigma, precision=settings.precision
    )

    def both(pair: Pair) -> Registration:
        start = register(pair.fixed, pair.moving).velocity_mean
        pair = jax.tree.map(jnp.asarray, pair)
        outcome = refinement.refine(
            pair,
            start,
            objective=objective,
            steps=settings.steps,
            learning_rate=settings.learning_rate,
            centre=start if settings.around == "network" else 0.0,
        )
        return _registration(outcome.velocity, pair.moving, objective.integration_steps)

    return _network(name, register, both, settings._asdict(), folder)


@partial(jax.jit, static_argnums=2)
def _registration(velocity: jax.Array, moving: jax.Array, steps: int) -> Registration:
    stride = field_stride(moving.shape, velocity.shape[:3])
    u = displacement_of(velocity, moving.shape, stride=stride, steps=steps)
    return Registration(fields.warp(moving, u), u)  # type: ignore[arg-type]


def _network(
    name: str, register: Registrar, function: Callable[[Pair], Any], settings: dict[str, Any], folder: Path
) -> Method:
    """`function`, timed warm; an answer belongs to the weights, settings and images."""
    leaves = (np.asarray(leaf) for leaf in jax.tree.leaves(register.params))
    weights = digest(config.to_json(register.config), settings, *leaves)
    device = jax.default_backend()
    warm = False

    def make(pair: Pair) -> Answer:
        nonlocal warm
        if not warm:
            jax.block_until_ready(function(pair).warped)
            warm = True
        return timed(lambda: function(pair))

    def answer(fixed: Case, moving: Case) -> Answer:
        pair = pair_of(fixed, moving)
        key = digest(name, weights, device, *pair)
        return stored(folder / name, _file(fixed, moving), key, lambda: make(pair))

    return Method(name, answer, device)


def pair_of(fixed: Case, moving: Case) -> Pair:
    """The pair's images as every network sees them, and where each scan has data itself."""
    everywhere = np.ones(fixed.image.shape, bool)
    inside = (everywhere if case.inside is None else case.inside for case in (fixed, moving))
    return Pair(*images_of_pair(fixed, moving), *inside)  # type: ignore[arg-type]


def _file(fixed: Case, moving: Case) -> str:
    return f"{moving.name}_to_{fixed.name}"


def seconds_on_cpu(name: str, register: Registrar, fixed: Case, moving: Case, folder: Path) -> float:
    """The time of one pair on the CPU, where `register` otherwise runs on a GPU."""
    images = images_of_pair(fixed, moving)

    def make() -> Answer:
        cpu = jax.devices("cpu")[0]
        with jax.default_device(cpu):
            here = register._replace(params=jax.device_put(register.params, cpu))
            jax.block_until_ready(here(*images).warped)  # compiled
            return timed(lambda: here(*images))

    key = digest(name, *images, config.to_json(register.config))
    return stored(folder / "on_cpu", name, key, make).seconds
