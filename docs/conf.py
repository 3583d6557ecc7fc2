"""Sphinx: `sphinx-build -W -b html docs build/docs`; `-b doctest` runs the examples.

Needs no network. LMREG_DOCS_ONLINE=1 links the names of Python, NumPy and JAX to their own pages;
With myst-nb the notebook is executed and included; LMREG_DOCS_NOTEBOOK=0 leaves it out.
"""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE / "_ext")]
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from benchmarks import document  # noqa: E402, after the path above

project = "lmreg_jax"
author = "the authors of lmreg_jax"
copyright = "Apache-2.0"
NOTEBOOK = find_spec("myst_nb") is not None and os.environ.get("LMREG_DOCS_NOTEBOOK", "1") != "0"
ONLINE = os.environ.get("LMREG_DOCS_ONLINE", "0") != "0"

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.doctest",
    "sphinx.ext.intersphinx",
    "myst_nb" if NOTEBOOK else "myst_parser",
    "generated",
]
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb"} if NOTEBOOK else {".md": "markdown"}
exclude_patterns = ["_generated", "**/README.md", "Thumbs.db"]
if not NOTEBOOK:
    exclude_patterns.append("guide/two_scans.ipynb")
templates_path: list[str] = []

myst_enable_extensions = ["colon_fence", "deflist", "substitution", "attrs_inline"]
myst_heading_anchors = 4
myst_substitutions = document.numbers()
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 600

default_role = "literal"  # docstrings write `x` as Markdown does
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # docstrings carry shapes and units
autodoc_default_options = {"members": True, "show-inheritance": False}
autodoc_mock_imports = [
    name for name in ("SimpleITK", "itk", "ants", "h5py", "isal", "torch") if find_spec(name) is None
]
add_module_names = False
intersphinx_mapping = (
    {
        "python": ("https://docs.python.org/3", None),
        "numpy": ("https://numpy.org/doc/stable", None),
        "jax": ("https://docs.jax.dev/en/latest", None),
    }
    if ONLINE
    else {}
)

# `-b doctest`: only what is marked `>>>`; pages that need a scan or a training show it as plain code.
doctest_global_setup = """
import numpy as np
import lmreg_jax as lm
"""
doctest_test_doctest_blocks = "default"

html_theme = "furo"
html_title = "lmreg_jax"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_theme_options = {"navigation_with_keys": True}
html_show_sphinx = False
html_show_copyright = False
