"""Every parameter of the search, validated, with versioned presets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

STEPS = ("matched", "midpoint", "sde", "cps")
GRADIENTS = ("jacobian_free", "exact")
UPDATES = ("steered", "rotation", "noise_rotation", "additive", "scale_factor")


ELEMENTS_AT_1024 = 16 * 128 * 128
"""Elements of an SD3 or FLUX latent at 1024 px, for which the paper's constants were chosen."""


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"expected {name} to be one of {', '.join(known)}; got {value!r}")


def _whole(name: str, value: int) -> None:
    if not isinstance(value, int):
        raise ValueError(f"expected {name} to be a whole number; got {value!r}")


def _within(name: str, value: float, low: float, high: float, why: str = "") -> None:
    if not low <= value <= high:
        reason = f" ({why})" if why else ""
        raise ValueError(f"expected {name} within {low:g}..{high:g}{reason}; got {value!r}")


@dataclass(frozen=True)
class SearchSettings:
    """What the search does. Names are the paper's; ranges are (first, last) over the window.

    Attributes:
        group_size: candidates per search step (G), at least 2.
        rl_iterations: updates per search step (K). ``steered`` makes one.
        internal_reward_timestep: share of the steps, from the start, whose loss is PRDP.
        external_reward_timestep: share of the steps that search at all; GRPO after PRDP.
        search_every: search on every n-th step of the window, beginning with the first; the others
            are ordinary.
        look_ahead_range: Euler steps of a look-ahead, from the first to the last search step; 1
            is the paper's. More see the image that will be, and cost a call a candidate each.
        step: ``sde`` (Flow-GRPO), ``cps`` (Flow-CPS), ``midpoint``, the mean of the two, or
            ``matched``, as energetic as the Euler step in every octave.
        noise_range: the stochastic step's eta, linear from first to last search step.
        gradient: ``exact`` differentiates through the model; ``jacobian_free`` takes the
            derivative of the step's mean for the identity and never runs a backward.
        update: how the latent moves. ``steered`` takes the stochastic step with its noise along
            the update; ``rotation`` turns the latent, ``noise_rotation`` its noise estimate;
            ``additive`` adds; ``scale_factor`` adds the paper's scaled gradient.
        update_range: size of a move: radians (rotations) or share of the latent's norm (additive).
        elitist: with ``steered``, go on from the best candidate where the steered latent's own
            look-ahead is worse. Costs that look-ahead, whose first call the next step needs anyway.
        scale_factor, prdp_scale, grpo_scale: the paper's step size and its multipliers by phase,
            for ``scale_factor`` alone; meant for 1024 px and rescaled to any other size.
        beta1: PRDP's temperature. beta2: weight of the KL to the reference trajectory.
        clip: clip of PRDP's log-ratios and GRPO's ratios.
        adv_clip_max: clip of the advantages.
        reward_diff_threshold: PRDP compares pairs whose rewards differ by more.
        rationorm: GRPO's ratio normalised per sample.
        keep_better: also sample plainly and keep, per item, whichever scores higher.
        max_calls: stop searching so that the run spends at most this many calls per item
            (a backward counts two); 0 for no limit.
        max_seconds: stop searching after this long; 0 for no limit.
        target_reward: stop searching once every item's best look-ahead reaches this.
        micro_batch: candidates evaluated at once per batch item; 0 for the whole group.
    """

    preset: str = "custom"
    version: int = 1
    group_size: int = 6
    rl_iterations: int = 1
    internal_reward_timestep: float = 0.0
    external_reward_timestep: float = 0.9
    step: str = "midpoint"
    noise_range: tuple[float, float] = (0.2, 0.5)
    gradient: str = "jacobian_free"
    update: str = "steered"
    update_range: tuple[float, float] = (0.5, 0.2)
    elitist: bool = True
    scale_factor: float = 500.0
    prdp_scale: float = 0.01
    grpo_scale: float = 10.0
    beta1: float = 2e-4
    beta2: float = 0.0
    clip: float = 0.2
    adv_clip_max: float = 5.0
    reward_diff_threshold: float = 0.0
    rationorm: bool = True
    keep_better: bool = False
    max_calls: int = 0
    max_seconds: float = 0.0
    target_reward: float | None = None
    micro_batch: int = 0
    search_every: int = 1
    look_ahead_range: tuple[int, int] = (1, 1)

    def __post_init__(self):
        for name in ("noise_range", "update_range", "look_ahead_range"):
            pair = getattr(self, name)
            if not isinstance(pair, Sequence) or len(pair) != 2:
                raise ValueError(f"expected {name} to be (first, last), got {pair!r}")
            object.__setattr__(self, name, tuple(pair))
        _one_of("step", self.step, STEPS)
        _one_of("gradient", self.gradient, GRADIENTS)
        _one_of("update", self.update, UPDATES)
        for name in ("group_size", "rl_iterations", "search_every", "max_calls", "micro_batch"):
            _whole(name, getattr(self, name))
        for count in self.look_ahead_range:
            _whole("look_ahead_range", count)
            _within("look_ahead_range", count, 1, 64)
        if self.target_reward is not None and math.isnan(self.target_reward):
            raise ValueError("expected target_reward to be a number or None; got nan")
        _within("group_size", self.group_size, 2, 256, "advantages compare candidates")
        _within("rl_iterations", self.rl_iterations, 1, 64)
        _within("search_every", self.search_every, 1, 10_000)
        _within("internal_reward_timestep", self.internal_reward_timestep, 0, 1)
        _within("external_reward_timestep", self.external_reward_timestep, 0, 1)
        highest = 10 if self.step == "sde" else 1
        for eta in self.noise_range:
            _within("noise_range", eta, 1e-3, highest, "an eta of 0 leaves candidates all alike")
        for size in self.update_range:
            _within("update_range", size, 0, math.pi)
        for name in ("beta1", "clip", "adv_clip_max"):
            _within(name, getattr(self, name), 1e-9, 1e9)
        for name in ("scale_factor", "prdp_scale", "grpo_scale", "beta2", "reward_diff_threshold"):
            _within(name, getattr(self, name), 0, 1e9)
        for name in ("max_calls", "max_seconds", "micro_batch"):
            _within(name, getattr(self, name), 0, math.inf)
        if self.update == "steered" and self.rl_iterations > 1:
            raise ValueError(
                f"expected rl_iterations 1 with update 'steered', got {self.rl_iterations}; it "
                "takes one step a level: choose another update to iterate"
            )

    def check(self, sigmas: Sequence[float]) -> None:
        """Raise ValueError if these settings cannot be carried out on ``sigmas`` [T + 1]."""
        steps = len(sigmas) - 1
        falling = all(a > b for a, b in zip(sigmas, sigmas[1:], strict=False))
        if steps < 1 or not falling or not 0 <= sigmas[-1] <= sigmas[0] <= 1:
            raise ValueError(
                f"expected noise levels falling within 1..0, got {[round(s, 4) for s in sigmas]}; "
                "wire a flow-matching model's own schedule"
            )
        least = (steps + (sigmas[-1] > 0)) * (2 if self.keep_better else 1)
        if self.max_calls and self.max_calls < least:
            raise ValueError(
                f"expected max_calls of at least the {least} calls of a plain sample"
                f"{' and its rival' if self.keep_better else ''}, got "
                f"{self.max_calls}; raise it, or set 0 for no limit"
            )

    def search_steps(self, steps: int) -> range:
        """Which of ``steps`` search; only ``sde`` has noise left for the last one."""
        window = math.ceil(steps * self.external_reward_timestep - 1e-9)
        if self.step != "sde":
            window = min(window, steps - 1)
        return range(0, window, self.search_every)

    def is_prdp(self, index: int, steps: int) -> bool:
        """Whether search step ``index`` uses PRDP; GRPO otherwise."""
        return index < steps * self.internal_reward_timestep - 1e-9

    def needs_reference(self, index: int, steps: int) -> bool:
        """Whether the loss looks at the reference trajectory, at step ``index`` or later."""
        return self.is_prdp(index, steps) or self.beta2 > 0

    def at(self, span: tuple[float, float], index: int, steps: int) -> float:
        """Linear from ``span``'s first to its last value over the search steps, both reached."""
        last = self.search_steps(steps)[-1]
        return span[0] + (span[1] - span[0]) * (index / last if last else 0.0)

    def look_ahead(self, index: int, steps: int) -> int:
        """Euler steps of a look-ahead in search step ``index``."""
        return round(self.at(self.look_ahead_range, index, steps))

    def move_size(
        self, index: int, steps: int, *, eta: float, h: float, elements: int, prdp: bool
    ) -> float:
        """How far a move goes: from ``update_range``, or the paper's schedule for scale_factor.

        The paper's: scale_factor sqrt(linspace(1, 0.5, T)[i]) eta sqrt(h) C, with C by phase, and
        in proportion to the latent's ``elements``, since log-probabilities are means over them.
        """
        if self.update != "scale_factor":
            return self.at(self.update_range, index, steps)
        fade = math.sqrt(1 - 0.5 * index / max(steps - 1, 1))
        phase = self.prdp_scale if prdp else self.grpo_scale
        resolution = elements / ELEMENTS_AT_1024
        return self.scale_factor * fade * eta * math.sqrt(h) * phase * resolution


PRESETS = {
    ("balanced", 1): SearchSettings(preset="balanced"),
    ("balanced", 2): SearchSettings(
        preset="balanced",
        version=2,
        step="matched",
        noise_range=(0.8, 0.5),
        search_every=4,
        look_ahead_range=(5, 1),
    ),
    ("paper", 1): SearchSettings(
        preset="paper",
        rl_iterations=2,
        internal_reward_timestep=0.2,
        external_reward_timestep=0.5,
        step="sde",
        noise_range=(1.5, 0.5),
        gradient="exact",
        update="scale_factor",
        beta2=2e-4,
        clip=0.02,
    ),
}
"""Settings by (name, version). A version once released never changes; retuning adds one.

``paper`` has the published demo's hyper-parameters for SD3, with what they mean mended: eta is
capped where it would turn the update round and really ends at 0.5; scale_factor means the same at
every resolution; the KL term carries its 1/h. ``clip`` alone differs (published: 1e-4), since the
published one leaves the second iteration without a gradient.
"""


def preset(name: str, version: int | None = None, **changes) -> SearchSettings:
    """The newest (or the given) version of preset ``name``, with ``changes`` applied.

    Raises:
        ValueError: no such preset.
    """
    versions = [v for known, v in PRESETS if known == name]
    chosen = version or max(versions, default=0)
    if (name, chosen) not in PRESETS:
        known = ", ".join(f"{n} v{v}" for n, v in PRESETS)
        asked = name if version is None else f"{name} v{version}"
        raise ValueError(f"expected a preset out of {known}; got {asked!r}")
    return replace(PRESETS[name, chosen], **changes)
