"""Where tests find data that is not the project's to ship (real CT, reference numbers)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(os.environ.get("LMREG_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))


def shared(name: str) -> Path:
    """The file `name` below the shared data; skips the calling test, saying so, where absent."""
    path = ROOT / name
    if not path.exists():
        pytest.skip(f"needs {name} below {ROOT} (set LMREG_SHARED_DATA to its folder)")
    return path
