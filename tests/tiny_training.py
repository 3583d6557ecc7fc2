"""A training of seconds: tiny cohort, least of networks; what several test modules start and read."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

import experiments.train as program
from experiments import lung
from lmreg_jax.model import checkpoint
from lmreg_jax.model import config as configuration
from lmreg_jax.model import registrar as registration


@pytest.fixture(scope="module", autouse=True)
def compiled_once() -> Iterator[None]:
    """Trainings of one config share what they compile (20 s each otherwise)."""
    made: dict[str, Any] = {}

    def once(name: str, make: Callable[..., Any], key: Callable[..., str]) -> Callable[..., Any]:
        def cached(*given: Any, **constants: Any) -> Any:
            label = name + key(*given, **constants)
            if label not in made:
                made[label] = make(*given, **constants)
            return made[label]

        return cached

    def step_key(devices: Any, **c: Any) -> str:
        return f"{c['apply'].__self__}{c['objective']}{id(c['optimiser'])}{c['augment']}"

    def config_key(config: ConfigDict) -> str:
        return f"{config.model.to_dict()}{config.train.seed}"

    def rate_key(config: ConfigDict) -> str:
        return f"{config.train.learning_rate}{config.train.schedule}{config.train.clip_norm}"

    registrar = registration.registrar
    model = once("r", lambda config: registrar(config, None), config_key)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(program, "parallel_train_step", once("s", program.parallel_train_step, step_key))
        patch.setattr(
            registration,
            "registrar",
            lambda config, params, source="": model(config)._replace(params=params, source=source),
        )
        patch.setattr(configuration, "initial_params", once("p", configuration.initial_params, config_key))
        patch.setattr(program, "make_optimiser", once("o", program.make_optimiser, rate_key))
        yield


def settings(root: Path, folder: Path) -> ConfigDict:
    """Lungs on 12 x 8 x 12 voxels and the least of networks; a constant learning rate."""
    config = lung.get_config()
    config.data.root, config.data.cache = str(root), str(folder / "cache")
    config.data.shape, config.data.spacing_mm = (12, 8, 12), 26.0
    config.data.alignment = "moments"
    config.model.encoder, config.model.decoder, config.model.final = (4,), (4,), ()
    config.model.normalisation = "none"
    config.objective.integration_steps = 2
    config.train.steps = 4
    config.train.pairs_per_batch = 4  # one for each of the tests' devices
    config.train.schedule, config.train.warmup_steps = "constant", 0
    config.train.checkpoint_every = config.train.validate_every = 2
    config.train.log_every = 1
    config.train.max_skipped = 2
    return config


def saved_state(workdir: Path, name: str = checkpoint.LATEST) -> tuple[int, list[np.ndarray]]:
    """Step and all arrays of the newest checkpoint: parameters, the optimiser's, the count."""
    store = checkpoint.Store((workdir / name).absolute())
    content = checkpoint._read(store.folder / str(store.steps[-1]))
    return store.steps[-1], [np.asarray(a) for a in jax.tree.leaves(content)]


def rows(workdir: Path) -> list[dict[str, str]]:
    with (workdir / "scalars.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))
