"""Pictures are welcome, and must not cost the numbers that they show."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def attempt(draw: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> tuple[T | None, list[str]]:
    """What `draw` returns and no notes, or None and a note on what failed.

    Under matplotlib's own style: a `matplotlibrc` of the user's or the working folder's may ask for LaTeX
    or fonts that are not there.
    """
    try:
        with _style():
            return draw(*args, **kwargs), []
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        return None, [f"a picture or page of the report is missing ({type(error).__name__}: {reason[:200]})"]


def _style() -> AbstractContextManager[None]:
    try:
        from matplotlib import style
    except Exception:  # what needs matplotlib says so itself
        return nullcontext()
    return style.context("default")


def printable(text: str) -> str:
    """The text with "?" for what is not Unicode: bytes of a file's name that are not UTF-8."""
    return text.encode("utf-8", errors="replace").decode("utf-8")
