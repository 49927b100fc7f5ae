"""Reads an image of the tiny world and says whether a prompt holds: strictly, and by degrees.

GenEval's verdict for a closed world: coloured regions are found by the direction in which their
pixels leave the ground, their shape by overlap with ideal masks of the same area and centre.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from .draw import coverage
from .prompts import COLOURS, SHAPES, Composition, parse

CONTRAST = 0.2
"""Least difference from the ground (any channel) that counts as foreground."""
SMALLEST = 30
"""Regions of fewer pixels are no objects; the smallest object drawn has about 200."""
LEAST_OVERLAP = 0.72
"""Intersection over union with its ideal mask that a region needs to count as that shape."""

#: Area over r^2, and the centroid's height over r, of each ideal shape.
_MOMENTS = {
    "circle": (2.835, 0.0),
    "square": (2.690, 0.0),
    "triangle": (1.634, 0.147),
    "cross": (2.258, 0.0),
}
_PALETTE = np.array(list(COLOURS.values()))
_NAMES = tuple(COLOURS)


@dataclass(frozen=True)
class Region:
    """One coloured region: its colour's name, mean colour, centroid (pixels) and shape overlaps."""

    colour: str
    mean: np.ndarray
    x: float
    y: float
    overlaps: dict[str, float]

    @property
    def shape(self) -> str | None:
        """The best-fitting shape, or None where none fits well enough."""
        best = max(self.overlaps, key=self.overlaps.__getitem__)
        return best if self.overlaps[best] >= LEAST_OVERLAP else None

    def likeness(self, colour: str, shape: str) -> float:
        """How much this region is a ``colour`` ``shape``, 0..1."""
        distance = np.square(self.mean - COLOURS[colour]).sum()
        fit = min(max((self.overlaps[shape] - 0.5) / 0.4, 0), 1)
        rival = max(v for k, v in self.overlaps.items() if k != shape)
        lead = 1 / (1 + math.exp(-(self.overlaps[shape] - rival) / 0.04))
        return 0.5 * math.exp(-distance / 0.12) + 0.25 * fit + 0.25 * lead


def detect(image: np.ndarray) -> list[Region]:
    """Every coloured region of ``image`` [H, W, 3] (0..1), largest first."""
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    ground = np.median(border, axis=0)
    offset = image - ground
    foreground = np.abs(offset).max(-1) > CONTRAST
    towards = _PALETTE - ground
    towards /= np.linalg.norm(towards, axis=1, keepdims=True) + 1e-6
    nearest = np.where(foreground, (offset @ towards.T).argmax(-1), -1)
    regions: list[tuple[int, Region]] = []
    for index in np.unique(nearest[foreground]):
        labels, _ = ndimage.label(nearest == index)
        areas = np.bincount(labels.ravel())
        for label in np.flatnonzero(areas >= SMALLEST):
            if label:
                mask = labels == label
                regions.append((int(areas[label]), _region(_NAMES[index], mask, image)))
    return [region for _, region in sorted(regions, key=lambda pair: -pair[0])]


def _region(colour: str, mask: np.ndarray, image: np.ndarray) -> Region:
    ys, xs = np.nonzero(mask)
    cx, cy, area = xs.mean() + 0.5, ys.mean() + 0.5, len(xs)
    y0, y1, x0, x1 = ys.min(), ys.max() + 1, xs.min(), xs.max() + 1
    reach = 4  # ideal masks may stick out of the region's box by this much
    top, left = max(y0 - reach, 0), max(x0 - reach, 0)
    crop = mask[top : y1 + reach, left : x1 + reach]
    yy, xx = np.mgrid[: crop.shape[0], : crop.shape[1]] + 0.5
    x, y = torch.from_numpy(xx + left - cx), torch.from_numpy(yy + top - cy)
    overlaps = {}
    for shape in SHAPES:
        k, drop = _MOMENTS[shape]
        r = math.sqrt(area / k)
        ideal = coverage(shape, x, y + drop * r, torch.tensor(r)).numpy() > 0.5
        overlaps[shape] = float((ideal & crop).sum() / (ideal | crop).sum())
    inner = ndimage.binary_erosion(mask, iterations=2)
    mean = image[inner if inner.any() else mask].mean(0)
    return Region(colour, mean, float(cx), float(cy), overlaps)


def _along(a: Region, b: Region, relation: str) -> float:
    """Pixels by which the centres' offset in the relation's direction outdoes the other one."""
    dx, dy = b.x - a.x, b.y - a.y
    along, across = (dx, dy) if relation.endswith("of") else (dy, dx)
    return (along if relation in ("left of", "above") else -along) - abs(across)


def _holds(regions: list[Region], composition: Composition) -> bool:
    found = sorted((r.colour, r.shape or "") for r in regions)
    if found != sorted(composition.objects):
        return False
    if composition.relation is None:
        return True
    # of two alike either may be the first; a region is nowhere beside itself
    first, second = (
        [r for r in regions if (r.colour, r.shape) == wanted] for wanted in composition.objects
    )
    return any(_along(a, b, composition.relation) > 0 for a in first for b in second)


def _grade(regions: list[Region], composition: Composition) -> float:
    wanted = composition.objects
    if not regions:
        return 0.0
    likeness = np.array([[region.likeness(*obj) for region in regions] for obj in wanted])
    rows, columns = linear_sum_assignment(-likeness)
    presence = likeness[rows, columns].sum() / max(len(wanted), len(regions))
    if composition.relation is None:
        return float(presence)
    related = 0.0
    if len(rows) == 2:
        first, second = (regions[c] for c in columns)
        margin = _along(first, second, composition.relation)
        related = likeness[rows, columns].min() / (1 + math.exp(-margin / 8))
    return float((2 * presence + related) / 3)


def verify(images: Tensor, prompts: list[str]) -> tuple[Tensor, Tensor]:
    """Strict verdicts [B] (bool) and graded scores [B] (0..1) of ``images`` against ``prompts``.

    Strict: exactly the objects asked for, in colour, shape and number, none besides, and their
    relation by centres. Graded: how nearly, from the same regions.

    Args:
        images: [B, H, W, 3] in 0..1.
        prompts: one per image, sentences of the world.

    Raises:
        ValueError: a prompt outside the world's language.
    """
    compositions = [parse(prompt) for prompt in prompts]
    arrays = images.detach().float().clamp(0, 1).cpu().numpy()
    strict, graded = [], []
    for array, composition in zip(arrays, compositions, strict=True):
        regions = detect(array)
        strict.append(_holds(regions, composition))
        graded.append(_grade(regions, composition))
    return torch.tensor(strict), torch.tensor(graded, dtype=torch.float32)
