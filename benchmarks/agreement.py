"""Whether both sides of the speed benchmark do the same work: equal output from equal weights.

    python -m benchmarks.agreement [--grid=48x32x64]

Prints the largest differences as JSON, relative to the largest value; `benchmarks.speed` asks for
them first, and stops where they are more than TOLERANCE.
"""

from __future__ import annotations

import argparse
import json

import jax
import jax.numpy as jnp
import numpy as np
import torch

from benchmarks import torch_peer
from benchmarks.speed_worker import FEATURES, example
from lmreg_jax.core import objective as eq7
from lmreg_jax.core.posterior import Posterior
from lmreg_jax.model import registrar
from lmreg_jax.model.unet import UNet
from lmreg_jax.types import Batch

OBJECTIVE = eq7.Objective(image_sigma=0.05, landmark_weight=2.0)


def differences(grid: tuple[int, ...], normalise: bool) -> dict[str, float]:
    """Of `register` and of the loss, over two pairs, relative; and the largest displacement, voxels."""
    pairs, _, noise = example(grid, 2)
    network = UNet(**FEATURES, normalisation="instance" if normalise else "none")
    small = jnp.zeros((1, 16, 16, 16))
    params = network.init(jax.random.key(0), small, small)
    head = params["params"]["mean"]
    # The heads start at nearly zero; so that there is something to compare, they are made large.
    head["kernel"] = 0.1 * jax.random.normal(jax.random.key(1), head["kernel"].shape)
    net = torch_peer.UNet(**FEATURES, normalise=normalise).load(params)
    tensors = Batch(*(torch.from_numpy(np.array(a)) for a in pairs))
    drawn = torch.from_numpy(noise.transpose(0, 4, 1, 2, 3).copy())
    with torch.no_grad():
        warped, *fields = torch_peer.register(net, tensors.fixed, tensors.moving)
        their_loss = float(torch_peer.loss(net, tensors, drawn, OBJECTIVE))

    ours = registrar.register_pair(params, pairs.fixed[0], pairs.moving[0], apply=network.apply)
    forward, backward = (field[0].permute(1, 2, 3, 0).numpy() for field in fields)
    posterior = network.apply(params, pairs.moving, pairs.fixed)
    totals = []
    for i in range(2):
        one = Posterior(posterior.mean[i], posterior.log_variance[i])
        v = one.mean + jnp.exp(one.log_variance / 2) * noise[i]
        displacement = eq7.displacement_of(v, grid, stride=2, steps=OBJECTIVE.integration_steps)
        terms = eq7.terms(OBJECTIVE, one, displacement, *(a[i] for a in pairs))
        totals.append(float(eq7.total(OBJECTIVE, terms)))

    def relative(found: object, wanted: np.ndarray) -> float:
        return float(np.abs(np.asarray(found) - wanted).max() / np.abs(wanted).max())

    return {
        "displacement": relative(ours.displacement, forward),
        "inverse displacement": relative(ours.inverse_displacement, backward),
        "warped": relative(ours.warped, warped[0].numpy()),
        "loss": abs(float(np.mean(totals)) / their_loss - 1),
        "largest_voxels": float(np.abs(forward).max()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--grid", default="48x32x64")
    grid = tuple(int(n) for n in parser.parse_args().grid.split("x"))
    print(json.dumps(differences(grid, normalise=True)))


if __name__ == "__main__":
    main()
