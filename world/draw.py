"""Draw compositions of the tiny world: antialiased flat shapes on a grey ground, 96 px."""

from __future__ import annotations

import math
import random

import torch
from torch import Tensor

from .prompts import COLOURS, Composition

IMAGE_SIZE = 96
GROUND = (0.06, 0.20)
"""Range of the ground's grey level."""

_TRIANGLE_HALF_BASE, _TRIANGLE_BASE_Y = 0.95, 0.72
_CROSS_ARM = 0.34
_SQUARE_HALF = 0.82


def _box(x: Tensor, y: Tensor, half_width, half_height) -> Tensor:
    return torch.maximum(x.abs() - half_width, y.abs() - half_height)


def signed_distance(shape: str, x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    """Signed distance (pixels, negative inside; a bound near corners) to ``shape`` of radius ``r``.

    ``x`` and ``y`` are offsets from the shape's centre, ``y`` downwards.
    """
    if shape == "circle":
        return (x * x + y * y).sqrt() - 0.95 * r
    if shape == "square":
        return _box(x, y, _SQUARE_HALF * r, _SQUARE_HALF * r)
    if shape == "triangle":  # apex (0, -r), base at y = _TRIANGLE_BASE_Y r
        height = 1 + _TRIANGLE_BASE_Y
        norm = math.hypot(height, _TRIANGLE_HALF_BASE)
        side = (x.abs() * height - (y + r) * _TRIANGLE_HALF_BASE) / norm
        return torch.maximum(side, y - _TRIANGLE_BASE_Y * r)
    if shape == "cross":
        return torch.minimum(_box(x, y, r, _CROSS_ARM * r), _box(x, y, _CROSS_ARM * r, r))
    raise ValueError(f"expected a shape of the tiny world, got {shape!r}")


def coverage(shape: str, x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    """Share of each pixel (0..1) that ``shape`` covers."""
    return (0.5 - signed_distance(shape, x, y, r)).clamp(0, 1)


def place(composition: Composition, rng: random.Random) -> list[tuple[float, float, float]]:
    """A random layout, (centre x, centre y, radius) in pixels per object, without overlap.

    A relation is drawn as strictly as the verifier reads it, with room to spare.
    """
    n = len(composition.objects)
    low, high = (11.0, 17.0) if n <= 2 else (9.5, 13.0)
    while True:
        radii = [rng.uniform(low, high) for _ in range(n)]
        if composition.family == "counting":
            radii = [radii[0]] * n
        spots = [
            (rng.uniform(r + 3, IMAGE_SIZE - r - 3), rng.uniform(r + 3, IMAGE_SIZE - r - 3), r)
            for r in radii
        ]
        apart = all(
            math.hypot(a[0] - b[0], a[1] - b[1]) > 1.1 * (a[2] + b[2]) + 4
            for i, a in enumerate(spots)
            for b in spots[:i]
        )
        if apart and (composition.relation is None or _related(spots, composition.relation)):
            return spots


def _related(spots, relation: str) -> bool:
    (ax, ay, _), (bx, by, _) = spots
    along, across = (bx - ax, by - ay) if relation.endswith("of") else (by - ay, bx - ax)
    if relation in ("right of", "below"):
        along = -along
    return along > 1.5 * abs(across)


def draw(composition: Composition, rng: random.Random) -> Tensor:
    """One image [H, W, 3] in 0..1 of ``composition`` at a random layout."""
    axis = torch.arange(IMAGE_SIZE) + 0.5
    yy, xx = torch.meshgrid(axis, axis, indexing="ij")
    image = torch.full((IMAGE_SIZE, IMAGE_SIZE, 3), rng.uniform(*GROUND))
    for (colour, shape), (cx, cy, r) in zip(
        composition.objects, place(composition, rng), strict=True
    ):
        alpha = coverage(shape, xx - cx, yy - cy, torch.tensor(r))[..., None]
        image = image * (1 - alpha) + alpha * torch.tensor(COLOURS[colour])
    return image
