"""Weights made elsewhere: [Dalca]'s Keras HDF5 file into the parameters of `unet.UNet`.

The file's layout (Keras 2.2.4, `model.save`; `save_weights` leaves the outer group out):
`model_weights/<layer>/<layer>/{kernel:0,bias:0}`, kernels `[3, 3, 3, in, out]`, Flax's own order.
Layers are `conv3d_<number>`, numbered in the order of the network (encoder, decoder, final), and
the heads `flow` (mean) and `log_sigma` (log-variance). Arrays are all that is read of it: the
description of the model that it holds as well is neither parsed nor run.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmreg_jax.errors import InputError
from lmreg_jax.model.unet import UNet

Layer = dict[str, np.ndarray]
REMEDY = "the network must be the paper's (config.model of experiments/lung.py:paper)"


def import_keras(path: str | Path, model: UNet) -> Any:
    """Parameters for `model.apply`, `{"params": {layer: {kernel, bias}}}`, of a Keras file; float32.

    Raises InputError, naming the file, where it is missing, no HDF5 or no such network, where its
    shapes are not those of `model`, and where h5py is not installed.
    """
    path = Path(path)
    if model.normalisation != "none":
        raise InputError(
            f"{path}: its network has no normalisation, model.normalisation is"
            f" {model.normalisation!r}: {REMEDY}"
        )
    expected = expected_shapes(model)
    found = in_network_order(path, read_layers(path), expected)
    for name, layer in found.items():
        _check(path, name, layer, expected[name])
    return {"params": jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), found)}


def expected_shapes(model: UNet) -> dict[str, dict[str, tuple[int, ...]]]:
    """Shapes of the model's arrays, `{layer: {"kernel": ..., "bias": ...}}`; no computing."""
    # The kernels do not depend on the grid: the smallest that the network takes.
    image = jnp.zeros((1, *(model.multiple,) * 3), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), image, image)["params"]
    return {name: {part: a.shape for part, a in layer.items()} for name, layer in params.items()}


def read_layers(path: Path) -> dict[str, Layer]:
    """Every layer of the file that has a kernel and a bias, by its Keras name."""
    try:
        import h5py
    except ImportError:
        raise InputError(
            f"{path}: reading Keras weights needs h5py, which is not installed:"
            ' pip install "lmreg_jax[keras]"'
        ) from None
    if not path.is_file():
        raise InputError(f"{path}: no such file; Keras weights (HDF5) are needed")
    if not h5py.is_hdf5(path):
        raise InputError(f"{path}: not an HDF5 file; Keras weights (.h5) are needed")
    try:
        with h5py.File(path, "r") as file:
            root = file.get("model_weights", file)
            groups = {name: root[name] for name in root if isinstance(root[name], h5py.Group)}
            layers = {name: _arrays(group, h5py.Dataset) for name, group in groups.items()}
    # Truncated or damaged; h5py itself stumbles with a TypeError over names of a wrong type.
    except (OSError, KeyError, RuntimeError, ValueError, TypeError) as error:
        raise InputError(f"{path}: damaged HDF5, copy it again ({error})") from None
    return {name: layer for name, layer in layers.items() if {"kernel", "bias"} <= layer.keys()}


def _arrays(group: Any, dataset: Any) -> Layer:
    """The numeric arrays below a layer's group, by name without Keras' output number (`:0`)."""
    arrays: Layer = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, dataset) and item.dtype.kind == "f":
            arrays[name.rsplit("/", 1)[-1].split(":")[0]] = np.asarray(item)

    group.visititems(visit)
    return arrays


def in_network_order(path: Path, layers: dict[str, Layer], expected: dict[str, Any]) -> dict[str, Layer]:
    """The file's layers under the model's names: convolutions by their number, heads by theirs."""
    heads = {"mean": "flow", "log_variance": "log_sigma"}
    found = {ours: _only(path, layers, theirs) for ours, theirs in heads.items()}
    numbered = {int(m[1] or 0): n for n in layers if (m := re.fullmatch(r"conv3d(?:_(\d+))?", n))}
    stages = sorted((n for n in expected if n not in heads), key=_stage_order)
    if len(numbered) != len(stages):
        raise InputError(
            f"{path}: {len(numbered)} layers conv3d_*, the config's network has {len(stages)}: {REMEDY}"
        )
    for name, number in zip(stages, sorted(numbered), strict=True):
        found[name] = layers[numbered[number]]
    return found


def _stage_order(name: str) -> tuple[int, int]:
    """Sorts encoder_0 .. encoder_n, decoder_0 .., final_0 ..: as the images pass them."""
    stage, number = name.rsplit("_", 1)
    return ("encoder", "decoder", "final").index(stage), int(number)


def _only(path: Path, layers: dict[str, Layer], name: str) -> Layer:
    """The one layer called `name` or `name_<number>`."""
    matches = [n for n in layers if re.fullmatch(rf"{name}(_\d+)?", n)]
    if len(matches) != 1:
        raise InputError(
            f"{path}: {len(matches) or 'no'} layers {name!r}, one is needed:"
            " weights of VoxelMorph's diffeomorphic network (miccai2018) are expected"
        )
    return layers[matches[0]]


def _check(path: Path, name: str, layer: Layer, expected: dict[str, tuple[int, ...]]) -> None:
    for part, shape in expected.items():
        if layer[part].shape != shape:
            raise InputError(
                f"{path}: the {part} for layer {name} has shape {layer[part].shape},"
                f" the config's network needs {shape}: {REMEDY}"
            )
        if not np.isfinite(layer[part]).all():
            raise InputError(f"{path}: the {part} for layer {name} holds NaN or infinite values")
