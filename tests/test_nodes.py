"""What of the nodes can be checked without ComfyUI."""

from __future__ import annotations

import importlib.util
from dataclasses import fields
from pathlib import Path

from flow_ttrl.sampling.strategies.flow_ttrl import FlowTTRL
from flow_ttrl.sampling.strategies.steered import Steered
from flow_ttrl.version import VERSION

TOOLTIPS = Path(__file__).resolve().parents[1] / "nodes" / "tooltips.py"


def tooltips():
    """The module by itself: its package imports ComfyUI."""
    spec = importlib.util.spec_from_file_location("tooltips", TOOLTIPS)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def names(parameters) -> set[str]:
    return {field.name for field in fields(parameters)}


def test_every_parameter_of_the_steered_strategy_has_a_tooltip():
    assert set(tooltips().STEERED) == names(Steered)


def test_the_paper_settings_show_every_parameter():
    texts = tooltips()
    assert set(texts.PAPER) | set(texts.PAPER_ADVANCED) == names(FlowTTRL) | {"beta"}
    assert not set(texts.PAPER) & set(texts.PAPER_ADVANCED)


def test_no_tooltip_is_empty():
    texts = tooltips()
    for table in (texts.PAPER, texts.PAPER_ADVANCED, texts.STEERED):
        assert all(text.endswith(".") for text in table.values())


def test_the_packs_version_is_the_packages():
    root = TOOLTIPS.parents[1]
    text = (root / "pyproject.toml").read_text("utf-8")
    assert f'version = "{VERSION}"' in text
