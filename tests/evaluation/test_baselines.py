"""Elastix and ANTs on a pair whose displacement is known: axes, direction, units, masks, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from lmreg_jax.errors import InputError
from lmreg_jax.evaluation import baselines
from lmreg_jax.evaluation.baselines import AntsSettings, ElastixSettings

SHAPE, SPACING = (36, 28, 44), (3.0, 4.0, 5.0)
PEAK = np.array([2.0, -1.2, 1.6])  # voxels; another size and sign along each axis
SETTINGS: dict[str, Any] = {
    "elastix": ElastixSettings(spacing_mm=30.0, levels=2, iterations=60, bending=0.0),
    "ants": AntsSettings(flow_mm=7.0, iterations=(40, 30, 20)),
}


@pytest.fixture(scope="module")
def pair() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """fixed(x) = moving(x + u(x)) with a smooth bump u [X, Y, Z, 3], voxels; images in [0, 1]."""
    noise = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=SHAPE), 2.0)
    moving = (noise - noise.min()) / np.ptp(noise)
    index = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), -1)
    middle = (np.array(SHAPE) - 1) / 2
    bump = np.exp(-np.sum(((index - middle) / np.array(SHAPE) * 3.2) ** 2, axis=-1))
    u = bump[..., None] * PEAK
    fixed = ndimage.map_coordinates(moving, np.moveaxis(index + u, -1, 0), order=1, mode="nearest")
    return fixed.astype(np.float32), moving.astype(np.float32), u


def installed(name: str) -> None:
    try:
        baselines.version(name)
    except InputError as error:
        pytest.skip(str(error))


@pytest.mark.slow
@pytest.mark.parametrize("name", baselines.REGISTER)
def test_a_known_displacement_is_found(
    name: str, pair: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """0.15 voxels mean error inside, of 1.4 at the start: both programs reach 0.07 to 0.11.

    A flipped sign, swapped axes or mm for voxels would leave more than there was to begin with.
    """
    installed(name)
    monkeypatch.chdir(tmp_path)
    fixed, moving, u = pair
    answer = baselines.REGISTER[name](fixed, moving, SPACING, SETTINGS[name])
    inside = np.linalg.norm(u, axis=-1) > 0.3 * np.linalg.norm(PEAK)
    error = np.linalg.norm(answer.displacement - u, axis=-1)[inside]
    assert np.linalg.norm(u, axis=-1)[inside].mean() > 1.3
    assert error.mean() < 0.15 and error.max() < 0.6
    assert answer.displacement.dtype == np.float32
    assert answer.seconds > 0 and answer.cpu_seconds > 0
    assert not list(tmp_path.iterdir())  # elastix would leave a file in the current folder


@pytest.mark.slow
@pytest.mark.parametrize("name", baselines.REGISTER)
def test_a_mask_says_where_to_look(name: str, pair: Any) -> None:
    """Noise outside the mask: the masked run is not misled where the mask lies."""
    installed(name)
    fixed, moving, u = pair
    lungs = np.linalg.norm(u, axis=-1) > 0.2 * np.linalg.norm(PEAK)
    spoilt = np.where(lungs, moving, np.random.default_rng(1).random(SHAPE)).astype(np.float32)
    settings = SETTINGS[name]._replace(mask_mm=0.0)
    answer = baselines.REGISTER[name](fixed, spoilt, SPACING, settings, (lungs.astype(np.uint8), None))
    inside = ndimage.binary_erosion(lungs, iterations=3)
    error = np.linalg.norm(answer.displacement - u, axis=-1)[inside]
    assert error.mean() < 0.5 * np.linalg.norm(u, axis=-1)[inside].mean()


def test_the_mask_is_widened_in_mm() -> None:
    lungs = np.zeros((21, 21, 21), np.uint8)
    lungs[10, 10, 10] = 2
    found = baselines._widened((lungs, None), 6.0, (1.0, 2.0, 3.0))
    assert found is not None and found.dtype == np.uint8
    assert found[4:17, 10, 10].sum() == 13 and found[3, 10, 10] == 0
    assert found[10, 7:14, 10].sum() == 7 and found[10, 6, 10] == 0
    assert found[10, 10, 8:13].sum() == 5 and found[10, 10, 7] == 0
    assert baselines._widened((lungs, lungs), None, SPACING) is None
    assert baselines._widened((None, None), 6.0, SPACING) is None
    assert baselines._widened((np.zeros_like(lungs), None), 6.0, SPACING) is None


def test_the_words_for_ants() -> None:
    words = baselines.ants_arguments(
        AntsSettings("CC", 2, flow_mm=6.0, iterations=(9, 8, 7)), (2.0, 2.0, 2.0), ["f", "m", "mask"], "out"
    )
    given = dict(zip(words[::2], words[1::2], strict=True))
    assert given["--metric"] == "CC[f,m,1,2]"
    assert given["--transform"] == "SyN[0.2,9,0]"  # sigma 6 mm: a variance of 3^2 voxels
    assert given["--convergence"].startswith("[9x8x7,")
    assert (given["--shrink-factors"], given["--smoothing-sigmas"]) == ("4x2x1", "2x1x0vox")
    assert given["--masks"] == "[mask,NA]" and given["--output"] == "out"
    assert "--masks" not in baselines.ants_arguments(AntsSettings(), SPACING, ["f", "m"], "out")


def test_the_table_for_elastix() -> None:
    pytest.importorskip("itk")
    installed("elastix")
    plain = baselines.elastix_parameters(ElastixSettings(levels=3, bending=0.0)).GetParameterMap(0)
    assert plain["Metric"] == ("AdvancedMattesMutualInformation",)
    assert plain["NumberOfResolutions"] == ("3",)
    assert float(plain["FinalGridSpacingInPhysicalUnits"][0]) == ElastixSettings().spacing_mm
    bent = baselines.elastix_parameters(ElastixSettings(bending=5.0)).GetParameterMap(0)
    assert bent["Metric"][1] == "TransformBendingEnergyPenalty" and float(bent["Metric1Weight"][0]) == 5


@pytest.mark.parametrize("name", baselines.REGISTER)
def test_what_cannot_be_registered_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(package: str) -> str:
        raise baselines.metadata.PackageNotFoundError(package)

    image = np.zeros((8, 8, 8), np.float32)
    with monkeypatch.context() as patch:
        patch.setattr(baselines.metadata, "version", absent)
        with pytest.raises(InputError, match=r"is not installed; pip install -e \"\.\[baselines\]\""):
            baselines.REGISTER[name](image, image, SPACING, SETTINGS[name])
    installed(name)
    with pytest.raises(InputError, match=r"\(8, 8, 7\).*\(8, 8, 8\)"):
        baselines.REGISTER[name](image, image[..., 1:], SPACING, SETTINGS[name])
    with pytest.raises(InputError, match="NaN or infinite"):
        baselines.REGISTER[name](image, image + np.nan, SPACING, SETTINGS[name])
