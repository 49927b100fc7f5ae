"""Flow-TTRL's published settings, by model family."""

from __future__ import annotations

from ..sampling import SearchSettings, make_settings

STEPS, GUIDANCE = 40, 3.5
"""Of the published demos, of either family."""

FAMILIES = {
    "sd3": {},
    "flux": {"scale_factor": 400.0, "beta2": 2e-3, "prdp_scale": 5.0, "grpo_scale": 250.0},
}
"""What a family has another value of than the strategy's defaults, which are SD3's."""


def paper_settings(family: str) -> SearchSettings:
    """Settings of the published demo of ``family`` ("sd3" or "flux"): no budget, no keep_better."""
    return make_settings("flow_ttrl", budget=0, keep_better=False, **FAMILIES[family])
