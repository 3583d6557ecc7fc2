"""Transforms as files: ITK, elastix and ANTs read what we write, we read theirs, damage is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from lmreg_jax.affine import elastix
from lmreg_jax.errors import InputError
from lmreg_jax.imaging.transforms import Transform, affine_transform, covers, transform_points, warp_image
from lmreg_jax.imaging.volume import Volume, apply_affine
from lmreg_jax.io.scan import LPS
from lmreg_jax.io.transforms import read_transform, write_displacement, write_itk
from tests import spaces
from tests.spaces import LPS_SIGNS

AIR = -1000.0
pytestmark = pytest.mark.usefixtures("several_slabs")


@pytest.mark.parametrize("form", [lambda t: t, spaces.backward, lambda t: affine_transform(t.post)])
@pytest.mark.parametrize("suffix", [".h5", ".tfm"])
def test_itk_moves_points_as_we_do(form: Any, suffix: str, tmp_path: Path) -> None:
    sitk = pytest.importorskip("SimpleITK")
    t = form(spaces.transform())
    write_itk(tmp_path / f"t{suffix}", t)
    points = spaces.some_points()  # inside the field's grid and far outside
    ours = transform_points(t, points)
    theirs = spaces.itk_points(sitk.ReadTransform(str(tmp_path / f"t{suffix}")), points)
    # .tfm holds float32's decimals; both are far below the 0.05 mm that is wanted.
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    np.testing.assert_allclose(
        transform_points(read_transform(tmp_path / f"t{suffix}"), points), ours, atol=1e-4
    )


@pytest.mark.parametrize("h5py", [True, False])
def test_a_composite_is_a_quarter_of_the_size(
    h5py: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without h5py ITK writes its eight bytes a number, and the same transform."""
    sitk = pytest.importorskip("SimpleITK")
    if not h5py:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    t = spaces.transform()
    write_itk(tmp_path / "t.h5", t)
    size = (tmp_path / "t.h5").stat().st_size / t.displacement.size
    assert size < 3 if h5py else size > 8
    theirs = sitk.CompositeTransform(sitk.ReadTransform(str(tmp_path / "t.h5"))).GetNthTransform(1)
    field = sitk.GetArrayFromImage(sitk.DisplacementFieldTransform(theirs).GetDisplacementField())
    wanted = t.displacement.transpose(2, 1, 0, 3) * spaces.LPS_SIGNS
    np.testing.assert_allclose(field, wanted, atol=0.5 / 8192 + 1e-7)


def test_the_edge_of_a_field_is_where_itk_has_it(tmp_path: Path) -> None:
    """Half a voxel beyond the last centre the edge value ends, and nothing moves."""
    sitk = pytest.importorskip("SimpleITK")
    field = np.broadcast_to(np.float32([3, -2, 5]), (4, 4, 4, 3)).copy()
    t = Transform(np.eye(4), field, spaces.grid((4, 4, 4), (2.0, 3.0, 4.0)), np.eye(4))
    write_itk(tmp_path / "t.h5", t)
    offsets = np.array([-0.9, -0.51, -0.49, 0, 1.3, 3.0, 3.49, 3.51, 5])
    index = np.array([[o if a == axis else 1.5 for a in range(3)] for o in offsets for axis in range(3)])
    points = apply_affine(t.grid, index)
    theirs = spaces.itk_points(sitk.ReadTransform(str(tmp_path / "t.h5")), points)
    np.testing.assert_allclose(transform_points(t, points), theirs, atol=1e-6)
    moved = np.abs(theirs - points).max(axis=1) > 1
    np.testing.assert_array_equal(covers(t, points), moved)
    assert 0 < moved.sum() < len(moved)


@pytest.mark.slow  # loading itk takes most of it
def test_transformix_takes_the_displacement_field(tmp_path: Path) -> None:
    if not elastix.installed():
        pytest.skip("needs itk-elastix")
    itk = pytest.importorskip("itk")
    t = spaces.transform()
    moving = spaces.ct()
    spaces.save(tmp_path / "moving.nii.gz", moving, spaces.ORIENTATIONS[30])
    shape, affine = (36, 30, 28), spaces.grid((36, 30, 28), (6.5, 7.5, 8.0))
    write_displacement(tmp_path / "d.nii.gz", t, shape, affine)
    parameters = itk.ParameterObject.New()
    lps = LPS @ affine
    parameters.AddParameterMap(
        {
            "Transform": ["DeformationFieldTransform"],
            "DeformationFieldFileName": [str(tmp_path / "d.nii.gz")],
            "DeformationFieldInterpolationOrder": ["1"],
            "NumberOfParameters": ["0"],
            "InitialTransformParameterFileName": ["NoInitialTransform"],
            "HowToCombineTransforms": ["Compose"],
            "FixedImageDimension": ["3"],
            "MovingImageDimension": ["3"],
            "FixedInternalImagePixelType": ["float"],
            "MovingInternalImagePixelType": ["float"],
            "Size": [str(n) for n in shape],
            "Index": ["0", "0", "0"],
            "Spacing": [str(s) for s in np.diag(affine)[:3]],
            "Origin": [str(x) for x in lps[:3, 3]],
            "Direction": [str(x) for x in np.diag(LPS_SIGNS).ravel()],
            "ResampleInterpolator": ["FinalLinearInterpolator"],
            "Resampler": ["DefaultResampler"],
            "DefaultPixelValue": [str(AIR)],
            "ResultImagePixelType": ["float"],
        }
    )
    image = itk.imread(str(tmp_path / "moving.nii.gz"), itk.F)
    theirs = itk.transformix_filter(image, transform_parameter_object=parameters, log_to_console=False)
    ours = warp_image(t, moving, shape, affine, fill=AIR)
    difference = np.abs(itk.array_from_image(theirs).T - ours)
    assert np.mean(difference) < 0.2  # rounded to 1/1024 mm in the file
    assert np.percentile(difference, 99.5) < 1


@pytest.mark.slow  # loading ants takes most of it
def test_ants_applies_both_exports(tmp_path: Path) -> None:
    ants = pytest.importorskip("ants")
    t = spaces.transform()
    moving = spaces.ct()
    shape, affine = (36, 30, 28), spaces.grid((36, 30, 28), (6.5, 7.5, 8.0))
    spaces.save(tmp_path / "moving.nii.gz", moving, spaces.ORIENTATIONS[9])
    spaces.save(tmp_path / "fixed.nii.gz", Volume(np.zeros(shape, np.int16), affine))
    write_displacement(tmp_path / "d.nii.gz", t, shape, affine)
    write_itk(tmp_path / "t.h5", t)
    ours = warp_image(t, moving, shape, affine, fill=AIR)
    images = [ants.image_read(str(tmp_path / name)) for name in ("fixed.nii.gz", "moving.nii.gz")]
    for name in ("t.h5", "d.nii.gz"):
        warped = ants.apply_transforms(
            *images, [str(tmp_path / name)], interpolator="linear", defaultvalue=AIR
        )
        difference = np.abs(warped.numpy() - ours)
        assert np.mean(difference) < 0.2
        assert np.percentile(difference, 99.5) < 1


def test_a_bit_changed_in_a_field_is_noticed(tmp_path: Path) -> None:
    """A field that was read wrong moves a patient's landmarks by anything up to 1e38 mm."""
    path = tmp_path / "d.nii.gz"
    write_displacement(path, spaces.transform(), (18, 40, 31), spaces.grid((18, 40, 31), (7.0, 5, 6)))
    whole, first = path.read_bytes(), read_transform(path).displacement
    random = np.random.default_rng(0)
    refused = 0
    for place in random.integers(0, len(whole), 60):
        content = bytearray(whole)
        content[place] ^= 1 << random.integers(8)
        path.write_bytes(bytes(content))
        try:  # What changes nothing: the time in gzip's header, the bits between two of its parts.
            np.testing.assert_array_equal(read_transform(path).displacement, first)
        except InputError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused > 50


def test_transforms_of_other_programs_are_read(tmp_path: Path) -> None:
    """Linear kinds and a composite of many parts, with centres of rotation; .tfm, .mat, .h5, .mha, .nrrd."""
    sitk = pytest.importorskip("SimpleITK")
    t = spaces.transform()
    euler = sitk.Euler3DTransform((10.0, 20, -5), 0.2, -0.1, 0.3, (4.0, 5, 6))
    shift = sitk.TranslationTransform(3, (7.0, -8, 9))
    scale = sitk.ScaleVersor3DTransform((1.1, 0.9, 1.2), (0.0, 0.1, 0.2), 0.3, (1.0, 2, 3))
    field = Transform(np.eye(4), t.displacement, t.grid, np.eye(4))
    write_itk(tmp_path / "field.h5", field)
    read = sitk.ReadTransform(str(tmp_path / "field.h5"))
    mixed = sitk.CompositeTransform([euler, shift, read, scale])
    mixed.FlattenTransform()
    points = spaces.some_points()
    for suffix, transform in {".tfm": euler, ".mat": euler, ".txt": shift, ".h5": mixed}.items():
        sitk.WriteTransform(transform, str(tmp_path / f"other{suffix}"))
        ours = transform_points(read_transform(tmp_path / f"other{suffix}"), points)
        np.testing.assert_allclose(ours, spaces.itk_points(transform, points), atol=1e-4)
    image = sitk.DisplacementFieldTransform(
        sitk.CompositeTransform(read).GetNthTransform(0).Downcast()
    ).GetDisplacementField()
    for suffix in (".mha", ".nrrd"):
        sitk.WriteImage(image, str(tmp_path / f"f{suffix}"))
        ours = transform_points(read_transform(tmp_path / f"f{suffix}"), points)
        np.testing.assert_allclose(ours, spaces.itk_points(read, points), atol=1e-4)


def broken(folder: Path, what: str) -> Path:
    """A file that is no usable transform."""
    sitk = pytest.importorskip("SimpleITK")
    path = folder / f"{what.replace(' ', '_')}.h5"
    if what == "missing":
        return folder / "missing.h5"
    if what == "garbage":
        path.write_bytes(b"no transform" * 50)
    elif what == "b-spline":
        image = sitk.Image((8, 8, 8), sitk.sitkFloat32)
        sitk.WriteTransform(sitk.BSplineTransformInitializer(image, (4, 4, 4)), str(path))
    elif what == "two dimensions":
        sitk.WriteTransform(sitk.AffineTransform(2), str(path))
    elif what == "two fields":
        write_itk(path, spaces.transform())
        parts = sitk.ReadTransform(str(path))
        both = sitk.CompositeTransform([parts, parts])
        both.FlattenTransform()
        sitk.WriteTransform(both, str(path))
    elif what == "singular":
        sitk.WriteTransform(sitk.ScaleTransform(3, (1.0, 0.0, 1.0)), str(path))
    elif what == "other kind":
        path = folder / "points.csv"
        path.write_text("name,x,y,z\n", encoding="utf-8")
    else:
        path = path.with_suffix(".nii.gz")
        data: Any = np.zeros((4, 5, 6, 1, 3), np.float32)
        if what == "an image":
            data = data[..., 0, 0]
        if what == "not finite":
            data[1, 1, 1] = np.nan
        if what == "colours":
            data = np.zeros((4, 5, 6, 1, 3), [(c, np.uint8) for c in "RGB"])
        image = nib.Nifti1Image(data, np.eye(4))
        image.header.set_intent("none" if what == "no intent" else "vector")
        nib.save(image, path)
        if what == "truncated":
            path.write_bytes(path.read_bytes()[:-40])
    return path


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("missing", "no such transform"),
        ("garbage", "not a readable ITK transform"),
        ("b-spline", "BSplineTransform; one displacement field"),
        ("two dimensions", "2-D"),
        ("two fields", "DisplacementFieldTransform, DisplacementFieldTransform"),
        ("singular", "singular"),
        ("other kind", "not a kind of transform"),
        ("an image", "no displacement field"),
        ("colours", "real numbers are needed"),
        ("not finite", "not finite"),
        ("no intent", "intent 0"),
        ("truncated", "not a readable displacement field"),
    ],
)
def test_what_is_no_transform_is_refused(what: str, said: str, tmp_path: Path) -> None:
    path = broken(tmp_path, what)
    with pytest.raises(InputError) as caught:
        read_transform(path)
    assert said in str(caught.value) and path.name in str(caught.value)


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    """The disk is full half-way through: neither a half file nor a temporary one stays behind."""
    t = spaces.transform()
    affine = np.array(spaces.grid())
    with pytest.raises(InputError, match=r"written as \.nii"):
        write_displacement(tmp_path / "d.mha", t, spaces.SHAPE, affine)
    with pytest.raises(InputError, match=r"written as \.h5"):
        write_itk(tmp_path / "t.xyz", t)
    bad = t._replace(displacement=t.displacement[..., :2])  # breaks once the header is written
    with pytest.raises(ValueError):
        write_displacement(tmp_path / "d.nii.gz", bad, spaces.SHAPE, affine)
    assert list(tmp_path.iterdir()) == []
