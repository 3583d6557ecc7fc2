"""VoxelMorph's own numbers (tests/golden/, see its README), values and gradients.

Tolerances are the README's: what float32 rounding in another order of sums leaves, by its
comparison with float64. Voxels that the files leave out are NaN: 0 in inputs, not compared in results.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmreg_jax.core import fields, landmarks, posterior, prior, similarity
from lmreg_jax.core import objective as eq7
from lmreg_jax.model.keras import import_keras
from lmreg_jax.model.unet import UNet
from tests import numerics
from tests.shared_data import golden, shared

Arrays = dict[str, Any]
MODEL = UNet()

warp = jax.jit(fields.warp)
compose = jax.jit(fields.compose)
integrate = jax.jit(fields.integrate, static_argnames="steps")


def filled(values: np.ndarray) -> np.ndarray:
    """0 for NaN, in an input."""
    return np.nan_to_num(values, nan=0.0)


def assert_close(found: Any, expected: np.ndarray, atol: float, name: str = "") -> None:
    found, there = np.asarray(found), np.isfinite(expected)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found[there], expected[there], rtol=0, atol=atol, err_msg=name)


def relative(found: Any, expected: np.ndarray) -> float:
    found, there = np.asarray(found), np.isfinite(expected)
    assert found.shape == expected.shape
    return numerics.relative(found[there], expected[there])


@pytest.mark.parametrize("case", ["smooth", "far", "zero", "shift", "half", "noise"])
def test_warp(case: str) -> None:
    data = golden("warp")
    displacement = filled(data[f"disp_{case}"])
    exact = case in ("zero", "shift")
    assert_close(warp(data["image"], displacement), data[f"warped_{case}"], atol=0 if exact else 2e-6)
    if f"nearest_{case}" in data:
        found = fields.warp_nearest(data["labels"], displacement)
        assert_close(found, data[f"nearest_{case}"], atol=0)


@pytest.mark.parametrize(
    ("result", "source", "sign", "steps", "atol"),
    [
        ("disp_5", "vel", 1, 5, 1e-5),
        ("disp_7", "vel", 1, 7, 1e-5),
        ("disp_neg_5", "vel", -1, 5, 1e-5),
        ("disp_neg_7", "vel", -1, 7, 1e-5),
        ("strong_7", "vel_strong", 1, 7, 3e-5),
    ],
)
def test_integrate(result: str, source: str, sign: int, steps: int, atol: float) -> None:
    data = golden("integrate")
    assert_close(integrate(sign * data[source], steps=steps), data[result], atol)


def test_upsample_by_index_over_two() -> None:
    data = golden("resize")
    found = fields.upsample(data["half"], data["full"].shape[:3])
    assert_close(found, data["full"], atol=2e-6)
    assert_close(found[::2, ::2, ::2], data["full"][::2, ::2, ::2], atol=0)


def test_compose() -> None:
    data, image = golden("compose"), golden("warp")["image"]
    a, b = filled(data["A"]), filled(data["B"])
    assert_close(compose(a, b), data["AB"], atol=5e-6)
    assert_close(compose(b, a), data["BA"], atol=5e-6)
    assert_close(warp(warp(image, a), b), data["seq_AB"], atol=3e-6)
    assert_close(warp(image, compose(a, b)), data["warp_AB"], atol=3e-6)


def test_points() -> None:
    data = golden("points")
    for factor, name in ((1, "moved"), (2, "moved_resize2")):
        found = landmarks.move_points(factor * filled(data["disp"]), data["points"])
        assert_close(found, data[name], atol=1e-5)


def test_degree() -> None:
    expected = golden("kl")["D"]
    degrees = prior.degree(expected.shape[:3])[..., None]
    np.testing.assert_array_equal(np.broadcast_to(degrees, expected.shape), expected)


@pytest.mark.parametrize("precision", [10, 25])
def test_gradients_of_kl(precision: int) -> None:
    """Its value is held against theirs with the network's, which goes through all voxels."""
    data = golden("kl")
    slope = jax.jit(jax.grad(prior.kl_divergence, argnums=(0, 1)))
    slopes = slope(filled(data["mean"]), filled(data["log_sigma"]), precision=precision)
    voxels = np.prod(data["mean"].shape[:3])
    for found, name in zip(slopes, ("mean", "log_sigma"), strict=True):
        assert_close(voxels * found, voxels * data[f"grad_{name}_lambda{precision}"], atol=5e-6, name=name)


def test_a_draw_with_their_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    data = golden("kl")
    monkeypatch.setattr(jax.random, "normal", lambda *_: filled(data["noise"]))
    q = posterior.Posterior(filled(data["mean"]), filled(data["log_sigma"]))
    assert_close(posterior.draw(jax.random.key(0), q), data["z_sample"], atol=1e-6)


def test_mean_square() -> None:
    data = golden("losses")
    error = similarity.mean_squared_error(jnp.asarray(data["I"]), jnp.asarray(data["J"]))
    for sigma in (0.02, 0.01):
        scale = eq7.image_scale(eq7.Objective("voxelmorph", image_sigma=sigma), 2)
        np.testing.assert_allclose(scale * error, data[f"recon_sigma{sigma}"], rtol=5e-6)


def test_local_correlation_away_from_the_border() -> None:
    """Theirs counts zeros beyond the border; windows that lie inside are the same, but for our 1e-8
    beside the product of variances V: theirs times V / (V + 1e-8).

    A voxel's gradient is theirs where all windows that hold it lie inside, 8 voxels in. The 1e-8
    is one of its 1e-3 parts there (V is 9e-6 at least, 6e-5 by the median).
    """
    data = golden("losses")
    pair = data["I"], data["J"]
    inside, deep = (slice(4, -4),) * 3, (slice(8, -8),) * 3
    variances = [windows(image).var((-3, -2, -1)) for image in pair]
    product = variances[0] * variances[1]
    expected = data["dev_ncc_map"][inside] * product / (product + 1e-8)
    found = jax.jit(similarity.local_correlation)(*pair)
    assert_close(found[inside], expected, atol=2e-4)
    slope = jax.jit(jax.grad(similarity.one_minus_local_correlation, argnums=1))(*pair)
    assert relative(slope[deep], data["grad_J_ncc"][deep]) < 5e-3


def windows(image: np.ndarray) -> np.ndarray:
    """All 9^3 windows that lie inside, in float64: `[X - 8, Y - 8, Z - 8, 9, 9, 9]`."""
    return np.lib.stride_tricks.sliding_window_view(image.astype(float), (9, 9, 9))


@pytest.mark.parametrize("case", ["smooth", "far", "zero", "shift", "half"])
def test_gradients_of_warp(case: str) -> None:
    expected, data = golden("grads"), golden("warp")
    displacement = data[f"disp_{case}"]
    # Without the voxels left out, which would move nowhere and add to the gradient of their own place.
    cotangent = np.where(np.isfinite(displacement[..., 0]), filled(expected["cot1"]), 0)

    def weighted(image: jax.Array, displacement: jax.Array) -> jax.Array:
        return jnp.sum(cotangent * fields.warp(image, displacement))

    slopes = jax.jit(jax.grad(weighted, argnums=(0, 1)))(data["image"], filled(displacement))
    if f"gradimg_{case}" in expected:
        assert relative(slopes[0], expected[f"gradimg_{case}"]) < 1e-5
    assert relative(slopes[1], expected[f"graddisp_{case}"]) < 1e-5


def test_gradient_of_integrate() -> None:
    expected, velocity = golden("grads"), golden("integrate")["vel"]

    def weighted(velocity: jax.Array) -> jax.Array:
        return jnp.sum(filled(expected["cot3"]) * fields.integrate(velocity, steps=7))

    assert relative(jax.jit(jax.grad(weighted))(velocity), expected["gradvel_7"]) < 1e-5


def network(objective: eq7.Objective) -> Callable[..., Any]:
    """((loss, all before it), (its gradients by parameters and moving)); the mean, not a draw."""

    def loss(params: Any, moving: jax.Array, fixed: jax.Array) -> tuple[jax.Array, Arrays]:
        both = MODEL.apply(params, moving[None], fixed[None])
        q = jax.tree.map(lambda a: a[0], both)
        displacement = eq7.displacement_of(q.mean, fixed.shape, stride=2, steps=7)
        none = jnp.zeros((0, 3))
        by_name = eq7.terms(objective, q, displacement, fixed, moving, none, none, none[:, 0])
        results = {
            "mean": q.mean,
            "log_sigma": q.log_variance,
            "disp_half": fields.integrate(q.mean),
            "disp": displacement,
            "warped": fields.warp(moving, displacement),
            "recon_loss": by_name["image"],
            "kl_loss": by_name["kl"],
            "total_loss": eq7.total(objective, by_name),
        }
        return results["total_loss"], results

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))


ATOL = {"mean": 2e-5, "log_sigma": 2e-5, "disp_half": 5e-5, "disp": 5e-5, "warped": 2e-5}
STAGES = {"enc": "encoder", "dec": "decoder"}


def ours(name: str) -> str:
    """The name in our tree of one of theirs: enc0, dec4 (after four of the decoder), flow, .."""
    if name in ("flow", "log_sigma"):
        return {"flow": "mean", "log_sigma": "log_variance"}[name]
    stage, number = name[:3], int(name[3:])
    return "final_0" if (stage, number) == ("dec", 4) else f"{STAGES[stage]}_{number}"


def compare(found: Any, data: Arrays, rename: Callable[[str], str], gradients: float) -> None:
    (_, results), (by_params, by_moving) = found
    for name, value in results.items():
        if name in ATOL:
            assert_close(value, data[name], ATOL[name], name)
        else:
            np.testing.assert_allclose(value, data[name], rtol=1e-5, err_msg=name)
    assert relative(by_moving, data["grad_moving"]) < gradients
    names = [n for n in data if re.fullmatch(r"grad_.*_(kernel|bias)", n)]
    assert len(names) == 22
    for name in names:
        layer, part = name.removeprefix("grad_").rsplit("_", 1)
        error = relative(by_params["params"][rename(layer)][part], data[name])
        assert error < gradients, f"{name}: {error}"


@pytest.mark.versions
@pytest.mark.slow
def test_the_whole_network_with_random_weights() -> None:
    data = golden("net_random")
    layers = {n[2:-7] for n in data if re.fullmatch(r"w_.*_kernel", n)}
    params = {ours(n): {part: data[f"w_{n}_{part}"] for part in ("kernel", "bias")} for n in layers}
    objective = eq7.Objective("voxelmorph", precision=25, image_sigma=0.01)
    found = network(objective)({"params": params}, data["moving"], data["fixed"])
    compare(found, data, ours, gradients=5e-4)


@pytest.mark.slow
def test_the_brain_network_with_its_own_weights(float64: None) -> None:
    """In float64: in float32 the gradient of the moving image is 8e-5 off instead of 1.5e-5, since
    another order of sums than theirs puts some positions on the other side of an integer."""
    weights = shared("voxelmorph/miccai2018_10_02_init1.h5")
    pytest.importorskip("h5py")
    data: Arrays = {}
    for part in ("io", "half", "disp", "grads"):
        with np.load(shared(f"golden/net_init1_{part}_crop64x80x96_A.npz")) as file:
            data |= file
    order = [*(f"encoder_{i}" for i in range(4)), *(f"decoder_{i}" for i in range(4)), "final_0"]
    names = {f"conv3d_{236 + i}": name for i, name in enumerate(order)}
    names |= {"flow": "mean", "log_sigma": "log_variance"}
    objective = eq7.Objective("voxelmorph", precision=10, image_sigma=0.02)
    data["moving"], data["fixed"] = (data[name].astype(float) for name in ("moving", "fixed"))
    params = jax.tree.map(jnp.float64, import_keras(weights, MODEL))
    found = network(objective)(params, data["moving"], data["fixed"])
    compare(found, data, names.__getitem__, gradients=5e-5)
    # The other direction: the fixed image by the integral of -mean.
    backward = eq7.displacement_of(-found[0][1]["mean"], data["fixed"].shape, stride=2, steps=7)
    warped = warp(data["fixed"], backward)
    np.testing.assert_allclose(warped, data["warped_fixed"], rtol=0, atol=2e-5)
