"""The settings that are tried for each method that has some; the first is kept without validation.

A few for each, around what its users take for lung CT: [Staring 2010] for Elastix, [Song 2010] for
ANTs. Lengths are in mm or voxels as the name says; the list is the same on every grid.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

from lmreg_jax.evaluation.baselines import AntsSettings, ElastixSettings


class RefinementSettings(NamedTuple):
    """Steps of Adam on the pair's own velocity, started from the network's."""

    steps: int = 100
    image: str = "lncc5"  # the image term
    image_sigma: float = 0.1  # of it
    precision: float = 100.0  # lambda of the prior
    learning_rate: float = 0.1  # field voxels a step
    around: Literal["zero", "network"] = "network"  # the prior's mean; the network's keeps landmarks


Settings = ElastixSettings | AntsSettings | RefinementSettings

ELASTIX = {
    "48 mm, bending energy 100": ElastixSettings(),
    "48 mm, no bending energy": ElastixSettings(bending=0.0),
    "32 mm": ElastixSettings(spacing_mm=32.0),
    "64 mm": ElastixSettings(spacing_mm=64.0),
    "1000 iterations a level": ElastixSettings(iterations=1000),
}
ANTS = {
    "mutual information, updates smoothed by 28 mm": AntsSettings(),
    "mutual information, 20 mm": AntsSettings(flow_mm=20.0),
    "mutual information, 36 mm": AntsSettings(flow_mm=36.0),
    "local correlation of radius 2, 12 mm": AntsSettings(metric="CC", metric_option=2, flow_mm=12.0),
}
# One setting, chosen where there were enough subjects to tell them apart: nine validated a network that
# the other 21 had trained for 750 steps. TRE, unseen TRE (mm) and Dice there: network alone 2.69, 6.80,
# 0.919; as below 2.26, 4.76, 0.928; windows of 9^3 voxels 2.28, 5.20, 0.929; squared difference with
# sigma 0.03 2.37, 5.76, 0.928. The default's three validation subjects rank settings otherwise.
REFINEMENT = {"around the network, 100 steps, local correlation of 5^3 voxels": RefinementSettings()}
CANDIDATES: dict[str, Mapping[str, Settings]] = {
    "elastix": ELASTIX,
    "ants": ANTS,
    "voxelmorph_refined": REFINEMENT,
    "refined": REFINEMENT,
}
