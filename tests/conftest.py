"""Four virtual CPU devices and double precision where asked for, for all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator

# Read once, when jax starts its CPU backend: so before anything imports jax.
os.environ["XLA_FLAGS"] = " ".join(
    [os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=4"]
).strip()

import jax
import pytest


@pytest.fixture
def float64() -> Iterator[None]:
    """jax computes in float64 inside this test only: derivatives and closed forms to many digits."""
    with jax.enable_x64(True):
        yield
