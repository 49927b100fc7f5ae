"""Patches that remember: what a user's nodes hang on a model, made for one falling trajectory.

A search asks for velocities out of order and several at a time. Each must be what a fresh run would
give at that latent and level. What the host can be asked to forget is made to; what it cannot is
found out by asking the same thing twice, and refused by name.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from copy import copy
from weakref import WeakKeyDictionary

import comfy.hooks
import comfy.patcher_extension
import torch
from torch import Tensor

from ..strategies import STRATEGIES

log = logging.getLogger("flow_ttrl")

CACHES = {"easycache": "EasyCache", "lazycache": "LazyCache"}
"""Keys of the host's own caches of earlier steps, and their nodes."""

SAME = 1e-3
"""Difference of two velocities, of their size, above which they are not the same."""

GRADIENT_ERROR = 0.2
"""Of a directional derivative against central differences, beyond which it is wrong."""

Ask = Callable[[Tensor, float], Tensor]
"""Velocities of latents [N, ...] at a level."""


def bypass_caches(*options: dict) -> list[str]:
    """Take the host's caches out of these (copied) model options; the nodes that they were of."""
    found = []
    for model_options in options:
        wrappers = model_options.get("transformer_options", {}).get("wrappers", {})
        for kind, keyed in wrappers.items():
            # the outer one sets the cache up and clears it away
            if kind == comfy.patcher_extension.WrappersMP.OUTER_SAMPLE:
                continue
            found += [CACHES[key] for key in CACHES if keyed.pop(key, None)]
    return sorted(set(found))


class Keyframes:
    """Hooks whose strength follows the level: set to a level's own before every call.

    The host moves them forward only, as levels fall. A level's own is where its walk down the
    schedule has come to there; a level between two of the schedule's has that of the one above.

    Args:
        sigmas: the schedule, a tensor.
    """

    def __init__(self, model_options: dict, patcher, sigmas: Tensor):
        registered = model_options.get("registered_hooks") or comfy.hooks.HookGroup()
        groups = [(hook, hook.hook_keyframe) for hook in registered.hooks]
        self.hooks = [
            (hook, group, _walk(group, sigmas))
            for hook, group in groups
            if group and not group.is_empty()
        ]
        self.patcher = patcher

    def set(self, sigma: float) -> None:
        """Every hook at the keyframe that a fresh run has at level ``sigma``."""
        changed = []
        for hook, group, walk in self.hooks:
            index = [place for level, place in walk if level >= sigma or level == walk[0][0]][-1]
            frame = group.keyframes[index]
            if group._current_strength != frame.strength:
                changed.append(hook)
            group._current_index, group._current_keyframe = index, frame
            group._current_strength, group._curr_t = frame.strength, sigma
        if changed:  # weights that were made for the former strength
            cached = self.patcher.cached_hook_patches
            for group in [g for g in cached if any(g.contains(hook) for hook in changed)]:
                del cached[group]
            self.patcher.patch_hooks(None)


def _walk(group: comfy.hooks.HookKeyframeGroup, sigmas: Tensor) -> list[tuple[float, int]]:
    """Where the host's own walk down the schedule has come to, a keyframe's number by level."""
    walker, found = copy(group), []
    walker.reset()
    walker._curr_t = -1.0  # which the host's reset leaves as it was
    for sigma in sigmas[:-1]:
        walker.prepare_current_keyframe(sigma, {"sample_sigmas": sigmas})
        found.append((sigma.item(), walker._current_index))
    return found


def several_rows(conds: dict[str, list[dict]]) -> bool:
    """Whether any of the host's prepared conditioning has more rows than one."""

    def rows(value) -> int:
        if isinstance(value, Tensor):
            return len(value) if value.ndim > 1 else 1
        if isinstance(value, Mapping):
            return max(map(rows, value.values()), default=1)
        if isinstance(value, (list, tuple)):
            return max(map(rows, value), default=1)
        # the host's condition objects, and control nets with the image that they follow
        held = [getattr(value, name, None) for name in ("cond", "cond_hint_original")]
        held.append(getattr(value, "previous_controlnet", None))
        return max((rows(item) for item in held if item is not None), default=1)

    return any(
        rows(value) > 1
        for conditions in conds.values()
        for condition in conditions
        for name, value in condition.items()
        if name in ("model_conds", "control", "gligen", "mask")
    )


def has_weight_hooks(model_options: dict) -> bool:
    """Whether hooks swap the model's weights from one conditioning to the next."""
    registered = model_options.get("registered_hooks")
    return bool(registered and registered.get_type(comfy.hooks.EnumHookType.Weight))


def patches(patcher, model_options: dict) -> list[tuple[Callable, str]]:
    """The functions that nodes have put into the model's path, and their names, as "APG (apg)"."""
    network = getattr(patcher.model, "diffusion_model", None)
    own = [value for name, value in vars(network).items() if name.startswith("forward")]
    objects = {n: v for n, v in patcher.object_patches.items() if n != "model_sampling"}
    found = [(f, _name(f)) for f in _callables([model_options, objects, patcher.injections, own])]
    return [(function, name) for function, name in found if name is not None]


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


_ASIDE = {"registered_hooks", "easycache", "sample_sigmas", "to_load_options"}
_ASIDE |= {"outer_sample", "prepare_sampling", "sampler_sample"}
"""Data, and wrappers around a whole run."""


def _callables(value) -> Iterator[Callable]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            if key not in _ASIDE:
                yield from _callables(item)
    elif isinstance(value, (list, tuple, set)):
        for item in value:
            yield from _callables(item)
    elif callable(value) and not isinstance(value, Tensor):
        yield value


def _name(function: Callable) -> str | None:
    """A patch's node and module; None for this pack's own."""
    function = getattr(function, "__func__", function)
    named = function if hasattr(function, "__qualname__") else type(function)
    module = named.__module__ or ""
    if module.startswith(__name__.rsplit(".", 2)[0]):
        return None
    return f"{named.__qualname__.split('.')[0]} ({module.rsplit('.', 1)[-1]})"


def remembers(ask: Ask, x: Tensor, far: Tensor, levels: tuple[float, float, float]) -> bool:
    """Whether the answer for a latent depends on what was asked before.

    Caches skip what has hardly changed, momenta add up, some only move forward, and all may sleep
    at first; so ``x`` is asked for at an early and a middle level, again after something lower and
    unlike it, and again after things like it. Takes ten calls an item.

    Args:
        x, far: latents [B, ...]. levels: early, middle and low.
    """
    early, middle, low = levels
    near = x + 0.03 * (far - x)
    first, at_first = ask(x, middle), ask(x, early)
    ask(far, low)
    second = ask(x, middle)
    ask(near, middle)
    ask(near, middle)
    third = ask(x, middle)
    ask(near, early)
    pairs = ((first, second), (first, third), (at_first, ask(x, early)))
    ask(far, low)  # where a run ends, from which some begin anew
    return not all(close(a, b) for a, b in pairs)


def close(a: Tensor, b: Tensor) -> bool:
    """Whether two velocities are the same, but for rounding."""
    if not bool(a.isfinite().all() & b.isfinite().all()):
        return bool((a.isfinite() == b.isfinite()).all())
    return bool((a - b).square().mean().sqrt() <= SAME * b.square().mean().sqrt())


def schedule_matters(ask: Ask, x: Tensor, between: float, options: dict) -> bool:
    """Whether a level ``between`` the schedule's is answered by what stands in the schedule.

    Args:
        options: the call's transformer_options, with the schedule that the network is shown.
    """
    shown = options["sample_sigmas"]
    try:
        plain = ask(x, between)
        levels = torch.cat([shown, shown.new_tensor([between])]).sort(descending=True).values
        options["sample_sigmas"] = levels
        return not close(ask(x, between), plain)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        log.debug("the schedule is looked up: %s", error)
        return True
    finally:
        options["sample_sigmas"] = shown


class Prepared:
    """A flow whose host has been made to forget, and what is still to be asked of it.

    Attributes:
        bypassed: caches that were taken out.
        names: patches in the model's path.
        calls: model calls that :meth:`check` takes an item.
    """

    def __init__(self, flow, settings, bypassed: list[str]):
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


def prepare(flow, settings) -> Prepared:
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


def check_gradient(flow, x: Tensor, sigma: float, item: Tensor) -> None:
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
