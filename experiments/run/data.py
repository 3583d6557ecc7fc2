"""The cohort that a config asks for: a folder of the user's, or the embedded thorax."""

from __future__ import annotations

import logging
import math
import os
from pathlib import Path

from ml_collections import ConfigDict

from lmreg_jax import phantom
from lmreg_jax._compilation_cache import user_cache
from lmreg_jax.cohort.cohort import Cohort, read_cohort, split_names, with_validation
from lmreg_jax.model import config as configuration

log = logging.getLogger(__name__)

# The embedded scans are this much larger than the grid on every side. Alignment moves a scan by as
# much; without a margin its edge would show as a slab of air inside the grid, and the network would
# spend itself on pulling skin over it (45 mm at the border, seen).
MARGIN_MM = 30.0


def cache_folder() -> Path:
    """Where cohorts are kept between runs: $LMREG_CACHE, else the user's cache folder."""
    return Path(os.path.expanduser(os.environ.get("LMREG_CACHE") or user_cache() / "lmreg_jax"))


def embedded_root(config: ConfigDict) -> Path:
    """The embedded cohort at the configured grid; written on first use, named by what it holds."""
    data, spacing = config.data, configuration.spacing_mm(config)
    voxel_mm = min(spacing)  # The phantom's voxels are cubes; the reader resamples where ours are not.
    shape = tuple(
        math.ceil((n * s + 2 * MARGIN_MM) / voxel_mm) for n, s in zip(data.shape, spacing, strict=True)
    )
    grid = f"{'x'.join(map(str, shape))}_{voxel_mm:g}mm"
    name = f"thorax_v{phantom.VERSION}_{data.cases}_{data.test}_{grid}_seed{data.seed}"
    root = cache_folder() / name
    if not root.is_dir():
        log.info("generating the embedded cohort in %s", root)
        phantom.write_cohort(
            root, cases=data.cases, test=data.test, seed=data.seed, shape=shape, spacing_mm=voxel_mm
        )
    return root


def load_cohort(config: ConfigDict, *, progress: bool = True) -> Cohort:
    """The cohort of `config.data`, aligned, on its grid, with validation cases set apart.

    Raises InputError where a file or a value of the cohort cannot be used.
    """
    data = config.data
    cohort = read_cohort(
        Path(data.root) if data.root else embedded_root(config),
        shape=tuple(data.shape),
        spacing_mm=configuration.spacing_mm(config),
        window=tuple(data.window),
        window_kind=data.window_kind,
        landmark_names=tuple(data.landmark_names),
        alignment=data.alignment,
        lungs=data.lungs,
        reference=data.reference,
        cache=Path(data.cache) if data.cache else cache_folder() / "cohorts",
        allow_outside_root=data.allow_outside_root,
        policy=data.policy,
        progress=progress,
    )
    return with_validation(cohort, validation_count(cohort, data.validation), data.seed)


def validation_count(cohort: Cohort, share: float) -> int:
    """How many training cases to set apart: `share` of them; none where that is not even a pair."""
    count = round(share * len(split_names(cohort, "train")))
    return count if count >= 2 else 0
