"""The worlds that strategies are compared in: what to draw, what judges it, what is typical."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from flow_ttrl.sampling import Flow
from flow_ttrl.world.diffusers import start_noise, world_flow
from flow_ttrl.world.gaussian import REWARDS, GaussianWorld
from flow_ttrl.world.prompts import held_out
from flow_ttrl.world.rewards import WORLD_REWARDS, accurate, driven_by, judges


class World(Protocol):
    """A set of tasks on one or more models. ``--world package.module:factory`` makes another.

    Attributes:
        name: the rows' "world".
        cells: (architecture, driver) pairs, the first ones the most telling.
    """

    name: str
    cells: Sequence[tuple[str, str]]

    def tasks(self, half: str, count: int) -> list[str]:
        """``count`` tasks of the "dev" or "test" half; families and the like in turn."""
        ...

    def flow(self, arch: str, tasks: list[str], driver: str, steps: int) -> Flow:
        """A flow on ``tasks``, an item each, driven by ``driver``."""
        ...

    def noise(self, arch: str, seed: int, first: int, count: int) -> Tensor:
        """Starting noise of tasks ``first`` and on [count, ...], the same in any batch."""
        ...

    def verdicts(
        self, arch: str, images: Tensor, tasks: list[str], driver: str
    ) -> tuple[list[bool], list[float], list[float]]:
        """Whether each image is right, its driving reward, and that of a judge that did not drive.

        Without notion of right or of another judge the list is empty.
        """
        ...


class TinyWorld:
    """Coloured shapes by small flow transformers of the SD3 and FLUX architectures."""

    name = "tiny"
    cells = (
        ("sd3", "verifier"),
        ("flux", "scorer"),
        ("flux", "verifier"),
        ("sd3", "scorer"),
        ("sd3", "mix"),
        ("flux", "mix"),
    )

    def tasks(self, half: str, count: int) -> list[str]:
        return held_out(half, count)

    def flow(self, arch: str, tasks: list[str], driver: str, steps: int) -> Flow:
        return world_flow(arch, tasks, driven_by(driver), steps)

    def noise(self, arch: str, seed: int, first: int, count: int) -> Tensor:
        return start_noise(seed, count, first)

    def verdicts(self, arch, images, tasks, driver):
        scores = judges(driver).score(images, tasks)
        others = [name for name in WORLD_REWARDS if name != driver]
        other = scores.values[others[0]].tolist() if driver != "mix" else []
        return accurate(images, tasks), scores.total.tolist(), other


class Gaussian:
    """Exact velocities on a Gaussian random field, at SD3.5's and FLUX's true latent sizes.

    Nothing is tuned on it, so that both halves are the same.
    """

    name = "gaussian"
    sizes = {"32x32": (32, 32), "128x128": (128, 128), "96x160": (96, 160)}
    cells = tuple((size, reward) for size in sizes for reward in REWARDS)

    def tasks(self, half: str, count: int) -> list[str]:
        return [f"{half} {number}" for number in range(count)]

    def flow(self, arch: str, tasks: list[str], driver: str, steps: int) -> Flow:
        return GaussianWorld(*self.sizes[arch], 16, steps=steps, reward=driver)

    def noise(self, arch: str, seed: int, first: int, count: int) -> Tensor:
        world = GaussianWorld(*self.sizes[arch], 16)
        return torch.cat([world.noise(1, seed=10_000 * seed + first + n) for n in range(count)])

    def verdicts(self, arch, images, tasks, driver):
        return [], REWARDS[driver](2 * images - 1).tolist(), []


WORLDS = {"tiny": TinyWorld, "gaussian": Gaussian}
