"""Keyed noise: a draw is fixed by seed, item, step and candidate, and by nothing else."""

import pytest
import torch
from probes import EACH, only_search

from flow_ttrl.sampling import sample, search
from flow_ttrl.sampling.noise import KeyedNoise, item_keys
from flow_ttrl.world.gaussian import GaussianWorld

SHAPE = (4, 6, 6)


def starts(items=4):
    return torch.randn(items, *SHAPE, generator=torch.Generator().manual_seed(0))


def draws(noise, *, seed=1, step=3, candidates=range(5)):
    return KeyedNoise(seed, item_keys(noise)).normal(step, candidates, noise)


def test_draws_do_not_depend_on_the_batch():
    """Neither its size, nor its order, nor which items were selected."""
    noise = starts()
    whole = draws(noise)
    assert whole.shape == (5, 4, *SHAPE)
    order = [2, 0, 3, 1]
    assert torch.equal(draws(noise[order]), whole[:, order])
    for item in range(4):
        assert torch.equal(draws(noise[item : item + 1]), whole[:, item : item + 1])


def test_draws_do_not_depend_on_what_else_is_drawn():
    noise = starts()
    whole = draws(noise)
    assert torch.equal(draws(noise, candidates=[3, 1]), whole[[3, 1]])
    keyed = KeyedNoise(1, item_keys(noise))
    keyed.normal(0, range(2), noise)
    keyed.uniform(3)
    assert torch.equal(keyed.normal(3, range(5), noise), whole)
    state = torch.get_rng_state()
    torch.manual_seed(99)
    assert torch.equal(draws(noise), whole)
    torch.set_rng_state(state)


def test_draws_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    draws(starts())
    assert torch.equal(torch.get_rng_state(), before)


def test_draws_do_not_depend_on_the_latents_layout_or_type():
    noise = starts()
    whole = draws(noise)
    assert torch.equal(draws(noise.double()), whole)
    assert torch.equal(draws(noise.transpose(2, 3).contiguous().transpose(2, 3)), whole)
    video = draws(noise[:, :, None])
    assert torch.equal(video[:, :, :, 0], whole)


def test_every_part_of_the_key_counts():
    noise = starts()
    found = [
        draws(noise),
        draws(noise, seed=2),
        draws(noise, step=4),
        draws(noise, step="3 "),
        draws(noise, candidates=range(5, 10)),
    ]
    first = {draw.flatten()[0].item() for each in found for draw in each.flatten(0, 1)}
    assert len(first) == 5 * 5 * 4


def test_items_of_equal_noise_search_alike_and_others_do_not():
    noise = starts()
    noise[1] = noise[0]
    keys = item_keys(noise)
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3
    nudged = noise[:1].clone()
    nudged[0, 0, 0, 0] += 1e-6
    assert item_keys(nudged) != keys[:1]


def test_items_without_noise_differ_by_their_row():
    """A host that adds no noise of its own gives zeros."""
    keys = item_keys(torch.zeros(3, *SHAPE))
    assert len(set(keys)) == 3
    mixed = starts()
    mixed[2] = 0
    assert item_keys(mixed)[2] == keys[2]
    assert item_keys(mixed)[:2] == item_keys(starts())[:2]


def test_draws_are_white_noise():
    many = draws(torch.ones(1, 100_000), candidates=range(2))
    assert many.dtype == torch.float32
    assert many.mean().abs() < 0.01
    assert many.std().sub(1).abs() < 0.01
    one, other = many.flatten(1)
    assert (one * other).mean().abs() < 0.015


def test_uniform_numbers_fill_the_unit_interval():
    keyed = KeyedNoise(0, item_keys(starts(200)))
    numbers = keyed.uniform("resampling 3")
    assert numbers.shape == (200,)
    assert 0 <= numbers.min() < 0.05
    assert 0.95 < numbers.max() < 1
    assert not torch.equal(numbers, keyed.uniform("resampling 6"))
    assert torch.equal(numbers[7:8], KeyedNoise(0, keyed.keys[7:8]).uniform("resampling 3"))


@EACH
def test_two_items_without_noise_are_searched_apart(strategy):
    image = GaussianWorld(8).data()
    flow = GaussianWorld(8, sigmas=GaussianWorld(8, steps=12).sigmas.tolist()[4:], image=image)
    result = search(flow, torch.zeros(2, 4, 8, 8), only_search(strategy, budget=4.0))
    assert result.latents.isfinite().all()
    if strategy == "reward_gradient":  # which draws nothing
        return
    # where no noise is added there is but one start, which some have nothing to choose from
    apart = not torch.equal(result.latents[0], result.latents[1])
    assert apart or torch.equal(result.latents, sample(flow, torch.zeros(2, 4, 8, 8)))
    assert apart == (strategy not in ("best_of_n", "drafts", "zero_order", "evolution"))


@pytest.mark.parametrize("seed", [0, 1, 2**63 - 1, 2**64 - 1])
def test_any_seed_of_a_host_will_do(seed):
    assert draws(starts(), seed=seed).isfinite().all()
