"""The process that `elastix` runs: affine registrations by itk-elastix, asked for on standard input.

A job is a line of JSON and the voxels of the images; the answer a line, "answer:" and JSON: {"matrices":
the affine [4, 4] after each of the job's parameter maps, up to the last that did not fail} or {"error":
text}. It ends with its input. Nothing but NumPy and ITK is imported.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

THREADS = 2  # a fixed number: sums are taken in one order on any machine


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business, which ends us
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever ITK prints must not be taken for an answer
    import itk

    itk.image_from_array(np.zeros((2, 2, 2), np.float32))  # ITK loads on first use
    itk.ParameterObject.New()
    while line := sys.stdin.buffer.readline():
        job = json.loads(line)
        images = [_read(sys.stdin.buffer, job["shape"], np.dtype("<f4")) for _ in range(2)]
        mask = _read(sys.stdin.buffer, job["shape"], np.dtype(np.uint8)) if job["masked"] else None
        answer: dict[str, Any] = {"error": "no parameter maps"}
        for count in range(len(job["maps"]), 0, -1):  # without the last ones where these fail
            try:
                found = register(itk, images[0], images[1], mask, job | {"maps": job["maps"][:count]})
                answer = {"matrices": [matrix.tolist() for matrix in found]}
                break
            except RuntimeError as error:
                answer = {"error": str(error)}
        answers.write(b"answer:" + json.dumps(answer).encode() + b"\n")
        answers.flush()


def register(
    itk: Any, fixed: NDArray[Any], moving: NDArray[Any], mask: NDArray[Any] | None, job: Mapping[str, Any]
) -> list[NDArray[Any]]:
    """The affines, fixed mm -> moving mm, that elastix has found after each parameter map.

    ITK calls its space LPS, but never looks: told the grid's RAS origin and spacing and identity
    directions, it works in RAS, and no sign has to be changed on the way in or out.
    """

    def image(data: NDArray[Any]) -> Any:
        out = itk.image_from_array(np.ascontiguousarray(data.transpose(2, 1, 0)))
        out.SetOrigin(job["origin"])
        out.SetSpacing(job["spacing"])
        return out

    parameters = itk.ParameterObject.New()
    for settings in job["maps"]:
        one = parameters.GetDefaultParameterMap("affine", int(settings["NumberOfResolutions"][0]))
        one.update(settings)
        parameters.AddParameterMap(one)
    masks = {} if mask is None else {"fixed_mask": image(mask)}
    _, result = itk.elastix_registration_method(
        image(fixed),
        image(moving),
        parameter_object=parameters,
        number_of_threads=THREADS,
        log_to_console=False,
        **masks,
    )
    out = [np.eye(4)]
    for k in range(len(job["maps"])):
        out.append(_matrix(result.GetParameterMap(k)) @ out[-1])
    return out[1:]


def _matrix(found: Mapping[str, Any]) -> NDArray[Any]:
    """elastix' parameters of an affine as [4, 4]: T(x) = A (x - c) + c + t."""
    values = np.array(found["TransformParameters"], np.float64)
    centre = np.array(found["CenterOfRotationPoint"], np.float64)
    linear, shift = values[:9].reshape(3, 3), values[9:]
    out = np.eye(4)
    out[:3, :3] = linear
    out[:3, 3] = shift + centre - linear @ centre
    return out


def _read(file: BinaryIO, shape: list[int], dtype: np.dtype[Any]) -> NDArray[Any]:
    content = file.read(int(np.prod(shape)) * dtype.itemsize)
    return np.frombuffer(content, dtype).reshape(shape)


if __name__ == "__main__":
    main()
