"""Pure functions on one image, one field, one set of points; jax only."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, submodules=["fields", "landmarks", "objective", "posterior", "prior", "similarity"]
)
