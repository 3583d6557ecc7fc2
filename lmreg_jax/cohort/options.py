"""What a cohort can be asked for, checked before anything is read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lmreg_jax.affine import elastix
from lmreg_jax.errors import InputError

ALIGNMENTS = ("auto", "images", "elastix", "moments", "none", "identity")
LUNGS = ("auto", "file", "segment", "required", "none")
WINDOWS = ("hu", "percentile")
POLICIES = ("strict", "skip")


class Options(NamedTuple):
    """What `read_cohort` was asked for, checked; every value takes part in the cache's key."""

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    window: tuple[float, float]
    window_kind: str
    landmark_names: tuple[str, ...]
    alignment: str
    reference: str
    lungs: str
    policy: str


def checked_options(
    shape: Sequence[int],
    spacing_mm: float | Sequence[float],
    window: Sequence[float],
    window_kind: str,
    landmark_names: Sequence[str],
    alignment: str,
    reference: str,
    lungs: str,
    policy: str = "strict",
) -> Options:
    """The arguments of `read_cohort`, checked and brought to one form."""
    sizes = tuple(int(n) for n in shape)
    if len(sizes) != 3 or min(sizes) < 2:
        raise InputError(f"shape {tuple(shape)}: expected three sizes of at least 2 voxels")
    edges = np.atleast_1d(np.asarray(spacing_mm, np.float64))
    edges = np.repeat(edges, 3) if edges.size == 1 else edges
    if edges.shape != (3,) or not (np.isfinite(edges).all() and edges.min() > 0):
        raise InputError(f"spacing_mm {spacing_mm}: expected one or three positive numbers")
    limits = tuple(float(w) for w in window)
    if len(limits) != 2 or not limits[0] < limits[1]:
        raise InputError(f"window {tuple(window)}: expected two numbers, low < high")
    for what, value, choices in (
        ("window_kind", window_kind, WINDOWS),
        ("alignment", alignment, ALIGNMENTS),
        ("lungs", lungs, LUNGS),
        ("policy", policy, POLICIES),
    ):
        if value not in choices:
            raise InputError(f"{what} {value!r}: expected one of {', '.join(choices)}")
    names = tuple(landmark_names)
    if len(set(names)) != len(names):
        raise InputError(f"landmark_names {names}: a name is there twice")
    installed = elastix.installed()
    if alignment == "auto":
        alignment = "elastix" if installed else "moments"
    if alignment == "elastix" and not installed:
        raise InputError("alignment 'elastix' needs the package itk-elastix; install it, or take 'moments'")
    x, y, z = sizes
    dx, dy, dz = edges.tolist()
    grid = (x, y, z), (dx, dy, dz), (limits[0], limits[1])
    return Options(*grid, window_kind, names, alignment, reference, lungs, policy)
