"""Four virtual CPU devices for all tests, double precision for those that ask for it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

# Read once, when jax starts its CPU backend: so before anything imports jax. The arrays are small
# and the programs many: without LLVM's optimiser the whole takes half the time.
os.environ["XLA_FLAGS"] = " ".join(
    [
        "--xla_force_host_platform_device_count=4",
        "--xla_backend_optimization_level=0",
        # Four devices on two busy cores wait for each other: after 40 s XLA would abort the process.
        "--xla_cpu_collective_call_terminate_timeout_seconds=180",
        os.environ.get("XLA_FLAGS", ""),
    ]
)

# XLA's thread pool, by default of as many threads as there are devices. While three of them wait in a
# collective for the fourth, that one's parallel loops find no thread left: rarely, all stand still.
os.environ.setdefault("NPROC", "16")

# The commands would keep compiled programs in the user's own folder, and find there what it holds.
os.environ["LMREG_COMPILATION_CACHE"] = "off"

import jax
import pytest

from lmreg_jax.imaging import _slabs as slabs
from tests import tiny_cohort


@pytest.fixture(scope="module", autouse=True)
def no_programs_left() -> Iterator[None]:
    """A module's compiled programs go with it: kept, they grow to gigabytes in each worker."""
    yield
    jax.clear_caches()


@pytest.fixture
def float64() -> Iterator[None]:
    """jax computes in float64 inside this test only: closed forms hold to many digits."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def several_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small grids, too, are worked through in several slabs, the last of them thinner."""
    monkeypatch.setattr(slabs, "SLAB_VOXELS", 40 * 34 * 7)


@pytest.fixture(scope="module")
def cohort_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny cohort on disk, to read and not to change."""
    return tiny_cohort.write_cohort(tmp_path_factory.mktemp("cohort"))


@pytest.fixture
def root(cohort_folder: Path, tmp_path: Path) -> Path:
    """A copy of it, to change."""
    return shutil.copytree(cohort_folder, tmp_path / "cohort")
