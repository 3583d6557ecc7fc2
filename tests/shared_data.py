"""Where tests find reference numbers, and data that is not the project's to ship (real CT, a brain)."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

GOLDEN = Path(__file__).with_name("golden")  # its README says what the numbers are
ROOT = Path(os.environ.get("LMREG_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))


def shared(name: str) -> Path:
    """The file `name` below the shared data; skips the calling test, saying so, where absent."""
    path = ROOT / name
    if not path.exists():
        pytest.skip(f"needs {name} below {ROOT} (set LMREG_SHARED_DATA to its folder)")
    return path


def golden(name: str) -> dict[str, np.ndarray]:
    """The arrays of `name`.npz in the folder golden/; NaN where a voxel was left out to save room.

    Stored as planes of bytes: two of multiples of 1/4096, or the four of a float32.
    """
    with np.load(GOLDEN / f"{name}.npz") as file:
        return {key: _joined(file[key]) for key in file.files}


def _joined(planes: np.ndarray) -> np.ndarray:
    values = np.ascontiguousarray(np.moveaxis(planes, 0, -1))
    if len(planes) == 2:
        return values.view("<u2")[..., 0] / np.float32(4096)
    return values.view("<f4")[..., 0]
