"""An exported model is the trained one; a byte changed anywhere in it is noticed."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import lung
from lmreg_jax.affine import reference
from lmreg_jax.errors import InputError
from lmreg_jax.model import config as configuration
from lmreg_jax.model import registrar, weights

GRID = (16, 16, 32)


@pytest.fixture
def exported(tmp_path: Path) -> tuple[Path, registrar.Registrar]:
    config = lung.get_config()
    config.model.encoder, config.model.decoder, config.model.final = (4, 4), (4, 4), (4,)
    params = configuration.initial_params(config)
    # So that there is a displacement to compare: the head starts at nearly nothing.
    params["params"]["mean"]["kernel"] += 0.3
    lungs = reference.ReferenceLungs(np.array([1.0, 2, 3]), np.array([4.0, 5, 6]))
    weights.save(tmp_path / "model", config, params, lungs)
    return tmp_path / "model", registrar.registrar(config, params)


def test_an_exported_model_gives_the_same_bits(exported: tuple[Path, registrar.Registrar]) -> None:
    folder, trained = exported
    images = np.random.default_rng(0).uniform(size=(2, *GRID)).astype(np.float32)
    expected, found = trained(*images), registrar.load(folder)(*images)
    assert float(np.abs(expected.displacement).max()) > 0.01
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    lungs = reference.read(folder)
    assert lungs is not None and lungs.sd_mm.tolist() == [4, 5, 6]


@pytest.mark.parametrize("name", ["config.json", "params.npz", "lungs.json"])
def test_a_changed_byte_is_noticed(exported: tuple[Path, registrar.Registrar], name: str) -> None:
    file = exported[0] / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(InputError, match=f"{name}: missing or changed"):
        registrar.load(exported[0])


def test_missing_files_are_named(exported: tuple[Path, registrar.Registrar]) -> None:
    (exported[0] / "lungs.json").unlink()
    with pytest.raises(InputError, match=r"lungs\.json"):
        registrar.load(exported[0])
    (exported[0] / weights.SUMS).unlink()
    with pytest.raises(InputError, match=weights.SUMS):
        registrar.load(exported[0])


def test_sums_cannot_point_elsewhere(exported: tuple[Path, registrar.Registrar]) -> None:
    sums = exported[0] / weights.SUMS
    sums.write_text(sums.read_text(encoding="utf-8") + f"{'0' * 64}  ../outside\n", encoding="utf-8")
    with pytest.raises(InputError, match="outside"):
        registrar.load(exported[0])


def test_weights_of_another_network_are_refused(exported: tuple[Path, registrar.Registrar]) -> None:
    folder, trained = exported
    other = lung.get_config()
    weights.save(folder, other, trained.params, None)
    with pytest.raises(InputError, match="missing or of another shape"):
        registrar.load(folder)


@pytest.mark.parametrize(
    ("spoilt", "message"),
    [("params/mean/bias.npy", "mean/bias is missing or of another shape"), ("", "cannot be read")],
    ids=["a header that claims terabytes", "cut short"],
)
def test_weights_that_lie_under_sums_that_fit(
    spoilt: str, message: str, exported: tuple[Path, registrar.Registrar]
) -> None:
    """Whoever writes a model writes its sums, too."""
    folder, _ = exported
    with zipfile.ZipFile(folder / weights.PARAMS) as archive:
        arrays = {name: archive.read(name) for name in archive.namelist()}
    claim = io.BytesIO()
    shape = {"descr": "<f4", "fortran_order": False, "shape": (2**40,)}
    np.lib.format.write_array_header_1_0(claim, shape)
    with zipfile.ZipFile(folder / weights.PARAMS, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in arrays.items():
            archive.writestr(
                name, claim.getvalue() if name == spoilt else content if spoilt else content[:-1]
            )
    files = (configuration.FILE, weights.PARAMS)
    sums = "".join(f"{weights._sum(folder / file)}  {file}\n" for file in files)
    (folder / weights.SUMS).write_text(sums, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        weights.load(folder)


def test_the_shipped_model_is_whole_and_small() -> None:
    assert weights.is_model(weights.DEFAULT)
    weights.verify(weights.DEFAULT)
    assert sum(file.stat().st_size for file in weights.DEFAULT.iterdir()) < 2e6
    assert "not" in (weights.DEFAULT / "MODEL_CARD.md").read_text(encoding="utf-8")
    model = registrar.load()
    images = np.zeros((2, *model.config.data.shape), np.float32)
    assert np.isfinite(model(*images).displacement).all()
