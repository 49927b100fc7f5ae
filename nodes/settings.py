"""The search's settings: what all strategies share, and the parameters of two of them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, replace

from comfy_api.latest import io

from ..sampling import STRATEGIES, Parameters, SearchSettings, make_settings, settings_from_json
from ..sampling.settings import DEFAULT_BUDGET
from ..sampling.strategies.flow_ttrl import GRADIENTS, FlowTTRL
from ..sampling.strategies.steered import Steered
from . import tooltips
from .types import ADVANCED, CATEGORY, Settings, schema

_NEVER = 1e6
"""A target_reward that no reward reaches."""

_AS_BETA = -1.0
"""A beta1 or beta2 that stands for beta."""

_BUDGET = "What the search may cost, in times a plain sample; 1 is a plain sample."
_OPTIONS = {"gradient": GRADIENTS}


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
                    max=256,
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
        start = FlowTTRL()
        values = asdict(start) | {"beta": start.beta1, "beta1": _AS_BETA, "beta2": _AS_BETA}
        advanced = {name: values[name] for name in tooltips.PAPER_ADVANCED}
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
                *_widgets({name: values[name] for name in tooltips.PAPER}, tooltips.PAPER),
                *_widgets(advanced, tooltips.PAPER_ADVANCED, extra_dict=dict(ADVANCED)),
            ],
            outputs=[Settings.Output(display_name="settings")],
        )

    @classmethod
    def execute(
        cls, budget: float, beta: float, settings: SearchSettings | None = None, **widgets
    ) -> io.NodeOutput:
        values = _values(widgets)
        for name in ("beta1", "beta2"):
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
                *_widgets(asdict(Steered()), tooltips.STEERED),
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


def _widgets(defaults: Mapping[str, object], texts: Mapping[str, str], **more) -> list[io.Input]:
    """A widget for each parameter at its default; two, _first and _last, for a pair."""
    return [
        _widget(label, name, value, tooltip=texts.get(name, ""), **more)
        for name, default in defaults.items()
        for label, value in _ends(name, default)
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


def _widget(label: str, name: str, default, **more) -> io.Input:
    """The widget for a value like ``default``; the parameters' own check knows their ranges."""
    if isinstance(default, str):
        return io.Combo.Input(
            label, options=list(_OPTIONS.get(name, [default])), default=default, **more
        )
    if isinstance(default, bool):
        return io.Boolean.Input(label, default=default, **more)
    if isinstance(default, int):
        return io.Int.Input(label, default=default, min=0, max=10_000, **more)
    return io.Float.Input(
        label, default=default, min=min(default, 0.0), max=1e6, step=_step(default), **more
    )


def _step(default: float) -> float:
    """A power of ten, at most 1, about a tenth of ``default``."""
    if default == 0:
        return 0.01
    if default < 0:  # stands for another value, of any size
        return 1e-5
    return float(f"1e{min(math.floor(math.log10(default)) - 1, 0)}")
