"""The seam between the method and its host: what a flow offers."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

Values = dict[str, Tensor]
"""Rewards by name: [N] from a flow; [P, B], candidates by item, within a run. NaN: no verdict."""


class Flow(Protocol):
    """A flow-matching model, its decoder and its judge, as the search sees them.

    Every method is given rows of latents or images and ``item`` [N], the batch item that each row
    belongs to, by which a host slices its conditioning, masks and latent images. Any method may
    raise to cancel; the search keeps nothing behind.
    """

    sigmas: Tensor
    """Noise levels [T + 1], falling, the last one 0 or above."""

    forwards_per_call: int
    """Network evaluations per model call: 2 where guidance needs a conditional pair."""

    def start(self, noise: Tensor, item: Tensor) -> Tensor:
        """Latents [N, ...] at ``sigmas[0]`` from white noise [N, ...], as the host scales it."""
        ...

    def velocity(self, x: Tensor, sigma: float, item: Tensor) -> Tensor:
        """Guided velocity [N, ...] of latents ``x`` [N, ...] at any level in (0, sigmas[0]].

        Differentiable in ``gradients()`` and ``image_gradients()``.
        """
        ...

    def decode(self, x0: Tensor, item: Tensor) -> Tensor:
        """Images [N, H, W, 3], nominally 0..1, of clean latents ``x0`` [N, ...]."""
        ...

    def score(self, images: Tensor, item: Tensor) -> Values:
        """Rewards of ``images`` [N, H, W, 3] by name, each [N]; higher is better."""
        ...

    def totals(self, values: Values, seen: Values) -> Tensor:
        """What drives the search [K, B], of values [K, B] among all seen in a run [M, B]."""
        ...

    def gradients(self) -> AbstractContextManager:
        """Where autograd may run through ``velocity``."""
        ...

    def image_gradients(self) -> AbstractContextManager:
        """Where autograd may run through ``velocity``, ``decode`` and ``score``, unclamped.

        Raises:
            ValueError: at the call, where a reward that drives has no gradient or the host
                offers none.
        """
        ...


@runtime_checkable
class OwnSteps(Protocol):
    """A flow whose host has an arithmetic of its own for steps, such as that of half precision."""

    def euler(self, x: Tensor, v: Tensor, sigma: float, to: float) -> Tensor:
        """float32 latents ``x`` at level ``sigma``, of any leading shape, taken along ``v``."""
        ...


class Judge(Protocol):
    """What a host that leaves scoring to others is given for it."""

    def score(self, images: Tensor, item: Tensor) -> Values:
        """See :meth:`Flow.score`."""
        ...

    def totals(self, values: Values, seen: Values) -> Tensor:
        """See :meth:`Flow.totals`."""
        ...

    def begin(self) -> None:
        """Told before every run; a judge may have several."""
        ...

    def report(self) -> dict:
        """What it judged by and what failed, as a JSON object."""
        ...

    def check_differentiable(self) -> None:
        """Raise ValueError unless every reward that drives has a gradient."""
        ...


@dataclass
class Cost:
    """What a run spends. A model call is one latent through the guided velocity."""

    model_calls: int = 0
    backwards: int = 0
    decodes: int = 0
    rewards: int = 0
    forwards: int = 0

    @property
    def calls(self) -> int:
        """Model calls with a backward counted as two."""
        return self.model_calls + 2 * self.backwards

    def report(self, plain_calls: int) -> dict[str, float]:
        """As a JSON object, with the price in plain samples of ``plain_calls`` calls."""
        return asdict(self) | {"times_plain": round(self.calls / plain_calls, 3)}
