"""The page and the picture of a registered pair."""

from __future__ import annotations

import base64
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from matplotlib.image import imread

from lmreg_jax._records import plain
from lmreg_jax.affine.pairwise import Affine
from lmreg_jax.anatomy.chest import Side
from lmreg_jax.imaging.volume import Volume
from lmreg_jax.io.scan import make_scan
from lmreg_jax.registration import velocity
from lmreg_jax.registration.scans import Registered
from lmreg_jax.report import overview
from lmreg_jax.report import page as report_page
from tests.tiny_cohort import random_pull, subject


class Texts(HTMLParser):
    """All tags and texts of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, data):
        self.texts.append(data)


def registered(pull: np.ndarray) -> tuple[Side, Side, Registered]:
    """The model subject and its image under `pull`, with the transform that is true."""
    both = []
    for matrix in (np.eye(4), pull):
        ct, lungs, _ = subject(matrix)
        both.append(Side(make_scan("x", ct.data, ct.affine, ct.data.dtype), lungs, "given", (1.0, 1.0), ()))
    forward, inverse = velocity.affine_transforms(pull)
    frame = velocity.free_frame(both[0].lungs, both[1].lungs, pull, 16.0)
    affine = Affine(pull, "moments", ())
    found = Registered(forward, inverse, affine, None, None, None, frame, "affine", ())
    return both[0], both[1], found


def test_picture_shows_what_the_transform_does() -> None:
    fixed, moving, found = registered(random_pull(7))
    picture = overview.pictured(fixed, moving, found)
    assert np.abs(picture.deformation).max() < 1e-4  # nothing beyond the affine step
    np.testing.assert_allclose(picture.determinant, np.linalg.det(random_pull(7)), rtol=1e-5)
    assert np.abs(picture.warped - picture.fixed)[picture.lungs_fixed].mean() < 0.1
    np.testing.assert_array_equal(picture.warped, picture.affine)
    assert (picture.uncertainty == -1).all()
    # The frame holds the lungs, and no more of the scan than there is.
    assert picture.lungs_fixed.sum() * 8 / 1e6 > 2.5


def test_page_is_drawn_whole(tmp_path: Path) -> None:
    fixed, moving, found = registered(random_pull(7))
    picture = overview.pictured(fixed, moving, found)
    path = overview.draw(tmp_path / "report.png", picture, ["a title", "numbers"])
    pixels = imread(path)
    assert pixels.shape[1] > 1500
    assert pixels[..., :3].std() > 0.1
    assert [p.name for p in tmp_path.iterdir()] == ["report.png"]
    shown = Volume(picture.fixed, picture.frame.affine)
    lungs = Volume(picture.lungs_fixed.astype(np.uint8), picture.frame.affine)
    quality = imread(overview.quality_picture(tmp_path / "qc.png", shown, lungs, "title"))
    orange = np.abs(quality[..., :3] - np.array([0.902, 0.624, 0.0])).max(axis=-1) < 0.1
    assert orange.sum() > 200  # the outline of label 1


def test_html_holds_the_picture_and_escapes_what_comes_from_outside(tmp_path: Path) -> None:
    png = tmp_path / "p.png"
    png.write_bytes(b"\x89PNG not really")
    numbers = {
        "notes": ["<script>alert(1)</script>"],
        "command": 'lmreg register "a&b<c>.nii.gz"',
        "dice": {"both": {"affine": 0.81234, "after": 0.95}, "left": {"affine": 0.8, "after": None}},
        "scans": {"path": "<b>x</b>", "voxels": [1, 2, 3]},
    }
    text = report_page.page("<i>title</i>", numbers, png)
    assert base64.b64encode(png.read_bytes()).decode() in text
    page = Texts()
    page.feed(text)
    assert not {"script", "b", "i"} & set(page.tags)
    assert "<script>alert(1)</script>" in page.texts
    assert 'lmreg register "a&b<c>.nii.gz"' in page.texts
    assert {"0.8123", "0.95", "none", "1, 2, 3"} <= set(page.texts)


def test_json_has_no_nan() -> None:
    nested = {"a": [float("nan"), np.float32(1.5), np.int64(2)], "b": {"c": float("inf"), "d": "text"}}
    assert plain(nested) == {"a": [None, 1.5, 2], "b": {"c": None, "d": "text"}}
