"""The bundled models: what they are, and that they agree with their architectures."""

import pytest
import torch

from flow_ttrl.rewards import RewardMix
from flow_ttrl.sampling import sample
from flow_ttrl.world import latents
from flow_ttrl.world.bundle import FOLDER, PARTS, load
from flow_ttrl.world.diffusers import (
    build_transformer,
    build_vae,
    load_models,
    start_noise,
    world_flow,
)
from flow_ttrl.world.prompts import held_out
from flow_ttrl.world.rewards import accurate, world_reward
from flow_ttrl.world.training import Data

MEGABYTE = 1024 * 1024


def test_weights_fit_in_forty_megabytes():
    assert sum((FOLDER / f"{part}.safetensors").stat().st_size for part in PARTS) < 40 * MEGABYTE


@pytest.mark.parametrize("arch", ["sd3", "flux"])
def test_transformers_are_diffusers_own(arch):
    model = build_transformer(arch)
    expected = {k: v.shape for k, v in model.state_dict().items()}
    assert {k: v.shape for k, v in load(arch).items()} == expected


@pytest.mark.parametrize("arch", ["sd3", "flux"])
@torch.no_grad()
def test_latents_have_unit_variance_in_each_family_s_scaled_space(arch):
    _, vae = load_models(arch)
    images, _ = Data(seed=11).batch(24)
    raw = vae.encode(images * 2 - 1).latent_dist.mean
    scaled = (raw - vae.config.shift_factor) * vae.config.scaling_factor
    assert scaled.mean().abs() < 0.15
    assert scaled.std() == pytest.approx(1, abs=0.1)


@torch.no_grad()
def test_moving_latents_between_spaces_leaves_the_pictures_alone():
    state = load("vae")
    vae, moved = build_vae(), build_vae()
    vae.load_state_dict(state)
    moved.load_state_dict(latents.to_family(state, "flux"))
    images, _ = Data(seed=12).batch(2)
    one, other = (v.decode(v.encode(images * 2 - 1).latent_dist.mean).sample for v in (vae, moved))
    assert torch.allclose(one, other, atol=1e-3)


@torch.no_grad()
def test_vae_keeps_what_the_verifier_reads():
    _, vae = load_models("sd3")
    images, captions = Data(seed=13).batch(32)
    decoded = vae.decode(vae.encode(images * 2 - 1).latent_dist.mean).sample
    verdicts = accurate((decoded / 2 + 0.5).movedim(1, -1), captions)
    assert sum(verdicts) / len(verdicts) >= 0.95


@pytest.mark.parametrize("arch", ["sd3", "flux"])
@torch.no_grad()
def test_plain_samples_resemble_their_prompts(arch):
    """Far better than the same images against each other's prompts."""
    prompts = held_out("dev", 16)
    flow = world_flow(arch, prompts, RewardMix(((world_reward("verifier"), 1.0),)), 12)
    latents, item = sample(flow, start_noise(0, 16)), torch.arange(16)
    images = flow.decode(latents, item)
    right, swapped = (flow.score(i, item)["verifier"].mean() for i in (images, images.roll(2, 0)))
    assert right > swapped + 0.1


@pytest.mark.parametrize("arch", ["sd3", "flux"])
@torch.no_grad()
def test_rows_are_their_items_own(arch):
    """Velocity, images and rewards of any rows, in any order, are those of their own prompts."""
    prompts = held_out("dev", 3)
    flow = world_flow(arch, prompts, RewardMix(((world_reward("scorer"), 1.0),)), 4)
    x, order = start_noise(3, 3), torch.tensor([2, 0, 2, 1])
    whole = flow.velocity(x, 0.7, torch.arange(3))
    rows = flow.velocity(x[order], 0.7, order)
    torch.testing.assert_close(rows, whole[order], atol=1e-4, rtol=1e-3)
    images = flow.decode(x, torch.arange(3))
    scores = flow.score(images, torch.arange(3))["scorer"]
    again = flow.score(images[order], order)["scorer"]
    torch.testing.assert_close(again, scores[order], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(flow.score(images, torch.tensor([1, 2, 0]))["scorer"], scores)


def test_starting_noise_is_an_items_own():
    assert torch.equal(start_noise(5, 4)[2:], start_noise(5, 2, first=2))
    assert not torch.equal(start_noise(5), start_noise(6))


def test_models_loaded_in_inference_mode_serve_gradients_later():
    """They are kept for the process, whoever asked for them first."""
    load_models.cache_clear()
    with torch.inference_mode():
        transformer, vae = load_models("flux")
    parameters = [*transformer.parameters(), *vae.parameters()]
    load_models.cache_clear()
    assert not any(parameter.is_inference() for parameter in parameters)
