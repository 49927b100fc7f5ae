"""A host made ready for a search: what it is made to forget, and what is asked of it first."""

from __future__ import annotations

import logging
from collections.abc import Callable
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..settings import SearchSettings
from ..strategies import STRATEGIES
from .comfy import ComfyFlow
from .comfy_patches import (
    Keyframes,
    bypass_caches,
    has_weight_hooks,
    patches,
    remembers,
    schedule_matters,
    several_rows,
)

log = logging.getLogger("flow_ttrl")

GRADIENT_ERROR = 0.2
"""Of a directional derivative against central differences, beyond which it is wrong."""

_trusted: WeakKeyDictionary = WeakKeyDictionary()
"""Schedules that a patch has been checked on, by the patch."""


def _known(function: Callable, schedule: tuple[float, ...]) -> bool:
    try:
        return schedule in _trusted.get(function, ())
    except TypeError:  # it cannot be referred to weakly
        return False


def _trust(functions: list[Callable], schedule: tuple[float, ...]) -> None:
    for function in functions:
        # a function that is not a node's own closure has its state elsewhere
        if getattr(function, "__closure__", None):
            _trusted.setdefault(function, set()).add(schedule)


class Prepared:
    """A flow whose host has been made to forget, and what is still to be asked of it.

    Attributes:
        bypassed: caches that were taken out.
        names: patches in the model's path.
        calls: model calls that :meth:`check` takes an item.
    """

    def __init__(self, flow: ComfyFlow, settings: SearchSettings, bypassed: list[str]):
        self.flow, self.settings, self.bypassed = flow, settings, bypassed
        found = patches(flow.base_model.current_patcher, flow.extra_args["model_options"])
        self.schedule = tuple(flow.sigmas.tolist())
        self.names = sorted({name for _, name in found})
        self.strange = [function for function, _ in found if not _known(function, self.schedule)]
        self.exact = getattr(settings.parameters, "gradient", None) == "exact"
        self.between = STRATEGIES[settings.strategy].between_levels
        self.calls = 10 * bool(self.strange) + 2 * self.between + 5 * self.exact

    def check(self) -> None:
        """Ask.

        Raises:
            ValueError: a patch that remembers, a network that looks levels up which the strategy
                goes between, or a gradient that differences do not bear out.
        """
        flow = self.flow
        above = [level for level in flow.sigmas if level > 0]
        picked = [above[int(share * (len(above) - 1))] for share in (0.1, 0.45, 0.75)]
        item = torch.arange(flow.items, device=flow.model.noise.device)
        x = flow.at_level(flow.model.noise, item, picked[1]).float()
        far = flow.at_level(-flow.model.noise, item, picked[2]).float()
        levels = tuple(level.item() for level in picked)
        if self.strange and remembers(flow.ask_whole, x, far, levels):
            raise ValueError(
                "Expected nodes on the MODEL that answer for a latent and a level alone, got one "
                "that remembers earlier steps (a cache or a momentum), out of "
                f"{', '.join(self.names)}; take it out or switch its memory off, since a search "
                "asks out of order"
            )
        _trust(self.strange, self.schedule)
        if self.between:
            options = flow.extra_args["model_options"].setdefault("transformer_options", {})
            if schedule_matters(flow.ask_whole, x, (levels[1] + levels[2]) / 2 + 1e-4, options):
                network = type(flow.base_model).__name__
                raise ValueError(
                    "Expected a MODEL that takes any level, got one that looks levels up in the "
                    f"schedule ({', '.join([network, *self.names])}), which strategy "
                    f"{self.settings.strategy!r} goes between; choose another strategy"
                )
        if self.exact:
            check_gradient(flow, x, levels[1], item)

    def report(self) -> dict:
        """As a JSON object."""
        return {
            "bypassed": self.bypassed,
            "patches": self.names,
            "check_calls": self.calls,
        }


def prepare(flow: ComfyFlow, settings: SearchSettings) -> Prepared:
    """Make the host's patches on ``flow`` forget, for a search by ``settings``.

    Under patches, some of which mix the rows of a batch or take but one, and under conditioning
    with rows of its own, which the host would hand out to candidates in turn, candidates go one by
    one, as a plain sample does.

    Raises:
        ValueError: exact gradients where hooks swap the weights between forward and backward.
    """
    options = flow.extra_args["model_options"]
    guider = flow.model.inner_model
    bypassed = bypass_caches(options, guider.model_options)
    if bypassed:
        log.info("%s bypassed: a search asks out of order", ", ".join(bypassed))
    prepared = Prepared(flow, settings, bypassed)
    if prepared.exact and has_weight_hooks(options):
        raise ValueError(
            "Expected weights that stay as they are for gradient 'exact', got hook LoRAs, which "
            "the host swaps in and out; set gradient to 'jacobian_free', or apply the LoRA to the "
            "MODEL"
        )
    flow.one_at_a_time = bool(prepared.names) or several_rows(guider.conds)
    keyframes = Keyframes(options, flow.base_model.current_patcher, flow.sigmas)
    if keyframes.hooks:
        flow.keyframes = keyframes
    return prepared


def check_gradient(flow: ComfyFlow, x: Tensor, sigma: float, item: Tensor) -> None:
    """Raise ValueError where the model's pullback at ``x`` [B, ...] is not what differences show.

    Along the gradient of one random number of the output; takes five calls, a backward counted as
    two.
    """
    generator = torch.Generator().manual_seed(0)
    c = torch.randn(x.shape, generator=generator).to(x)
    with torch.inference_mode(False), flow.gradients():
        with torch.enable_grad():
            leaf = x.clone().requires_grad_()
            v = flow.velocity(leaf, sigma, item).float()
        (gradient,) = torch.autograd.grad(v, leaf, c.clone())
    length = gradient.norm()
    step = 0.02 * x.norm() * gradient / length
    ahead, behind = (flow.ask_whole(x + sign * step, sigma).float() for sign in (1, -1))
    found = ((ahead - behind) * c).sum() / (2 * step.norm())
    if not abs(found - length) <= GRADIENT_ERROR * length:
        raise ValueError(
            "Expected the MODEL's gradient to agree with finite differences, got a slope of "
            f"{length:.4g} for one of {found:.4g}; set gradient to 'jacobian_free'"
        )
