"""The PyTorch peer of the benchmarks does the same work: equal output from equal weights."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

from benchmarks import torch_peer  # noqa: E402
from benchmarks.speed_worker import FEATURES, example  # noqa: E402
from lmreg_jax import objective as eq7  # noqa: E402
from lmreg_jax import registration  # noqa: E402
from lmreg_jax.posterior import Posterior  # noqa: E402
from lmreg_jax.training import Batch  # noqa: E402
from lmreg_jax.unet import UNet  # noqa: E402

GRID = (32, 16, 48)


@pytest.mark.parametrize("normalise", [False, True])
def test_register_and_loss_agree(normalise: bool) -> None:
    """Relative 1e-4: float32 sums of a thousand products in another order, ten layers deep."""
    pairs, _, noise = example(GRID, 2)
    network = UNet(**FEATURES, normalisation="instance" if normalise else "none")
    small = jnp.zeros((1, 16, 16, 16))
    params = network.init(jax.random.key(0), small, small)
    head = params["params"]["mean"]
    # The heads start at nearly zero; so that there is something to compare, they are made large.
    head["kernel"] = 0.1 * jax.random.normal(jax.random.key(1), head["kernel"].shape)
    net = torch_peer.UNet(**FEATURES, normalise=normalise).load(params)
    tensors = Batch(*(torch.from_numpy(np.array(a)) for a in pairs))

    ours = registration.register_pair(params, pairs.fixed[0], pairs.moving[0], apply=network.apply)
    with torch.no_grad():
        warped, forward, backward = torch_peer.register(net, tensors.fixed, tensors.moving)
    u = forward[0].permute(1, 2, 3, 0).numpy()
    assert np.abs(u).max() > 0.5
    scale = np.abs(u).max()
    np.testing.assert_allclose(ours.displacement, u, atol=1e-4 * scale)
    np.testing.assert_allclose(ours.inverse_displacement, backward[0].permute(1, 2, 3, 0), atol=1e-4 * scale)
    np.testing.assert_allclose(ours.warped, warped[0], atol=1e-4)

    objective = eq7.Objective(image_sigma=0.05, landmark_weight=2.0)
    posterior = network.apply(params, pairs.moving, pairs.fixed)
    total = []
    for i in range(2):
        mean, log_variance = posterior.mean[i], posterior.log_variance[i]
        v = mean + jnp.exp(log_variance / 2) * noise[i]
        displacement = eq7.displacement_of(v, GRID, stride=2, steps=7)
        terms = eq7.terms(objective, Posterior(mean, log_variance), displacement, *(a[i] for a in pairs))
        total.append(float(eq7.total(objective, terms)))
    drawn = torch.from_numpy(noise.transpose(0, 4, 1, 2, 3).copy())
    with torch.no_grad():
        theirs = float(torch_peer.loss(net, tensors, drawn, objective))
    assert theirs == pytest.approx(np.mean(total), rel=1e-4)
