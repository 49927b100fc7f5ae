"""Flow-TTRL's method in pure torch: see search.py for the loop, settings.py for every parameter."""

from .budget import Plan, plan
from .flow import Cost, Flow, RewardBatch
from .noise import KeyedNoise
from .report import SearchResult, StepEvent, StepRecord
from .schedules import shifted_sigmas
from .search import sample, search
from .settings import PRESETS, SearchSettings, preset

__all__ = [
    "PRESETS",
    "Cost",
    "Flow",
    "KeyedNoise",
    "Plan",
    "RewardBatch",
    "SearchResult",
    "SearchSettings",
    "StepEvent",
    "StepRecord",
    "plan",
    "preset",
    "sample",
    "search",
    "shifted_sigmas",
]
