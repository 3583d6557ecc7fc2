"""The program that `elastix` runs: affine registrations by itk-elastix, asked for on standard input.

A job is a line of JSON and the voxels of the images, the answer a line of JSON: {"matrix": [4, 4]} or
{"error": text}. It ends with its input. Nothing but NumPy and ITK is imported.
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
        try:
            answer = {"matrix": register(itk, images[0], images[1], mask, job).tolist()}
        except RuntimeError as error:
            answer = {"error": str(error)}
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()


def register(
    itk: Any, fixed: NDArray[Any], moving: NDArray[Any], mask: NDArray[Any] | None, job: Mapping[str, Any]
) -> NDArray[Any]:
    """The affine that elastix finds between two images on one grid, fixed mm -> moving mm, [4, 4].

    ITK calls its space LPS, but never looks: told the grid's RAS origin and spacing and identity
    directions, it works in RAS, and no sign has to be changed on the way in or out.
    """

    def image(data: NDArray[Any]) -> Any:
        out = itk.image_from_array(np.ascontiguousarray(data.transpose(2, 1, 0)))
        out.SetOrigin(job["origin"])
        out.SetSpacing(job["spacing"])
        return out

    parameters = itk.ParameterObject.New()
    settings = parameters.GetDefaultParameterMap("affine", job["levels"])
    settings.update(job["settings"])
    parameters.AddParameterMap(settings)
    masks = {} if mask is None else {"fixed_mask": image(mask)}
    _, result = itk.elastix_registration_method(
        image(fixed),
        image(moving),
        parameter_object=parameters,
        number_of_threads=THREADS,
        log_to_console=False,
        **masks,
    )
    found = result.GetParameterMap(0)
    values = np.array(found["TransformParameters"], np.float64)
    centre = np.array(found["CenterOfRotationPoint"], np.float64)
    linear, shift = values[:9].reshape(3, 3), values[9:]
    out = np.eye(4)
    out[:3, :3] = linear
    out[:3, 3] = shift + centre - linear @ centre  # T(x) = A (x - c) + c + t
    return out


def _read(file: BinaryIO, shape: list[int], dtype: np.dtype[Any]) -> NDArray[Any]:
    content = file.read(int(np.prod(shape)) * dtype.itemsize)
    return np.frombuffer(content, dtype).reshape(shape)


if __name__ == "__main__":
    main()
