"""Settings: what is refused, in which words, and what survives a trip through JSON."""

import json
import math
from dataclasses import fields

import pytest
from probes import EACH, NAN, only_search

from flow_ttrl.sampling import (
    STRATEGIES,
    make_settings,
    plan,
    search,
    settings_from_json,
    shifted_sigmas,
)
from flow_ttrl.sampling.settings import COMMON
from flow_ttrl.sampling.strategies.flow_ttrl import FlowTTRL
from flow_ttrl.world.gaussian import GaussianWorld

INF = math.inf

BAD = [
    ("glass", {"budget": 0.5}),
    ("glass", {"budget": -1.0}),
    ("glass", {"budget": 1001.0}),
    ("glass", {"budget": NAN}),
    ("glass", {"budget": INF}),
    ("glass", {"budget": "6"}),
    ("glass", {"budget": True}),
    ("glass", {"max_seconds": -1.0}),
    ("glass", {"max_seconds": NAN}),
    ("glass", {"max_seconds": INF}),
    ("glass", {"target_reward": -INF}),
    ("glass", {"budget": False}),
    ("glass", {"target_reward": NAN}),
    ("glass", {"target_reward": "high"}),
    ("glass", {"micro_batch": -1}),
    ("glass", {"micro_batch": 1.5}),
    ("flow_ttrl", {"gradient": "none"}),
    ("flow_ttrl", {"group_size": 0}),
    ("flow_ttrl", {"group_size": 1}),
    ("flow_ttrl", {"group_size": 257}),
    ("flow_ttrl", {"group_size": 2.5}),
    ("flow_ttrl", {"group_size": "6"}),
    ("flow_ttrl", {"rl_iterations": 0}),
    ("flow_ttrl", {"rl_iterations": 65}),
    ("flow_ttrl", {"rl_iterations": 1.5}),
    ("flow_ttrl", {"internal_reward_timestep": -0.1}),
    ("flow_ttrl", {"internal_reward_timestep": 1.1}),
    ("flow_ttrl", {"external_reward_timestep": -0.1}),
    ("flow_ttrl", {"external_reward_timestep": 1.01}),
    ("flow_ttrl", {"external_reward_timestep": NAN}),
    ("flow_ttrl", {"noise_range": (0.0, 0.5)}),
    ("flow_ttrl", {"noise_range": (0.5, 0.0)}),
    ("flow_ttrl", {"noise_range": (11.0, 1.0)}),
    ("flow_ttrl", {"noise_range": (NAN, 0.5)}),
    ("flow_ttrl", {"noise_range": (0.5,)}),
    ("flow_ttrl", {"noise_range": (0.5, 0.4, 0.3)}),
    ("flow_ttrl", {"noise_range": 0.5}),
    ("flow_ttrl", {"beta1": 0.0}),
    ("flow_ttrl", {"beta1": NAN}),
    ("flow_ttrl", {"beta2": -1.0}),
    ("flow_ttrl", {"clip": 0.0}),
    ("flow_ttrl", {"clip": INF}),
    ("flow_ttrl", {"adv_clip_max": 0.0}),
    ("flow_ttrl", {"scale_factor": -1.0}),
    ("flow_ttrl", {"scale_factor": INF}),
    ("flow_ttrl", {"prdp_scale": -1.0}),
    ("flow_ttrl", {"grpo_scale": -1.0}),
    ("flow_ttrl", {"reward_diff_threshold": -1.0}),
    ("steered", {"draft_steps": 0}),
    ("steered", {"rounds": 0}),
    ("steered", {"decay": 0.0}),
    ("steered", {"decay": 1.1}),
    ("steered", {"correlation": 1.1}),
    ("steered", {"parents": 0}),
    ("drafts", {"draft_steps": 0}),
    ("zero_order", {"neighbours": 0}),
    ("zero_order", {"radius": 2.0}),
    ("zero_order", {"draft_steps": 1.5}),
    ("paths", {"width": 0}),
    ("paths", {"rounds": -1}),
    ("paths", {"window": 1.5}),
    ("paths", {"back_share": NAN}),
    ("paths", {"draft_steps": -1}),
    ("particles", {"every": 0}),
    ("particles", {"window": 1.5}),
    ("particles", {"temperature": -1.0}),
    ("particles", {"eta": 1.5}),
    ("rbf", {"noise_share": 0.0}),
    ("rbf", {"noise_share": 1.1}),
    ("evolution", {"elites": 0}),
    ("evolution", {"generations": -1}),
    ("evolution", {"mutation": 1.1}),
    ("evolution", {"window": -0.1}),
    ("evolution", {"draft_steps": 2000}),
    ("reward_gradient", {"begin": 1.1}),
    ("reward_gradient", {"ascent": -0.1}),
    ("glass", {"transitions": 0}),
    ("glass", {"inner": 0}),
    ("glass", {"parents": 1.5}),
    ("glass", {"correlation": 1.1}),
    ("glass", {"window": -0.1}),
    ("glass", {"draft_steps": NAN}),
]


def says_what_is_wrong(error):
    return "expected" in str(error.value) and "got" in str(error.value)


@pytest.mark.parametrize("strategy, changes", BAD, ids=str)
def test_bad_values_are_refused(strategy, changes):
    (name,) = changes
    with pytest.raises(ValueError, match=f"expected {name}") as error:
        make_settings(strategy, **changes)
    assert says_what_is_wrong(error)


def test_every_parameter_has_a_bad_value_above():
    """But for `flow_ttrl`'s switch."""
    for name, strategy in STRATEGIES.items():
        known = {field.name for field in fields(strategy.parameters)} - {"rationorm"}
        refused = {key for of, changes in BAD if of == name for key in changes}
        assert known <= refused, name


@pytest.mark.parametrize("name", ["best", "", "Glass", "paper", None])
def test_unknown_strategies_are_refused(name):
    with pytest.raises(ValueError, match="expected a strategy out of steered, flow_ttrl") as error:
        make_settings(name)
    assert says_what_is_wrong(error)


@EACH
def test_unknown_settings_are_refused(strategy):
    for name in ("budgets", "version", "rl_interation_num", "window "):
        with pytest.raises(ValueError, match="expected settings of") as error:
            make_settings(strategy, **{name: 1})
        assert says_what_is_wrong(error)
        assert name in str(error.value)


def test_a_parameter_of_another_strategy_is_refused():
    with pytest.raises(ValueError, match="got group_size"):
        make_settings("glass", group_size=4)


# JSON

CHANGES = {"budget": 3.5, "keep_better": False, "max_seconds": 2.0, "micro_batch": 3}


def other_value(value):
    """A legal value of the same kind that is not the default."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, tuple):
        return value[::-1]
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return 0.5 * value if value else 0.25
    return {"exact": "jacobian_free"}[value]


@EACH
def test_settings_survive_json(strategy):
    own = vars(make_settings(strategy).parameters)
    for settings in (
        make_settings(strategy),
        make_settings(strategy, **CHANGES, target_reward=0.7),
        make_settings(strategy, **{name: other_value(value) for name, value in own.items()}),
    ):
        there = json.loads(json.dumps(settings.to_json(), allow_nan=False))
        back = settings_from_json(there)
        assert back == settings
        assert hash(back) == hash(settings)
        assert (there["strategy"], there["version"]) == (strategy, settings.parameters.version)
        assert set(there) == {"strategy", "version", "parameters", *COMMON}


@EACH
def test_settings_that_went_through_json_search_alike(strategy):
    world, settings = GaussianWorld(4, steps=8), only_search(strategy, budget=3.0)
    back = settings_from_json(json.loads(json.dumps(settings.to_json())))
    one, other = (search(world, world.noise(), each) for each in (settings, back))
    assert (one.latents == other.latents).all()


def test_json_may_leave_out_what_is_the_default():
    assert settings_from_json({}) == make_settings()
    assert settings_from_json({"strategy": "glass"}) == make_settings("glass")
    some = {"strategy": "glass", "budget": 3, "parameters": {"inner": 2}}
    assert settings_from_json(some) == make_settings("glass", budget=3, inner=2)


@EACH
def test_another_version_is_refused(strategy):
    given = make_settings(strategy).to_json()
    ours = given["version"]
    for version in (ours + 1, 0, str(ours), "latest"):
        with pytest.raises(ValueError, match=f"expected version {ours}") as error:
            settings_from_json(given | {"version": version})
        assert says_what_is_wrong(error)
    del given["version"]
    assert settings_from_json(given) == make_settings(strategy)


@pytest.mark.parametrize(
    "given",
    [
        {"strateg": "glass"},
        {"strategy": "best"},
        {"strategy": ["glass"]},
        {"preset": "balanced"},
        {"strategy": "glass", "inner": 3},
        {"strategy": "glass", "parameters": {"group_size": 3}},
        {"strategy": "glass", "parameters": {"budget": 3}},
        {"strategy": "glass", "parameters": [3]},
        {"strategy": "glass", "parameters": None},
        {"strategy": "glass", "parameters": {"inner": 2.5}},
        {"budget": 0.2},
        {"budget": None},
        {"keep_better": "yes"},
        [],
        "glass",
        None,
    ],
    ids=str,
)
def test_bad_json_is_refused(given):
    with pytest.raises(ValueError, match="expected") as error:
        settings_from_json(given)
    assert says_what_is_wrong(error)


# Schedules

SCHEDULES = {
    "one level": [1.0],
    "none": [],
    "rising": [0.0, 0.5, 1.0],
    "one that rises": [1.0, 0.5, 0.6, 0.0],
    "EDM": [14.6, 3.0, 1.0, 0.0],
    "just too high": [1.001, 0.5, 0.0],
    "below zero": [1.0, 0.0, -0.5],
    "NaN": [1.0, NAN, 0.0],
    "begins with NaN": [NAN, 0.5, 0.0],
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_bad_schedules_are_refused(name):
    with pytest.raises(ValueError, match="expected noise levels") as error:
        plan(make_settings(), SCHEDULES[name])
    assert says_what_is_wrong(error)


@pytest.mark.parametrize("levels", [[0.0, 0.0], [1.0, 1.0], [0.5, 0.5, 0.5]], ids=str)
def test_a_schedule_without_a_step_is_refused(levels):
    """Of equal levels nothing is left to step over: a message, not an error from within."""
    for strategy in STRATEGIES:
        with pytest.raises(ValueError, match="expected noise levels"):
            plan(make_settings(strategy), levels)


@pytest.mark.parametrize("steps, shift", [(0, 3.0), (-1, 3.0), (4, 0.0), (4, -1.0)])
def test_bad_schedule_arguments_are_refused(steps, shift):
    with pytest.raises(ValueError, match="expected at least 1 step") as error:
        shifted_sigmas(steps, shift)
    assert says_what_is_wrong(error)


def test_shifted_sigmas_are_sd3s():
    sigmas = shifted_sigmas(4, shift=3.0)
    assert sigmas.tolist() == pytest.approx([1, 0.9, 0.75, 0.5, 0])
    assert shifted_sigmas(4, shift=1.0).tolist() == pytest.approx([1, 0.75, 0.5, 0.25, 0])


@pytest.mark.parametrize(
    "window, early, expected",
    [(0.5, 0.2, (10, 4)), (0.85, 0.0, (17, 0)), (0.0, 0.2, (0, 0)), (1.0, 1.0, (20, 20))],
)
def test_flow_ttrls_windows_count_steps(window, early, expected):
    """i < T * timestep, as the paper has it."""
    world = GaussianWorld(4, steps=20)
    settings = only_search(
        "flow_ttrl",
        budget=0,
        external_reward_timestep=window,
        internal_reward_timestep=early,
    )
    records = search(world, world.noise(), settings).records
    searched = [r.detail["objective"] for r in records if "objective" in r.detail]
    assert (len(searched), searched.count("prdp")) == expected


def test_the_papers_parameters_are_the_demos():
    """Those of its demo for SD3, but for the clip (fault 5)."""
    assert vars(FlowTTRL()) == {
        "group_size": 6,
        "rl_iterations": 2,
        "internal_reward_timestep": 0.2,
        "external_reward_timestep": 0.5,
        "noise_range": (1.5, 0.5),
        "gradient": "exact",
        "scale_factor": 500.0,
        "prdp_scale": 0.01,
        "grpo_scale": 10.0,
        "beta1": 2e-4,
        "beta2": 2e-4,
        "clip": 0.02,
        "adv_clip_max": 5.0,
        "reward_diff_threshold": 0.0,
        "rationorm": True,
    }


def test_settings_cannot_be_changed():
    settings = make_settings("glass")
    with pytest.raises(AttributeError):
        settings.budget = 3.0
    with pytest.raises(AttributeError):
        settings.parameters.inner = 2
