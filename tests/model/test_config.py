"""Configs: what `validate` refuses, the way through JSON, differences by name, the schedules."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import lung
from lmreg_jax.errors import InputError
from lmreg_jax.model import config as configuration
from lmreg_jax.training.config import make_augmentation, make_optimiser


def changed(**values: Any) -> Any:
    """The default config with `section__name=value`."""
    config = lung.get_config()
    for name, value in values.items():
        section, _, key = name.partition("__")
        with config.unlocked(), config[section].ignore_type():
            config[section][key] = value
    return config


@pytest.mark.parametrize("variant", lung.VARIANTS)
def test_every_variant_is_valid(variant: str) -> None:
    configuration.validate(lung.get_config(variant))


def test_an_unknown_variant_names_the_known() -> None:
    with pytest.raises(InputError, match="paper, paper_coarse"):
        lung.get_config("nosuch")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"data__alignment": "affine"}, r"config\.data\.alignment is 'affine'; one of 'auto', 'im"),
        ({"model__field_stride": 3}, "one of 1, 2, 4 is needed"),
        ({"objective__image": "mi"}, r"objective\.image is 'mi'; one of 'ssd'"),
        ({"train__steps": 0}, r"config\.train\.steps is 0; it must be above 0"),
        ({"train__log_every": 0}, "log_every is 0"),
        ({"data__memory_gb": -1.0}, "memory_gb is -1"),
        ({"train__seed": 1.5}, r"config\.train\.seed is 1\.5; a whole number"),
        ({"train__max_skipped": 0}, "max_skipped is 0"),
        ({"train__learning_rate": float("nan")}, "learning_rate is nan"),
        ({"train__warmup_steps": -1}, "warmup_steps is -1; it must be 0 or above"),
        ({"objective__landmark_weight": -1.0}, "landmark_weight is -1"),
        ({"data__shape": (16, 16)}, "three sizes"),
        ({"data__shape": (16, 0, 16)}, r"shape is \(16, 0, 16\); it must be above 0"),
        ({"data__shape": (16.5, 16, 16)}, "whole numbers"),
        ({"data__shape": ("a", 16, 16)}, "a number is needed"),
        ({"data__spacing_mm": (1.0, 2.0)}, r"one number or \(x, y, z\)"),
        ({"data__window": (400.0, -1000.0)}, "low < high"),
        ({"data__window": (400.0,)}, "low < high"),
        ({"data__validation": 1.0}, "a share from 0"),
        ({"train__pairs_per_batch": 3}, "it must be even"),
        ({"model__decoder": (32, 32, 32)}, r"decoder has 3 features.*need 4"),
        ({"model__passes": 0}, r"config\.model\.passes is 0; it must be above 0"),
        ({"model__passes": 1.5}, r"config\.model\.passes is 1\.5; a whole number"),
        ({"model__inputs": "edges"}, r"'edges'; one of 'images', 'forces'"),
        ({"model__field_stride": 1}, r"decoder has 4 features.*need 5"),
        ({"model__encoder": (4,), "model__field_stride": 4}, "encoder has 1 features.*needs 2"),
    ],
)
def test_a_value_that_cannot_be_used_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        configuration.validate(changed(**values))


def test_a_missing_value_is_named() -> None:
    config = lung.get_config()
    del config.train["warmup_steps"]
    with pytest.raises(InputError, match=r"config\.train\.warmup_steps is missing"):
        configuration.validate(config)


@pytest.mark.parametrize(
    ("encoder", "decoder", "stride"),
    [((4,), (4, 4), 1), ((4,), (4,), 2), ((4, 4), (4,), 4), ((4, 4), (4, 4), 2)],
)
def test_the_levels_that_are_let_through_are_those_the_network_has(
    encoder: tuple[int, ...], decoder: tuple[int, ...], stride: int
) -> None:
    """Each decoder entry is a convolution, and the field has the stride asked for."""
    config = changed(model__encoder=encoder, model__decoder=decoder, model__field_stride=stride)
    configuration.validate(config)
    net = configuration.network(config)
    image = jax.ShapeDtypeStruct((1, 8, 8, 8), jnp.float32)
    params = jax.eval_shape(net.init, jax.random.key(0), image, image)
    made = [name for name in params["params"] if name.startswith("decoder")]
    assert len(made) == len(decoder)
    posterior = jax.eval_shape(net.apply, params, image, image)
    assert posterior.mean.shape == (1, *(8 // stride,) * 3, 3)


def test_json_keeps_every_value_and_its_type() -> None:
    config = changed(data__spacing_mm=(1.0, 2.0, 1.5), data__landmark_names=("carina",))
    back = configuration.from_json(configuration.to_json(config))
    assert back.to_dict() == config.to_dict()
    assert isinstance(back.model.encoder, tuple) and isinstance(back.data.shape, tuple)
    assert configuration.differences(config, back) == []


def test_differences_are_named() -> None:
    other = changed(train__steps=3, data__root="elsewhere", model__encoder=(4, 4, 4, 4))
    names = ["data.root", "model.encoder", "train.steps"]
    assert configuration.differences(lung.get_config(), other) == names
    assert configuration.differences(other, lung.get_config()) == names


@pytest.mark.parametrize("text", ["{}", '{"model": {}}', '{"model": {}, "train": 3}', "[]", "{"])
def test_a_config_file_without_its_sections_is_refused(text: str, tmp_path: Any) -> None:
    (tmp_path / configuration.FILE).write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=r"config\.json: not a readable configuration"):
        configuration.read(tmp_path / configuration.FILE)


def test_a_missing_config_file_says_what_is_needed(tmp_path: Any) -> None:
    with pytest.raises(InputError, match=r"no config\.json there.*experiments\.train"):
        configuration.read(tmp_path / "config.json")
    with pytest.raises(InputError, match="not a readable configuration"):
        (tmp_path / "config.json").mkdir()
        configuration.read(tmp_path / "config.json")


def test_spacing_is_three_numbers() -> None:
    assert configuration.spacing_mm(changed(data__spacing_mm=2)) == (2.0, 2.0, 2.0)
    assert configuration.spacing_mm(changed(data__spacing_mm=(1, 2, 3))) == (1.0, 2.0, 3.0)


def rates(config: Any, steps: int) -> list[float]:
    """The size of Adam's steps under a constant gradient: the learning rate."""
    optimiser = make_optimiser(config)
    params = jnp.zeros(())
    state = optimiser.init(params)
    found = []
    for _ in range(steps):
        update, state = optimiser.update(jnp.ones(()), state, params)
        found.append(-float(update))
    return found


def test_the_paper_learns_at_a_constant_rate() -> None:
    np.testing.assert_allclose(rates(lung.get_config("paper"), 4), 1e-4, rtol=1e-3)


def test_warm_up_then_cosine() -> None:
    config = changed(
        train__steps=12, train__warmup_steps=4, train__learning_rate=0.1, train__schedule="cosine"
    )
    found = rates(config, 13)
    np.testing.assert_allclose(found[:5], [0, 0.025, 0.05, 0.075, 0.1], rtol=1e-3, atol=1e-6)
    assert found[8] == pytest.approx(0.0505, rel=1e-2)  # half way
    assert found[12] == pytest.approx(0.001, rel=1e-2)
    constant = rates(changed(train__warmup_steps=2, train__schedule="constant"), 6)
    np.testing.assert_allclose(constant[2:], 3e-3, rtol=1e-3)


def test_the_whole_gradient_is_clipped_where_asked_for() -> None:
    optimiser = make_optimiser(changed(train__clip_norm=1.0))
    gradients = {"a": jnp.full(4, 10.0), "b": jnp.full(5, 10.0)}
    _, state = optimiser.update(gradients, optimiser.init(gradients), gradients)
    first = optax.tree_utils.tree_get(state, "mu")
    assert float(optax.tree.norm(first)) == pytest.approx(0.1, rel=1e-4)  # (1 - b1) of norm 1


def test_no_augmentation_is_none() -> None:
    assert make_augmentation(lung.get_config("paper")) is None
    assert make_augmentation(lung.get_config()) is not None
