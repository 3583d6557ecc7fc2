"""JAX's settings while this package computes: those that it was tested with, whatever the host has set."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import jax


@contextmanager
def own_settings() -> Iterator[None]:
    """Inside, in this thread: 32 bits, free broadcasting, types and transfers, no search for NaN.

    Also a decorator. A user's jax_enable_x64, jax_numpy_rank_promotion, jax_numpy_dtype_promotion,
    jax_transfer_guard or jax_debug_nans neither changes nor ends what is computed.
    """
    with (
        jax.enable_x64(False),
        jax.numpy_rank_promotion("allow"),
        jax.numpy_dtype_promotion("standard"),
        jax.transfer_guard("allow"),
        jax.debug_nans(False),
        jax.debug_infs(False),
    ):
        yield
