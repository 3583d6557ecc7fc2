"""Importing is cheap: nothing heavy comes along before it is used."""

from __future__ import annotations

import subprocess
import sys

import pytest


def modules_after(statement: str) -> set[str]:
    """The top-level modules and our own that a fresh interpreter holds after a statement."""
    program = f"import sys; {statement}; print(*sorted(sys.modules))"
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(answer.stdout.split())


def test_the_package_alone_imports_no_library() -> None:
    heavy = {"numpy", "jax", "flax", "scipy", "nibabel", "matplotlib", "SimpleITK", "importlib.metadata"}
    assert not heavy & modules_after("import lmreg_jax")


@pytest.mark.parametrize("name", ["fields", "landmarks", "objective", "prior", "similarity"])
def test_pure_functions_bring_jax_alone(name: str) -> None:
    loaded = modules_after(f"import lmreg_jax; lmreg_jax.{name}.__name__")
    assert "jax" in loaded and not {"flax", "orbax", "nibabel", "matplotlib", "SimpleITK"} & loaded


def test_loading_the_network_brings_no_images() -> None:
    loaded = modules_after("import lmreg_jax; lmreg_jax.load()")
    assert "flax" in loaded
    assert not {"SimpleITK", "matplotlib", "lmreg_jax.anatomy.segmentation", "skimage"} & loaded


def test_every_public_name_is_there() -> None:
    modules_after("import lmreg_jax; [getattr(lmreg_jax, name) for name in lmreg_jax.__all__]")
