"""Flow-TTRL's method in pure torch: search.py drives, strategies/ says how to look."""

from .budget import Plan, plan
from .flow import Cost, Flow, Values
from .plain import sample
from .report import PlainSample, SearchResult, StepEvent, StepRecord
from .run import Run
from .schedules import shifted_sigmas
from .search import search
from .settings import Parameters, SearchSettings
from .state import State
from .strategies import STRATEGIES, make_settings, settings_from_json

__all__ = [
    "STRATEGIES",
    "Cost",
    "Flow",
    "Parameters",
    "Plan",
    "PlainSample",
    "Run",
    "SearchResult",
    "SearchSettings",
    "State",
    "StepEvent",
    "StepRecord",
    "Values",
    "make_settings",
    "plan",
    "sample",
    "search",
    "settings_from_json",
    "shifted_sigmas",
]
