"""How to look for better images: one strategy a file, chosen by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace

from torch import Tensor

from ..run import Run
from ..settings import COMMON, Parameters, SearchSettings, known_fields
from ..state import State
from .best_of_n import BestOfN, best_of_n
from .common import whole_samples
from .drafts import Drafts, drafts
from .evolution import Evolution, evolution
from .flow_ttrl import FlowTTRL, flow_ttrl
from .glass import Glass, glass
from .particles import Particles, particles
from .paths import Paths, paths
from .rbf import RBF, rbf
from .reward_gradient import RewardGradient, reward_gradient
from .steered import Steered, steered
from .zero_order import ZeroOrder, zero_order


@dataclass(frozen=True)
class Strategy:
    """A strategy by name.

    Attributes:
        states: of (run, start [1, B, ...], parameters), yields a state after every step, the last
            one at the end of the schedule.
        parameters: the class of its parameters.
        needs_image_gradients: whether it differentiates the reward.
        between_levels: whether it asks for velocities at levels that are not the schedule's.
    """

    states: Callable[[Run, Tensor, Parameters], Iterator[State]]
    parameters: type[Parameters]
    needs_image_gradients: bool = False
    between_levels: bool = False


STRATEGIES: dict[str, Strategy] = {
    strategy.parameters.strategy: strategy
    for strategy in (
        Strategy(steered, Steered),
        Strategy(flow_ttrl, FlowTTRL),
        Strategy(best_of_n, BestOfN),
        Strategy(drafts, Drafts),
        Strategy(zero_order, ZeroOrder),
        Strategy(paths, Paths),
        Strategy(particles, Particles),
        Strategy(rbf, RBF),
        Strategy(evolution, Evolution),
        Strategy(reward_gradient, RewardGradient, needs_image_gradients=True),
        Strategy(glass, Glass, between_levels=True),
    )
}
"""Every strategy, ours first."""


def states(run: Run, start: State, parameters: Parameters) -> Iterator[State]:
    """The states of the strategy that ``parameters`` are of; a plain sample's at budget 1."""
    if run.calls <= run.plain_calls:
        return whole_samples(run, start.x)
    return STRATEGIES[parameters.strategy].states(run, start.x, parameters)


def make_settings(strategy: str = "steered", **changes) -> SearchSettings:
    """Settings of ``strategy``; ``changes`` are settings all share or the strategy's parameters.

    Raises:
        ValueError: an unknown strategy or name, or a value out of range.
    """
    if not isinstance(strategy, str) or strategy not in STRATEGIES:
        raise ValueError(f"expected a strategy out of {', '.join(STRATEGIES)}; got {strategy!r}")
    kind = STRATEGIES[strategy].parameters
    own = [field.name for field in fields(kind)]
    known_fields(changes, [*COMMON, *own], strategy)
    parameters = kind(**{name: changes.pop(name) for name in own if name in changes})
    return SearchSettings(parameters, **changes)


def settings_from_json(given: Mapping) -> SearchSettings:
    """Settings out of what :meth:`SearchSettings.to_json` gave, or as much of it as is there.

    Raises:
        ValueError: an unknown name or version, or a value out of range.
    """
    if not isinstance(given, Mapping):
        raise ValueError(f"expected settings as a JSON object, got {type(given).__name__}")
    known_fields(given, ["strategy", "version", "parameters", *COMMON], "a search")
    common = {name: given[name] for name in COMMON if name in given}
    settings = make_settings(given.get("strategy", "steered"), **common)
    parameters, kind = given.get("parameters", {}), type(settings.parameters)
    if not isinstance(parameters, Mapping):
        raise ValueError(
            f"expected parameters as a JSON object, got {type(parameters).__name__}; leave them "
            "out for the defaults"
        )
    known_fields(parameters, [field.name for field in fields(kind)], settings.strategy)
    version, ours = given.get("version"), settings.parameters.version
    if version not in (None, ours):
        raise ValueError(
            f"expected version {ours} of strategy {settings.strategy!r}, got {version}; leave the "
            "version out to take this one"
        )
    return replace(settings, parameters=kind(**parameters))
