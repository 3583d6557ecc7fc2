"""Where a command's results go: tried out before the work, and taken from nobody at its end.

    with new_folder(args.output, force=args.force, known=FILES) as folder:   # before any work
        ...                                                                    # files are written to `folder`
    look_at(resolved(args.output))                                             # they lie there, complete

`tables.replacing` does the same for a single file.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from functools import partial
from pathlib import Path

from lmreg_jax.errors import InputError, undone
from lmreg_jax.io.tables import TEMPORARY, put_file, temporary_name

State = dict[str, tuple[int, ...]]  # what lies at a place: files by relative path, "." for a file itself
PROBE = bytes(4096)


def resolved(output: str | os.PathLike[str]) -> Path:
    """The absolute path, `~` and symbolic links followed."""
    text = os.path.expanduser(output)
    if text.startswith("~"):
        raise InputError(f"{output}: no such home folder; write the whole path (or ./~ for a name with ~)")
    return Path(os.path.realpath(text))


def check_output(output: str | os.PathLike[str], *, force: bool, known: Sequence[str]) -> Path:
    """`resolved(output)`, or InputError where a new folder must not be made there.

    An empty folder (a mount point, say) is as good as none. known: names and patterns of the files that
    the command writes, relative to it ("cases.csv", "images/*.nii.gz"); `force` replaces these only.
    """
    target = resolved(output)
    state = _state(target)
    if not state:
        return target
    if "." in state:
        raise InputError(f"{target}: is a file; name a new folder for the results")
    if not force:
        raise InputError(f"{target}: exists already; name another folder, or --force to replace the results")
    foreign = sorted(name for name in state if not any(fnmatch(name, pattern) for pattern in known))
    if foreign:
        raise InputError(
            f"{target}: holds {foreign[0]}{' and more' if len(foreign) > 1 else ''}, which this command"
            " did not write; --force replaces results only: name another folder"
        )
    return target


@contextmanager
def new_folder(output: str | os.PathLike[str], *, force: bool, known: Sequence[str]) -> Iterator[Path]:
    """A temporary folder whose content lies at `output` after the block; removed on any failure.

    On entering, `output` is checked (`check_output`) and tried out. A new folder appears by one rename. A
    folder that is there already stays (a mount point, a link's target): files are moved into it, and what
    they replace comes back where that fails. Where somebody else has written there during the block,
    nothing of theirs is touched: InputError says where the results are.
    """
    target = check_output(output, force=force, known=known)
    before = _state(target)
    put = partial(_put_new if before is None else _put_into, target=target)
    with _temporary(target, target.parent if before is None else target, before, put) as temporary:
        with _refused(target):
            temporary.mkdir()
            (temporary / "probe").write_bytes(PROBE)
            (temporary / "probe").unlink()
            if before is None:
                target.mkdir()
                target.rmdir()
        yield temporary


@contextmanager
def new_file(output: str | os.PathLike[str], *, force: bool) -> Iterator[Path]:
    """The same for one file: a name with its suffix to write to, renamed to `output` after the block."""
    target = resolved(output)
    before = _state(target)
    if before is not None and not target.is_file():
        kind = "is a folder" if target.is_dir() else "not a regular file"
        raise InputError(f"{target}: {kind}; name a file")
    if before is not None and not force:
        raise InputError(f"{target}: exists; choose another name, or replace it with --force")

    def put(temporary: Path) -> None:
        if before is None:
            os.close(os.open(target, os.O_CREAT | os.O_EXCL))  # fails where something is
        try:
            put_file(temporary, target)
        except BaseException:
            if before is None:
                target.unlink()
            raise

    with _temporary(target, target.parent, before, put, Path(output).name) as temporary:
        with _refused(target):
            temporary.write_bytes(PROBE)
            temporary.unlink()
            if before is None:
                os.close(os.open(target, os.O_CREAT | os.O_EXCL))
                target.unlink()
        yield temporary


@contextmanager
def _temporary(
    target: Path, folder: Path, before: State | None, put: Callable[[Path], None], name: str = ""
) -> Iterator[Path]:
    """A new name in `folder` (made if need be), its suffix from `name`; `put`, if `target` is as `before`."""
    made = [path for path in (folder, *folder.parents) if not os.path.lexists(path)]
    temporary = temporary_name(folder, name)
    kept: list[Path] = []

    def undo() -> None:
        if not kept:
            _remove(temporary)
            for path in made:
                path.rmdir()

    with undone(undo):
        with _refused(target):
            folder.mkdir(parents=True, exist_ok=True)
        yield temporary
        try:
            if _state(target) != before:
                raise FileExistsError(errno.EEXIST, "somebody else has written there meanwhile")
            put(temporary)
        except (OSError, InputError) as error:
            kept.append(temporary)
            visible = temporary.with_name(f"{target.stem[:40]}-{temporary.name[len(TEMPORARY) :]}")
            with contextlib.suppress(OSError):
                os.rename(temporary, visible)
                kept.append(visible)
            reason = getattr(error, "strerror", None) or error
            raise InputError(
                f"{target}: {reason}; what is there stays. The results are in {kept[-1]}"
            ) from error


def _put_new(temporary: Path, target: Path) -> None:
    """Renames a folder to a name that is free."""
    if os.name != "nt":
        target.mkdir()  # fails where something is; a rename would replace an empty folder
    try:
        os.rename(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            target.rmdir()
        raise


def _put_into(temporary: Path, target: Path) -> None:
    """Moves the content of `temporary` into a folder, in the place of what it holds."""
    aside = temporary_name(target)
    aside.mkdir()
    old = [path for path in target.iterdir() if not path.name.startswith(TEMPORARY)]
    moves = [(path, aside / path.name) for path in old]
    moves += [(path, target / path.name) for path in temporary.iterdir()]
    done: list[tuple[Path, Path]] = []
    try:
        for source, place in moves:
            done.append((source, place))
            os.rename(source, place)
    except BaseException:
        for source, place in reversed(done):
            if not os.path.lexists(source):
                os.rename(place, source)
        aside.rmdir()
        raise
    _remove(temporary)
    _remove(aside)


@contextmanager
def _refused(target: Path) -> Iterator[None]:
    """Trouble while `target` is tried out becomes an InputError."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{target}: cannot be written ({error.strerror}); name another place") from error


def _state(target: Path) -> State | None:
    """What lies at `target`, to be compared later; None where nothing does."""

    def stamp(path: str | Path) -> tuple[int, ...]:
        state = os.lstat(path)
        return state.st_ino, state.st_mtime_ns, state.st_size

    def fail(error: OSError) -> None:
        raise error

    with _refused(target):
        if not os.path.lexists(target):
            return None
        if not target.is_dir():
            return {".": stamp(target)}
        state: State = {}
        for folder, folders, files in os.walk(target, onerror=fail):
            folders[:] = [name for name in folders if not name.startswith(TEMPORARY)]
            for name in files:
                path = os.path.join(folder, name)
                state[os.path.relpath(path, target)] = stamp(path)
        return state


def _remove(path: Path) -> None:
    """A file or a folder with all that it holds, if it is there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
