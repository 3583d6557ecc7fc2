"""All benchmarks of speed and memory in turn, nothing beside them; an hour and a quarter on two cores.

    python -m benchmarks [--output=benchmarks/results]

Each is a command of its own, too (`python -m benchmarks.speed`, ...), with options for parts of it.
`benchmarks.recipes` (trainings) and `benchmarks.real_pairs` (which needs scans) are not among them.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

VOXELS = "64x64x64,96x96x96,128x128x128,192x192x192,256x256x256"
PAPER = "160x112x208"
FEW = ("--cases=6", "--test=2", "--steps=5")
TURNS = ("--items=step", "--rounds=6")  # short steps scatter most
LARGE = ("--shape=512x512x300", "--affine=elastix")
COMMANDS = (
    ("speed", "--grids=48x32x64", "--batches=1,2,4", "--rounds=1", "--repeats=7", "--name=coarse"),
    ("speed", "--grids=48x32x64", "--batches=2,4", *TURNS, "--repeats=7", "--name=coarse_step"),
    ("speed", f"--grids={PAPER}", "--batches=1,2", "--rounds=1", "--repeats=3", "--name=paper"),
    ("speed", f"--grids={VOXELS}", "--batches=1", "--items=register", "--rounds=1", "--name=voxels"),
    ("step_memory", "--grids=48x32x64", "--batches=1,2,4"),
    ("step_memory", f"--grids={PAPER}", "--batches=1,2", "--name=step_memory_paper"),
    ("loading",),
    ("loading", f"--grid={PAPER}", "--spacing=2", "--batch=1", *FEW, "--name=loading_paper"),
    ("register_stages",),
    ("register_stages", *LARGE, "--spacing=1.2", "--name=register_large"),
    ("register_stages", *LARGE, "--spacing=0.8", "--name=register_large_cut_off"),
    ("memory",),
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", default="benchmarks/results")
    output = parser.parse_args().output
    failed = []
    for module, *words in COMMANDS:
        command = [sys.executable, "-m", f"benchmarks.{module}", *words, f"--output={output}"]
        print("==", " ".join(command[1:]), flush=True)
        if subprocess.run(command).returncode:
            failed.append(" ".join([module, *words]))
    if failed:
        raise SystemExit(f"failed: {'; '.join(failed)}")


if __name__ == "__main__":
    main()
