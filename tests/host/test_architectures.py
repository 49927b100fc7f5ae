"""Networks of the true architectures and widths, read by the host's own loader."""

from __future__ import annotations

import json

import pytest
import torch
from architectures import CONDITIONING, WORKFLOWS, compared, with_random_models
from test_search import saved

STEPS, BUDGET = 5, 4.0
"""The least that pays for rounds of drafts."""


@pytest.fixture(scope="module", autouse=True)
def files(server, in_host) -> dict:
    folder = server.base / "models" / "diffusion_models"
    folder.mkdir(exist_ok=True)
    return in_host("random_models.py", str(folder))


@pytest.mark.parametrize("name", CONDITIONING)
def test_search_off_is_ksampler_and_on_it_is_another_sample(server, name):
    """A block's random weights draw nothing that a search must gain on."""
    run = server.run(compared(name, STEPS, budget=BUDGET))
    assert run.status == "success", run.error
    expected, plain, found = (
        saved(server, f"{name}-{kind}") for kind in ("stock", "on-plain", "on")
    )
    assert torch.equal(plain, expected)
    assert found.shape == expected.shape
    assert found.isfinite().all()
    assert not torch.equal(found, plain)
    report = json.loads(run.text(f"{name}-on report"))
    assert report["cost"]["model_calls"] <= BUDGET * STEPS


@pytest.mark.parametrize("workflow", WORKFLOWS)
def test_workflow_runs_on_its_own_architecture(server, workflow):
    run = server.run(with_random_models(workflow, STEPS, 2.0))
    assert run.status == "success", run.error
    images = [o for output in run.history["outputs"].values() for o in output.get("images", [])]
    assert len(images) >= 2
