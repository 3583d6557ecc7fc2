"""What every result file says: plain JSON values, versions of what took part."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import numpy as np

PACKAGES = ("lmreg_jax", "jax", "flax", "numpy", "scipy", "nibabel", "SimpleITK", "itk-elastix")


def plain(value: Any) -> Any:
    """Python's own types for `json`; what is not a finite number becomes null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | Sequence) and not isinstance(value, str):
        return [plain(item) for item in value]
    number = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(number, float) and not math.isfinite(number) else number


def version(package: str) -> str | None:
    """The installed version; None where the package is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str | None]:
    """Python's version and those of `packages`."""
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}
