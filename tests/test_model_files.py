"""An exported model is the trained one; a byte changed anywhere in it is noticed."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import lung
from lmreg_jax import configuration, model_files, reference_lungs, registration
from lmreg_jax.errors import InputError

GRID = (16, 16, 32)


@pytest.fixture
def exported(tmp_path: Path) -> tuple[Path, registration.Registrar]:
    config = lung.get_config()
    config.model.encoder, config.model.decoder, config.model.final = (4, 4), (4, 4), (4,)
    params = configuration.initial_params(config)
    # So that there is a displacement to compare: the head starts at nearly nothing.
    params["params"]["mean"]["kernel"] += 0.3
    lungs = reference_lungs.ReferenceLungs(np.array([1.0, 2, 3]), np.array([4.0, 5, 6]))
    model_files.save(tmp_path / "model", config, params, lungs)
    return tmp_path / "model", registration.registrar(config, params)


def test_an_exported_model_gives_the_same_bits(exported: tuple[Path, registration.Registrar]) -> None:
    folder, trained = exported
    images = np.random.default_rng(0).uniform(size=(2, *GRID)).astype(np.float32)
    expected, found = trained(*images), registration.load(folder)(*images)
    assert float(np.abs(expected.displacement).max()) > 0.01
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    lungs = reference_lungs.read(folder)
    assert lungs is not None and lungs.sd_mm.tolist() == [4, 5, 6]


@pytest.mark.parametrize("name", ["config.json", "params.npz", "lungs.json"])
def test_a_changed_byte_is_noticed(exported: tuple[Path, registration.Registrar], name: str) -> None:
    file = exported[0] / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(InputError, match=f"{name}: missing or changed"):
        registration.load(exported[0])


def test_missing_files_are_named(exported: tuple[Path, registration.Registrar]) -> None:
    (exported[0] / "lungs.json").unlink()
    with pytest.raises(InputError, match=r"lungs\.json"):
        registration.load(exported[0])
    (exported[0] / model_files.SUMS).unlink()
    with pytest.raises(InputError, match=model_files.SUMS):
        registration.load(exported[0])


def test_sums_cannot_point_elsewhere(exported: tuple[Path, registration.Registrar]) -> None:
    sums = exported[0] / model_files.SUMS
    sums.write_text(sums.read_text(encoding="utf-8") + f"{'0' * 64}  ../outside\n", encoding="utf-8")
    with pytest.raises(InputError, match="outside"):
        registration.load(exported[0])


def test_weights_of_another_network_are_refused(exported: tuple[Path, registration.Registrar]) -> None:
    folder, trained = exported
    other = lung.get_config()
    model_files.save(folder, other, trained.params, None)
    with pytest.raises(InputError, match="missing or of another shape"):
        registration.load(folder)


@pytest.mark.parametrize(
    ("spoilt", "message"),
    [("params/mean/bias.npy", "mean/bias is missing or of another shape"), ("", "cannot be read")],
    ids=["a header that claims terabytes", "cut short"],
)
def test_weights_that_lie_under_sums_that_fit(
    spoilt: str, message: str, exported: tuple[Path, registration.Registrar]
) -> None:
    """Whoever writes a model writes its sums, too."""
    folder, _ = exported
    with zipfile.ZipFile(folder / model_files.PARAMS) as archive:
        arrays = {name: archive.read(name) for name in archive.namelist()}
    claim = io.BytesIO()
    shape = {"descr": "<f4", "fortran_order": False, "shape": (2**40,)}
    np.lib.format.write_array_header_1_0(claim, shape)
    with zipfile.ZipFile(folder / model_files.PARAMS, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in arrays.items():
            archive.writestr(
                name, claim.getvalue() if name == spoilt else content if spoilt else content[:-1]
            )
    files = (configuration.FILE, model_files.PARAMS)
    sums = "".join(f"{model_files._sum(folder / file)}  {file}\n" for file in files)
    (folder / model_files.SUMS).write_text(sums, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        model_files.load(folder)


def test_the_shipped_model_is_whole_and_small() -> None:
    assert model_files.is_model(model_files.DEFAULT)
    model_files.verify(model_files.DEFAULT)
    assert sum(file.stat().st_size for file in model_files.DEFAULT.iterdir()) < 2e6
    assert "not" in (model_files.DEFAULT / "MODEL_CARD.md").read_text(encoding="utf-8")
    model = registration.load()
    images = np.zeros((2, *model.config.data.shape), np.float32)
    assert np.isfinite(model(*images).displacement).all()
