"""The same model in idiomatic PyTorch, channels first, `grid_sample` and all: what we compare with.

Takes the parameters of our network, so that both can be held against each other (see `speed`).
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (everybody calls it so)
from torch import Tensor, nn

from lmreg_jax.core.objective import Objective


class Stage(nn.Module):
    """3 x 3 x 3 convolution, instance normalisation where asked for, leaky ReLU."""

    def __init__(self, inputs: int, width: int, stride: int, normalise: bool) -> None:
        super().__init__()
        self.stride, self.normalise = stride, normalise
        self.conv = nn.Conv3d(inputs, width, 3, stride=stride, padding=1 if stride == 1 else 0)

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == 2:  # "SAME" on an even size: one voxel, at the far end.
            x = F.pad(x, (0, 1) * 3)
        x = self.conv(x)
        if self.normalise:
            x = F.instance_norm(x, eps=1e-5)
        return F.leaky_relu(x, 0.2)


class UNet(nn.Module):
    """Our `unet.UNet` at field_stride 2; grids whose sizes are multiples of 16."""

    def __init__(self, encoder: Any, decoder: Any, final: Any, normalise: bool) -> None:
        super().__init__()
        widths, skips = [2, *encoder], [2, *encoder]
        self.down = nn.ModuleList(Stage(a, b, 2, normalise) for a, b in itertools.pairwise(widths))
        up, current = [], skips.pop()
        for level, width in enumerate(decoder):
            if level:
                current += skips.pop()
            up.append(Stage(current, width, 1, normalise))
            current = width
        self.up = nn.ModuleList(up)
        self.final = nn.ModuleList()
        for width in final:
            self.final.append(Stage(current, width, 1, normalise))
            current = width
        self.mean = nn.Conv3d(current, 3, 3, padding=1)
        self.log_variance = nn.Conv3d(current, 3, 3, padding=1)

    def forward(self, moving: Tensor, fixed: Tensor) -> tuple[Tensor, Tensor]:
        """[B, X, Y, Z] each; mean and log-variance [B, 3, X/2, Y/2, Z/2]."""
        x = torch.stack([moving, fixed], 1)
        skips = [x]
        for stage in self.down:
            skips.append(stage(skips[-1]))
        x = skips.pop()
        for level, stage in enumerate(self.up):
            if level:
                x = torch.cat([F.interpolate(x, scale_factor=2), skips.pop()], 1)
            x = stage(x)
        for stage in self.final:
            x = stage(x)
        return self.mean(x), self.log_variance(x)

    def load(self, params: Any) -> UNet:
        """Our parameters: kernels [3, 3, 3, in, out] to [out, in, 3, 3, 3]."""
        layers = {f"encoder_{i}": s.conv for i, s in enumerate(self.down)}
        layers |= {f"decoder_{i}": s.conv for i, s in enumerate(self.up)}
        layers |= {f"final_{i}": s.conv for i, s in enumerate(self.final)}
        layers |= {"mean": self.mean, "log_variance": self.log_variance}
        with torch.no_grad():
            for name, layer in layers.items():
                ours = params["params"][name]
                layer.weight.copy_(torch.from_numpy(np.array(ours["kernel"]).transpose(4, 3, 0, 1, 2)))
                layer.bias.copy_(torch.from_numpy(np.array(ours["bias"])))
        return self


def warp(image: Tensor, displacement: Tensor) -> Tensor:
    """image [B, C, X, Y, Z] at x + u(x), u [B, 3, X, Y, Z] voxels; the edge beyond the edge."""
    shape = displacement.shape[2:]
    axes = [torch.arange(n, dtype=image.dtype, device=image.device) for n in shape]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    sizes = torch.tensor(image.shape[2:], dtype=image.dtype, device=image.device).view(3, 1, 1, 1)
    scaled = 2 * (grid + displacement) / (sizes - 1) - 1
    # grid_sample wants its last axis in the order z, y, x.
    positions = scaled.flip(1).permute(0, 2, 3, 4, 1)
    return F.grid_sample(image, positions, padding_mode="border", align_corners=True)


def integrate(velocity: Tensor, steps: int = 7) -> Tensor:
    """Scaling and squaring."""
    u = velocity / 2**steps
    for _ in range(steps):
        u = u + warp(u, u)
    return u


def upsample(u: Tensor) -> Tensor:
    """Values and grid times 2, voxel 0 on voxel 0."""
    for axis in (2, 3, 4):
        size = u.shape[axis]
        following = torch.cat([u.narrow(axis, 1, size - 1), u.narrow(axis, size - 1, 1)], axis)
        u = torch.stack([u, (u + following) / 2], axis + 1).flatten(axis, axis + 1)
    return 2 * u


def register(net: UNet, fixed: Tensor, moving: Tensor, steps: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    """Warped, displacement, inverse displacement of the mean velocity; [B, X, Y, Z] in."""
    mean, _ = net(moving, fixed)
    forward, backward = (upsample(integrate(v, steps)) for v in (mean, -mean))
    return warp(moving[:, None], forward)[:, 0], forward, backward


def loss(net: UNet, batch: Any, noise: Tensor, objective: Objective) -> Tensor:
    """Eq. 7 in [Dalca]'s reading with the SSD, for a given draw; batch: our `Batch` as tensors."""
    mean, log_variance = net(batch.moving, batch.fixed)
    u = upsample(integrate(mean + torch.exp(log_variance / 2) * noise, objective.integration_steps))
    precision = objective.precision
    shape = mean.shape[2:]
    degree = sum(
        (
            (torch.arange(n, device=mean.device) > 0).float() + (torch.arange(n, device=mean.device) < n - 1)
        ).view([-1 if a == i else 1 for i in range(3)])
        for a, n in enumerate(shape)
    )
    kl = 1.5 * torch.mean(precision * degree * torch.exp(log_variance) - log_variance)
    kl = kl + precision / 4 * sum(torch.mean(torch.diff(mean, dim=a) ** 2) for a in (2, 3, 4))
    warped = warp(batch.moving[:, None], u)[:, 0]
    image = torch.mean((batch.fixed - warped) ** 2) / objective.image_sigma**2
    sizes = torch.tensor(u.shape[2:], dtype=u.dtype, device=u.device)
    points = (2 * batch.fixed_points / (sizes - 1) - 1).flip(-1)[:, :, None, None]
    at = F.grid_sample(u, points, padding_mode="border", align_corners=True)[..., 0, 0].transpose(1, 2)
    squared = ((batch.fixed_points + at - batch.moving_points) ** 2).sum(-1) * batch.point_mask
    landmark = (squared.sum(1) / batch.point_mask.sum(1).clamp(min=1)).mean()
    return kl + image + objective.landmark_weight * landmark / (2 * objective.landmark_sigma**2)
