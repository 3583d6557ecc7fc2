"""Landmark-constrained learning for lung CT registration [Hu 2020].

    import lmreg_jax as lm

    result = lm.register_scans("fixed.nii.gz", "moving.nii.gz")    # two chest CTs, in millimetres
    register = lm.load()                                            # arrays [X, Y, Z] in [0, 1], in voxels

The pure functions are in `lm.fields`, `lm.landmarks`, `lm.prior`, `lm.similarity` and `lm.objective`.
Everything is imported on first use.
"""

import lazy_loader

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
