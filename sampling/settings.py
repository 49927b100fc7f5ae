"""What a search is asked to do: a strategy's own parameters, and the few settings all share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import Field, asdict, dataclass, field, fields
from typing import ClassVar

DEFAULT_BUDGET = 6.0
FAR = 1e9
"""Of a limit: beyond it, and at infinity, which JSON does not know, it would be none."""


def one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"expected {name} to be one of {', '.join(known)}; got {value!r}")


def whole(name: str, value: int, low: int, high: int, why: str = "") -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"expected {name} to be a whole number; got {value!r}")
    within(name, value, low, high, why)


def flag(name: str, value: bool) -> None:
    if not isinstance(value, bool):
        raise ValueError(f"expected {name} to be true or false; got {value!r}")


def within(name: str, value: float, low: float, high: float, why: str = "") -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        reason = f" ({why})" if why else ""
        raise ValueError(f"expected {name} within {low:g}..{high:g}{reason}; got {value!r}")


def ranged(default, low: float, high: float, why: str = ""):
    """A field of a number, or a pair of them, within ``low``..``high``; whole if ``default`` is."""
    return field(default=default, metadata={"range": (low, high), "why": why})


def chosen(default: str, options: tuple[str, ...]):
    """A field of one of ``options``."""
    return field(default=default, metadata={"options": options})


def _check(one: Field, value) -> None:
    """Raise ValueError unless ``value`` is one of the field's kind and within its range."""
    if "options" in one.metadata:
        one_of(one.name, value, one.metadata["options"])
    elif isinstance(one.default, bool):
        flag(one.name, value)
    elif isinstance(one.default, tuple):
        if not isinstance(value, tuple) or len(value) != 2:
            raise ValueError(f"expected {one.name} to be (first, last), got {value!r}")
        for end in value:
            within(one.name, end, *one.metadata["range"], one.metadata["why"])
    else:
        kind = whole if isinstance(one.default, int) else within
        kind(one.name, value, *one.metadata["range"], one.metadata["why"])


@dataclass(frozen=True)
class Parameters:
    """A strategy's own parameters; each strategy's file has a frozen subclass.

    Every field is a flag, or made by :func:`ranged` or :func:`chosen`, which say what it may be.

    Attributes:
        strategy: the strategy's name.
        version: which behaviour the name means. A released version never changes: retuning a
            strategy adds one.
    """

    strategy: ClassVar[str]
    version: ClassVar[int] = 1

    def __post_init__(self):
        for one in fields(self):
            value = getattr(self, one.name)
            if isinstance(value, list):  # JSON has no tuples
                object.__setattr__(self, one.name, tuple(value))
            _check(one, getattr(self, one.name))

    def own_calls(self, steps: int, tail: int) -> int:
        """Calls that these parameters come to over ``steps``, where no budget is given."""
        return budget_calls(DEFAULT_BUDGET, steps, tail)


@dataclass(frozen=True)
class SearchSettings:
    """A strategy and what every strategy shares.

    Attributes:
        parameters: the strategy's own; their class says which strategy.
        budget: what the search may cost an image, in times a plain sample (a backward counts two
            calls); 1 is a plain sample. 0: what the parameters come to.
        keep_better: also sample plainly and keep, per item, whichever scores higher.
        max_seconds: stop searching after this long and finish the best so far; 0 for no limit.
        target_reward: stop searching once every item's best look-ahead reaches this.
        micro_batch: candidates evaluated at once per batch item; 0 for all.
    """

    parameters: Parameters
    budget: float = DEFAULT_BUDGET
    keep_better: bool = True
    max_seconds: float = 0.0
    target_reward: float | None = None
    micro_batch: int = 0

    def __post_init__(self):
        if self.budget != 0 or isinstance(self.budget, bool):
            within("budget", self.budget, 1, 1000, "times a plain sample; 1 is a plain sample")
        flag("keep_better", self.keep_better)
        within("max_seconds", self.max_seconds, 0, FAR, "0 for no limit")
        whole("micro_batch", self.micro_batch, 0, 4096)
        if self.target_reward is not None:
            within("target_reward", self.target_reward, -FAR, FAR, "none for no target")

    @property
    def strategy(self) -> str:
        return self.parameters.strategy

    def calls(self, steps: int, tail: int = 0) -> int:
        """Model calls that an item may spend over ``steps``; ``tail``: see :class:`.run.Run`."""
        if self.budget == 0:
            return max(self.parameters.own_calls(steps, tail), steps + tail)
        return budget_calls(self.budget, steps, tail)

    def to_json(self) -> dict:
        """As a JSON object that :func:`.strategies.settings_from_json` takes back."""
        common = {name: getattr(self, name) for name in COMMON}
        return {
            "strategy": self.strategy,
            "version": self.parameters.version,
            **common,
            "parameters": asdict(self.parameters),
        }


COMMON = tuple(field.name for field in fields(SearchSettings) if field.name != "parameters")
"""Names of the settings that all strategies share."""


def budget_calls(budget: float, steps: int, tail: int = 0) -> int:
    """Calls in ``budget`` plain samples, judging each taking ``tail`` calls more."""
    return math.floor(budget * (steps + tail) + 1e-6)


def known_fields(given: Mapping, known: Sequence[str], of: str) -> None:
    """Raise ValueError for a name in ``given`` that ``of`` does not have."""
    strange = [name for name in given if name not in known]
    if strange:
        raise ValueError(
            f"expected settings of {of} out of {', '.join(known)}; got {', '.join(strange)}"
        )
