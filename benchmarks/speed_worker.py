"""One measurement in a process of its own, so that its peak memory is its own; prints JSON.

python -m benchmarks.speed_worker --side=ours --item=step --grid=48x32x64 --batch=1 --repeats=5
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from benchmarks import common
from lmreg_jax.types import Batch

ITEMS = ("network", "integrate", "warp", "register", "step")
FEATURES = {"encoder": (16, 32, 32, 32), "decoder": (32, 32, 32, 32), "final": (16,)}
SIGMA = 0.02
TOLERANCE = 1e-4  # between both sides, float32: sums of a thousand products in another order, ten layers deep
MOTION = 5.0  # voxels, the largest of the velocity: 20 mm at the paper's grid


def example(grid: tuple[int, ...], batch: int) -> tuple[Batch, np.ndarray, np.ndarray]:
    """Smooth images, 11 landmarks, a smooth velocity and noise, the same to all."""
    generator = np.random.default_rng(0)
    x = np.stack(np.meshgrid(*(np.linspace(0, 6, n) for n in grid), indexing="ij"))
    shifts = generator.uniform(0, 2, (batch, 2, 3, 1, 1, 1))
    images = (0.5 + np.prod(np.sin(x + shifts), axis=2) / 2).astype(np.float32)
    points = generator.uniform(2, np.array(grid) - 3, (2, batch, 11, 3)).astype(np.float32)
    half = np.stack(np.meshgrid(*(np.linspace(0, 4, n // 2) for n in grid), indexing="ij"), -1)
    velocity = MOTION * np.sin(half[None] + generator.uniform(0, 3, (batch, 1, 1, 1, 3))).astype(np.float32)
    noise = generator.normal(size=velocity.shape).astype(np.float32)
    pairs = Batch(images[:, 0], images[:, 1], points[0], points[1], np.ones((batch, 11), bool))
    return pairs, velocity, noise


def ours(
    item: str, grid: tuple[int, ...], batch: int, rematerialise: bool = False
) -> tuple[Callable[[], Any], dict[str, float]]:
    """A call that finishes what it starts, and XLA's cost analysis of it."""
    import functools

    import jax.numpy as jnp
    import optax

    from lmreg_jax.core import fields
    from lmreg_jax.core.objective import Objective
    from lmreg_jax.model import registrar
    from lmreg_jax.model.unet import UNet
    from lmreg_jax.training import step

    pairs, velocity, _ = jax.tree.map(jnp.asarray, example(grid, batch))
    network = UNet(**FEATURES, normalisation="instance")
    small = jnp.zeros((1, 16, 16, 16))
    params = jax.jit(network.init)(jax.random.key(0), small, small)
    # As after some training: the time of our squarings depends on the motion, PyTorch's does not.
    params["params"]["mean"]["bias"] = jnp.array([MOTION, -MOTION, MOTION])
    full = jax.jit(jax.vmap(lambda v: fields.upsample(v, grid)))(velocity)
    if item == "step":
        optimiser = optax.adam(1e-4)
        state = step.initial_state(params, optimiser)
        function = jax.jit(
            functools.partial(
                step.train_step,
                apply=network.apply,
                objective=Objective(image_sigma=SIGMA),
                optimiser=optimiser,
                rematerialise=rematerialise,
            ),
            donate_argnums=0,
        )
        box = [state]
        compiled, spent = compiled_in(function, state, pairs, jax.random.key(1))
        spent |= held(compiled, state, pairs)

        def call() -> Any:
            box[0], scalars = compiled(box[0], pairs, jax.random.key(1))
            return float(scalars["loss"])

        return call, cost(compiled) | spent
    arguments: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
        "network": (network.apply, (params, pairs.moving, pairs.fixed)),
        "integrate": (jax.vmap(fields.integrate), (velocity,)),
        "warp": (jax.vmap(fields.warp), (pairs.moving, full)),
        "register": (
            jax.vmap(functools.partial(registrar.register_pair, apply=network.apply), (None, 0, 0)),
            (params, pairs.fixed, pairs.moving),
        ),
    }
    pure, given = arguments[item]
    compiled, spent = compiled_in(jax.jit(pure), *given)
    return lambda: jax.block_until_ready(compiled(*given)), cost(compiled) | spent


def compiled_in(function: Any, *given: Any) -> tuple[Any, dict[str, float]]:
    """The compiled function, and the seconds it took to trace and compile."""
    start = time.perf_counter()
    compiled = function.lower(*given).compile()
    return compiled, {"compile": time.perf_counter() - start}


def cost(compiled: Any) -> dict[str, float]:
    """Floating-point operations and bytes as XLA counts them."""
    analysis = compiled.cost_analysis()
    analysis = analysis[0] if isinstance(analysis, list) else analysis
    return {"flops": analysis.get("flops", 0.0), "bytes": analysis.get("bytes accessed", 0.0)}


def held(compiled: Any, state: Any, pairs: Batch) -> dict[str, float]:
    """MB: the state, the part of it that XLA overwrites in place (donated), the batch, the rest."""
    memory, mb = compiled.memory_analysis(), 2**20

    def size(tree: Any) -> float:
        return sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) / mb

    return {
        "state_mb": size(state),
        "donated_mb": memory.alias_size_in_bytes / mb,
        "batch_mb": size(pairs),
        "working_mb": memory.temp_size_in_bytes / mb,
    }


def theirs(item: str, grid: tuple[int, ...], batch: int) -> tuple[Callable[[], Any], dict[str, float]]:
    """The same by `torch_peer`; on a GPU with TF32 and torch.compile."""
    import torch

    from benchmarks import torch_peer
    from lmreg_jax.core.objective import Objective

    cuda = torch.cuda.is_available()
    device = "cuda" if cuda else "cpu"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    arrays, velocity, noise = example(grid, batch)
    pairs = Batch(*(torch.from_numpy(np.array(a)).to(device) for a in arrays))
    v, noise = (torch.from_numpy(a.transpose(0, 4, 1, 2, 3).copy()).to(device) for a in (velocity, noise))
    net = torch_peer.UNet(**FEATURES, normalise=True).to(device)
    wait = torch.cuda.synchronize if cuda else lambda: None
    wrap: Callable[..., Any] = torch.compile if cuda else lambda f: f
    if item == "step":
        adam = torch.optim.Adam(net.parameters(), lr=1e-4)
        loss = wrap(
            lambda: torch_peer.loss(net, pairs, torch.randn_like(noise), Objective(image_sigma=SIGMA))
        )

        def call() -> Any:
            adam.zero_grad(set_to_none=True)
            value = loss()
            value.backward()
            adam.step()
            return float(value)

        return call, {}
    full = torch_peer.upsample(v)
    functions: dict[str, Callable[[], Any]] = {
        "network": lambda: net(pairs.moving, pairs.fixed),
        "integrate": lambda: torch_peer.integrate(v),
        "warp": lambda: torch_peer.warp(pairs.moving[:, None], full),
        "register": lambda: torch_peer.register(net, pairs.fixed, pairs.moving),
    }
    function = wrap(functions[item])

    def inference() -> Any:
        with torch.inference_mode():
            result = function()
            wait()
            return result

    return inference, {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", choices=("ours", "theirs"), required=True)
    parser.add_argument("--item", choices=ITEMS, required=True)
    parser.add_argument("--grid", required=True)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rematerialise", action="store_true", help="of our train step")
    given = parser.parse_args()
    grid = tuple(int(n) for n in given.grid.split("x"))
    if given.side == "ours":
        call, extra = ours(given.item, grid, given.batch, given.rematerialise)
    else:
        call, extra = theirs(given.item, grid, given.batch)
    start = time.perf_counter()
    call()
    first = time.perf_counter() - start + extra.get("compile", 0.0)
    seconds = []
    for _ in range(given.repeats):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    answer = {
        "seconds": statistics.median(seconds),
        "fastest": min(seconds),
        "first": first,
        "peak_mb": common.peak_mb(),
        **extra,
    }
    if jax.default_backend() != "cpu" and given.side == "ours":
        answer["device_peak_mb"] = jax.local_devices()[0].memory_stats()["peak_bytes_in_use"] / 2**20
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
