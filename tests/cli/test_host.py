"""The host neither breaks nor changes a command: variables, streams, signals, names, modules."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lmreg_jax
from lmreg_jax import _compilation_cache as compilation_cache
from lmreg_jax.cli import host
from lmreg_jax.core.similarity import local_correlation
from lmreg_jax.errors import InputError, exits_cleanly

ROOT = Path(__file__).parents[2]


def python(program: str, folder: Path, **variables: str) -> subprocess.Popen[str]:
    """A process that runs `program`, in `folder`."""
    return subprocess.Popen(
        [sys.executable, "-P", "-c", textwrap.dedent(program)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


WORKING = """
    import contextlib, sys, threading, time
    from pathlib import Path
    from lmreg_jax.errors import exits_cleanly
    from lmreg_jax.io.outputs import new_folder

    @exits_cleanly
    def main():
        with new_folder("out", force=False, known=()) as folder:
            (folder / "half").touch()
            print("begun", flush=True)
            {work}

    main()
"""
DEAF = """
            while True:  # as a library's callback, where exceptions are lost
                with contextlib.suppress(BaseException):
                    time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("work", ["time.sleep(60)", DEAF.strip()], ids=["hears", "deaf"])
def test_a_signal_ends_with_one_line_and_leaves_nothing(tmp_path: Path, number: int, work: str) -> None:
    process = python(WORKING.format(work=work), tmp_path)
    assert process.stdout is not None and process.stdout.readline() == "begun\n"
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    name = "" if number == signal.SIGINT else f" by {signal.Signals(number).name}"
    assert (process.returncode, errors) == (128 + number, f"interrupted{name}\n")
    assert list(tmp_path.iterdir()) == []


def test_an_ignored_signal_stays_ignored(tmp_path: Path) -> None:
    """`nohup`, and Ctrl-C for what a shell runs in the background."""
    program = WORKING.format(work="time.sleep(1)").replace("import contextlib", "import signal, contextlib")
    ignored = "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n    @exits_cleanly"
    process = python(program.replace("@exits_cleanly", ignored), tmp_path)
    assert process.stdout is not None and process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGHUP)
    assert process.wait(60) == 0 and (tmp_path / "out" / "half").exists()


TALKING = """
    import os, sys
    from lmreg_jax.errors import exits_cleanly, printed

    @exits_cleanly
    def main():
        print("note", file=sys.stderr, flush=True)
        file = open("result", "wb")
        os.write(2, b"a library's own words")  # not into the file that got the number of a closed stream
        for _ in range(10000):
            print("many lines")
        file.write(b"numbers")
        file.close()
        {then}

    main()
"""


@pytest.mark.parametrize("then", ["pass", "printed()"])
@pytest.mark.parametrize(
    "streams", ["1>&-", "2>&-", "1>&- 2>&- <&-", "| head -1", ">/dev/full", "2>/dev/full"]
)
def test_broken_streams_cost_no_result(tmp_path: Path, streams: str, then: str) -> None:
    if "full" in streams and not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    program = textwrap.dedent(TALKING.format(then=then))
    command = f'"$PYTHON" -P -c "$PROGRAM" {streams}'
    if "|" in streams:
        command = f"set -o pipefail; {command}"
    environment = os.environ | {"PYTHON": sys.executable, "PROGRAM": program, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True)
    assert (tmp_path / "result").read_bytes() == b"numbers"
    assert b"Traceback" not in done.stderr and b"ignored" not in done.stderr
    lost = streams == ">/dev/full" and then == "printed()"  # what was printed was the result
    assert done.returncode == (2 if lost else 0)
    assert not lost or b"error: standard output: No space left" in done.stderr


def test_a_name_that_is_not_utf8_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    @exits_cleanly
    def main() -> None:
        "scan\udcff.mha".encode()

    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert (
        capsys.readouterr().err == "error: scan?.mha: the name is not UTF-8; rename the file or the folder\n"
    )


@pytest.mark.parametrize(
    "variables", [{"XLA_FLAGS": "--no_such_flag"}, {"JAX_PLATFORMS": "cuda"}, {"JAX_PLATFORMS": "nonsense"}]
)
def test_a_device_that_is_not_there_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    if variables.get("JAX_PLATFORMS") == "cuda" and any(device.platform == "gpu" for device in jax.devices()):
        pytest.skip("it is there")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    host.check_devices.cache_clear()
    with pytest.raises(InputError, match=r"=.*JAX does not start with it .*unset it") as caught:
        host.check_devices()
    assert "\n" not in str(caught.value)


def test_foreign_variables_are_not_read(tmp_path: Path) -> None:
    program = """
        from lmreg_jax.cli import host
        host.neutralise()
        import jax, matplotlib
        print(jax.config.jax_enable_x64, jax.config.jax_numpy_rank_promotion, jax.config.jax_debug_nans)
    """
    process = python(
        program,
        tmp_path,
        JAX_ENABLE_X64="1",
        JAX_NUMPY_RANK_PROMOTION="raise",
        JAX_DEBUG_NANS="1",
        MPLBACKEND="module://matplotlib_inline.backend_inline_of_nobody",
    )
    assert process.communicate()[0] == "False allow False\n"


def test_a_user_without_a_home_has_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert compilation_cache.user_cache().is_absolute()


def test_a_users_settings_of_jax_change_nothing() -> None:
    """The shipped model in float32, and the same numbers, under every setting that could break it."""
    fixed, moving = np.random.default_rng(0).random((2, 16, 16, 16))
    expected = lmreg_jax.load()(fixed, moving)
    with (
        jax.enable_x64(True),
        jax.numpy_rank_promotion("raise"),
        jax.numpy_dtype_promotion("strict"),
        jax.transfer_guard("disallow"),
        jax.debug_nans(True),
    ):
        result = lmreg_jax.load()(fixed, moving)
    for one, same in zip(result, expected, strict=True):
        assert one.dtype == np.float32
        np.testing.assert_array_equal(one, same)


def test_float32_stays_float32_where_64_bits_are_on(float64: None) -> None:
    from lmreg_jax.training.augmentation import Augmentation, augment_image

    image = jnp.asarray(np.random.default_rng(0).random((8, 8, 8)), jnp.float32)
    assert local_correlation(image, image, window=3).dtype == jnp.float32
    options = Augmentation(
        rotation_deg=1.0,
        scale=0.1,
        translation_mm=1.0,
        elastic_mm=1.0,
        spacing_mm=(20.0,) * 3,
    )
    moved, points = augment_image(jax.random.key(0), image, jnp.ones((2, 3), jnp.float32), options)
    assert moved.dtype == points.dtype == jnp.float32
