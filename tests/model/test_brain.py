"""[Dalca]'s weights on a real brain: a warp that is known, found again by an imported network.

The run of `lmreg_jax.model.registrar.register_pair` that shows import, network, integration and
warping right together: a slip of an axis, an order of channels or a padding costs it the gain.
"""

from __future__ import annotations

import numpy as np
import pytest

from lmreg_jax.evaluation import metrics
from lmreg_jax.imaging.transforms import jacobian_determinant
from lmreg_jax.model import registrar
from lmreg_jax.model.keras import import_keras
from lmreg_jax.model.unet import UNet
from tests import numerics
from tests.shared_data import shared

LARGEST_WARP = 6.0  # voxels of 1 mm
SEED = 1


def mean_dice(labels: np.ndarray, others: np.ndarray, names: np.ndarray) -> float:
    return float(np.mean([metrics.dice(labels, others, name) for name in names]))


@pytest.mark.slow
def test_a_known_warp_of_a_brain_is_found_again() -> None:
    weights = shared("voxelmorph/miccai2018_10_02_init1.h5")
    pytest.importorskip("h5py")
    import jax

    from lmreg_jax.core import fields

    brain = np.load(shared("voxelmorph/test_vol.npz"))["vol_data"].astype(np.float32)
    labels = np.load(shared("voxelmorph/test_seg.npz"))["vol_data"].astype(np.int32)
    truth = numerics.smooth_field(brain.shape, SEED, LARGEST_WARP, waves=3).astype(np.float32)
    moving = np.asarray(jax.jit(fields.warp)(brain, truth))
    moving_labels = jax.jit(fields.warp_nearest)(labels, truth)

    model = UNet()
    register = jax.jit(lambda p, f, m: registrar.register_pair(p, f, m, apply=model.apply))
    found = register(import_keras(weights, model), brain, moving)
    warped_labels = jax.jit(fields.warp_nearest)(moving_labels, found.displacement)

    names, sizes = np.unique(labels[labels > 0], return_counts=True)
    names = names[np.argsort(-sizes)][:30]
    before = mean_dice(labels, np.asarray(moving_labels), names)
    after = mean_dice(labels, np.asarray(warped_labels), names)
    determinant = jacobian_determinant(np.asarray(found.displacement))
    print(f"Dice of {len(names)} labels {before:.3f} -> {after:.3f}")
    print(f"determinant {determinant.min():.3f} to {determinant.max():.3f}")
    assert 0.6 < before < 0.8
    assert after > 0.85
    assert metrics.folding_percent(determinant) == 0
    # The log-variance of a converged posterior: where the KL has its minimum, ln(1 / (6 lambda)).
    assert float(np.median(found.velocity_log_variance)) == pytest.approx(-np.log(60), abs=0.2)
