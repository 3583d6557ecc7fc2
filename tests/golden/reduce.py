"""Makes this folder's files from the full ones: python tests/golden/reduce.py FOLDER (see README.md)."""

import itertools
import sys
from pathlib import Path

import numpy as np
from scipy.ndimage import binary_dilation

SHAPE = (19, 26, 33)
GRID = np.moveaxis(np.indices(SHAPE, np.float32), 0, -1)
FULL = {p.stem.split("_g")[0]: dict(np.load(p)) for p in Path(sys.argv[1]).glob("*_g[13]?x*.npz")}


def every(step, shape=SHAPE):
    """True at each step-th voxel along all axes and at the last one."""
    mask = np.zeros(shape, bool)
    mask[np.ix_(*([*range(0, n - 1, step), n - 1] for n in shape))] = True
    return mask


def reads(positions, mask):
    """Where interpolation at the positions `[..., 3]` reads a voxel of the mask, and all that it reads."""
    hit, read = np.zeros(positions.shape[:-1], bool), np.zeros(SHAPE, bool)
    for corner in itertools.product((0, 1), repeat=3):
        index = np.clip(np.floor(positions) + corner, 0, np.subtract(SHAPE, 1)).astype(int)
        hit |= mask[tuple(index.T)].T
        read[tuple(index.T)] = True
    return hit, read


def write(name, *whole, **masks):
    """NaN beside the masks. Planes of bytes, which pack better: two of an array of multiples of 1/4096
    in [0, 16), four of any other (float32)."""
    planes = {}
    for key, mask in (dict.fromkeys(whole, True) | masks).items():
        values = FULL[name][key]
        mask = np.reshape(mask, np.shape(mask) + (1,) * (values.ndim - np.ndim(mask)))
        values = np.where(mask, values, np.float32(np.nan))
        short = (values >= 0) & (values < 16) & (values * 4096 % 1 == 0)
        values = (values * 4096).astype("<u2") if short.all() else values
        planes[key] = np.moveaxis(values[..., None].view(np.uint8), -1, 0)
    np.savez_compressed(Path(__file__).with_name(f"{name}.npz"), **planes)


few, some, inside = every(6), every(4), np.pad(np.ones(np.subtract(SHAPE, 16), bool), 8)
cases = ("smooth", "zero", "shift", "half")
adds = {c: reads(GRID + FULL["warp"][f"disp_{c}"], few)[0] for c in cases}  # to the slopes at `few`
corner = np.minimum(GRID.max(-1), (np.subtract(SHAPE, 1) - GRID).max(-1))  # from the first or the last
by_a, by_b = (few | reads((GRID + FULL["compose"][name])[few], few)[1] for name in "AB")
by_points = reads(FULL["points"]["points"][::4], few)[1]
FULL["points"] |= {name: FULL["points"][name][::4] for name in ("points", "moved", "moved_resize2")}

kept = {k: some for k in FULL["warp"] if k.startswith(("disp_", "warped_", "nearest_")) and k != "warped_vec"}
kept |= {"disp_smooth": some | adds["smooth"], "disp_zero": True, "disp_shift": True, "disp_half": True}
write("warp", "image", "labels", **kept)
kept = {f"graddisp_{c}": some for c in (*cases, "far")} | {f"gradimg_{c}": few for c in cases}
kept |= {"cot1": np.any([some, *adds.values()], axis=0), "cot3": corner < 10, "gradvel_7": corner < 4}
write("grads", **kept)
kept = dict.fromkeys(("disp_5", "disp_7", "disp_neg_5", "disp_neg_7", "strong_7"), some)
write("integrate", "vel", "vel_strong", **kept)
write("resize", "half", full=every(3, (20, 26, 34)))
write("compose", A=by_b, B=by_a, AB=few, BA=few, seq_AB=few, warp_AB=few)
write("points", "points", "moved", "moved_resize2", disp=by_points)
kept = {f"grad_{name}_lambda{n}": few for name in ("mean", "log_sigma") for n in (10, 25)}
write("kl", "D", mean=binary_dilation(few), log_sigma=few, noise=few, z_sample=few, **kept)
scalars = ("recon_sigma0.02", "recon_sigma0.01")
write("losses", "I", "J", *scalars, dev_ncc_map=every(3), grad_J_ncc=inside)
net = FULL["net_random"]
kept = {
    name: every(net[name].shape[0] // 6, net[name].shape[:3]) for name in ("disp", "warped", "grad_moving")
}
kept |= {name: every(4, net[name].shape[:3]) for name in ("mean", "log_sigma", "disp_half")}
kernels = {k: v for k, v in net.items() if k.startswith("grad_") and k.endswith("_kernel")}
kept |= {k: np.arange(v.size).reshape(v.shape) % (v.size // 600 | 1) == 0 for k, v in kernels.items()}
write("net_random", *sorted(net.keys() - kept.keys() - {"meta"}), **kept)
