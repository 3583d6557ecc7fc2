"""A trained model as three small files that can be handed on: config, weights, place of the lungs.

`config.json`, `params.npz` (arrays by their path in the network; nothing is pickled), `lungs.json`,
and `SHA256SUMS` over them, which is verified before anything is read.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
import zlib
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lmreg_jax.affine import reference
from lmreg_jax.errors import InputError
from lmreg_jax.io.tables import replacing
from lmreg_jax.model import config as configuration

PARAMS, SUMS = "params.npz", "SHA256SUMS"
DEFAULT = Path(__file__).parents[1] / "weights" / "lung"  # the weights that come with the package
NPY_HEADER = 1024  # bytes before an array; NumPy writes 128


def is_model(folder: Path) -> bool:
    """Whether a folder holds an exported model (a training's folder holds checkpoints instead)."""
    return (folder / PARAMS).is_file()


def save(folder: Path, config: Any, params: Any, lungs: reference.ReferenceLungs | None) -> None:
    """Writes the files and, last, their sums: a model is whole when its sums are there and right."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SUMS).unlink(missing_ok=True)
    with replacing(folder / configuration.FILE) as temporary:
        temporary.write_text(configuration.to_json(config), encoding="utf-8")
    arrays: dict[str, Any] = {
        _name(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    with replacing(folder / PARAMS) as temporary:
        np.savez_compressed(temporary, **arrays)
    names = [configuration.FILE, PARAMS]
    if lungs is not None:
        reference.write(folder, lungs)
        names.append(reference.FILE)
    with replacing(folder / SUMS) as temporary:
        temporary.write_text("".join(f"{_sum(folder / name)}  {name}\n" for name in names), encoding="utf-8")


def load(folder: Path) -> tuple[Any, Any]:
    """Config and parameters (numpy). Raises InputError where a file is missing or not as written."""
    verify(folder)
    config = configuration.read(folder / configuration.FILE)
    like = jax.eval_shape(lambda: configuration.initial_params(config))
    file = folder / PARAMS
    try:
        with zipfile.ZipFile(file) as archive:
            leaves = [
                _array(archive, file, _name(path), leaf)
                for path, leaf in jax.tree_util.tree_leaves_with_path(like)
            ]
    except (OSError, ValueError, EOFError, RuntimeError, zlib.error, zipfile.BadZipFile) as error:
        raise InputError(f"{file}: cannot be read ({error}); copy the model again") from error
    return config, jax.tree.unflatten(jax.tree.structure(like), leaves)


def _array(archive: zipfile.ZipFile, file: Path, name: str, like: Any) -> Any:
    """The array `name` of an .npz, of the shape and type of `like`.

    Not by `np.load`: that allocates whatever a header claims.
    """
    sizes = {member.filename: member.file_size for member in archive.infolist()}
    size = like.size * like.dtype.itemsize
    if not size < sizes.get(f"{name}.npy", 0) < size + NPY_HEADER:
        raise InputError(f"{file}: {name} is missing or of another shape than {like.shape}")
    stream = io.BytesIO(archive.read(f"{name}.npy"))
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError(f"{name} is not in NumPy's format 1.0")
    shape, by_column, dtype = np.lib.format.read_array_header_1_0(stream)
    if shape != like.shape or dtype != like.dtype or by_column:
        raise InputError(f"{file}: {name} is missing or of another shape than {like.shape}: {dtype} {shape}")
    return np.frombuffer(stream.read(), dtype).reshape(shape).copy()


def verify(folder: Path) -> str:
    """The SHA-256 of the weights, after all files were held against SHA256SUMS; else InputError."""
    try:
        lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        raise InputError(f"{folder}: no {SUMS} there; export the model again, or copy it whole") from None
    sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    if PARAMS not in sums or configuration.FILE not in sums:
        raise InputError(f"{folder / SUMS}: does not name {PARAMS} and {configuration.FILE}")
    for name, digest in sums.items():
        if Path(name).name != name or not (folder / name).is_file() or _sum(folder / name) != digest:
            raise InputError(f"{folder / name}: missing or changed (SHA-256 differs); copy the model again")
    return sums[PARAMS]


def _sum(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _name(path: tuple[Any, ...]) -> str:
    return "/".join(str(getattr(key, "key", key)) for key in path)


def checksum(params: Any) -> str:
    """SHA-256 over a network's parameters by name: the same weights give the same sum in any file."""
    digest = hashlib.sha256()
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    for path, leaf in leaves:
        values = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {values.shape} {values.dtype}".encode())
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()
