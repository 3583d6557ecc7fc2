"""The settings that are tried for each method that has some; the first is kept without validation.

A few for each, around what its users take for lung CT: [Staring 2010] for Elastix, [Song 2010] for
ANTs. Lengths are in mm or voxels as the name says; the list is the same on every grid.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from lmreg_jax.baselines import AntsSettings, ElastixSettings


class RefinementSettings(NamedTuple):
    """Steps of Adam on the pair's own velocity, started from the network's."""

    steps: int = 100
    image_sigma: float = 0.05  # of the image term; the prior is the training's
    learning_rate: float = 0.1  # field voxels a step


Settings = ElastixSettings | AntsSettings | RefinementSettings

ELASTIX = {
    "48 mm": ElastixSettings(),
    "32 mm": ElastixSettings(spacing_mm=32.0),
    "64 mm": ElastixSettings(spacing_mm=64.0),
    "bending energy 100": ElastixSettings(bending=100.0),
    "1000 iterations a level": ElastixSettings(iterations=1000),
    "samples from the lungs and 20 mm around": ElastixSettings(mask_mm=20.0),
}
ANTS = {
    "CC, radius 2": AntsSettings(),
    "mutual information": AntsSettings(metric="Mattes", metric_option=32),
}
REFINEMENT = {f"{steps} steps": RefinementSettings(steps) for steps in (100, 50, 200)}
CANDIDATES: dict[str, Mapping[str, Settings]] = {"elastix": ELASTIX, "ants": ANTS, "refined": REFINEMENT}
