"""Every reader of files that the package has, with small valid files to break, for `tests.fuzz`."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lmreg_jax.errors import InputError
from lmreg_jax.imaging.volume import Volume
from lmreg_jax.io.nifti import read_volume, write_volume
from lmreg_jax.io.points import read_points, write_points
from lmreg_jax.training.config import make_augmentation, make_optimiser

GRID = np.array([[-2.0, 0, 0, 10], [0, 2.5, 0, -12], [0, 0, 3, -9], [0, 0, 0, 1]])
POINTS = {f"landmark_{i}": np.array([i - 3.25, 2.0 * i, 1.5]) for i in range(5)}


class Kind(NamedTuple):
    """A kind of file: valid ones made by `write(folder)`, each read by `read(path)`.

    share: of a hundred files. text: broken as text as well. A folder is read whole; one file of
    it, chosen by chance, is broken.
    """

    write: Callable[[Path], list[Path]]
    read: Callable[[Path], object]
    share: int
    text: bool = False
    needs: tuple[str, ...] = ()


def _volumes(suffix: str) -> Callable[[Path], list[Path]]:
    def write(folder: Path) -> list[Path]:
        chance = np.random.default_rng(1)
        paths = []
        for i, dtype in enumerate((np.int16, np.float32, np.uint8)):
            data = chance.integers(0, 200, (9, 8, 7)).astype(dtype)
            paths.append(folder / f"{i}{suffix}")
            write_volume(paths[-1], Volume(data, GRID))
        return paths

    return write


def _text(name: str, *contents: str) -> Callable[[Path], list[Path]]:
    def write(folder: Path) -> list[Path]:
        paths = []
        for i, content in enumerate(contents):
            (folder / str(i)).mkdir()
            paths.append(folder / str(i) / name)
            paths[-1].write_text(content, encoding="utf-8")
        return paths

    return write


def _points(folder: Path) -> list[Path]:
    write_points(folder / "points.csv", POINTS)
    return [folder / "points.csv"]


def _points_any(suffix: str) -> Callable[[Path], list[Path]]:
    def write(folder: Path) -> list[Path]:
        from lmreg_jax.io.points import write_points

        write_points(folder / f"points{suffix}", POINTS)
        return [folder / f"points{suffix}"]

    return write


def _read_points_any(path: Path) -> object:
    from lmreg_jax.io.points import read_points

    return read_points(path, unit="mm" if path.name.endswith(".csv") else None)


CASES = "case,split,image,lungs,lobes,landmarks,points\n" + "".join(
    f"c{i},{split},images/c{i}.nii.gz,,,landmarks/c{i}.csv,\n"
    for i, split in enumerate(("train", "train", "validation", "test", ""))
)


def _read_cases(path: Path) -> object:
    """Beside files of the names in CASES. No row may lead out of the folder."""
    from lmreg_jax.cohort.table import read_cases

    root = path.parent
    for name in (f"{folder}/c{i}{end}" for i in range(5) for folder, end in FOLDERS):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).touch()
    rows = read_cases(root)
    for row in rows:
        for file in row.files:
            assert file.resolve().is_relative_to(root.resolve()), f"{file} leads out of {root}"
    return rows


FOLDERS = (("images", ".nii.gz"), ("landmarks", ".csv"))


def _read_pairs(path: Path) -> object:
    from lmreg_jax.cohort.table import Row, read_pairs

    return read_pairs(path.parent, [Row(f"c{i}", "train", path) for i in range(4)])


def _config(folder: Path) -> list[Path]:
    from experiments import lung
    from lmreg_jax.model import config as configuration

    paths = [folder / "config.json", folder / "paper.json"]
    for path, variant in zip(paths, ("", "paper"), strict=True):
        path.write_text(configuration.to_json(lung.get_config(variant)), encoding="utf-8")
    return paths


def _read_config(path: Path) -> object:
    from lmreg_jax.model import config as configuration

    config = configuration.read(path)
    configuration.validate(config)
    configuration.network(config)
    configuration.objective(config)
    make_optimiser(config)
    return make_augmentation(config)


def _read_lungs(path: Path) -> object:
    from lmreg_jax.affine import reference

    return reference.read(path.parent)


def _tiny_model() -> Any:
    from lmreg_jax.model.unet import UNet

    return UNet(encoder=(2,), decoder=(2,), final=(), field_stride=2)


def _keras(folder: Path) -> list[Path]:
    import h5py

    from lmreg_jax.model.keras import expected_shapes

    names = {"encoder_0": "conv3d_1", "decoder_0": "conv3d_2", "mean": "flow", "log_variance": "log_sigma"}
    with h5py.File(folder / "weights.h5", "w") as file:
        for name, shapes in expected_shapes(_tiny_model()).items():
            for part, shape in shapes.items():
                file[f"model_weights/{names[name]}/{names[name]}/{part}:0"] = np.zeros(shape, np.float32)
    return [folder / "weights.h5"]


def _read_keras(path: Path) -> object:
    from lmreg_jax.model.keras import import_keras

    return import_keras(path, _tiny_model())


STATE = {"params": {"mean": {"kernel": np.arange(600, dtype=np.float32), "bias": np.ones(3, np.float32)}}}


def _checkpoint(folder: Path) -> list[Path]:
    from lmreg_jax.model import checkpoint

    store = checkpoint.store(folder / "run", checkpoint.BEST, 1)
    checkpoint.save(store, 7, STATE, {"tre_mm": 1.5})
    return [folder / "run"]


def _read_checkpoint(path: Path) -> object:
    """What is given back is what was saved, to the last bit, or nothing."""
    from lmreg_jax.model import checkpoint

    _, params = checkpoint.load_params(path, STATE["params"])
    for name, array in STATE["params"]["mean"].items():
        np.testing.assert_array_equal(params["mean"][name], array)
    return params


def _model(folder: Path) -> list[Path]:
    from experiments import lung
    from lmreg_jax.affine import reference
    from lmreg_jax.model import config as configuration
    from lmreg_jax.model import weights

    config = lung.get_config()
    config.model.encoder, config.model.decoder, config.model.final = (2,), (2,), ()
    lungs = reference.ReferenceLungs(np.ones(3), np.ones(3))
    weights.save(folder / "model", config, configuration.initial_params(config), lungs)
    return [folder / "model"]


def _read_model(path: Path) -> object:
    """What is given back is what was saved: the sums stand for it (a wrong one is not to be met)."""
    from lmreg_jax.model import config as configuration
    from lmreg_jax.model import weights

    config, params = weights.load(path)
    for one, other in zip(*map(_leaves, (params, configuration.initial_params(config))), strict=True):
        np.testing.assert_array_equal(one, other)
    return params


def _leaves(tree: Any) -> list[Any]:
    import jax

    return jax.tree.leaves(tree)


def _cache_entry(folder: Path) -> list[Path]:
    from lmreg_jax.cohort import cache

    cache.store(folder / "entry", (_case(),), {"reference": "c0"})
    return [folder / "entry"]


def _case() -> Any:
    from lmreg_jax.cohort.case import Case

    image = np.random.default_rng(0).random((6, 5, 4), np.float32)
    table = np.arange(6.0).reshape(2, 3)
    lungs = (image > 0.5).astype(np.uint8)
    return Case("c0", "train", image, lungs, None, table, table, table, table, np.eye(4))


def _read_cache_entry(path: Path) -> object:
    """As above; a damaged entry counts as none."""
    from lmreg_jax.cohort import cache

    found = cache.load(path)
    if found is None:
        return None
    (case,), wanted = found[0], _case()
    whole = cache.fresh(case)
    for name in ("image", "lungs", "landmarks", "scan_from_grid"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(wanted, name))
    return whole


def _run(folder: Path) -> list[Path]:
    """What a training's folder holds beside its config and checkpoints."""
    from experiments.run import provenance, scalars

    run = folder / "run"
    run.mkdir()
    with scalars.Writer(run) as table:
        table.rewind(0)
        for step in (1, 2, 3, 4):
            table.add(step, {"loss": 1.5 / step, "val_dice": 0.5} if step % 2 else {"loss": 1.5})
            table.add_skipped(step, [("c0", "c1"), ("c1", "c0")], {"loss": float("nan")})
    shutil.rmtree(run / "tensorboard", ignore_errors=True)
    start = {"step": 0, "seed": 0, "python": "3.11.7", "devices": {"cpu": 1}, "packages": {"jax": "0.10.2"}}
    (run / provenance.FILE).write_text(json.dumps([start, start | {"step": 2}]), encoding="utf-8")
    return [run]


def _read_run(path: Path) -> object:
    """As a resumed training does: what is damaged is passed over, so nothing is ever refused."""
    from experiments.run import lock, provenance, scalars

    with lock.held(path), scalars.Writer(path) as table:
        table.validated(2)
        table.rewind(3)
        assert all(int(row["step"]) <= 3 for row in table.read())
    starts = provenance._read(path / provenance.FILE)
    return starts and provenance._changes(starts[-1], {"seed": 0, "packages": {"jax": "0.12.0"}})


def _itk_image(suffix: str) -> Callable[[Path], list[Path]]:
    def write(folder: Path) -> list[Path]:
        import SimpleITK as sitk  # noqa: N813

        paths = []
        for i, dtype in enumerate((np.int16, np.float32)):
            image = sitk.GetImageFromArray(np.arange(9 * 8 * 7).reshape(7, 8, 9).astype(dtype))
            image.SetSpacing((1.5, 2, 2.5))
            paths.append(folder / f"{i}{suffix}")
            sitk.WriteImage(image, str(paths[-1]), bool(i))
        return paths

    return write


def _read_scan(path: Path) -> object:
    from lmreg_jax.io.read import read_scan

    return read_scan(path)


def _dicom(folder: Path) -> list[Path]:
    import SimpleITK as sitk  # noqa: N813

    series = folder / "series"
    series.mkdir()
    for k in range(4):
        image = sitk.GetImageFromArray(np.full((1, 8, 9), 40 + k, np.int16))
        image.SetSpacing((1.5, 2, 2.5))
        tags = {
            "0008|0060": "CT",
            "0020|000e": "1.2.826.0.1.3680043.2.1125.2",
            "0020|000d": "1.2.826.0.1.3680043.2.1125.1",
            "0008|0018": f"1.2.826.0.1.3680043.2.1125.3.{k}",
            "0020|0032": f"-6\\-8\\{2.5 * k}",
            "0020|0037": "1\\0\\0\\0\\1\\0",
            "0020|0013": str(k + 1),
        }
        for tag, value in tags.items():
            image.SetMetaData(tag, value)
        writer = sitk.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        writer.SetFileName(str(series / f"{k}.dcm"))
        writer.Execute(image)
    return [series]


def _field() -> Any:
    from lmreg_jax.imaging.transforms import Transform

    chance = np.random.default_rng(2)
    displacement = chance.standard_normal((6, 5, 4, 3)).astype(np.float32)
    grid = np.diag([2.0, 2, 3, 1])
    return Transform(np.eye(4), displacement, grid, np.diag([1.1, 0.9, 1, 1]))


def _transform(suffix: str) -> Callable[[Path], list[Path]]:
    def write(folder: Path) -> list[Path]:
        from lmreg_jax.io.transforms import write_displacement, write_itk

        path = folder / f"transform{suffix}"
        if suffix.startswith(".nii"):
            write_displacement(path, _field(), (6, 5, 4), np.diag([2.0, 2, 3, 1]))
        else:
            write_itk(path, _field())
        return [path]

    return write


def _affine(folder: Path) -> list[Path]:
    import SimpleITK as sitk  # noqa: N813

    affine = sitk.AffineTransform(3)
    affine.SetTranslation((1, 2, 3))
    paths = [folder / "affine.tfm", folder / "affine.txt"]
    for path in paths:
        sitk.WriteTransform(affine, str(path))
    return paths


def _read_transform(path: Path) -> object:
    from lmreg_jax.io.transforms import read_transform

    return read_transform(path)


LUNGS = json.dumps({"mean_mm": [1.0, 2.0, 3.0], "sd_mm": [40.0, 50.0, 60.0]})
PAIRS = "fixed,moving\nc0,c1\nc1,c2\nc2,c3\n"
VOXELS = "1,2,3\n4,5,6\n"
NAMELESS = "x,y,z\n1,2,3\n4,5,6\n"

KINDS: dict[str, Kind] = {
    "nifti": Kind(_volumes(".nii"), read_volume, 18),
    "nifti.gz": Kind(_volumes(".nii.gz"), read_volume, 12),
    "landmarks.csv": Kind(_points, read_points, 9, text=True),
    "points.csv": Kind(_text("points.csv", NAMELESS, VOXELS), _read_points_any, 3, text=True),
    "points.fcsv": Kind(_points_any(".fcsv"), _read_points_any, 7, text=True),
    "points.mrk.json": Kind(_points_any(".mrk.json"), _read_points_any, 7, text=True),
    "cases.csv": Kind(_text("cases.csv", CASES), _read_cases, 6, text=True),
    "pairs.csv": Kind(_text("pairs.csv", PAIRS), _read_pairs, 4, text=True),
    "config.json": Kind(_config, _read_config, 8, text=True),
    "lungs.json": Kind(_text("lungs.json", LUNGS), _read_lungs, 2, text=True),
    "weights.h5": Kind(_keras, _read_keras, 4, needs=("h5py",)),
    "checkpoint": Kind(_checkpoint, _read_checkpoint, 3),
    "model": Kind(_model, _read_model, 3),
    "cache entry": Kind(_cache_entry, _read_cache_entry, 3),
    "run": Kind(_run, _read_run, 3, text=True),
    "image.mha": Kind(_itk_image(".mha"), _read_scan, 3, text=True, needs=("SimpleITK",)),
    "image.nrrd": Kind(_itk_image(".nrrd"), _read_scan, 3, text=True, needs=("SimpleITK",)),
    "dicom": Kind(_dicom, _read_scan, 2, needs=("SimpleITK",)),
    "transform.h5": Kind(_transform(".h5"), _read_transform, 2, needs=("SimpleITK",)),
    "transform.tfm": Kind(_affine, _read_transform, 2, text=True, needs=("SimpleITK",)),
    "field.nii.gz": Kind(_transform(".nii.gz"), _read_transform, 2, needs=("SimpleITK",)),
}


def available(kind: str) -> bool:
    """Whether the packages that its reader needs are installed."""
    import importlib.util

    return all(importlib.util.find_spec(name) for name in KINDS[kind].needs)


NO_MEMORY = (
    "memoryerror",
    "bad_alloc",
    "no memory",
    "failed to allocate",
    "cannot allocate",
    "out of memory",
)


def complaint(kind: str, path: Path) -> str:
    """What is wrong with how a broken file is answered; "" where it is read or refused in one line."""
    try:
        KINDS[kind].read(path)
    except InputError as error:
        message = str(error)
        if not any(part in message for part in (path.name, str(path.parent), "config.")):
            return f"the message does not name the file: {message[:300]}"
        if any(word in message.lower() for word in NO_MEMORY):
            return f"asked for more memory than the bound: {message[:300]}"
        if len(message) > 3000:
            return f"a message of {len(message)} characters: {message[:100]}"
    except MemoryError as error:
        return f"asked for more memory than the bound: {error!r}"
    except Exception as error:
        import traceback

        where = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {str(error)[:200]} ({Path(where.filename).name}:{where.lineno})"
    return ""


def with_copy(original: Path, folder: Path) -> Path:
    """A copy of a file or of a folder, in `folder`, under its own name."""
    holder = Path(tempfile.mkdtemp(dir=folder))
    target = holder / original.name
    if original.is_dir():
        shutil.copytree(original, target)
    else:
        shutil.copy(original, target)
    return target
