"""Landmark-constrained learning for lung CT registration [Hu 2020].

    register = lmreg_jax.load("runs/lung")
    result = register(fixed, moving)

The pure functions are in `fields`, `landmarks`, `prior`, `similarity` and `objective`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lmreg_jax.model.registrar import Registrar, Registration, load

__all__ = ["Registrar", "Registration", "load"]


def __getattr__(name: str) -> Any:
    """`load` and its types on first use: flax and orbax take seconds to import, and the pure
    functions need neither."""
    if name in __all__:
        from lmreg_jax.model import registrar

        return getattr(registrar, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
