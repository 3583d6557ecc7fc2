"""The embedded cohort: a procedural thorax of adults who differ, in HU, with known landmarks.

`thorax` makes one subject, `write_cohort` a cohort on disk (cases.csv, images, lungs, lobes,
landmarks, points; `VERSION` changes whenever the data of a seed do).
"""

from __future__ import annotations

from lmreg_jax.phantom.scan import LANDMARKS, VERSION, Thorax, thorax
from lmreg_jax.phantom.writer import write_cohort

__all__ = ["LANDMARKS", "VERSION", "Thorax", "thorax", "write_cohort"]
