"""Training with real data loading against the same steps on batches that lie on the device already.

    python -m benchmarks.loading [--grid=48x32x64 --spacing=7 --batch=2] [--root=DIR] [--steps=20]
    python -m benchmarks.loading --grid=160x112x208 --spacing=2 --batch=1 --cases=6 --test=2 --steps=5 \\
        --name=loading_paper

Cases are read, checked and assembled by a thread, as in `experiments.train`, from a cohort that is
prepared (cached) beforehand: the embedded one, or DIR. Both ways take turns, block by block; each
block starts its loading anew, so that the wait for its first batch counts. Writes loading.md, .json.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterable, Sequence
from typing import Any

import jax

from benchmarks import common
from experiments import lung
from experiments.run.data import load_cohort
from experiments.run.supply import Supply
from lmreg_jax import _compilation_cache as compilation_cache
from lmreg_jax.cohort import batches
from lmreg_jax.cohort.cohort import training_pairs
from lmreg_jax.model import config as configuration
from lmreg_jax.training.config import make_augmentation, make_optimiser
from lmreg_jax.training.step import initial_state, parallel_train_step, replicate

HEADS = ("grid", "batch", "resident (s a step)", "with loading (s a step)", "ratio", "one batch alone (s)")


def config_of(given: argparse.Namespace) -> Any:
    """The quick default on the grid asked for."""
    config = lung.get_config()
    config.data.root = given.root
    config.data.shape = tuple(map(int, given.grid.split("x")))
    config.data.spacing_mm = given.spacing
    config.data.cases, config.data.test = given.cases, given.test
    config.data.alignment = "moments"
    config.train.pairs_per_batch = given.batch
    config.train.both_orders = given.batch % 2 == 0
    configuration.validate(config)
    return config


def compare(config: Any, steps: int, rounds: int) -> dict[str, float]:
    """Seconds a step both ways, the median over `rounds` blocks of `steps` steps, and their ratio."""
    cohort = load_cohort(config)
    supply, pairs = Supply(cohort, "strict"), training_pairs(cohort)
    network, optimiser = configuration.network(config), make_optimiser(config)
    step = parallel_train_step(
        apply=network.apply,
        objective=configuration.objective(config),
        optimiser=optimiser,
        augment=make_augmentation(config),
    )
    # Of one pass, the quickest: the number that is drawn a step would differ between the two ways.
    state = replicate(initial_state(configuration.initial_params(config), optimiser))
    key = jax.random.key(config.train.seed)

    def make(number: int) -> Any:
        def draw(usable: Sequence[batches.Pair]) -> list[batches.Pair]:
            train = config.train
            return batches.pairs_of_step(
                usable, train.pairs_per_batch, number, seed=train.seed, both_orders=train.both_orders
            )

        return supply.batch(pairs, draw)[1]

    def seconds_a_step(source: Iterable[Any]) -> float:
        nonlocal state
        start = time.perf_counter()
        before = None
        for batch in source:
            state, terms = step(state, batch, key)
            if before is not None:
                float(before["skipped"])  # As the training does: one step behind the device.
            before = terms
        jax.block_until_ready(before)
        return (time.perf_counter() - start) / steps

    seconds: dict[str, list[float]] = {"resident": [], "loaded": [], "batch": []}
    seconds_a_step([jax.device_put(make(0))])
    seconds_a_step([make(0)])  # Both compiled.
    for round_ in range(rounds):
        numbers = range(round_ * steps, (round_ + 1) * steps)
        start = time.perf_counter()
        made = [make(number) for number in numbers]
        seconds["batch"].append((time.perf_counter() - start) / steps)
        resident = jax.block_until_ready(jax.device_put(made))

        def loaded(numbers: range = numbers) -> Iterable[Any]:
            return (batch for _, batch in batches.prefetch(make, numbers))

        # In alternating order: what the machine does beside hits both.
        for way in ("resident", "loaded")[:: 1 if round_ % 2 else -1]:
            seconds[way].append(seconds_a_step(resident if way == "resident" else loaded()))
    ratios = [b / a for a, b in zip(seconds["resident"], seconds["loaded"], strict=True)]
    return {name: statistics.median(s) for name, s in seconds.items()} | {"ratio": statistics.median(ratios)}


def main() -> None:
    parser = common.parser(__doc__, "loading")
    parser.add_argument("--root", default="", help="a cohort's folder (default: the embedded thorax)")
    parser.add_argument("--grid", default="48x32x64")
    parser.add_argument("--spacing", type=float, default=7.0, help="mm")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--cases", type=int, default=40, help="of the embedded cohort")
    parser.add_argument("--test", type=int, default=10, help="of them that training does not see")
    parser.add_argument("--steps", type=int, default=20, help="in a block")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    compilation_cache.enable()
    where = common.environment("benchmarks.loading")
    found = compare(config_of(given), given.steps, given.rounds)
    row = [given.grid, str(given.batch), *(f"{found[k]:.3g}" for k in ("resident", "loaded"))]
    row += [f"{found['ratio']:.3f}", f"{found['batch']:.3g}"]
    lines = [
        "# Training with data loading against resident data",
        "",
        f"{common.heading(where)} Medians over {given.rounds} blocks of {given.steps} steps each way, in"
        " turns; the ratio is the median of the blocks' own. A batch alone: reading, checking and"
        " assembling it with nothing beside.",
        "",
        *common.table(HEADS, [row]),
    ]
    found |= {"grid": given.grid, "batch": given.batch}
    common.write(given.output / given.name, where, [found], "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
