"""One process of a training on several: three steps on its share of the pairs, parameters to a file.

python -m tests.distributed_worker OUTPUT.npz PORT PROCESSES PROCESS
"""

from __future__ import annotations

import sys
from pathlib import Path

import jax
import numpy as np
import optax

from lmreg_jax.core.objective import Objective
from lmreg_jax.model.unet import UNet
from lmreg_jax.training.step import initial_state, parallel_train_step, replicate, unreplicate
from lmreg_jax.types import Batch

PAIRS, GRID, STEPS = 4, (16, 16, 16), 3


def pairs() -> Batch:
    """Four pairs of random images with five landmarks, one of them missing in the last pair."""
    draw = np.random.default_rng(0)
    images = draw.uniform(size=(2, PAIRS, *GRID)).astype(np.float32)
    points = draw.uniform(2, 13, (2, PAIRS, 5, 3)).astype(np.float32)
    mask = np.ones((PAIRS, 5), bool)
    mask[-1, 0] = False
    return Batch(images[0], images[1], points[0], points[1], mask)


def main(output: Path, port: str, count: int, process: int) -> None:
    if count > 1:
        jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=count, process_id=process)
    share = PAIRS // count
    batch = jax.tree.map(lambda a: a[process * share : (process + 1) * share], pairs())
    network = UNet(encoder=(4, 4), decoder=(4, 4), final=(4,))
    optimiser = optax.sgd(1e-3)  # Adam's first steps are the gradient's sign: they magnify rounding.
    small = np.zeros((1, 16, 16, 16), np.float32)
    state = replicate(initial_state(network.init(jax.random.key(0), small, small), optimiser))
    step = parallel_train_step(apply=network.apply, objective=Objective(), optimiser=optimiser)
    losses = []
    for _ in range(STEPS):
        state, scalars = step(state, batch, jax.random.key(1))
        losses.append(float(scalars["loss"]))
    leaves = jax.tree.leaves(unreplicate(state).params)
    np.savez(output, *[np.asarray(leaf) for leaf in leaves], losses=losses)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
