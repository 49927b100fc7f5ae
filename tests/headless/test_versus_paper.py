"""The comparison with the published code: what it says without one, and its figures with one."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import paper_sides
import pytest
import torch
from paper_sides import Counted, Peak, Stages
from paper_worlds import full_size_transformer, gaussian
from test_generate import ROOT
from versus_paper import _interval

from flow_ttrl.rewards.mixer import Judge
from flow_ttrl.world.diffusers import world_pipeline

REFERENCE = os.environ.get("FLOW_TTRL_REFERENCE", "")


def run(*argv: str) -> subprocess.CompletedProcess:
    code = (
        f"import sys; sys.path[:0] = [{str(ROOT / 'tests')!r}, {str(ROOT / 'benchmarks')!r}]\n"
        "import conftest, versus_paper; sys.exit(versus_paper.main())"
    )
    command = [sys.executable, "-c", code, *argv]
    return subprocess.run(command, capture_output=True, text=True)  # noqa: S603


@pytest.mark.slow
def test_a_checkout_that_is_not_there(tmp_path):
    made = run("--reference", str(tmp_path))
    assert made.returncode == 2
    assert "expected pipeline_FLUX_with_log_prob.py" in made.stderr


def test_calls_and_graphs_are_counted_per_image():
    pipe = world_pipeline("sd3")
    counted = Counted(pipe, pair=True)
    pipe(["a red circle", "a blue square"], num_inference_steps=3, output_type="latent")
    assert counted.take() == {"model_calls": 6, "backwards": 0, "calls": 6}
    assert counted.take()["model_calls"] == 0
    counted.hook.remove()


def test_a_stage_within_another_is_counted_once(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(paper_sides, "now", lambda: float(next(clock)))
    monkeypatch.setattr(Judge, "score", Judge.score)  # and so it is put back
    for name in ("grad", "backward"):
        monkeypatch.setattr(torch.autograd, name, getattr(torch.autograd, name))
    pipe = SimpleNamespace(
        transformer=SimpleNamespace(forward=lambda: 1),
        vae=SimpleNamespace(decode=lambda: pipe.transformer.forward()),
    )
    stages = Stages(pipe)
    assert pipe.vae.decode() == 1  # of 0 to 3, 1 to 2 is the model's
    x = torch.ones(1, requires_grad=True)
    x.sum().backward()
    taken = stages.take(10.0)
    assert taken == {"model": 1, "backward": 1, "decode": 2, "reward": 0, "rest": 6}
    assert stages.take(1.0)["rest"] == 1


def test_the_interval_is_of_paired_differences():
    found = _interval([0.1, 0.2, 0.3, 0.2] * 10)
    assert found["mean"] == pytest.approx(0.2)
    assert found["ci_low"] < 0.2 < found["ci_high"]
    assert found["ci_high"] - found["ci_low"] == pytest.approx(4 * 0.0707 / 40**0.5, rel=0.2)


def test_peak_memory_sees_what_is_gone_again():
    with Peak() as peak:
        torch.ones(2**25).mul_(2).sum()
    assert 0.1 < peak.gigabytes < 0.6


@pytest.mark.parametrize("arch", ["sd3", "flux"])
def test_the_exact_field_is_sampled_by_the_stock_pipeline(arch):
    pipe, reward, call = gaussian(arch)
    call |= {"num_inference_steps": 100, "output_type": "latent"}
    latents = pipe("a red fox", **call, generator=torch.Generator().manual_seed(0)).images
    assert pipe.transformer.world.band_energies(latents) == pytest.approx(1, abs=0.07)
    images = torch.rand(2, 1024, 1024, 3)
    images[1, :512] = images[1, :512] / 9  # no structure that is asked for
    scores = reward.score(images, ["a red fox"] * 2).total
    assert scores.isfinite().all() and scores[0] != scores[1]


def test_full_size_is_the_size_of_the_true_models():
    with torch.device("meta"):
        weights = {
            arch: sum(p.numel() for p in full_size_transformer(arch).parameters())
            for arch in ("sd3", "flux")
        }
    assert weights == {"sd3": pytest.approx(2.24e9, rel=0.02), "flux": pytest.approx(11.9e9, 0.01)}


@pytest.mark.slow
@pytest.mark.skipif(not REFERENCE, reason="no FLOW_TTRL_REFERENCE, a checkout")
@pytest.mark.parametrize("arch", ["sd3", "flux"])
@pytest.mark.parametrize("world", ["tiny-world", "tiny-random", "gaussian"])
def test_ours_beside_theirs(world, arch):
    before = sorted(Path(REFERENCE).rglob("*"))
    options = ("--reference", REFERENCE, "--world", world, "--arch", arch, "--quick", "--json")
    made = run(*options)
    assert made.returncode == 0, made.stderr
    told = json.loads(made.stdout)
    assert told["theirs"]["backwards"] == told["ours"]["backwards"] == 10
    assert told["ratios"].keys() == {"calls", "time", "peak_memory"}
    assert told["ratios"]["calls"] < 0.9
    assert {"mean", "ci_low", "ci_high"} == told["gain_difference"].keys()
    assert sorted(Path(REFERENCE).rglob("*")) == before
