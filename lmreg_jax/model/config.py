"""From a config (`ml_collections.ConfigDict`, the table in `experiments/lung.py`) to its parts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from lmreg_jax.core import prior
from lmreg_jax.core.objective import Objective
from lmreg_jax.core.similarity import IMAGE_TERMS
from lmreg_jax.errors import InputError
from lmreg_jax.model.unet import UNet

FILE = "config.json"
CHOICES: dict[str, tuple[Any, ...]] = {
    "data.window_kind": ("hu", "percentile"),
    "data.alignment": ("auto", "images", "elastix", "moments", "none", "identity"),
    "data.lungs": ("auto", "file", "segment", "none"),
    "data.policy": ("strict", "skip"),
    "model.field_stride": (1, 2, 4),
    "model.normalisation": ("none", "instance"),
    "model.dtype": ("float32", "bfloat16"),
    "model.inputs": ("images", "forces"),
    "objective.reading": prior.READINGS,
    "objective.image": tuple(IMAGE_TERMS),
    "objective.landmark_unit": ("voxel", "mm"),
    "train.schedule": ("constant", "cosine"),
}
POSITIVE = (
    "data.spacing_mm",
    "data.shape",
    "model.encoder",
    "model.decoder",
    "objective.precision",
    "objective.image_sigma",
    "objective.landmark_sigma",
    "objective.integration_steps",
    "train.steps",
    "train.pairs_per_batch",
    "train.learning_rate",
    "train.validate_every",
    "train.checkpoint_every",
    "train.keep",
    "train.log_every",
    "train.max_skipped",
    "model.final",
    "model.passes",
)
NOT_NEGATIVE = (
    "objective.landmark_weight",
    "train.warmup_steps",
    "train.clip_norm",
    "data.memory_gb",
    "augment.rotation_deg",
    "augment.scale",
    "augment.translation_mm",
    "augment.elastic_mm",
)
REQUIRED = (  # of any type and value
    *("data.root", "data.cache", "data.cases", "data.test", "data.landmark_names", "data.reference"),
    *("data.allow_outside_root", "init.weights", "train.both_orders", "train.rematerialise"),
)
WHOLE = ("data.shape", "model.encoder", "model.decoder", "model.final")
COUNTS = ("model.passes", "data.seed", "train.seed")


def spacing_mm(config: ml_collections.ConfigDict) -> tuple[float, float, float]:
    """`data.spacing_mm` as three numbers; one number means isotropic."""
    value = config.data.spacing_mm
    x, y, z = value if isinstance(value, (tuple, list)) else (value,) * 3
    return float(x), float(y), float(z)


def validate(config: ml_collections.ConfigDict) -> None:
    """Raises InputError that names the first value which cannot be used, and the valid ones."""
    for name in REQUIRED:
        _get(config, name)
    for name, choices in CHOICES.items():
        value = _get(config, name)
        if value not in choices:
            raise InputError(f"config.{name} is {value!r}; one of {', '.join(map(repr, choices))} is needed")
    for name in POSITIVE:
        value = _get(config, name)
        if not all(v > 0 for v in _numbers(name, value)):
            raise InputError(f"config.{name} is {value!r}; it must be above 0")
    for name in NOT_NEGATIVE:
        value = _get(config, name)
        if not all(v >= 0 for v in _numbers(name, value)):
            raise InputError(f"config.{name} is {value!r}; it must be 0 or above")
    for name in WHOLE:
        value = _get(config, name)
        if not isinstance(value, (tuple, list)) or any(v != int(v) for v in value):
            raise InputError(f"config.{name} is {value!r}; a tuple of whole numbers is needed")
    for name in COUNTS:
        value = _get(config, name)
        if isinstance(value, (tuple, list)) or value != int(value):
            raise InputError(f"config.{name} is {value!r}; a whole number is needed")
    spacing = _numbers("data.spacing_mm", config.data.spacing_mm)
    if len(spacing) not in (1, 3):
        raise InputError(
            f"config.data.spacing_mm is {config.data.spacing_mm!r}; one number or (x, y, z) is needed"
        )
    if not all(0 <= share < 1 for share in _numbers("data.validation", _get(config, "data.validation"))):
        raise InputError(
            f"config.data.validation is {config.data.validation!r}; a share from 0 to below 1 is needed"
        )
    if len(config.data.shape) != 3:
        raise InputError(f"config.data.shape is {config.data.shape!r}; three sizes X, Y, Z are needed")
    levels_up = len(config.model.encoder) + 1 - {1: 0, 2: 1, 4: 2}[config.model.field_stride]
    if levels_up < 1:
        raise InputError(
            f"config.model.encoder has {len(config.model.encoder)} features; field_stride"
            f" {config.model.field_stride} needs {len(config.model.encoder) + 1 - levels_up} at least"
        )
    if len(config.model.decoder) != levels_up:
        raise InputError(
            f"config.model.decoder has {len(config.model.decoder)} features; an encoder of"
            f" {len(config.model.encoder)} and field_stride {config.model.field_stride} need {levels_up}"
        )
    if config.train.both_orders and config.train.pairs_per_batch % 2:
        raise InputError(
            f"config.train.pairs_per_batch is {config.train.pairs_per_batch}; with both_orders it must"
            " be even (each pair stands in the batch in both orders)"
        )
    window = _numbers("data.window", _get(config, "data.window"))
    if len(window) != 2 or not window[0] < window[1]:
        raise InputError(f"config.data.window is {config.data.window}; (low, high) with low < high is needed")


def network(config: ml_collections.ConfigDict) -> UNet:
    """The U-Net of `config.model`."""
    model = config.model
    return UNet(
        encoder=tuple(model.encoder),
        decoder=tuple(model.decoder),
        final=tuple(model.final),
        field_stride=model.field_stride,
        normalisation=model.normalisation,
        inputs=model.inputs,
        dtype=None if model.dtype == "float32" else jnp.dtype(model.dtype),
    )


def initial_params(config: ml_collections.ConfigDict) -> Any:
    """Random parameters from `config.train.seed`."""
    net = network(config)
    # Kernels do not depend on the grid: the smallest.
    image = jnp.zeros((1, *(net.multiple,) * 3), jnp.float32)
    return net.init(jax.random.key(config.train.seed), image, image)


def objective(config: ml_collections.ConfigDict) -> Objective:
    """Eq. 7 with the constants of `config.objective`."""
    values = checked_names("objective", config.objective.to_dict(), Objective._fields)
    return Objective(**values, spacing_mm=spacing_mm(config))


def to_json(config: ml_collections.ConfigDict) -> str:
    """The config as indented JSON."""
    return json.dumps(config.to_dict(), indent=2) + "\n"


def from_json(text: str) -> ml_collections.ConfigDict:
    """The config that `to_json` wrote; lists become tuples again."""

    def frozen(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: frozen(item) for key, item in value.items()}
        return tuple(map(frozen, value)) if isinstance(value, list) else value

    return ml_collections.ConfigDict(frozen(json.loads(text)))


def read(file: Path) -> ml_collections.ConfigDict:
    """The config in a training's folder; InputError where it is missing or cannot be read."""
    try:
        config = from_json(file.read_text(encoding="utf-8"))
        validate(config)
        return config
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(
            f"{file.parent}: no {file.name} there; a folder that experiments.train wrote is needed"
        ) from None
    except (ValueError, TypeError, AttributeError, RecursionError, OSError) as error:
        raise InputError(
            f"{file}: not a readable configuration ({error}); restore it, or give another folder"
        ) from None


def differences(one: ml_collections.ConfigDict, other: ml_collections.ConfigDict) -> list[str]:
    """Names of the values in which two configs differ, e.g. ["train.learning_rate"]."""
    flat = [dict(_flatten(json.loads(to_json(c)))) for c in (one, other)]
    return sorted(k for k in flat[0].keys() | flat[1].keys() if flat[0].get(k) != flat[1].get(k))


def _flatten(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for key, value in values.items():
        rows += _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)]
    return rows


def _get(config: ml_collections.ConfigDict, name: str) -> Any:
    for part in name.split("."):
        if not isinstance(config, ml_collections.ConfigDict) or part not in config:
            raise InputError(f"config.{name} is missing; experiments/lung.py lists all values")
        config = config[part]
    return config


def checked_names(section: str, values: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """The values; InputError on a name that is none of `names`."""
    unknown = [name for name in values if name not in names]
    if unknown:
        known = ", ".join(names)
        raise InputError(f"config.{section}.{unknown[0]} is no value of this version; it has {known}")
    return values


def _numbers(name: str, value: Any) -> tuple[Any, ...]:
    """One number or several as a tuple; InputError where there is anything else."""
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    if not all(isinstance(v, (int, float)) for v in values):
        raise InputError(f"config.{name} is {value!r}; a number is needed, or a tuple of them")
    return values
