"""Patches that remember: what a user's nodes hang on a model, made for one falling trajectory.

A search asks for velocities out of order and several at a time. Each must be what a fresh run would
give at that latent and level. What the host can be asked to forget is made to; what it cannot is
found out by asking the same thing twice, and refused by name.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from copy import copy

import comfy.hooks
import comfy.patcher_extension
import torch
from torch import Tensor

log = logging.getLogger("flow_ttrl")

CACHES = {"easycache": "EasyCache", "lazycache": "LazyCache"}
"""Keys of the host's own caches of earlier steps, and their nodes."""

SAME = 1e-3
"""Difference of two velocities, of their size, above which they are not the same."""

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
