"""Importing Keras weights: a small file in the same layout, the real one, and what can be wrong."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from lmreg_jax.errors import InputError
from lmreg_jax.model.keras import expected_shapes, import_keras
from lmreg_jax.model.unet import UNet
from tests.shared_data import shared

SMALL = UNet(encoder=(2, 3), decoder=(3, 4), final=(2,))
# Keras numbers layers as they are made, over all models of a process. 9 before 10: by number.
NAMES = {
    "encoder_0": "conv3d_8",
    "encoder_1": "conv3d_9",
    "decoder_0": "conv3d_10",
    "decoder_1": "conv3d_11",
    "final_0": "conv3d_12",
    "mean": "flow",
    "log_variance": "log_sigma",
}
INNER = {"flow": "flow_27", "log_sigma": "log_sigma_19"}  # the outer name is the first copy's

h5py = pytest.importorskip("h5py")


def random_layers(model: UNet = SMALL) -> dict[str, Any]:
    random = np.random.default_rng(0)
    return {
        NAMES[name]: {part: random.normal(size=shape) for part, shape in layer.items()}
        for name, layer in expected_shapes(model).items()
    }


def write(path: Path, layers: dict[str, Any], root: str = "model_weights") -> Path:
    """Keras 2.2.4's layout: layers without weights are empty groups beside the others."""
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = b"not looked at: \x80\x04 lambda"
        group = file.require_group(root)
        for name in ("input_1", "flow-int", "leaky_re_lu_8", "concatenate_3"):
            group.create_group(name)
        for name, layer in layers.items():
            for part, values in layer.items():
                inner = f"{name}/{INNER.get(name, name)}/{part}:0"
                group.create_dataset(inner, data=np.asarray(values, np.float32))
    return path


@pytest.mark.parametrize("root", ["model_weights", "/"])
def test_layers_find_their_places(tmp_path: Path, root: str) -> None:
    layers = random_layers()
    params = import_keras(write(tmp_path / "weights.h5", layers, root), SMALL)
    assert params["params"].keys() == NAMES.keys()
    for ours, theirs in NAMES.items():
        for part in ("kernel", "bias"):
            values = params["params"][ours][part]
            assert isinstance(values, jax.Array)
            np.testing.assert_array_equal(values, np.float32(layers[theirs][part]))


def test_the_file_of_the_paper(recwarn: pytest.WarningsRecorder) -> None:
    model = UNet()
    params = import_keras(shared("voxelmorph/miccai2018_10_02_init1.h5"), model)["params"]
    assert sum(a.size for a in jax.tree.leaves(params)) == 266_374
    shapes = {name: {p: a.shape for p, a in layer.items()} for name, layer in params.items()}
    assert shapes == expected_shapes(model)
    # It was trained: its log-variance starts at the bias -10 and ends near ln(1 / 60) = -4.1.
    assert not np.allclose(params["log_variance"]["bias"], -10, atol=0.1)
    assert not recwarn.list


def without(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda layers: layers.pop(name)


def wider(layers: dict[str, Any]) -> None:
    layers["conv3d_11"]["kernel"] = np.zeros((3, 3, 3, 7, 4))


def not_a_number(layers: dict[str, Any]) -> None:
    layers["conv3d_10"]["bias"] = np.full(3, np.nan)


def second_flow(layers: dict[str, Any]) -> None:
    layers["flow_2"] = layers["flow"]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (without("conv3d_9"), r"4 layers conv3d_\*, the config's network has 5: .*the paper's"),
        (without("flow"), "no layers 'flow', one is needed"),
        (without("log_sigma"), "no layers 'log_sigma', one is needed"),
        (second_flow, "2 layers 'flow', one is needed"),
        (wider, r"decoder_1 has shape \(3, 3, 3, 7, 4\).* \(3, 3, 3, 5, 4\): .*the paper's"),
        (not_a_number, "bias for layer decoder_0 holds NaN"),
        (lambda layers: layers.clear(), "no layers 'flow'"),
    ],
)
def test_a_file_of_another_network_is_refused(
    tmp_path: Path, spoil: Callable[[dict[str, Any]], None], words: str
) -> None:
    layers = random_layers()
    spoil(layers)
    path = write(tmp_path / "weights.h5", layers)
    with pytest.raises(InputError, match=words) as caught:
        import_keras(path, SMALL)
    assert str(path) in str(caught.value)


def test_a_network_with_normalisation_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "weights.h5", random_layers())
    with pytest.raises(InputError, match=r"model\.normalisation is 'instance'"):
        import_keras(path, SMALL.clone(normalisation="instance"))


def test_files_that_are_not_there_or_no_hdf5_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.h5: no such file"):
        import_keras(tmp_path / "absent.h5", SMALL)
    with pytest.raises(InputError, match="no such file"):
        import_keras(tmp_path, SMALL)
    text = tmp_path / "text.h5"
    text.write_text("PK not HDF5", encoding="utf-8")
    with pytest.raises(InputError, match=r"text\.h5: not an HDF5 file"):
        import_keras(text, SMALL)


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9])
def test_a_truncated_file_is_refused(tmp_path: Path, kept: float) -> None:
    whole = write(tmp_path / "whole.h5", random_layers()).read_bytes()
    path = tmp_path / "part.h5"
    path.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(InputError, match=r"part\.h5: (damaged|not an HDF5 file)"):
        import_keras(path, SMALL)


def test_without_h5py_one_sentence_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "weights.h5", random_layers())
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(InputError, match=r'pip install "lmreg_jax\[keras\]"$'):
        import_keras(path, SMALL)
