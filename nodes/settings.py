"""The search's settings: what all strategies share, and the parameters of two of them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import Field, fields, replace

from comfy_api.latest import io

from ..sampling import STRATEGIES, Parameters, SearchSettings, make_settings, settings_from_json
from ..sampling.settings import DEFAULT_BUDGET
from ..sampling.strategies.flow_ttrl import FlowTTRL
from ..sampling.strategies.steered import Steered
from . import tooltips
from .types import ADVANCED, CATEGORY, Settings, schema

_NEVER = 1e6
"""A target_reward that no reward reaches."""

_BETAS = ("beta1", "beta2")
_AS_BETA = -1.0
"""A beta1 or beta2 that stands for beta."""

_BUDGET = "What the search may cost, in times a plain sample; 1 is a plain sample."


class SearchSettingsNode(io.ComfyNode):
    """A strategy, the budget and the limits."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="TTRLSearchSettings",
            display_name="TTRL Search Settings",
            category=CATEGORY,
            description="How to search, and what it may cost.",
            search_aliases=["ttrl", "budget", "strategy"],
            inputs=[
                io.Combo.Input(
                    "strategy",
                    options=list(STRATEGIES),
                    default=next(iter(STRATEGIES)),
                    tooltip="steered: our best by measurement. flow_ttrl: the paper's. The others "
                    "are known searches to compare with.",
                ),
                _budget(DEFAULT_BUDGET, 1.0, f"{_BUDGET} The one knob: more is better and slower."),
                io.Boolean.Input(
                    "keep_better",
                    default=True,
                    tooltip="Also sample plainly and return whichever scores higher, so that an "
                    "image never scores below the plain one.",
                ),
                io.Float.Input(
                    "max_seconds",
                    default=0.0,
                    min=0.0,
                    max=86_400.0,
                    step=1.0,
                    tooltip="End the search after this long and finish the best so far. 0: no "
                    "limit.",
                ),
                io.Float.Input(
                    "target_reward",
                    default=_NEVER,
                    min=-_NEVER,
                    max=_NEVER,
                    step=0.01,
                    tooltip="End the search once a look-ahead scores this. 1000000: never.",
                ),
                io.Int.Input(
                    "micro_batch",
                    default=0,
                    min=0,
                    max=4096,
                    tooltip="Candidates run through the model at once; 1 when memory is short. 0: "
                    "by the latent's size, two at 1024 px.",
                ),
                io.String.Input(
                    "settings_json",
                    multiline=True,
                    default="",
                    optional=True,
                    tooltip='Settings as a report holds them under "settings": they replace all of '
                    "the above. Empty: the above counts.",
                    extra_dict=dict(ADVANCED),
                ),
            ],
            outputs=[Settings.Output(display_name="settings")],
        )

    @classmethod
    def execute(cls, strategy: str, settings_json: str = "", **shared) -> io.NodeOutput:
        if settings_json.strip():
            return io.NodeOutput(_from_text(settings_json))
        if shared["target_reward"] >= _NEVER:
            shared["target_reward"] = None
        return io.NodeOutput(make_settings(strategy, **shared))


class PaperSettings(io.ComfyNode):
    """Flow-TTRL as published."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        advanced = {"extra_dict": dict(ADVANCED)}
        own = [name for name in tooltips.PAPER_ADVANCED if name not in _BETAS]
        before, after = _split(tooltips.PAPER, "beta")
        return schema(
            node_id="TTRLPaperSettings",
            display_name="TTRL Paper Settings",
            category=CATEGORY,
            description=(
                "Flow-TTRL as published, its parameters under the paper's names and at its demo's "
                "values."
            ),
            search_aliases=["ttrl", "flow-ttrl", "rl_iterations", "scale_factor"],
            inputs=[
                _limits(),
                _budget(0.0, 0.0, f"{_BUDGET} 0: whatever the parameters below come to."),
                *_widgets(FlowTTRL, before, tooltips.PAPER),
                _beta("beta", "beta1", FlowTTRL().beta1, 0.0),
                *_widgets(FlowTTRL, after, tooltips.PAPER),
                *(_beta(name, name, _AS_BETA, _AS_BETA, **advanced) for name in _BETAS),
                *_widgets(FlowTTRL, own, tooltips.PAPER_ADVANCED, **advanced),
            ],
            outputs=[Settings.Output(display_name="settings")],
        )

    @classmethod
    def execute(
        cls, budget: float, beta: float, settings: SearchSettings | None = None, **widgets
    ) -> io.NodeOutput:
        values = _values(widgets)
        for name in _BETAS:
            if values[name] == _AS_BETA:
                values[name] = beta
        return io.NodeOutput(_settings(FlowTTRL(**values), budget, settings))


class SteeredSettings(io.ComfyNode):
    """The parameters of our own strategy."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="TTRLSteeredSettings",
            display_name="TTRL Steered Settings",
            category=CATEGORY,
            description="The parameters of strategy 'steered', for those who tune.",
            search_aliases=["ttrl", "steered"],
            inputs=[
                _limits(),
                _budget(DEFAULT_BUDGET, 0.0, f"{_BUDGET} 0: the default of {DEFAULT_BUDGET:g}."),
                *_widgets(Steered, tooltips.STEERED, tooltips.STEERED),
            ],
            outputs=[Settings.Output(display_name="settings")],
        )

    @classmethod
    def execute(
        cls, budget: float, settings: SearchSettings | None = None, **widgets
    ) -> io.NodeOutput:
        return io.NodeOutput(_settings(Steered(**_values(widgets)), budget, settings))


def _from_text(text: str) -> SearchSettings:
    try:
        given = json.loads(text)
    except ValueError as error:
        raise ValueError(
            f"expected settings_json to be JSON, got text that is not ({error}); paste what a "
            'report holds under "settings", or clear it'
        ) from error
    return settings_from_json(given)


def _split(names: Iterable[str], at: str) -> tuple[list[str], list[str]]:
    """The names before and after ``at``."""
    names = list(names)
    return names[: names.index(at)], names[names.index(at) + 1 :]


def _settings(
    parameters: Parameters, budget: float, limits: SearchSettings | None
) -> SearchSettings:
    """``parameters`` and ``budget`` with what ``limits`` says of the rest."""
    return replace(limits or make_settings(), parameters=parameters, budget=budget)


def _limits() -> io.Input:
    return Settings.Input(
        "settings",
        optional=True,
        tooltip="From TTRL Search Settings: its keep_better, max_seconds, target_reward and "
        "micro_batch count here too; its strategy and budget do not.",
    )


def _budget(default: float, low: float, tooltip: str) -> io.Input:
    return io.Float.Input(
        "budget", default=default, min=low, max=1000.0, step=0.5, round=0.01, tooltip=tooltip
    )


def _widgets(kind: type[Parameters], names: Iterable[str], texts: Mapping[str, str], **more):
    """A widget for each of a strategy's parameters; two, _first and _last, for a pair."""
    known = {one.name: one for one in fields(kind)}
    return [
        _widget(known[name], label, value, tooltip=texts[name], **more)
        for name in names
        for label, value in _ends(name, known[name].default)
    ]


def _ends(name: str, value) -> list[tuple[str, object]]:
    if isinstance(value, tuple):
        return [(f"{name}_first", value[0]), (f"{name}_last", value[1])]
    return [(name, value)]


def _values(widgets: Mapping[str, object]) -> dict[str, object]:
    """Parameters out of what :func:`_widgets` made: pairs put together."""
    values = {}
    for label, value in widgets.items():
        if label.endswith("_first"):
            name = label.removesuffix("_first")
            values[name] = (value, widgets[f"{name}_last"])
        elif not label.endswith("_last"):
            values[label] = value
    return values


def _widget(one: Field, label: str, default, **more) -> io.Input:
    """The widget for a field, with the range that its check has."""
    if "options" in one.metadata:
        return io.Combo.Input(label, options=list(one.metadata["options"]), default=default, **more)
    if isinstance(default, bool):
        return io.Boolean.Input(label, default=default, **more)
    low, high = one.metadata["range"]
    if isinstance(default, int):
        return io.Int.Input(label, default=default, min=low, max=high, **more)
    return io.Float.Input(label, default=default, min=low, max=high, step=_step(default), **more)


def _beta(name: str, like: str, default: float, low: float, **more) -> io.Input:
    """A weight with the range of FlowTTRL's ``like``, from ``low``."""
    high = {one.name: one.metadata for one in fields(FlowTTRL)}[like]["range"][1]
    text = {**tooltips.PAPER, **tooltips.PAPER_ADVANCED}[name]
    return io.Float.Input(name, default=default, min=low, max=high, step=1e-5, tooltip=text, **more)


def _step(default: float) -> float:
    """A power of ten, at most 1, about a tenth of ``default``."""
    if default == 0:
        return 0.01
    return float(f"1e{min(math.floor(math.log10(default)) - 1, 0)}")
