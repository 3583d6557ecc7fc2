"""Tiny synthetic subjects for tests of the border to files: a body, two lungs, some landmarks."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lmreg_jax.cohort.cohort import read_cohort
from lmreg_jax.imaging.volume import Volume, apply_affine
from lmreg_jax.io.nifti import write_volume
from lmreg_jax.io.points import write_points

GRID = np.diag([8.0, 8.0, 8.0, 1.0])
GRID[:3, 3] = (-156.0, -116.0, -140.0)
SHAPE = (40, 30, 36)
COHORT_OPTIONS = {"shape": (24, 18, 26), "spacing_mm": 12.0, "alignment": "moments", "progress": False}
LANDMARKS = {
    "carina": (0.0, -5.0, 40.0),
    "left_tip": (-75.0, 0.0, 80.0),
    "right_tip": (75.0, 0.0, 80.0),
    "right_base": (75.0, 20.0, -70.0),
    "left_base": (-75.0, 20.0, -70.0),
}


def ellipsoid(mm, centre, radii):
    return np.sum(((mm - centre) / radii) ** 2, axis=-1) <= 1


def subject(pull, shape=SHAPE, affine=GRID):
    """The model subject deformed: what lies at x of the model lies at pull(x) here, RAS mm.

    Returns CT [HU, int16] and lung labels (1 left, at smaller x) as Volumes, landmarks in RAS mm.
    """
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    mm = apply_affine(np.linalg.inv(pull), apply_affine(affine, index))
    lungs = np.zeros(shape, np.uint8)
    lungs[ellipsoid(mm, (-72.0, 0.0, 0.0), (48.0, 72.0, 104.0))] = 1
    lungs[ellipsoid(mm, (72.0, 0.0, 8.0), (56.0, 76.0, 112.0))] = 2
    body = ellipsoid(mm * (1, 1, 0), 0.0, (150.0, 108.0, 1.0))
    ct = np.where(body, 40, -1000)
    ct[lungs > 0] = -850
    landmarks = {name: apply_affine(pull, np.array(p)) for name, p in LANDMARKS.items()}
    return Volume(ct.astype(np.int16), affine), Volume(lungs, affine), landmarks


def random_pull(seed, strength=1.0):
    """A random affine [4, 4] near the identity: 12 mm of shift, some per cent of shear."""
    rng = np.random.default_rng(seed)
    pull = np.eye(4)
    pull[:3, :3] += strength * rng.uniform(-0.06, 0.06, (3, 3))
    pull[:3, 3] = strength * rng.uniform(-12, 12, 3)
    return pull


def write_cohort(root: Path, splits=("train", "train", "train", "test", "test")) -> Path:
    """Subjects c0, c1, ... with all files and cases.csv, RAS grids of one shape."""
    lines = ["case,split,image,lungs,landmarks"]
    for i, split in enumerate(splits):
        ct, lungs, landmarks = subject(random_pull(i))
        write_volume(root / f"images/c{i}.nii.gz", ct)
        write_volume(root / f"lungs/c{i}.nii.gz", lungs)
        write_points(root / f"landmarks/c{i}.csv", landmarks)
        lines.append(f"c{i},{split},images/c{i}.nii.gz,lungs/c{i}.nii.gz,landmarks/c{i}.csv")
    (root / "cases.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root


def read(root, **options):
    """The cohort on a small grid of 12 mm voxels, aligned by moments."""
    return read_cohort(root, **{**COHORT_OPTIONS, **options})


def edit(path, old, new):
    """Replaces a text in a file that must hold it."""
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
